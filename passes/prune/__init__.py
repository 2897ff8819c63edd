"""Structured pruning: channels, heads and hidden units that matter least are removed, and the rest makes up for them.

1. `coupling` finds which channels live or die together, from the operators' axes alone; `atoms` is its algebra.
2. `importance` scores them, `select` takes the cheapest for what they save (`cost`), in a few steps.
3. `shrink` cuts the model down; by the oracle, `masked`, it computes what the original does without what they add.
4. `recover` fits what is left to the original's activations, layer by layer, on calibration data without labels.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.targets import Target
from passes.dequantize import OPERATORS as INTEGER
from passes.prune.atoms import Atom, Bools, freeze, leaves
from passes.prune.cost import Cost, Part, latencies, multiplications, parameters
from passes.prune.coupling import Coupling, couple, free
from passes.prune.importance import BY_DATA, Criterion, importance
from passes.prune.masked import approximate, verify
from passes.prune.propagation import reaches
from passes.prune.reconstruction import MATRICES, RIDGES
from passes.prune.recover import Step, recover, strayed
from passes.prune.select import Limits, Search, classes, limits, masks
from passes.prune.shrink import Kept, shrink
from passes.quantize.sensitivity import scores as scores_of

log = logging.getLogger(__name__)
STEPS = 4
PATIENCE = 300.0  # seconds, after which no other selection is tried
OFF = 0.05  # of the ratio, beyond which the result is worth a word
SEEN = 2  # feeds that the oracle compares
REASONS = 3  # of what is frozen, in a message


@dataclass(frozen=True)
class Prune(Pass):
    """Options of `prune`.

    `ratio` of the model's multiply-accumulates, parameters or measured latency (`of`) goes. `criterion` auto is
    reconstruction where there is data, else l2. `round`: widths stay multiples of it; 0 takes what suits the target,
    and finer steps where the ratio cannot be met in those. `steps`: importance is estimated anew so often; 0 is once
    for reconstruction, which takes units one after the other anyway, else four times. `max`: the share of a group that
    may go. `skip` names nodes or tensors whose channels stay. `approximate` allows channels that a LayerNormalization
    or a mean takes a statistic over: what is left changes a little then. `recover`: least squares on calibration data,
    unless that is random.
    """

    name: ClassVar[str] = "prune"
    lossy: ClassVar[bool] = True
    ratio: float = 0.3
    of: Literal["macs", "params", "latency"] = "macs"
    scope: Literal["global", "layer", "isomorphic"] = "global"
    criterion: Criterion = "auto"
    round: int = 0
    steps: int = 0
    max: float = 0.9
    skip: tuple[str, ...] = ()
    approximate: bool = False
    recover: bool = True

    def __post_init__(self) -> None:
        """Checks values the grammar cannot."""
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio:g} is the share that goes: give a number between 0 and 1, such as 0.3")
        if not 0 < self.max < 1:
            raise ValueError(f"max={self.max:g} is the share of a group that may go: between 0 and 1, such as 0.9")
        if self.round < 0 or self.steps < 0:
            raise ValueError("round and steps are 0 or more")

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many units went. Raises PipelineError where the ratio cannot be reached: what is frozen."""
        coupling = couple(graph, self.skip)
        if not self.approximate:
            hold_statistics(coupling)
        grain = self.round or multiple(ctx.target)
        cost = Cost(self._parts(coupling, ctx, grain))
        atoms = groups(coupling, cost)
        if not atoms:
            raise PipelineError(f"'prune' finds nothing that it may remove: {frozen(coupling)}")
        criterion = self.criterion
        if criterion == "auto":
            criterion = "reconstruction" if len(ctx.batches) and not ctx.synthetic else "l2"
        bounds = limits(coupling, atoms, grain, self.max, strict=self.round > 0)
        search = _Search(self, graph, coupling, cost.parts, atoms, bounds, criterion, ctx)
        best = min(search.trials(), key=lambda trial: trial.error)
        report = self._report(best, criterion)  # while the coupling's graph is what it was
        graph.become(best.pruned)
        graph.reports["pruning"] = report
        if ctx.statistics:
            ctx.statistics.clear()
        return sum(int((~mask).sum()) for mask in best.old.keep.values())

    def _parts(self, coupling: Coupling, ctx: Context, grain: int) -> Sequence[Part]:
        if self.of == "params":
            return parameters(coupling)
        return latencies(coupling, ctx, grain) if self.of == "latency" else multiplications(coupling, ctx)

    def _report(self, made: Trial, criterion: str) -> dict[str, Any]:
        """The manifest's `pruning`."""
        gone, old = 1 - made.cost.total / made.cost.whole, made.old
        log.info("%.1f%% of %s went, from %d groups", 100 * gone, self.of, len(old.keep))
        if abs(gone - self.ratio) > OFF * self.ratio:
            log.warning(
                "%.1f%% of %s went, not %.1f%%: blocks of units are that large", 100 * gone, self.of, 100 * self.ratio
            )
        return {
            "of": self.of,
            "ratio": round_(gone),
            "criterion": criterion,
            "approximate": approximate(old),
            "groups": [
                {"units": atom.size, "kept": int(mask.sum()), "layers": layers_of(old.coupling, atom)}
                for atom, mask in old.keep.items()
            ],
            "recovered": [
                {"node": s.node, "before": round_(s.before), "after": round_(s.after)} for s in made.recovered if s.kept
            ],
        }


@dataclass(frozen=True)
class Trial:
    """One selection of units, removed and recovered. `error`: noise over signal of the outputs on held-out batches."""

    cost: Cost
    old: Kept
    pruned: Graph
    recovered: Sequence[Step]
    error: float


