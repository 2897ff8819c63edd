"""A tensor taken apart or put together in several nodes: one Split does it, or nothing is to be done.

Slices that take an axis of known length to pieces, each element once, are a Split (S7), and so are Gathers whose
indices count up (S9; a Gather alone is no slower than a Slice). Concat of all the pieces of a Split is what was split,
and a Split that cuts a Concat at its seams gives back the operands (S11). What replaces several results at a time is no
rule but a function of the graph, which looks at each node once.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from optimizer.graph import Graph, Node, Tensor, Variable
from optimizer.match import Match
from optimizer.ops import attribute
from optimizer.rewrite import Draft, rule
from passes.cleanup.movement import given, ints, producer

Piece = tuple[int, int, Node]  # start, end and the node that takes it


@rule("Concat(*xs)", shape_safe=True)
def concat_split(m: Match, make: Draft) -> Tensor | None:
    """S11. All pieces of one Split, in order and along the same axis."""
    xs = m.lists["xs"]
    split = producer(xs[0], "Split")
    if (
        split is None
        or len(split.outputs) != len(xs)
        or any(x is not y for x, y in zip(xs, split.outputs, strict=True))
    ):
        return None
    return split.inputs[0] if _axis(m.graph, split) == _axis(m.graph, m.root) is not None else None


def _axis(graph: Graph, node: Node) -> int | None:
    """The axis of a Split or Concat, non-negative; None where that takes an unknown rank."""
    axis, shape = attribute(graph, node, "axis"), node.inputs[0].shape
    if axis is None or (axis < 0 and shape is None):
        return None
    return int(axis) if axis >= 0 else int(axis) + len(shape)


def split_concat(graph: Graph) -> int:
    """S11. Readers of a Split that cuts a Concat at its seams read the operands; returns how many Splits went."""
    count = 0
    for node in graph.walk():
        concat = producer(node.inputs[0], "Concat") if node.op == "Split" and not node.domain else None
        if concat is None or not _at_seams(graph, node, concat):
            continue
        scope, outputs, operands = node.scope, list(node.outputs), list(concat.inputs)
        assert scope is not None
        scope.remove(node)
        for out, operand in zip(outputs, operands, strict=True):
            if out.name:
                scope.replace(out, operand)
        count += 1
    return count


def _at_seams(graph: Graph, split: Node, concat: Node) -> bool:
    axis = _axis(graph, split)
    if axis is None or axis != _axis(graph, concat) or len(split.outputs) != len(concat.inputs):
        return False
    if any(graph.is_output(out) for out in split.outputs) or any(t.shape is None for t in concat.inputs):
        return False
    sizes = [x.shape[axis] for x in concat.inputs]
    known = [out.shape[axis] if out.shape is not None else None for out in split.outputs]
    return sizes == known and all(isinstance(size, int) for size in sizes)


def split_slices(graph: Graph) -> int:
    """S7, S9. Pieces that cover an axis without gap or overlap become one Split; returns how many Splits were made."""
    found: dict[tuple[int, int, int], list[Piece]] = {}  # by scope, tensor and axis
    for node in graph.walk():
        piece = PIECES[node.op](graph, node) if node.op in PIECES and not node.domain else None
        if piece is not None and not _joins(node):
            axis, taken = piece
            key = (id(node.scope), id(node.inputs[0]), axis)
            found.setdefault(key, []).append((taken.start, taken.stop, node))
    return sum(_split(sorted(pieces, key=lambda p: p[:2]), axis) for (_, _, axis), pieces in found.items())


def _joins(node: Node) -> bool:
    """True for a Slice that only Slices read: it becomes part of those, which costs no node."""
    readers = node.outputs[0].outputs
    return node.op == "Slice" and bool(readers) and all(r.op == "Slice" and not r.domain for r in readers)


def _sliced(graph: Graph, node: Node) -> tuple[int, range] | None:
    """Axis and what a Slice takes of it: one axis of known length, in steps of 1. None for any other Slice."""
    x, make = node.inputs[0], Draft(graph)
    starts, ends = ints(make, node, 1, "starts"), ints(make, node, 2, "ends")
    over = ints(make, node, 3, "axes") if given(node, 3, "axes") else [0]
    steps = ints(make, node, 4, "steps") if given(node, 4, "steps") else [1]
    if starts is None or ends is None or over is None or len(starts) != 1 or len(over) != 1 or steps != [1]:
        return None
    if not x.shape or not isinstance(dim := x.shape[over[0]], int):
        return None
    taken = range(dim)[starts[0] : ends[0]]
    return (over[0] % len(x.shape), taken) if taken else None


def _gathered(graph: Graph, node: Node) -> tuple[int, range] | None:
    """Axis and what a Gather takes of it: indices in a row, none counted from behind. None for any other Gather."""
    x, indices, axis = node.inputs[0], graph.array(node.inputs[1]), int(attribute(graph, node, "axis"))
    if not x.shape or indices is None or indices.ndim != 1 or not indices.size:
        return None
    taken = range(int(indices[0]), int(indices[0]) + len(indices))
    return (axis % len(x.shape), taken) if np.array_equal(indices, taken) else None


PIECES = {"Slice": _sliced, "Gather": _gathered}


def _split(pieces: list[Piece], axis: int) -> int:
    """Puts a Split in the place of nodes, sorted by start, that hand over to each other from end to end."""
    nodes = [node for _, _, node in pieces]
    x, scope = nodes[0].inputs[0], nodes[0].scope
    ends = [0, *(end for _, end, _ in pieces)]
    if len(pieces) < 2 or [start for start, _, _ in pieces] != ends[:-1] or ends[-1] != x.shape[axis]:
        return 0
    assert scope is not None
    outputs = [node.outputs[0] for node in nodes]
    first = min(nodes, key=lambda node: node.order)
    for node in nodes:
        node.outputs[0] = Variable.empty()
    sizes = [b - a for a, b in pairwise(ends)]
    if scope.opset < 13:
        scope.add("Split", [x], outputs, {"axis": axis, "split": sizes}, name=first.name, before=first)
    else:
        given_sizes = scope.constant(np.array(sizes, np.int64), "split")
        scope.add("Split", [x, given_sizes], outputs, {"axis": axis}, name=first.name, before=first)
    for node in nodes:
        scope.remove(node)
    return 1


RULES = (concat_split,)
