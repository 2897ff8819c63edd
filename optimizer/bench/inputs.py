"""What is timed: feeds as they came, or rows of them put together to the batch sizes asked for.

The batch is the unknown dim that the first input starts with; an input has it where a dim of its own has that name
(unnamed: where it starts with an unknown dim). Other sizes stay as they are, so rows of one size come together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from optimizer.bench.rounds import Setting
from optimizer.data import Input
from optimizer.errors import UserError
from optimizer.evaluate import Feeds

Axes = Mapping[str, int]


def batch_axes(inputs: Mapping[str, Input]) -> Axes:
    """The axis of each input that counts examples; empty where the model's batch is fixed."""
    first = next((i.shape[0] for i in inputs.values() if i.shape), 1)
    if isinstance(first, int):
        return {}
    found = {}
    for name, want in inputs.items():
        dims = list(want.shape or ())
        if first is None:
            dims = [dim if place == 0 else 1 for place, dim in enumerate(dims)]
        if first in dims:
            found[name] = dims.index(first)
    return found


def settings(
    feeds: Sequence[Feeds], inputs: Mapping[str, Input], batches: Sequence[int], callers: Sequence[int]
) -> dict[Setting, list[Feeds]]:
    """Feeds by setting; no `batches`: as they came. Raises UserError for a batch that the model cannot take."""
    axes = batch_axes(inputs)
    sizes: dict[int, list[Feeds]] = {}
    if not batches:
        sizes[natural(feeds[0], axes)] = list(feeds)
    for size in batches:
        if not axes and size != 1:
            raise UserError(f"--batch {size}: the model's batch is fixed, so leave --batch out")
        sizes[size] = batched(feeds, axes, size) if axes else list(feeds)
    return {Setting(size, count): made for size, made in sizes.items() for count in callers or [1]}


def natural(feed: Feeds, axes: Axes) -> int:
    """How many examples a feed holds; 1 where that cannot be told."""
    return next((int(np.shape(feed[name])[axis]) for name, axis in axes.items() if name in feed), 1)


def batched(feeds: Sequence[Feeds], axes: Axes, size: int) -> list[Feeds]:
    """As many feeds as there were, each of `size` rows in the order they came, of those that fit the first row."""
    rows = [row for feed in feeds for row in _rows(feed, axes)]
    alike = [row for row in rows if _sizes(row) == _sizes(rows[0])]
    source = cycle(alike)
    return [_joined(list(islice(source, size)), axes) for _ in range(min(len(feeds), len(alike)))]


def _rows(feed: Feeds, axes: Axes) -> Iterable[Feeds]:
    for place in range(natural(feed, axes)):
        yield {
            name: np.take(array, [place], axes[name]) if name in axes else np.asarray(array)
            for name, array in feed.items()
        }


def _sizes(row: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in row.items()}


def _joined(rows: Sequence[Feeds], axes: Axes) -> Feeds:
    return {
        name: np.concatenate([row[name] for row in rows], axes[name]) if name in axes else array
        for name, array in rows[0].items()
    }
