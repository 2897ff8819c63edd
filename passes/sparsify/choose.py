"""Which weights of a layer are zeroed: those with the lowest scores, of the whole layer or of each four in a row.

Scores are |w| (magnitude), |w| times the root of the mean square of the input it is multiplied with (activation: Sun
et al., A Simple and Effective Pruning Approach for Large Language Models, 2023), or random numbers, to compare with.
A weight that is zero already goes first, so what is sparse enough stays as it is.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array


def scores(matrices: Array, squares: Array | None, rng: np.random.Generator | None) -> Array:
    """The score of each weight, -1 for zeros. `squares` of the inputs, [group, columns], make it `activation`."""
    found = np.abs(matrices) if rng is None else rng.random(matrices.shape, np.float32)
    if squares is not None:
        found = found * np.sqrt(squares)[:, None]
    return np.where(matrices == 0, -1, found)


def lowest(found: Array, ratio: float) -> Array:
    """True for a share of all weights; among equals the first."""
    return first_lowest(found.reshape(-1), target(found.size, ratio)).reshape(found.shape)


def target(size: int, ratio: float) -> int:
    """How many of so many weights are zeroed."""
    return round(size * ratio)


def first_lowest(found: Array, count: int) -> Array:
    """True for the `count` lowest of a vector; among equals the first, so that every machine takes the same."""
    if count == 0:
        return np.zeros(len(found), bool)
    limit = np.partition(found, count - 1)[count - 1]
    chosen: Array = found < limit
    equal = np.flatnonzero(found == limit)
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    return chosen


def two_of_four(found: Array, channels: int) -> Array:
    """True for two of each four neighbouring channels at the same place of the kernel; [group, outputs, columns]."""
    fours = found.reshape(*found.shape[:2], channels // 4, 4, -1)
    order = np.argsort(fours, axis=3, kind="stable")
    chosen = np.zeros(fours.shape, bool)
    np.put_along_axis(chosen, order[..., :2, :], True, axis=3)
    return chosen.reshape(found.shape)
