"""Leaves the most sensitive parts of a model in float until the outputs are close enough.

Each stretch (some operators in a row) is quantised alone, in the oracle, on a few calibration batches. Noise powers of
independent roundings add up, so stretches are dropped, the noisiest for their cost first, until the sum of the rest
fits the limit; then the whole is run, and more are dropped while the sum proves too hopeful. What the operators are,
and how they are written in int8, is the caller's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.graph import Array, Graph
from optimizer.statistics import Statistics

log = logging.getLogger(__name__)
WORK = 1e10  # activations computed in measuring, about: one or two minutes
BATCHES = 16
STRETCHES = (8, 64)  # at least, at most
ROUNDS = 8
SOFTMAX = ("LogSoftmax", "Softmax")
SHAPING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # may stand behind it

U = TypeVar("U")
Draw = Callable[[Sequence[U]], Graph | None]  # a copy of the graph with these units in int8; None where none can be


@dataclass(frozen=True)
class Relief(Generic[U]):
    """The units that stay in int8, and those that do not, each with the SQNR in dB of its stretch alone."""

    kept: list[U]
    dropped: list[tuple[U, float]] = field(default_factory=list)


def relieve(
    graph: Graph,
    units: Sequence[Sequence[U]],
    draw: Draw[U],
    ctx: Context,
    limit: float,
    names: Sequence[str] = (),
    cost: Callable[[U], float] = lambda unit: 1.0,
) -> Relief[U]:
    """Chooses among `units`, in execution order and not to be parted, so that every float output keeps `limit` dB SQNR.

    That is on the first batches. `names` are tensors to look at instead of the outputs, `cost` is what a unit in float
    costs in speed.
    """
    if not units:
        return Relief([])
    runs = min(len(units), STRETCHES[1])
    each = _elements(ctx.statistics) if ctx.statistics is not None else 0.0
    most = int(WORK / max(1.0, each * runs))
    feeds = list(islice(ctx.batches, min(BATCHES, max(1, most))))
    parts = _stretches(units, max(STRETCHES[0], min(runs, int(WORK / max(1.0, each * len(feeds))))))
    names = names or [t.name for t in graph.outputs]
    reference = _outputs(graph, names, ctx, feeds)

    def noise(part: Sequence[U]) -> float:
        """Noise over signal of the worst output with only these units in int8."""
        twin = draw(part)
        if twin is None:
            return 0.0
        twin.sweep()
        twin.tidy()
        found = _outputs(twin, names, ctx, feeds)
        return max((_ratio(r, v) for r, v in zip(reference, found, strict=True)), default=0.0)

    allowed = 10 ** (-limit / 10)
    every = [unit for together in units for unit in together]
    if not feeds or not every or noise(every) <= allowed:
        return Relief(every)
    alone: list[float] = []
    for done, part in enumerate(parts, 1):
        alone.append(noise(part))
        ctx.progress("sensitivity", done, len(parts))
    costs = [sum(map(cost, part)) for part in parts]
    kept = _fitting(alone, costs, allowed, lambda chosen: noise([u for i in sorted(chosen) for u in parts[i]]))
    dropped = [(u, _decibel(alone[i])) for i, part in enumerate(parts) if i not in kept for u in part]
    log.info("%d of %d operators stay in float for %.0f dB", len(dropped), len(every), limit)
    return Relief([u for i in sorted(kept) for u in parts[i]], dropped)


def _fitting(
    alone: Sequence[float], costs: Sequence[float], allowed: float, noise: Callable[[set[int]], float]
) -> set[int]:
    """Which parts to keep: the budget for their sum shrinks by as much as the whole of them overruns `allowed`."""
    budget = allowed
    for _ in range(ROUNDS):
        kept = _within(alone, costs, budget)
        if not kept or (found := noise(kept)) <= allowed:
            return kept
        left = sum(alone[i] for i in kept)
        budget = min(budget, left) * min(allowed / found, 0.9)
    return set()


def _within(alone: Sequence[float], costs: Sequence[float], budget: float) -> set[int]:
    """Drops what is noisiest for its cost until the sum of the rest fits; what fits after all comes back."""
    kept = sorted(range(len(alone)), key=lambda i: alone[i] / max(costs[i], 1e-30))
    gone: list[int] = []
    while kept and sum(alone[i] for i in kept) > budget:
        gone.append(kept.pop())
    for i in sorted(gone, key=lambda i: -costs[i]):
        if sum(alone[k] for k in kept) + alone[i] <= budget:
            kept.append(i)
    return set(kept)


def scores(graph: Graph) -> list[str]:
    """The float outputs; instead of class probabilities, which hide an error until it flips one, what they are of."""
    found = []
    for tensor in graph.outputs:
        before = tensor
        while before.inputs and before.inputs[0].op in (*SOFTMAX, *SHAPING):
            node = before.inputs[0]
            before = node.inputs[0]
            if node.op in SOFTMAX:
                tensor = before
                break
        found.append(tensor.name)
    return list(dict.fromkeys(found))


def _decibel(ratio: float) -> float:
    return -10 * math.log10(ratio) if ratio else math.inf


def _elements(statistics: Statistics) -> float:
    """Elements of all observed tensors in one batch."""
    return sum(h.size / max(1, h.batches) for h in statistics.values())


def _stretches(units: Sequence[Sequence[U]], most: int) -> list[list[U]]:
    """Neighbours joined until there are at most `most`."""
    per = -(-len(units) // most)
    return [[u for together in units[i : i + per] for u in together] for i in range(0, len(units), per)]


def _outputs(graph: Graph, names: Sequence[str], ctx: Context, feeds: Sequence[Feeds]) -> list[list[Array]]:
    """The float ones of these tensors, each as one array per batch."""
    with ctx.evaluate.open(graph, names) as run:
        found = [run(feed) for feed in feeds]
    arrays = [[np.asarray(f[name]) for f in found] for name in names]
    return [batches for batches in arrays if batches and batches[0].dtype.kind == "f"]


def _ratio(reference: list[Array], values: list[Array]) -> float:
    signal = sum(float((r.astype(np.float64) ** 2).sum()) for r in reference)
    noise = sum(float(((r.astype(np.float64) - v) ** 2).sum()) for r, v in zip(reference, values, strict=True))
    ratio = noise / signal if signal else 0.0
    return ratio if math.isfinite(ratio) else math.inf
