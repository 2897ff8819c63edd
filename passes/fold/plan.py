"""What to fold: every node that depends on constants alone, less those whose result would cost more than it saves.

A node is a candidate if it is pure, of the standard operators, its inputs are constants or candidates' results, and
the size of its outputs is known beforehand. Quantised and half-precision weights stay small: DequantizeLinear and a
Cast to a wider type are not folded, while QuantizeLinear leaves the codes of a weight in its place (C16). The cost
guard (G9): a result may take as many bytes as the constants that die with its computation (at least 64 KiB are allowed
each), and all folding together (`Graph.grown` keeps count) may grow the file by 1 KiB or 1 %. A constant's bytes are
divided among its readers, so a weight that something else still reads pays for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from optimizer import shapes
from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.ops import is_pure
from optimizer.stored import nbytes

FREE = 64 << 10  # bytes: a result up to this size may be larger than what it replaces
SLACK = 1 << 10  # bytes that folding may add to any file
NEVER = frozenset(["Constant", "DequantizeLinear", "DynamicQuantizeLinear"])
WORK = 1 << 28  # bytes: a larger tensor is not computed here
HEADER = 16  # bytes around the strings of a node or an initializer in the file, at least


@dataclass(frozen=True)
class Plan:
    """Nodes to compute in order, the tensors to keep of them, and the bytes that the file grows by.

    `known` holds values of tensors that are not constants of the graph.
    """

    nodes: list[Node]
    results: list[Tensor]
    growth: int
    known: dict[int, Array] = field(default_factory=dict)


def plan(graph: Graph, skip: frozenset[int]) -> Plan:
    """Everything worth folding in all scopes, outer scopes first; `skip` holds ids of nodes to leave alone."""
    nodes = _candidates(graph, skip)
    while True:
        price = _price(graph, nodes)
        dear = price.dear(graph)
        if not dear:
            return Plan(nodes, price.results, price.growth)
        nodes = _without(nodes, dear)


def _candidates(graph: Graph, skip: frozenset[int]) -> list[Node]:
    found: list[Node] = []
    made: set[int] = set()
    for node in graph.walk():
        if id(node) not in skip and _may_fold(graph, node, made):
            found.append(node)
            made.update(id(t) for t in node.outputs)
    return found


def _may_fold(graph: Graph, node: Node, made: set[int]) -> bool:
    inputs = [t for t in node.inputs if t.name]
    if not inputs or not all(id(t) in made or graph.is_constant(t) for t in inputs):
        return False
    if node.domain or node.op in NEVER or any(node.bodies()) or not is_pure(node):
        return False
    if node.op == "Identity" and graph.is_output(node.outputs[0]):
        return False  # it gives a constant an output's name
    outputs = [t for t in node.outputs if t.name]
    if any(_bytes(t) is None for t in [*inputs, *outputs]):
        return False
    return node.op not in ("Cast", "CastLike") or not _widens(inputs[0], outputs[0])


def _widens(x: Tensor, y: Tensor) -> bool:
    """A larger tensor made of half-precision or eight-bit values: its file form is the smaller one."""
    return np.dtype(y.dtype).itemsize > np.dtype(x.dtype).itemsize and (_bytes(y) or 0) > SLACK


def _bytes(tensor: Tensor) -> int | None:
    """Size of a tensor's values where dtype and shape are known and arrays of them can be had, else None."""
    if isinstance(tensor, Constant):
        return nbytes(tensor) if np.dtype(tensor.dtype).isbuiltin == 1 else None
    known = shapes.static(tensor)
    if known is None and tensor.inputs and tensor.inputs[0].op == "NonZero":  # at most every index of its input
        source = shapes.static(tensor.inputs[0].inputs[0])
        known = None if source is None else (len(source), *source)
    if known is None or tensor.dtype is None or np.dtype(tensor.dtype).isbuiltin != 1:
        return None
    size = math.prod(known) * np.dtype(tensor.dtype).itemsize
    return size if size <= WORK else None


@dataclass
class _Price:
    """What a set of folded nodes costs: the results to store, each with the bytes that pay for it."""

    results: list[Tensor]
    paid: dict[int, float]
    growth: int

    def dear(self, graph: Graph) -> set[int]:
        """Ids of the results that must not be stored; the largest ones where it is their sum that is too much."""
        cost = {id(t): (_bytes(t) or 0) + _record(t.name) - self.paid[id(t)] for t in self.results}
        large = {id(t) for t in self.results if (_bytes(t) or 0) > max(FREE, self.paid[id(t)] + SLACK)}
        total = sum(map(nbytes, graph.constants().values()))
        excess: float = graph.root.grown + self.growth - max(SLACK, total // 100)
        if large or excess <= 0:
            return large
        for key in sorted(cost, key=lambda k: -cost[k]):
            if excess <= 0 or cost[key] <= 0:
                break
            large.add(key)
            excess -= cost[key]
        return large


def _price(graph: Graph, nodes: list[Node]) -> _Price:
    inside = {id(n) for n in nodes}

    def dies(tensor: Tensor) -> bool:
        return not graph.is_output(tensor) and all(id(r) in inside for r in tensor.outputs)

    worth: dict[int, float] = {}
    dying, records = 0.0, 0
    for node in nodes:
        inputs, outputs = [t for t in node.inputs if t.name], [t for t in node.outputs if t.name]
        for t in inputs:
            if isinstance(t, Constant) and id(t) not in worth:
                worth[id(t)] = nbytes(t) if dies(t) else 0
                dying += worth[id(t)]
        record = _record(node.op, node.name, *(t.name for t in [*inputs, *outputs]))
        paid = record + sum(worth[id(t)] / max(1, len(t.outputs)) for t in inputs)
        worth.update({id(t): paid / len(outputs) for t in outputs})
        records += record
    results = [t for n in nodes for t in n.outputs if t.name and not dies(t)]
    stored = sum((_bytes(t) or 0) + _record(t.name) for t in results)
    return _Price(results, worth, stored - records - int(dying))


def _record(*strings: str) -> int:
    """Bytes that a node or an initializer of these names takes in the file besides its values, at least."""
    return HEADER + sum(2 + len(s) for s in strings)


def _without(nodes: list[Node], dear: set[int]) -> list[Node]:
    """The nodes less those that make a result in `dear`, and less what needs those."""
    left: list[Node] = []
    lost = set[int]()
    for node in nodes:
        if any(id(t) in dear for t in node.outputs) or any(id(t) in lost for t in node.inputs):
            lost.update(id(t) for t in node.outputs if t.name)
        else:
            left.append(node)
    return left
