"""A Loop that turns a known number of times becomes that many copies of its body (H9).

The number is known where the trip count M is constant and the condition provably stays true: it is absent or constant
before the loop, and the body hands it on or makes it a constant. A condition that is false before it means no turn,
one that the body makes false means one. Turn i computes body(i, true, values of turn i - 1), so the copies are chained
by their carried values, read the number of their turn as a constant, and capture what the body captured: what ran i
times before runs i times now. A scan output stacks one value per turn along a new first axis: Concat of Unsqueeze.
After no turn, carried values are the initial ones, and scan outputs have length 0.

A body that draws random numbers is not copied: a seed of its own would start anew in each copy. The file grows by the
copies, so they are limited: `TRIPS` turns and `NODES` nodes in all, those of nested subgraphs included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer import shapes
from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import is_pure

TRIPS = 64
NODES = 2000


def unroll_loops(graph: Graph) -> int:
    """Replaces short loops of known length by copies of their bodies, inner ones first; returns how many."""
    count = 0
    for scope in reversed(list(graph.scopes())):
        for node in list(scope.nodes):
            if node.op != "Loop" or node.domain or (turns := _turns(graph, node)) is None:
                continue
            if turns > TRIPS or turns * sum(1 for _ in node.attrs["body"].walk()) > NODES or not is_pure(node):
                continue
            count += _unroll(scope, node, turns)
    return count


def at_least_once(graph: Graph, loop: Node) -> bool:
    """True where a Loop is certain to run its body."""
    trips, starts = _given(graph, loop, 0), _given(graph, loop, 1)
    return starts is not None and bool(starts) and (trips is None or trips >= 1) and not _unknown(graph, loop, 0)


def _turns(graph: Graph, loop: Node) -> int | None:
    """How often the body of a Loop runs, where that is known."""
    starts, trips = _given(graph, loop, 1), _given(graph, loop, 0)
    if _unknown(graph, loop, 1) or _unknown(graph, loop, 0):
        return None
    if not starts or (trips is not None and trips < 1):
        return 0
    goes_on = True if trips == 1 else _goes_on(graph, loop.attrs["body"])
    return 1 if goes_on is False else trips if goes_on else None


def _unknown(graph: Graph, loop: Node, position: int) -> bool:
    """True for an input that is there and no constant."""
    given = loop.inputs[position] if len(loop.inputs) > position else None
    return given is not None and bool(given.name) and graph.array(given) is None


def _given(graph: Graph, loop: Node, position: int) -> int | None:
    """The trip count (position 0; None: no limit) or the condition (1; absent is true)."""
    given = loop.inputs[position] if len(loop.inputs) > position else None
    array = None if given is None or not given.name else graph.array(given)
    if array is not None and array.size == 1:
        return int(array.reshape(-1)[0])
    return 1 if position == 1 and (given is None or not given.name) else None


def _goes_on(graph: Graph, body: Graph) -> bool | None:
    """What a body that was started makes of its condition, where that is always the same."""
    condition = body.outputs[0]
    while condition.inputs and condition.inputs[0].op == "Identity" and not condition.inputs[0].domain:
        condition = condition.inputs[0].inputs[0]
    if condition is body.inputs[1]:
        return True
    array = graph.array(condition)
    return None if array is None or array.size != 1 else bool(array.reshape(-1)[0])


def _unroll(scope: Graph, loop: Node, turns: int) -> int:
    results = _results(scope, loop, turns)
    if results is None:
        return 0
    outputs = list(loop.outputs)
    scope.remove(loop)
    for out, result in zip(outputs, results, strict=False):
        if result is not None and out.name:
            scope.replace(out, result)
    return 1


def _results(scope: Graph, loop: Node, turns: int) -> list[Tensor | None] | None:
    """What stands for each output of the loop (None for a scan output that is not asked for); None: it cannot be had.

    Copies of the body join the graph only where it can.
    """
    body: Graph = loop.attrs["body"]
    carried, values = len(body.inputs) - 2, list(loop.inputs[2:])
    number, true = _number(body, 0), _number(body, 1)
    if len(values) != carried or not all(t.name for t in values) or number is None or true is None:
        return None
    asked = [bool(out.name) for out in loop.outputs[carried:]]
    if turns == 0:
        return _after_none(scope, values, body.outputs[carried + 1 :], asked)
    columns: list[list[Tensor]] = [[] for _ in asked]
    for turn in range(turns):
        first = [scope.constant(number + turn, "turn"), scope.constant(true == 0, "true")]
        results = scope.paste(body, [*first, *values], loop)[1:]
        values = results[:carried]
        for column, value in zip(columns, results[carried:], strict=False):
            column.append(value)
    return [*values, *(_stack(scope, c, loop) if wanted else None for c, wanted in zip(columns, asked, strict=True))]


def _number(body: Graph, position: int) -> Array | None:
    """0 in the shape in which the body wants its turn's number or its condition; None where that is no scalar."""
    info = body.declared.get(body.inputs[position].name)
    rank = 0 if info is None else len(info.type.tensor_type.shape.dim)
    return np.zeros((1,) * rank, np.int64) if rank < 2 else None


def _after_none(
    scope: Graph, values: Sequence[Tensor], parts: Sequence[Tensor], asked: Sequence[bool]
) -> list[Tensor | None] | None:
    """The initial values and empty scan outputs, where dtype and shape of the parts to be stacked are known."""
    empty: list[Tensor | None] = []
    for part, wanted in zip(parts, asked, strict=False):
        known = shapes.static(part)
        if wanted and (known is None or part.dtype is None or np.dtype(part.dtype).isbuiltin != 1):
            return None
        empty.append(scope.constant(np.zeros((0, *(known or ())), part.dtype), "scan") if wanted else None)
    return [*values, *empty]


def _stack(scope: Graph, column: Sequence[Tensor], before: Node) -> Tensor:
    """The values along a new first axis."""
    rows = []
    first = [scope.constant(np.array([0], np.int64), "axes")] if scope.opset >= 13 else []
    for value in column:
        row = scope.variable("row", value.dtype)
        scope.add("Unsqueeze", [value, *first], [row], {} if first else {"axes": [0]}, before=before)
        rows.append(row)
    if len(rows) == 1:
        return rows[0]
    out = scope.variable("scan", column[0].dtype)
    scope.add("Concat", rows, [out], {"axis": 0}, before=before)
    return out
