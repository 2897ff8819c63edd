"""Patterns over a graph: `BatchNormalization(Conv(x, w, b?), gamma, beta, mean, var)`, read from the root upwards.

    x          any tensor; the same name twice must be the same tensor
    b?         an optional input: bound where present
    *xs        any number of inputs, as a list; all remaining ones where it stands last
    2.0        a constant with one element of this value; to 1e-6, or to the rounding of a half, where a half has none
    A|B(...)   a node of either operator      d=Sub(x, m)   ... whose first output is also called d

Operators that commute are tried in both orders. The matcher itself guarantees what every rule needs and some would
forget: inner nodes feed nothing outside the match and are no graph outputs (G1, unless they may be `shared`), nodes are
pure (G5), of standard operators and of one scope, and outputs other than the first are unused (G6).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile

import numpy as np

from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.ops import COMMUTATIVE, is_pure, scalar

CONSTANT = "#"  # in the place of an operator: the tensor is an initializer
HALF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of rounding to 16 bits


@dataclass(frozen=True)
class Name:
    name: str
    optional: bool = False
    rest: bool = False


@dataclass(frozen=True)
class Number:
    value: float

    @cached_property
    def exact(self) -> bool:
        """True for what every float type holds: nobody writes 1.9999999 for the 2 of a square, which has no NaN."""
        return float(np.float16(self.value)) == self.value


@dataclass(frozen=True)
class Op:
    ops: tuple[str, ...]
    args: tuple[Pattern, ...]
    label: str = ""

    @cached_property
    def demands(self) -> tuple[tuple[int, Op | Number], ...]:
        """The arguments that not every tensor fits, with their places among the inputs; none behind a `*xs`."""
        placed = list(enumerate(takewhile(lambda a: not (isinstance(a, Name) and a.rest), self.args)))
        return tuple((place, arg) for place, arg in placed if not isinstance(arg, Name))

    @cached_property
    def size(self) -> int:
        """How many nodes it matches."""
        return 1 + sum(a.size for a in self.args if isinstance(a, Op))

    @cached_property
    def names(self) -> tuple[Name, ...] | None:
        """The arguments where each is a plain name and none stands twice: there is one way to fit, and no search."""
        plain = tuple(a for a in self.args if isinstance(a, Name) and not a.rest)
        known = {a.name for a in plain} | {self.label}
        return plain if len(known) == len(self.args) + 1 else None


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


def match(pattern: str | Op, root: Node, graph: Graph, shared: bool = False) -> Match | None:
    """The first way in which `pattern` fits at `root`, or None. `shared`: inner nodes may have readers outside."""
    parsed = parse(pattern) if isinstance(pattern, str) else pattern
    if parsed.names is not None:
        single = _bind(parsed, parsed.names, root, graph)
        return single if single is not None and obstacle(single, shared) is None else None
    if may_fit(parsed, root, math.inf if shared else parsed.size - 1):
        for found in _ways(parsed, root, graph):
            if obstacle(found, shared) is None:
                return found
    return None


def _bind(pattern: Op, names: tuple[Name, ...], root: Node, graph: Graph) -> Match | None:
    """What `fits` finds first for a pattern of plain names, where the operators around the node do not matter."""
    inputs = root.inputs
    if root.op not in pattern.ops:
        return None
    if len(inputs) > len(names) and any(t.name for t in inputs[len(names) :]):
        return None
    bound = {arg.name: tensor for arg, tensor in zip(names, inputs, strict=False) if tensor.name}
    if len(bound) < len(names) and not all(arg.optional for arg in names if arg.name not in bound):
        return None
    if pattern.label:
        bound[pattern.label] = root.outputs[0]
    return Match(graph, bound, {}, [root])


def fits(pattern: str | Op, root: Node, graph: Graph) -> Iterator[Match]:
    """Every way in which `pattern` fits at `root` by its structure alone."""
    parsed = parse(pattern) if isinstance(pattern, str) else pattern
    return _ways(parsed, root, graph) if may_fit(parsed, root) else iter(())


def _ways(pattern: Op, root: Node, graph: Graph) -> Iterator[Match]:
    found = Match(graph)
    for _ in _node(pattern, root, found):
        yield Match(graph, dict(found.tensors), dict(found.lists), list(found.nodes))


def may_fit(pattern: Op, node: Node, readers: float = math.inf) -> bool:
    """False where the operators around the node alone say that the pattern does not fit there.

    It answers for nearly all nodes, in a tenth of the time of a search. `readers`: how many nodes may read what an
    inner node makes, none of which can be outside the match.
    """
    if node.op not in pattern.ops:
        return False
    for place, arg in pattern.demands:
        for tensor in node.inputs if node.op in COMMUTATIVE else node.inputs[place : place + 1]:
            if _may_fit(arg, tensor, readers):
                break
        else:
            return False
    return True


def suits(pattern: Op, op: str, makers: Sequence[str]) -> bool:
    """`may_fit` of all nodes of an operator with inputs made by operators such as these (`CONSTANT`: by none).

    It looks no deeper than that, and an overridable initializer counts as a constant.
    """
    for place, arg in pattern.demands:
        fit = (CONSTANT,) if isinstance(arg, Number) else arg.ops
        if not any(maker in fit for maker in (makers if op in COMMUTATIVE else makers[place : place + 1])):
            return False
    return True


def _may_fit(pattern: Op | Number, tensor: Tensor, readers: float) -> bool:
    if isinstance(pattern, Number):
        return isinstance(tensor, Constant)
    if not tensor.inputs or (len(tensor.outputs) > readers and len(set(tensor.outputs)) > readers):
        return False
    return may_fit(pattern, tensor.inputs[0], readers)


def obstacle(found: Match, shared: bool = False) -> tuple[str, Node] | None:
    """What no rule may pass over (a key of `nearmiss.REASONS`), and the matched node where it is; else None."""
    root, inside = found.nodes[0], found.nodes
    for node in inside:
        if node.scope is not root.scope:
            return "scope", node
        if node.domain or not is_pure(node):
            return "impure", node
        if node is root or shared:
            continue
        if any(t.name and (t.outputs or found.graph.is_output(t)) for t in node.outputs[1:]):
            return "results", node
        if found.graph.is_output(node.outputs[0]):
            return "output", node
        if any(reader not in inside for reader in node.outputs[0].outputs):  # a node equals itself alone
            return "reader", node
    return None


# Each of these yields once for every way in which a pattern fits, with `found` filled in, and takes back what it
# filled in before it looks for the next way. So the search copies nothing.


def _node(pattern: Op, node: Node, found: Match) -> Iterator[None]:
    if node.op not in pattern.ops or node in found.nodes:
        return
    inputs = list(node.inputs)
    found.nodes.append(node)
    bound = found.tensors.setdefault(pattern.label, node.outputs[0]) if pattern.label else None
    yield from _inputs(pattern.args, inputs, found)
    if node.op in COMMUTATIVE and len(inputs) == 2 and inputs[0] is not inputs[1]:
        yield from _inputs(pattern.args, inputs[::-1], found)
    if bound is not None:
        del found.tensors[pattern.label]
    found.nodes.pop()


def _inputs(args: tuple[Pattern, ...], inputs: list[Tensor], found: Match) -> Iterator[None]:
    named: list[str] = []  # which are bound here: most arguments are plain names, and take no search
    place = 0
    for place, arg in enumerate(args):
        if not isinstance(arg, Name) or arg.rest:
            yield from _search(args[place:], inputs[place:], found)
            break
        tensor = inputs[place] if place < len(inputs) else None
        if tensor is None or not tensor.name:
            if not arg.optional:
                break
        elif (bound := found.tensors.get(arg.name)) is None:
            found.tensors[arg.name] = tensor
            named.append(arg.name)
        elif bound is not tensor:
            break
    else:
        if len(inputs) <= len(args) or not any(t.name for t in inputs[len(args) :]):
            yield
    for name in named:
        del found.tensors[name]


def _search(args: tuple[Pattern, ...], inputs: list[Tensor], found: Match) -> Iterator[None]:
    first, rest = args[0], args[1:]
    if isinstance(first, Name):
        for taken in range(len(inputs) + 1) if rest else [len(inputs)]:
            found.lists[first.name] = inputs[:taken]
            yield from _inputs(rest, inputs[taken:], found)
        del found.lists[first.name]
    elif inputs and inputs[0].name:
        for _ in _tensor(first, inputs[0], found):
            yield from _inputs(rest, inputs[1:], found)


def _tensor(pattern: Op | Number, tensor: Tensor, found: Match) -> Iterator[None]:
    if isinstance(pattern, Number):
        value = scalar(found.graph, tensor)
        tolerance = 0.0 if pattern.exact else HALF.get(str(tensor.dtype), 1e-6)
        if value is not None and math.isclose(value, pattern.value, rel_tol=tolerance):
            yield
    elif pattern.label in found.tensors:
        if found.tensors[pattern.label] is tensor:
            yield
    elif tensor.inputs and tensor.inputs[0].outputs[0] is tensor:
        yield from _node(pattern, tensor.inputs[0], found)


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
