"""Scores a model of the zoo on its real task; any variant of it, for the metric sees only a callable."""

from models.tasks import task
from models.tasks.base import Feeds, Outputs, Run, Score, open_ort

__all__ = ["Feeds", "Outputs", "Run", "Score", "evaluate", "open_ort"]


def evaluate(name: str, run: Run, limit: int | None = None) -> Score:
    """The score of `run`, which takes feeds by input name and gives outputs by name or in the model's order.

    `limit` cuts the number of samples (frames at each rate for speech, batches for text and files).
    Raises ZooError when the data cannot be had here.
    """
    return task(name).evaluate(run, limit)
