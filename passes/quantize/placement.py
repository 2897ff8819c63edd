"""Decides what runs in int8: which operators, in which chains, with which scales. Edits nothing.

Starts from every operator that has a kernel and takes away until nothing changes: operators whose inputs do not come
as integers, tails that feed no convolution, tensors whose own histogram says that 8 bits lose too much, and regions
whose borders cost more than their dot products save.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.statistics import Histogram
from passes.quantize.codes import SMALLEST, Codes, Params, ends, fit, gate
from passes.quantize.cost import paying
from passes.quantize.kernels import Kind, activations, affine, bounds, gated, kind
from passes.quantize.units import Plan, Unit, connected

SIGMOID_LEVELS = 256.0


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


def plan(graph: Graph, statistics: Mapping[str, Histogram], choice: Choice) -> Plan:
    """What to render of the outermost scope; nothing where nothing pays."""
    ranges = _Ranges(graph, statistics, choice)
    units = [u for node in graph.nodes if (u := _unit(graph, node, statistics, choice)) is not None]
    units = _absorbed(graph, units, ranges)
    while True:
        params = ranges.assign(units)
        kept = [u for u in units if ranges.enough(u, params)]
        kept = paying(graph, connected(kept), statistics)
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


def averaged(graph: Graph) -> list[str]:
    """The tensors whose channel means correct biases: what Conv, ConvTranspose and Gemm read; channels on axis 1."""
    ops = ("Conv", "ConvTranspose", "Gemm")
    nodes = [n for n in graph.nodes if n.op in ops and kind(graph, n, matmul=True) is not None]
    return list(dict.fromkeys(n.inputs[0].name for n in nodes))


def _unit(graph: Graph, node: Node, statistics: Mapping[str, Histogram], choice: Choice) -> Unit | None:
    how = kind(graph, node, choice.matmul)
    if how is None or node.name in choice.skip or any(t.name in choice.skip for t in node.outputs):
        return None
    inputs = [node.inputs[i] for i in activations(graph, node, how)]
    seen = [statistics.get(t.name) for t in [*inputs, *node.outputs]]
    if not all(h is not None and _measurable(h) for h in seen):
        return None
    return Unit(node, how, inputs)


def _measurable(histogram: Histogram) -> bool:
    """False where a tensor was never seen, holds NaN or infinity, or has values too small for the smallest scale."""
    peak = max(-histogram.low, histogram.high)
    return histogram.finite and histogram.size > 0 and (peak == 0 or peak >= SMALLEST)


def _absorbed(graph: Graph, units: list[Unit], ranges: _Ranges) -> list[Unit]:
    """The units, with clamps and scalar arithmetic taken into the unit that feeds them."""
    by_node = {id(u.node): u for u in units}
    gone: set[int] = set()
    for unit in units:
        if id(unit.node) in gone or unit.kind in (Kind.MOVE, Kind.CLAMP) or unit.node.op == "HardSigmoid":
            continue
        while (node := _only_reader(graph, unit.result)) is not None and id(node) in by_node:
            how, (a, b) = by_node[id(node)].kind, unit.view
            if (how is Kind.CLAMP and unit.absorbed) or how not in (Kind.CLAMP, Kind.AFFINE):
                break
            c, d = (affine(graph, node) if how is Kind.AFFINE else None) or (1.0, 0.0)
            wider = Unit(unit.node, unit.kind, unit.inputs, [*unit.absorbed, node], (a * c, b * c + d))
            if not ranges.readable(wider):
                break
            unit.absorbed, unit.view = wider.absorbed, wider.view
            gone.add(id(node))
            if how is Kind.CLAMP:
                break
    return [u for u in units if id(u.node) not in gone]


def _only_reader(graph: Graph, tensor: Tensor) -> Node | None:
    readers = tensor.outputs
    return readers[0] if len(readers) == 1 and graph.only_feeds(tensor, readers[0]) else None


class _Ranges:
    """Scales of tensors, read off their histograms once."""

    def __init__(self, graph: Graph, statistics: Mapping[str, Histogram], choice: Choice):
        self.graph, self.statistics, self.choice = graph, statistics, choice
        self.known: dict[str, tuple[Histogram, Params]] = {}

    def measured(self, tensor: Tensor) -> Params:
        """What the data says, leaving out values that a gate behind the tensor shuts off."""
        if tensor.name not in self.known:
            useful = self.statistics[tensor.name].clip(*gated(self.graph, tensor))
            method = self.choice.methods.get(tensor.name, self.choice.method)
            low, high = useful.range(method, self.choice.percentile)
            self.known[tensor.name] = useful, fit(low, high, self.choice.dtype)
        return self.known[tensor.name][1]

    def assign(self, units: list[Unit]) -> dict[str, Params]:
        """Parameters by name: copies keep those of what they copy."""
        found: dict[str, Params] = {}
        for unit in units:
            for tensor in unit.inputs:
                found.setdefault(tensor.name, self.measured(tensor))
            for result in unit.results:
                copied = unit.kind is Kind.MOVE
                found[result.name] = found[unit.inputs[0].name] if copied else self.result(unit, result)
        return found

    def result(self, unit: Unit, result: Tensor) -> Params:
        """Ranges that the operator itself dictates: [0, 1] after Sigmoid and gates, within the ends of a clamp."""
        params, first = self.measured(result), ends(self.choice.dtype)[0]
        if unit.node.op == "Sigmoid" and not unit.absorbed:
            return Params(1 / SIGMOID_LEVELS, first, params.dtype)
        if unit.node.op == "HardSigmoid":
            return gate(self.graph, unit.node, params.dtype)[1]
        clamp = next((n for n in unit.nodes if n.op in ("Relu", "Clip")), None)
        if clamp is not None and (clip := bounds(self.graph, clamp)) is not None:
            params = fit(max(params.low, clip[0]), min(params.high, clip[1]), params.dtype)
        return _whole(params, unit.view)

    def readable(self, unit: Unit) -> bool:
        """False where the view behind a unit would need a zero point that has no code."""
        first, last = ends(self.choice.dtype)
        return first <= self.result(unit, unit.result).before(*unit.view).zero <= last

    def enough(self, unit: Unit, params: Mapping[str, Params]) -> bool:
        """False where 8 bits are too few for one of the unit's tensors."""
        if self.choice.floor <= 0 or unit.kind is Kind.MOVE:
            return True
        own = [(self.known[t.name][0], params[t.name]) for t in [*unit.inputs, unit.result] if t.name in self.known]
        return all(histogram.sqnr(p.low, p.high) >= self.choice.floor for histogram, p in own)


def _whole(params: Params, view: tuple[float, float]) -> Params:
    """Stretches the scale a little so that the offset of a view is a whole number of steps."""
    offset = abs(view[1])
    steps = math.floor(offset / params.scale)
    if steps < 8:
        return params
    scale = float(np.float32(offset / steps))
    first, last = ends(params.dtype)
    return Params(scale, int(np.clip(round(first - params.low / scale), first, last)), params.dtype)
