"""Passes that are wrong on purpose, each in one way, for the bisection: registered by tests alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from optimizer.context import Context
from optimizer.graph import Graph, Tensor
from optimizer.match import Match
from optimizer.pipeline import Pass
from optimizer.rewrite import Draft, apply_rules, rule


@rule("Neg(Neg(x))")
def right(m: Match, make: Draft) -> Tensor | None:
    return m["x"]


@rule("Mul(Exp(x), y)")
def wrong(m: Match, make: Draft) -> Tensor | None:
    """As if the order did not matter."""
    return make.node("Exp", make.node("Mul", m["x"], m["y"]))


@rule("Relu(x)")
def optimist(m: Match, make: Draft) -> Tensor | None:
    """Right where nothing is negative."""
    return m["x"]


@rule("Tanh(Exp(x))")
def clumsy(m: Match, make: Draft) -> Tensor | None:
    raise RuntimeError("no idea")


@rule("Sqrt(Exp(x))")
def unrunnable(m: Match, make: Draft) -> Tensor | None:
    """As if there were always seven."""
    return make.node("Reshape", m["x"], make.constant(np.array([7])))


@dataclass(frozen=True)
class Rules(Pass):
    """Some right rewrites, and one that is not."""

    name: ClassVar[str] = "broken-rules"

    def run(self, graph: Graph, ctx: Context) -> int:
        return sum(apply_rules(graph, [right, wrong, optimist, clumsy, unrunnable]).values())


@dataclass(frozen=True)
class Merge(Pass):
    """Takes the second of two Sin for the first, whatever they read: an edit by no rule."""

    name: ClassVar[str] = "broken-merge"

    def run(self, graph: Graph, ctx: Context) -> int:
        found = [node for node in graph.nodes if node.op == "Sin"]
        if len(found) < 2:
            return 0
        graph.bypass(found[1], found[0].outputs[0])
        return 1


@dataclass(frozen=True)
class Drift(Pass):
    """Adds a little to every constant, less than rounding would: only several of it are seen."""

    name: ClassVar[str] = "broken-drift"
    lossy: ClassVar[bool] = False

    def run(self, graph: Graph, ctx: Context) -> int:
        for node in graph.nodes:
            for index, tensor in enumerate(node.inputs):
                if (array := graph.array(tensor)) is not None and array.dtype == np.float32:
                    graph.set_input(node, index, graph.constant(array * np.float32(1 + 1.5e-4), tensor.name))
        return 1


@dataclass(frozen=True)
class Coarse(Pass):
    """Lossy, and says so."""

    name: ClassVar[str] = "broken-coarse"
    lossy: ClassVar[bool] = True
    by: float = 0.1

    def run(self, graph: Graph, ctx: Context) -> int:
        count = 0
        for node in graph.nodes:
            if node.op == "Mul" and (array := graph.array(node.inputs[1])) is not None:
                graph.set_input(node, 1, graph.constant(array * np.float32(1 + self.by), "scale"))
                count += 1
        return count


@dataclass(frozen=True)
class Fold(Pass):
    """Computes Exp of a constant, badly."""

    name: ClassVar[str] = "broken-fold"

    def run(self, graph: Graph, ctx: Context) -> int:
        for node in graph.nodes:
            if node.op == "Exp" and (array := graph.array(node.inputs[0])) is not None:
                graph.bypass(node, graph.constant(array + 1, "exp"))
                return 1
        return 0
