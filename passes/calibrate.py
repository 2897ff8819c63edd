"""Runs the float graph over the calibration batches and keeps a histogram of every tensor that int8 may need.

One batch at a time; tensors are fetched in groups of bounded size, so that peak memory depends neither on the number of
batches nor on how many tensors a large model has. Statistics that already hold every tensor are not made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.shapes import infer
from optimizer.statistics import Digest, Statistics
from passes.quantize.kernels import is_quantized
from passes.quantize.placement import observed

log = logging.getLogger(__name__)
GROUP = 512 << 20  # bytes of activations fetched in one run


@dataclass(frozen=True)
class Calibrate(Pass):
    """Fills `ctx.statistics`; never changes the graph."""

    name: ClassVar[str] = "calibrate"

    def run(self, graph: Graph, ctx: Context) -> int:
        """Raises PipelineError where there is nothing to calibrate with."""
        statistics = ctx.statistics
        if statistics is None:
            raise PipelineError("'calibrate' has nowhere to put statistics: the context holds none")
        names = [] if is_quantized(graph) else observed(graph)
        if all(name in statistics for name in names):
            return 0
        if not len(ctx.batches):
            raise PipelineError("'calibrate' needs data: give some with --data")
        statistics.clear()
        _collect(graph, ctx, names, statistics)
        return 0


def _collect(graph: Graph, ctx: Context, names: list[str], statistics: Statistics) -> None:
    digest = Digest()
    groups = _groups(graph, names, next(iter(ctx.batches)))
    for place, group in enumerate(groups):
        with ctx.evaluate.open(graph, group) as run:
            for number, feeds in enumerate(ctx.batches):
                if place == 0:
                    digest.add(feeds)
                for name, values in run(feeds).items():
                    if np.asarray(values).dtype == np.float32:
                        statistics.add(name, values)
                ctx.progress("calibrate", place * len(ctx.batches) + number + 1, len(groups) * len(ctx.batches))
    statistics.batches = len(ctx.batches)
    statistics.data = digest.hexdigest()
    log.info("calibrated %d tensors on %d batches", len(statistics), statistics.batches)


def _groups(graph: Graph, names: list[str], feeds: Mapping[str, object]) -> list[list[str]]:
    """Cuts `names` so that one run fetches about GROUP bytes at most, by the shapes of the first batch."""
    twin = graph.copy()
    infer(twin)
    known: dict[str, int] = {}
    for tensor in twin.inputs:
        for dim, size in zip(tensor.shape or [], np.shape(np.asarray(feeds.get(tensor.name, 0))), strict=False):
            if isinstance(dim, str):
                known[dim] = size
    tensors, groups, room = twin.tensors(), [list[str]()], GROUP
    for name in names:
        dims = tensors[name].shape or []
        size = 4 * int(np.prod([d if isinstance(d, int) else known.get(d, 1) for d in dims if d is not None]))
        if groups[-1] and size > room:
            groups.append([])
            room = GROUP
        groups[-1].append(name)
        room -= size
    return groups
