"""Inputs for each model of the zoo: what to calibrate with, and one of the shape that latency is measured at.

None of these is among the samples that models/metrics.py scores.
"""

from models.tasks import task
from models.tasks.base import Feeds


def calibration(name: str, count: int) -> list[Feeds]:
    """`count` real inputs, each a feed (input name -> array); shapes vary where the model's do.

    Raises ZooError when the data cannot be had here, ValueError when there are fewer than `count`.
    """
    return task(name).calibration(count)


def typical(name: str) -> Feeds:
    """One real input of a fixed, usual shape with batch 1, for latency."""
    return task(name).typical()
