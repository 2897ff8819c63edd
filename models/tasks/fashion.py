"""The committed Fashion-MNIST model's feeds and metric, in the form that the zoo's other tasks have."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.fashion.metric import accuracy
from models.tasks.base import Feeds, Run, Score, arrays

CALIBRATION = Path(__file__).parent.parent / "fashion" / "calib"


@dataclass(frozen=True)
class Fashion:
    metric: str = "top-1 on 1000 test images"

    def calibration(self, count: int) -> list[Feeds]:
        """Single training images, 64 at most."""
        files = sorted(CALIBRATION.glob("*.npz"))
        images = np.concatenate([np.load(file)["image"] for file in files])
        if count > len(images):
            raise ValueError(f"fashion: {count} calibration inputs asked for, {len(images)} can be had")
        return [{"image": images[i : i + 1]} for i in range(count)]

    def typical(self) -> Feeds:
        return self.calibration(1)[0]

    def evaluate(self, run: Run, limit: int | None = None) -> Score:
        value = accuracy(lambda feeds: {"scores": arrays(run(feeds))[0]}, limit)
        return Score(self.metric, value, limit or 1000)


TASKS = {"fashion": Fashion()}
