"""Means and covariances of tensors along one axis, streamed over the calibration batches.

Every pixel, token or sample is one observation; a seeded part of them is taken where a batch has many. Sums are
float64. Tensors are gone through in chunks, so that memory stays bounded however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from optimizer.context import Context
from optimizer.graph import Array, Graph
from passes.prune.atoms import Floats

ROWS = 4096  # observations of one tensor in one batch at most
NUMBERS = 1 << 25  # of all covariances that are held at a time

Wanted = tuple[str, int]  # a tensor's name and an axis


@dataclass
class Moments:
    """Sums over observations x of x and of x x^T; scalars before any was seen."""

    count: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(()))
    products: Floats = field(default_factory=lambda: np.zeros(()))

    def add(self, rows: Array) -> None:
        """Takes observations [n, width] into account."""
        self.count += len(rows)
        self.sums = self.sums + rows.sum(0, dtype=np.float64)
        self.products = self.products + rows.T @ rows

    @property
    def mean(self) -> Floats:
        return self.sums / max(1, self.count)

    @property
    def covariance(self) -> Floats:
        mean = self.mean
        return self.products / max(1, self.count) - np.outer(mean, mean)

    @property
    def variance(self) -> Floats:
        return np.maximum(np.diagonal(self.products) / max(1, self.count) - np.square(self.mean), 0)

    @property
    def energy(self) -> Floats:
        """Mean of the squares."""
        return np.diagonal(self.products) / max(1, self.count)


def rows(array: Array, axis: int, rng: np.random.Generator, most: int = ROWS) -> Array:
    """Observations [n, size] of an array along an axis."""
    flat = np.moveaxis(np.asarray(array), axis, -1).reshape(-1, array.shape[axis])
    if len(flat) > most:
        flat = flat[np.sort(rng.choice(len(flat), most, replace=False))]
    return flat.astype(np.float64)


def collect(graph: Graph, wanted: Sequence[Wanted], ctx: Context) -> Iterator[tuple[Wanted, Moments]]:
    """Moments of tensors along axes, in order; one run of the model a batch and chunk."""
    chunks = list(_chunks(graph, wanted))
    for number, chunk in enumerate(chunks):
        rng = np.random.default_rng(ctx.seed)
        found = {one: Moments() for one in chunk}
        with ctx.evaluate.open(graph, list(dict.fromkeys(name for name, _ in found))) as run:
            for done, feeds in enumerate(ctx.batches):
                made = run(feeds)
                for (name, axis), moments in found.items():
                    moments.add(rows(made[name], axis, rng))
                ctx.progress("prune: statistics", number * len(ctx.batches) + done + 1, len(chunks) * len(ctx.batches))
        yield from found.items()


def _chunks(graph: Graph, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Together as many as fit; a width that is not known counts nothing."""
    tensors = graph.tensors()
    chunk: list[Wanted] = []
    size = 0
    for name, axis in wanted:
        shape = tensors[name].shape
        width = shape[axis] if shape is not None and isinstance(shape[axis], int) else 0
        if chunk and size + width * width > NUMBERS:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, axis))
        size += width * width
    if chunk:
        yield chunk