@dataclass
class _Search:
    """What selections of one run share."""

    options: Prune
    graph: Graph
    coupling: Coupling
    parts: Sequence[Part]
    atoms: Sequence[Atom]
    bounds: Limits
    criterion: Criterion
    ctx: Context

    def trials(self) -> Iterator[Trial]:
        """One; of reconstruction one for each trust in the data, as long as that takes no time to speak of.

        Held-out batches tell which one is better: a selection that believes what little data says, or another.
        """
        by_data = self.criterion == "reconstruction" and len(self.ctx.batches) > 0
        reach = _reaches(self.graph, self.ctx) if by_data else {}
        start = time.perf_counter()
        for ridge in RIDGES if by_data else RIDGES[:1]:
            if time.perf_counter() - start > PATIENCE:
                return
            yield self._trial(ridge, reach, compared=by_data)

    def _trial(self, ridge: float, reach: Mapping[str, float], compared: bool) -> Trial:
        ctx, cost = self.ctx, Cost(self.parts)
        old = Kept(self.coupling, self._choose(cost, ridge, reach))
        original = self.graph.copy()
        pruned = _cut(original, old, ctx)
        fits = self.options.recover and len(ctx.batches) and not ctx.synthetic
        recovered = recover(original, pruned, old, ctx) if fits else []
        error = strayed(original, pruned, ctx) if compared else 0.0
        log.info("trusting the data %s: error %.3g", "less" if ridge == RIDGES[0] else "more", error)
        return Trial(cost, old, pruned, recovered, error)

    def _choose(self, cost: Cost, ridge: float, reach: Mapping[str, float]) -> dict[Atom, Bools]:
        """What is kept of each group that loses units. Raises PipelineError where the ratio cannot be reached."""
        asked, atoms = self.options, self.atoms
        steps = asked.steps or (1 if self.criterion == "reconstruction" else STEPS)
        keep, current = dict[Atom, Bools](), self.graph
        for step in range(1, steps + 1):
            old = Kept(self.coupling, keep)
            scores = importance(self.criterion, current, old, atoms, self.ctx, reach, ridge)
            order = {a: np.sort(scores[a][keep[a]] if a in keep else scores[a]) for a in atoms}
            search = Search(cost, self.bounds, order, self.criterion in BY_DATA)
            target = cost.whole * (1 - asked.ratio * step / steps)
            if asked.scope == "global":
                done = search.take(target, step == steps)
            else:
                together = [[a] for a in atoms] if asked.scope == "layer" else classes(self.coupling, atoms)
                done = search.take_evenly(target, together, step == steps)
            keep = masks(atoms, scores, keep, cost)
            if step < steps:
                current = _cut(self.graph, Kept(self.coupling, keep), self.ctx)
        if not done:
            most = 1 - cost.total / cost.whole
            raise PipelineError(
                f"'prune' cannot remove {asked.ratio:.0%} of {asked.of}, {most:.0%} at most: {frozen(self.coupling)}; "
                "give a smaller ratio, or a larger max"
            )
        return keep


def _cut(original: Graph, old: Kept, ctx: Context) -> Graph:
    """The original without what is not kept, checked by the oracle where that is asked for."""
    pruned = original.copy()
    shrink(pruned, old)
    if ctx.verify:
        equal = verify(original, pruned, old, ctx.evaluate, list(islice(ctx.batches, SEEN)))
        log.info("the pruned model equals the masked one %s", equal)
    return pruned


def _reaches(graph: Graph, ctx: Context) -> dict[str, float]:
    return reaches(graph, [n.name for n in graph.nodes if n.op in MATRICES], scores_of(graph), ctx)


def round_(number: float) -> float:
    return float(f"{number:.6g}")


def layers_of(coupling: Coupling, atom: Atom) -> list[str]:
    """Names of the operators whose weights have the group as an axis."""
    terms = ((node.name, term) for node, _, w in coupling.weights() for term in coupling.axes[w.name])
    return list(dict.fromkeys(name for name, term in terms if term is not None and atom in free(term)))


def multiple(target: Target) -> int:
    """What widths should be multiples of: 32 for int8 on tensor cores, 16 for u8s8 on the CPU, 8 for anything else."""
    if target.precision == "int8":
        return 32
    return 16 if target.name == "ort-int8" else 8


def hold_statistics(coupling: Coupling) -> None:
    """Keeps what a LayerNormalization or a mean is taken over."""
    for place in coupling.statistics:
        node = coupling.node(place.node)
        term = coupling.term(node.inputs[place.position], place.axis)
        if term is not None:
            freeze(term, f"{node.op} '{node.name}' takes a statistic over it (approximate=true allows it)")


def groups(coupling: Coupling, cost: Cost) -> list[Atom]:
    """The atoms that may lose indices, and save something by it, in the order of the graph."""
    found: dict[Atom, None] = {}
    for _, _, constant in coupling.weights():
        for term in coupling.axes[constant.name]:
            found |= dict.fromkeys(free(term) if term is not None else ())
    return [atom for atom in found if atom in cost.readers]


def frozen(coupling: Coupling) -> str:
    """The commonest reasons why weights' axes stay, in one line."""
    reasons: Counter[str] = Counter()
    for _, _, constant in coupling.weights():
        for term in coupling.axes[constant.name]:
            reasons.update(a.frozen for a in leaves(term) if a.frozen and a.size > 1) if term is not None else None
    told = [reason for reason, _ in reasons.most_common() if "slides over it" not in reason][:REASONS]
    integer = [n.op for n in coupling.graph.nodes if (n.domain or "", n.op) in INTEGER]
    if not told and integer:
        return f"weights are in integer operators ({integer[0]}): put 'dequantize' before it in --passes"
    return "; ".join(told) or "no operator with weights has channels of its own"
