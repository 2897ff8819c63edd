"""Patterns over a graph: `BatchNormalization(Conv(x, w, b?), gamma, beta, mean, var)`, read from the root upwards.

    x          any tensor; the same name twice must be the same tensor
    b?         an optional input: bound where present
    *xs        any number of inputs, as a list; all remaining ones where it stands last
    2.0        a constant with one element of this value (to 1e-6, or to the rounding of a half; 0 exactly)
    A|B(...)   a node of either operator      d=Sub(x, m)   ... whose first output is also called d

Operators that commute are tried in both orders. The matcher itself guarantees what every rule needs and some would
forget: inner nodes feed nothing outside the match and are no graph outputs (G1), nodes are pure (G5), of standard
operators and of one scope, and outputs other than the first are unused (G6).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import COMMUTATIVE, is_pure, scalar

HALF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of rounding to 16 bits


@dataclass(frozen=True)
class Name:
    name: str
    optional: bool = False
    rest: bool = False


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Op:
    ops: tuple[str, ...]
    args: tuple[Pattern, ...]
    label: str = ""


Pattern = Name | Number | Op


@dataclass
class Match:
    """Tensors by pattern name, and the matched nodes (the root first)."""

    graph: Graph
    tensors: dict[str, Tensor] = field(default_factory=dict)
    lists: dict[str, list[Tensor]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor bound to an optional name, or None where the input is absent."""
        return self.tensors.get(name)

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def node(self, op: str) -> Node:
        """The first matched node, from the root upwards, of one of the operators in `op` ('A|B')."""
        return next(n for n in self.nodes if n.op in op.split("|"))

    def fork(self) -> Match:
        return Match(self.graph, dict(self.tensors), dict(self.lists), list(self.nodes))


def match(pattern: str | Op, root: Node, graph: Graph) -> Match | None:
    """The first way in which `pattern` fits at `root`, or None."""
    for found in fits(pattern, root, graph):
        if obstacle(found) is None:
            return found
    return None


def fits(pattern: str | Op, root: Node, graph: Graph) -> Iterator[Match]:
    """Every way in which `pattern` fits at `root` by its structure alone."""
    return _node(parse(pattern) if isinstance(pattern, str) else pattern, root, Match(graph))


def obstacle(found: Match) -> tuple[str, Node] | None:
    """What no rule may pass over (a key of `nearmiss.REASONS`), and the matched node where it is; else None."""
    inside = {id(n) for n in found.nodes}
    for node in found.nodes:
        if node.scope is not found.root.scope:
            return "scope", node
        if node.domain or not is_pure(node):
            return "impure", node
        if node is found.root:
            continue
        if any(t.name and (t.outputs or found.graph.is_output(t)) for t in node.outputs[1:]):
            return "results", node
        if found.graph.is_output(node.outputs[0]):
            return "output", node
        if any(id(reader) not in inside for reader in node.outputs[0].outputs):
            return "reader", node
    return None


def _node(pattern: Op, node: Node, found: Match) -> Iterator[Match]:
    if node.op not in pattern.ops or any(node is n for n in found.nodes):
        return
    inputs = list(node.inputs)
    start = found.fork()
    start.nodes.append(node)
    if pattern.label and not _bind(pattern.label, node.outputs[0], start):
        return
    yield from _inputs(pattern.args, inputs, start)
    if node.op in COMMUTATIVE and len(inputs) == 2 and inputs[0] is not inputs[1]:
        yield from _inputs(pattern.args, inputs[::-1], start)


def _inputs(args: tuple[Pattern, ...], inputs: list[Tensor], found: Match) -> Iterator[Match]:
    if not args:
        if not any(t.name for t in inputs):
            yield found
        return
    first, rest = args[0], args[1:]
    if isinstance(first, Name) and first.rest:
        for taken in range(len(inputs) + 1) if rest else [len(inputs)]:
            start = found.fork()
            start.lists[first.name] = inputs[:taken]
            yield from _inputs(rest, inputs[taken:], start)
        return
    if not inputs or not inputs[0].name:
        if isinstance(first, Name) and first.optional:
            yield from _inputs(rest, inputs[1:], found)
        return
    for one in _tensor(first, inputs[0], found):
        yield from _inputs(rest, inputs[1:], one)


def _tensor(pattern: Pattern, tensor: Tensor, found: Match) -> Iterator[Match]:
    if isinstance(pattern, Name):
        fork = found.fork()
        if _bind(pattern.name, tensor, fork):
            yield fork
    elif isinstance(pattern, Number):
        value = scalar(found.graph, tensor)
        if value is not None and math.isclose(value, pattern.value, rel_tol=HALF.get(str(tensor.dtype), 1e-6)):
            yield found
    elif pattern.label in found.tensors:
        if found.tensors[pattern.label] is tensor:
            yield found
    elif tensor.inputs and tensor.inputs[0].outputs[0] is tensor:
        yield from _node(pattern, tensor.inputs[0], found)


def _bind(name: str, tensor: Tensor, found: Match) -> bool:
    return found.tensors.setdefault(name, tensor) is tensor


_TOKEN = re.compile(r"\s*(\*?[A-Za-z_][\w|]*\??|-?\d[\d.e+-]*|[(),=])")


@cache
def parse(text: str) -> Op:
    """Parses a pattern; a mistake in one is ours, so it raises AssertionError."""
    tokens = [m.group(1) for m in _TOKEN.finditer(text)]
    assert "".join(tokens) == text.replace(" ", ""), f"cannot read the pattern {text!r}"
    parsed, end = _parse(tokens, 0)
    assert isinstance(parsed, Op) and end == len(tokens), f"not one operator: {text!r}"
    return parsed


def _parse(tokens: list[str], at: int) -> tuple[Pattern, int]:
    label = ""
    if at + 1 < len(tokens) and tokens[at + 1] == "=":
        label, at = tokens[at], at + 2
    word = tokens[at]
    if word[0].isdigit() or word[0] == "-":
        return Number(float(word)), at + 1
    if at + 1 == len(tokens) or tokens[at + 1] != "(":
        return Name(word.strip("?*"), word.endswith("?"), word.startswith("*")), at + 1
    at += 2
    args: list[Pattern] = []
    while tokens[at] != ")":
        arg, at = _parse(tokens, at)
        args.append(arg)
        at += tokens[at] == ","
    return Op(tuple(word.split("|")), tuple(args), label), at + 1
