"""Leaves the most sensitive stretches of a plan in float until the outputs are close enough.

Each stretch (a weighted unit and what follows it up to the next one) is quantised alone, in the oracle, on a few
calibration batches. Noise powers of independent roundings add up, so the worst stretches are dropped until the sum of
the rest fits the limit; then the whole is run, and more are dropped while the sum proves too hopeful.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.graph import Array, Graph
from optimizer.statistics import Statistics
from passes.quantize import static
from passes.quantize.kernels import Kind, activations
from passes.quantize.units import Plan, Unit, connected

log = logging.getLogger(__name__)
BATCHES = 4
STRETCHES = 32
HEAVY = 5e7  # activations in one batch: above, a run takes seconds, so one batch and a quarter of the stretches

Noise = Callable[[Sequence[Unit]], float]


def relieve(graph: Graph, plan: Plan, bits: int, mean: static.Mean, ctx: Context, limit: float) -> Plan:
    """The part of `plan` with which every float output keeps `limit` dB SQNR on the first batches."""
    heavy = ctx.statistics is not None and _elements(ctx.statistics) > HEAVY
    feeds = list(islice(ctx.batches, 1 if heavy else BATCHES))
    reference = _outputs(graph, ctx, feeds)

    def noise(units: Sequence[Unit]) -> float:
        """Noise over signal of the worst output with only these units in int8."""
        twin = graph.copy()
        static.render(twin, Plan(_moved(graph, twin, units), plan.params), bits, mean)
        twin.sweep()
        twin.tidy()
        return max((_ratio(r, v) for r, v in zip(reference, _outputs(twin, ctx, feeds), strict=True)), default=0.0)

    allowed = 10 ** (-limit / 10)
    if not feeds or not plan.units or noise(plan.units) <= allowed:
        return plan
    kept = _fitting(_stretches(plan.units, STRETCHES // 4 if heavy else STRETCHES), noise, allowed, ctx)
    log.info("%d of %d operators stay in float for %.0f dB", len(plan.units) - len(kept), len(plan.units), limit)
    return Plan(kept, plan.params)


def _fitting(stretches: list[list[Unit]], noise: Noise, allowed: float, ctx: Context) -> list[Unit]:
    alone: list[float] = []
    for done, stretch in enumerate(stretches, 1):
        units = connected(stretch)
        alone.append(noise(units) if units else 0.0)
        ctx.progress("sensitivity", done, len(stretches))
    worst_last = sorted(range(len(stretches)), key=lambda i: alone[i])
    while worst_last and sum(alone[i] for i in worst_last) > allowed:
        worst_last.pop()
    while worst_last:
        kept = connected([u for i in sorted(worst_last) for u in stretches[i]])
        if not kept or noise(kept) <= allowed:
            return kept
        del worst_last[-max(1, len(worst_last) // 8) :]
    return []


def _elements(statistics: Statistics) -> float:
    """Elements of all observed tensors in one batch."""
    return sum(h.size / max(1, h.batches) for h in statistics.values())


def _stretches(units: list[Unit], most: int) -> list[list[Unit]]:
    """Units cut before each weighted one, neighbours joined until there are at most `most`."""
    found: list[list[Unit]] = [[]]
    for unit in units:
        if unit.kind is Kind.WEIGHTED and found[-1]:
            found.append([])
        found[-1].append(unit)
    per = -(-len(found) // most)
    return [[u for stretch in found[i : i + per] for u in stretch] for i in range(0, len(found), per)]


def _moved(graph: Graph, twin: Graph, units: Sequence[Unit]) -> list[Unit]:
    """The same units on a copy of the graph."""
    twins = {id(node): other for node, other in zip(graph.nodes, twin.nodes, strict=True)}
    made = []
    for unit in units:
        node = twins[id(unit.node)]
        inputs = [node.inputs[i] for i in activations(twin, node, unit.kind)]
        made.append(Unit(node, unit.kind, inputs, [twins[id(n)] for n in unit.absorbed], unit.view))
    return made


def _outputs(graph: Graph, ctx: Context, feeds: Sequence[Feeds]) -> list[list[Array]]:
    """Float outputs, each as one array per batch."""
    names = [t.name for t in graph.outputs]
    with ctx.evaluate.open(graph) as run:
        found = [run(feed) for feed in feeds]
    arrays = [[np.asarray(f[name]) for f in found] for name in names]
    return [batches for batches in arrays if batches and batches[0].dtype.kind == "f"]


def _ratio(reference: list[Array], values: list[Array]) -> float:
    signal = sum(float((r.astype(np.float64) ** 2).sum()) for r in reference)
    noise = sum(float(((r.astype(np.float64) - v) ** 2).sum()) for r, v in zip(reference, values, strict=True))
    return noise / signal if signal else 0.0
