"""Accuracy of a variant of fashion.onnx on 1,000 test images: `--metric models/fashion/metric.py:accuracy`.

The variant is given as a callable, so the same number can be had of a float or an int8 model.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

TEST = Path(__file__).with_name("test.npz")
BATCH = 50

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def accuracy(run: Run, limit: int | None = None) -> float:
    """Share of the test images (of the first `limit`), 0 to 1, whose highest score is their label.

    `run` takes {"image": float32 [n, 1, 28, 28], values 0 to 1} and returns {"scores": float32 [n, 10]}.
    """
    with np.load(TEST) as test:
        images, labels = test["images"][:limit], test["labels"][:limit]
    right = 0
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        scores = run({"image": images[part, None].astype(np.float32) / 255})["scores"]
        right += int((scores.argmax(axis=1) == labels[part]).sum())
    return right / len(images)
