"""Decides what runs in int8: which operators, in which chains, with which scales. Edits nothing.

Starts from every operator that has a kernel and takes away until nothing changes: operators whose inputs do not come
as integers, tails that feed no convolution, tensors whose own histogram says that 8 bits lose too much, and regions
whose borders cost more than their dot products save. Costs are nanoseconds per element, measured with one thread on
AVX512-VNNI; only their ratios matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute
from optimizer.statistics import Histogram
from passes.quantize.kernels import Kind, activations, affine, bounds, dots, gated, kind

SAVED_PER_DOT = 0.015
BORDER = 0.6
POINTWISE = 0.3
LONGEST_CUT = 40  # units tried for removal at either end of a region
OVERHEAD = 2000.0  # per extra operator, whatever its size
SIGMOID_LEVELS = 256.0


Codes = np.dtype[np.uint8] | np.dtype[np.int8]


def ends(dtype: Codes) -> tuple[int, int]:
    """The lowest and the highest code."""
    return (0, 255) if dtype == np.uint8 else (-128, 127)


@dataclass(frozen=True)
class Params:
    """value = scale * (code - zero); codes are `dtype`."""

    scale: float
    zero: int
    dtype: Codes

    @property
    def low(self) -> float:
        return self.scale * (ends(self.dtype)[0] - self.zero)

    @property
    def high(self) -> float:
        return self.scale * (ends(self.dtype)[1] - self.zero)

    def before(self, a: float, b: float) -> Params:
        """The same codes read as x, where these parameters read y = a x + b."""
        return Params(self.scale / a, self.zero + round(b / self.scale), self.dtype)


def fit(low: float, high: float, dtype: Codes) -> Params:
    """Asymmetric parameters for [low, high], which must contain 0: exactly 0 has a code, and 0 at an end is an end."""
    first, last = ends(dtype)
    scale = float(np.float32(max((high - low) / (last - first), 1e-10)))
    return Params(scale, int(np.clip(round(first - low / scale), first, last)), dtype)


def gate(graph: Graph, node: Node, dtype: Codes) -> tuple[Params, Params]:
    """How HardSigmoid (alone, or inside HardSwish) is stored and how it is read: x clipped to the slope, then [0, 1].

    The top code would read as 1 + 1/steps; a scale a quarter step smaller halves the error at both ends.
    """
    alpha, beta = (1 / 6, 0.5) if node.op == "HardSwish" else (attribute(graph, node, n) for n in ("alpha", "beta"))
    first, steps = ends(dtype)[0], int(255 * beta)
    stored = Params(float(np.float32(beta / (alpha * steps))), first + steps, dtype)
    return stored, Params(float(np.float32(beta / (steps + 0.25))), first, dtype)


@dataclass(eq=False)
class Unit:
    """One operator in int8, with the clamp or the scalar arithmetic behind it that its output range absorbs."""

    node: Node
    kind: Kind
    inputs: list[Tensor]
    absorbed: list[Node] = field(default_factory=list)
    view: tuple[float, float] = (1.0, 0.0)

    @property
    def result(self) -> Tensor:
        return self.absorbed[-1].outputs[0] if self.absorbed else self.node.outputs[0]

    @property
    def results(self) -> list[Tensor]:
        return [self.result] if self.absorbed else list(self.node.outputs)

    @property
    def nodes(self) -> list[Node]:
        return [self.node, *self.absorbed]


@dataclass(frozen=True)
class Choice:
    """What the caller asked for. `floor`: least SQNR in dB that a tensor must keep on its own in 8 bits."""

    dtype: Codes
    method: str = "minmax"
    methods: Mapping[str, str] = field(default_factory=dict)
    percentile: float = 99.99
    floor: float = 0.0
    matmul: bool = False
    skip: Collection[str] = ()


@dataclass(frozen=True)
class Plan:
    """Units in execution order and parameters by tensor name, for results and for tensors entering from float."""

    units: list[Unit]
    params: dict[str, Params]


def plan(graph: Graph, statistics: Mapping[str, Histogram], choice: Choice) -> Plan:
    """What to render of the outermost scope; nothing where nothing pays."""
    units = [u for node in graph.nodes if (u := _unit(graph, node, statistics, choice)) is not None]
    _absorb(graph, units, choice)
    while True:
        params = _params(graph, units, statistics, choice)
        kept = [u for u in units if _good(graph, u, params, statistics, choice)]
        kept = _connected(kept)
        kept = _paying(graph, kept, statistics)
        if len(kept) == len(units):
            return Plan(kept, params)
        units = kept


def observed(graph: Graph) -> list[str]:
    """The tensors whose ranges rendering may need: activations around every operator that has an int8 form."""
    names: dict[str, None] = {}
    for node in graph.nodes:
        how = kind(graph, node, matmul=True)
        if how is None:
            continue
        tensors = [node.inputs[i] for i in activations(graph, node, how)] + list(node.outputs)
        names.update((t.name, None) for t in tensors if t.name and not graph.is_constant(t))
    return list(names)


def _unit(graph: Graph, node: Node, statistics: Mapping[str, Histogram], choice: Choice) -> Unit | None:
    how = kind(graph, node, choice.matmul)
    if how is None or node.name in choice.skip or any(t.name in choice.skip for t in node.outputs):
        return None
    inputs = [node.inputs[i] for i in activations(graph, node, how)]
    seen = [statistics.get(t.name) for t in [*inputs, *node.outputs]]
    if not all(h is not None and h.finite and h.size for h in seen):
        return None
    return Unit(node, how, inputs)


def _absorb(graph: Graph, units: list[Unit], choice: Choice) -> None:
    """Takes clamps and scalar arithmetic into the unit that feeds them, and their own units away."""
    by_node = {id(u.node): u for u in units}
    gone: set[int] = set()
    for unit in units:
        if id(unit.node) in gone or unit.kind in (Kind.MOVE, Kind.CLAMP) or unit.node.op == "HardSigmoid":
            continue
        while (node := _only_reader(graph, unit.result)) is not None and id(node) in by_node:
            if by_node[id(node)].kind is Kind.CLAMP and not unit.absorbed:
                unit.absorbed.append(node)
                gone.add(id(node))
                break
            step = affine(graph, node) if by_node[id(node)].kind is Kind.AFFINE else None
            if step is None:
                break
            unit.view = (unit.view[0] * step[0], unit.view[1] * step[0] + step[1])
            unit.absorbed.append(node)
            gone.add(id(node))
    units[:] = [u for u in units if id(u.node) not in gone]


def _only_reader(graph: Graph, tensor: Tensor) -> Node | None:
    readers = tensor.outputs
    return readers[0] if len(readers) == 1 and graph.only_feeds(tensor, readers[0]) else None


def _params(graph: Graph, units: list[Unit], statistics: Mapping[str, Histogram], choice: Choice) -> dict[str, Params]:
    found: dict[str, Params] = {}

    def measured(tensor: Tensor) -> Params:
        useful = statistics[tensor.name].clip(*gated(graph, tensor))
        low, high = useful.range(choice.methods.get(tensor.name, choice.method), choice.percentile)
        return fit(low, high, choice.dtype)

    for unit in units:
        for tensor in unit.inputs:
            if tensor.name not in found:
                found[tensor.name] = measured(tensor)
        for result in unit.results:
            found[result.name] = (
                found[unit.inputs[0].name] if unit.kind is Kind.MOVE else _result(graph, unit, measured(result))
            )
    return found


def _result(graph: Graph, unit: Unit, params: Params) -> Params:
    """Ranges that the operator itself dictates: [0, 1] after Sigmoid and gates, within the ends of a clamp."""
    first = ends(params.dtype)[0]
    if unit.node.op == "Sigmoid" and not unit.absorbed:
        return Params(1 / SIGMOID_LEVELS, first, params.dtype)
    if unit.node.op == "HardSigmoid":
        return gate(graph, unit.node, params.dtype)[1]
    clamp = next((n for n in unit.nodes if n.op in ("Relu", "Clip")), None)
    if clamp is not None and (clip := bounds(graph, clamp)) is not None:
        params = fit(max(params.low, clip[0]), min(params.high, clip[1]), params.dtype)
    return _whole(params, unit.view)


def _whole(params: Params, view: tuple[float, float]) -> Params:
    """Stretches the scale a little so that the offset of a view is a whole number of steps."""
    offset = abs(view[1])
    steps = math.floor(offset / params.scale)
    if steps < 8:
        return params
    scale = float(np.float32(offset / steps))
    first, last = ends(params.dtype)
    zero = int(np.clip(round(first - params.low / scale), first, last))
    return Params(scale, zero, params.dtype)


def _good(
    graph: Graph, unit: Unit, params: Mapping[str, Params], statistics: Mapping[str, Histogram], choice: Choice
) -> bool:
    """False where 8 bits are too few for a tensor, or a view needs a zero point that has no code."""
    first, last = ends(choice.dtype)
    if unit.view != (1.0, 0.0):
        before = params[unit.result.name].before(*unit.view)
        if not first <= before.zero <= last:
            return False
    if choice.floor <= 0 or unit.kind is Kind.MOVE:
        return True
    for tensor in [*unit.inputs, unit.result]:
        p = params[tensor.name]
        if statistics[tensor.name].clip(*gated(graph, tensor)).sqnr(p.low, p.high) < choice.floor:
            return False
    return True


def _connected(units: list[Unit]) -> list[Unit]:
    """Drops, again and again, what does not get integers or gives them to nobody: only weighted units may border."""
    while True:
        made = {t.name for u in units for t in u.results}
        read = {t.name for u in units for t in u.inputs}
        kept = [
            u
            for u in units
            if u.kind is Kind.WEIGHTED
            or (all(t.name in made for t in u.inputs) and any(t.name in read for t in u.results))
        ]
        if len(kept) == len(units):
            return kept
        units = kept


def _paying(graph: Graph, units: list[Unit], statistics: Mapping[str, Histogram]) -> list[Unit]:
    """Cuts every region (units joined by int8 tensors) down to the stretch that gains most; none where none gains."""
    made = {t.name: u for u in units for t in u.results}
    links: nx.Graph[Unit] = nx.Graph()
    links.add_nodes_from(units)
    links.add_edges_from((made[t.name], u) for u in units for t in u.inputs if t.name in made)
    kept: set[int] = set()
    for members in nx.connected_components(links):
        region = [u for u in units if u in members]
        region = _best(graph, [region[n:] for n in range(min(len(region), LONGEST_CUT))], statistics)
        region = _best(graph, [region[: len(region) - n] for n in range(min(len(region), LONGEST_CUT))], statistics)
        kept.update(id(u) for u in region)
    return [u for u in units if id(u) in kept]


def _best(graph: Graph, choices: list[list[Unit]], statistics: Mapping[str, Histogram]) -> list[Unit]:
    best: tuple[float, list[Unit]] = (0.0, [])
    for choice in map(_connected, choices):
        if choice and (gain := _gain(graph, choice, statistics)) > best[0]:
            best = gain, choice
    return best[1]


def _gain(graph: Graph, region: list[Unit], statistics: Mapping[str, Histogram]) -> float:
    def elements(tensor: Tensor) -> float:
        h = statistics[tensor.name]
        return h.size / max(1, h.batches)

    made = {t.name for u in region for t in u.results}
    nodes = {id(n) for u in region for n in u.nodes}
    borders = {t.name: t for u in region for t in u.inputs if t.name not in made}
    for unit in region:
        leaves = [t for t in unit.results if graph.is_output(t) or any(id(r) not in nodes for r in t.outputs)]
        borders.update((t.name, t) for t in leaves)
    gain = -BORDER * sum(elements(t) for t in borders.values())
    for unit in region:
        size = elements(unit.node.outputs[0])
        if unit.kind is Kind.WEIGHTED:
            gain += SAVED_PER_DOT * size * dots(graph, unit.node)
        elif unit.kind is not Kind.MOVE:
            extra = 2 if unit.node.op == "HardSwish" else 1
            gain -= extra * (size * POINTWISE + OVERHEAD)
    return gain
