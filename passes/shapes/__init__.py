"""Shape arithmetic that is known before any input is: exporters compute at run time what the graph already says.

The interpreter gives every small integer tensor as expressions over the inputs' symbolic dims. From that follow
constants (C4), Reshape to a constant target (C5), no-ops (N4, N7, N11 with symbols), one computation in place of
several that give the same numbers (C13, C10 and C11 where the numbers are dims of one tensor, C12 where they are an
input's), and conditions (H8).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from optimizer import shapes
from optimizer.context import Context
from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import is_pure
from optimizer.pipeline import Pass
from passes.shapes.branches import decide_branches
from passes.shapes.elements import RULES
from passes.shapes.interpret import Interpreter, counts
from passes.shapes.target import constant_target


@dataclass(frozen=True)
class Run:
    """Elements of an integer tensor: all of them, or those from `start` to `end`."""

    tensor: Tensor
    start: int = 0
    end: int = 0


REWRITTEN = ("Reshape", "Expand", "Slice")
Seen = ChainMap[Hashable, Run]  # by elements; whole tensors by dtype and shape too


@dataclass(frozen=True)
class Shapes(Pass):
    """Computes shapes ahead of time, as numbers or as symbols of the model's inputs."""

    name: ClassVar[str] = "shapes"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        shapes.infer(graph)
        calculates = any(node.op in REWRITTEN or any(map(counts, node.outputs)) for node in graph.walk())
        count = _scope(graph, Interpreter(graph), ChainMap()) if calculates else 0
        return count or decide_branches(graph)


def _scope(scope: Graph, facts: Interpreter, seen: Seen) -> int:
    count = 0
    for node in list(scope.nodes):
        count += sum(_scope(body, facts, seen.new_child()) for body in node.bodies())
        if node.domain or node.op in ("Identity", "Constant") or not is_pure(node):
            continue
        if known := _as_constants(scope, node, facts) or _rewrite(scope, node, facts):
            count += known
        else:
            count += _ask_input(scope, node, facts) + _reuse(scope, node, facts, seen)
    return count


def _as_constants(scope: Graph, node: Node, facts: Interpreter) -> int:
    """Readers of integers that are all known read an initializer."""
    known = {id(t): v for t in node.outputs if t.name and (v := _numbers(t, facts)) is not None}
    if len(known) != sum(bool(t.name) for t in node.outputs) or not known:
        return 0
    outputs = list(node.outputs)
    scope.remove(node)
    for out in outputs:
        if out.name:
            scope.replace(out, scope.constant(known[id(out)], out.name))
    return 1


def _numbers(tensor: Tensor, facts: Interpreter) -> Array | None:
    values = facts.values(tensor)
    if values is None or any(e.value is None for e in values.reshape(-1)):
        return None
    return np.array([e.value for e in values.reshape(-1)], np.dtype(tensor.dtype)).reshape(values.shape)


def _rewrite(scope: Graph, node: Node, facts: Interpreter) -> int:
    """Moves no data: gone. Reshape to a computed target: to a constant one."""
    if node.op not in REWRITTEN:
        return 0
    x, out = node.inputs[0], node.outputs[0]
    same = facts.dims(x) is not None and facts.dims(x) == facts.dims(out)
    if same and (node.op != "Slice" or _forward(node, facts)) and not scope.is_output(out):
        scope.bypass(node, x)
        return 1
    if node.op != "Reshape" or scope.is_constant(node.inputs[1]):
        return 0
    target = constant_target(node, facts)
    if target is None:
        return 0
    scope.set_input(node, 1, scope.constant(np.array(target, np.int64), f"{out.name}_shape"))
    return 1


def _forward(node: Node, facts: Interpreter) -> bool:
    """Slice in steps of 1: a step of -1 keeps the dims and turns the data round."""
    steps = facts.vector(node, 4)
    absent = len(node.inputs) < 5 or not node.inputs[4].name
    return absent or (steps is not None and all(s.value == 1 for s in steps))


def _ask_input(scope: Graph, node: Node, facts: Interpreter) -> int:
    """Dims that an input of the model has are asked of it, so that nothing need be computed to be asked (C12)."""
    inputs = facts.graph.inputs
    made = facts.values(node.outputs[0]) if node.op == "Shape" else None
    values = [] if made is None else list(made)
    if not values or any(node.inputs[0] is given for given in inputs):
        return 0
    for given in inputs:
        dims = facts.dims(given) or []
        for start in range(len(dims) - len(values) + 1):
            end = start + len(values)
            whole = end - start == len(dims)
            if dims[start:end] == values and (whole or scope.opset >= 15):
                scope.set_input(node, 0, given)
                node.attrs = {} if whole else {"start": start, "end": end}
                return 1
    return 0


def _reuse(scope: Graph, node: Node, facts: Interpreter, seen: Seen) -> int:
    """The same numbers as an earlier tensor's, or as a run of dims whose Shape is taken anyway."""
    out = node.outputs[0]
    if len(node.outputs) > 1 or node.op not in RULES or scope.is_output(out):
        return 0
    values = facts.values(out)
    if values is None:
        return 0
    elements = tuple(values.reshape(-1).tolist())
    first = seen.setdefault((str(np.dtype(out.dtype)), values.shape, elements), Run(out)).tensor
    if first is not out:
        scope.remove(node)
        scope.replace(out, first)
        return 1
    if node.op == "Shape":
        for start, end in combinations(range(len(elements) + 1), 2):
            seen.setdefault(elements[start:end], Run(out, start, end))
        return 0
    run = seen.get(elements) if np.dtype(out.dtype) == np.int64 else None
    if run is None:
        return 0
    if values.ndim == 1:
        return _cut(scope, node, run)
    return _taken_there(scope, node, run) if values.ndim == 0 else 0


def _taken_there(scope: Graph, node: Node, run: Run) -> int:
    """One dim that Gather takes of a Shape is taken of the first Shape that has it, so that the other may go."""
    shape = node.inputs[0]
    made_by_shape = shape.inputs and shape.inputs[0].op == "Shape" and not shape.inputs[0].domain
    if node.op != "Gather" or not made_by_shape or shape is run.tensor:
        return 0
    scope.set_input(node, 0, run.tensor)
    scope.set_input(node, 1, scope.constant(np.array(run.start), "index"))
    return 1


def _cut(scope: Graph, node: Node, run: Run) -> int:
    """One node that takes a run of dims: Shape with `start` and `end`, or Slice of a whole Shape before set 15."""
    out, taken = node.outputs[0], run.tensor.inputs[0]
    if scope.opset >= 15:
        begin = taken.attrs.get("start", 0)
        if begin < 0:  # counted from the end, where a run up to the last dim has no number to end at
            return 0
        attrs = {"start": begin + run.start, "end": begin + run.end}
        scope.remove(node)
        scope.add("Shape", [taken.inputs[0]], [out], attrs, name=node.name)
        return 1
    if node.op in ("Slice", "Gather") or scope.opset < 10:
        return 0
    ends = [scope.constant(np.array([at]), hint) for at, hint in ((run.start, "start"), (run.end, "end"))]
    scope.remove(node)
    scope.add("Slice", [run.tensor, *ends], [out], name=node.name)
    return 1
