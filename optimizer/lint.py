"""Checks a quantised or mixed-precision model, whoever made it, against the rules of one runtime; edits nothing.

A rule names what a runtime refuses, miscomputes or cannot make fast, and how to repair it. The rules of each runtime
live beside its backend (`registry.LINTS`); `docs/lint.md` explains them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from optimizer import registry, shapes, targets
from optimizer.errors import UserError
from optimizer.graph import Graph, Node, Tensor
from optimizer.targets import Cpu

RUNTIMES = {"trt": "trt", "ort": "ort-cpu"}  # by backend
Severity = Literal["error", "slow"]
Place = Node | Tensor
Find = Callable[[Graph], Iterator[tuple[Place, str]]]


@dataclass(frozen=True)
class Finding:
    """One breach of one rule, at a node: its name (made up where it has none), its operator, its first output.

    For a tensor of the interface, `node` and `output` are its name and `op` is `input` or `output`.
    """

    rule: str
    severity: Severity
    node: str
    op: str
    output: str
    message: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """`error`: refused, wrong numbers, or not allowed by the documentation. `slow`: legal, but slower than it could be.

    `find` yields the place and what is wrong there.
    """

    id: str
    severity: Severity
    title: str
    fix: str
    find: Find

    def check(self, graph: Graph) -> Iterator[Finding]:
        for place, message in self.find(graph):
            yield Finding(self.id, self.severity, *_where(graph, place), message, self.fix)


def rule(id: str, severity: Severity, title: str, fix: str) -> Callable[[Find], Rule]:
    """Makes a rule of a generator of places and messages."""
    return lambda find: Rule(id, severity, title, fix, find)


def rules(target: str, cpu: Cpu | None = None) -> tuple[Rule, ...]:
    """The rules of a runtime (`trt`, `ort-cpu`) or of a target such as `trt-int8`. Raises UserError.

    `cpu` is the processor that ONNX Runtime is to run on; by default this one.
    """
    name = target if target in registry.LINTS else RUNTIMES.get(targets.target(target).backend)
    if name is None:
        known = [n for n, t in targets.targets().items() if t.backend in RUNTIMES]
        raise UserError(f"there are no rules for '{target}', only for {', '.join([*registry.LINTS, *known])}")
    return registry.load_lint(name)(cpu or targets.this_cpu())


def lint(graph: Graph, target: str, cpu: Cpu | None = None) -> list[Finding]:
    """Every breach of the target's rules, in the order of the rules, then of the graph. Raises UserError."""
    twin = graph.copy()
    twin.tidy()
    shapes.infer(twin)
    return [finding for one in rules(target, cpu) for finding in one.check(twin)]


def _where(graph: Graph, place: Place) -> tuple[str, str, str]:
    if isinstance(place, Node):
        output = next((t.name for t in place.outputs if t.name), "")
        return place.name or output, f"{place.domain}.{place.op}" if place.domain else place.op, output
    kind = "input" if graph.is_input(place) else "output" if graph.is_output(place) else "initializer"
    return place.name, kind, place.name
