"""Boxes found against boxes known: overlap, matching, suppression, F1 and average precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.tasks.drawing import Box

Found = tuple[float, bool]  # a box's score, and whether it matched


@dataclass(frozen=True)
class Scored:
    score: float
    box: Box


def overlap_of(left: Box, right: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(left) + _area(right) - width * height)


def clear_of(box: Box, others: Sequence[Box]) -> bool:
    return all(overlap_of(box, other) == 0 for other in others)


def widened(box: Box, by: float) -> Box:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def matches(predicted: Sequence[Box], truth: Sequence[Box], least: float = 0.5) -> list[bool]:
    """Whether each box, in its order, overlaps its nearest free truth by `least`, and so takes it."""
    free, hits = dict(enumerate(truth)), []
    for box in predicted:
        best = max(free, key=lambda index: overlap_of(box, free[index]), default=None)
        hit = best is not None and overlap_of(box, free[best]) >= least
        if hit and best is not None:
            del free[best]
        hits.append(hit)
    return hits


def suppress(boxes: np.ndarray, scores: np.ndarray, least: float, overlap: float) -> list[Scored]:
    """Boxes [n, 4] scored above `least`, best first, each overlapping no better one by `overlap`."""
    kept: list[Scored] = []
    for index in scores.argsort()[::-1]:
        if scores[index] <= least:
            break
        left, top, right, bottom = (float(edge) for edge in boxes[index])
        box = (left, top, right, bottom)
        if all(overlap_of(box, other.box) < overlap for other in kept):
            kept.append(Scored(float(scores[index]), box))
    return kept


def f1(hits: int, found: int, truth: int) -> float:
    return 2 * hits / (found + truth)


def average_precision(ranked: Sequence[Found], truth: int) -> float:
    """Area under precision over recall, precision made monotone (PASCAL VOC 2010)."""
    if not ranked:
        return 0.0
    hits = np.array([hit for _, hit in sorted(ranked, key=lambda found: -found[0])])
    true = hits.cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / truth)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
