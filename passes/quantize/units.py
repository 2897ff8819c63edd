"""The pieces of a plan: operators that will run in int8, what they absorb, and the scales of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optimizer.graph import Graph, Node, Tensor
from passes.quantize.codes import Params
from passes.quantize.kernels import Kind, activations


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
class Plan:
    """Units in execution order and parameters by tensor name, for results and for tensors entering from float."""

    units: list[Unit]
    params: dict[str, Params]


def connected(units: list[Unit]) -> list[Unit]:
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


def stretches(units: list[Unit]) -> list[list[Unit]]:
    """Units cut before each weighted one."""
    found: list[list[Unit]] = [[]]
    for unit in units:
        if unit.kind is Kind.WEIGHTED and found[-1]:
            found.append([])
        found[-1].append(unit)
    return found


def moved(graph: Graph, twin: Graph, units: Sequence[Unit]) -> list[Unit]:
    """The same units on a copy of the graph."""
    twins = {id(node): other for node, other in zip(graph.nodes, twin.nodes, strict=True)}
    made = []
    for unit in units:
        node = twins[id(unit.node)]
        inputs = [node.inputs[i] for i in activations(twin, node, unit.kind)]
        made.append(Unit(node, unit.kind, inputs, [twins[id(n)] for n in unit.absorbed], unit.view))
    return made
