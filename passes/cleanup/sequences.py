"""Sequences whose elements are known are resolved: what took one from the sequence takes the tensor itself (H11).

The elements are known of SequenceEmpty and SequenceConstruct, and of SequenceInsert, SequenceErase and SplitToSequence
at constant positions. A position p of a sequence of n may be -n to n - 1 (for SequenceInsert n, too), negative ones
count from the end; absent it is the end. One out of range is an error of the model's and is left to the runtime.

    SequenceAt([a, b, c], 1)                    b
    SequenceLength([a, b, c])                   3
    ConcatFromSequence([a, b], axis)            Concat(a, b)
    ConcatFromSequence([a, b], axis, new_axis)  Concat(Unsqueeze(a), Unsqueeze(b)): its axis, too, counts the new one

SequenceMap becomes a copy of its body for each element, as many as `unroll` allows. Of its other inputs a sequence
gives each copy an element, a tensor gives itself.

SplitToSequence cuts an axis of size d into the given sizes, or into pieces of s (the last one may be shorter); without
sizes into pieces of 1, whose axis goes with keepdims=0. (With sizes keepdims should not count, yet ONNX Runtime minds
it, so such a node is left alone.) Where all that is asked of the sequence is known, it becomes a Split, or, where at
most half of the pieces are asked for, a Slice or a Gather of each. An axis of unknown size is left alone, but for a
list of sizes: they must add up to it, or the model fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer import shapes
from optimizer.graph import Graph, Node, Tensor
from optimizer.match import Match
from optimizer.ops import attribute, is_pure, scalar
from optimizer.rewrite import Draft, rule
from passes.cleanup.unroll import NODES, TRIPS

MOST = 256  # elements
WHOLE = ("ConcatFromSequence", "SequenceMap")  # which read every element


def elements(graph: Graph, sequence: Tensor) -> list[Tensor] | None:
    """The tensors that a sequence is made of, or None where they are not known."""
    edits: list[Node] = []
    while (node := _maker(sequence)) is not None and node.op in ("SequenceInsert", "SequenceErase"):
        edits.append(node)
        sequence = node.inputs[0]
    if node is None or node.op not in ("SequenceConstruct", "SequenceEmpty"):
        return None
    items = list(node.inputs)
    for edit in reversed(edits):
        inserts = edit.op == "SequenceInsert"
        place = _position(graph, edit, 1 + inserts, len(items), end=inserts)
        if place is None or len(items) > MOST:
            return None
        items[place : place + (not inserts)] = [edit.inputs[1]] if inserts else []
    return items


def _maker(tensor: Tensor) -> Node | None:
    node: Node | None = tensor.inputs[0] if tensor.inputs else None
    return None if node is None or node.domain else node


def _position(graph: Graph, node: Node, at: int, count: int, *, end: bool = False) -> int | None:
    """The place that an input names of `count` elements, or behind them all (`end`); absent it is the last of these.

    None where it is not known or out of range.
    """
    last = count if end else count - 1
    if len(node.inputs) <= at or not node.inputs[at].name:
        return last if last >= 0 else None
    place = scalar(graph, node.inputs[at])
    if place is None or not -count <= place <= last:
        return None
    return int(place) + count * (place < 0)


@rule("SequenceAt(s, i)", shape_safe=True)
def sequence_at(m: Match, make: Draft) -> Tensor | None:
    items = elements(m.graph, m["s"])
    place = None if items is None else _position(m.graph, m.root, 1, len(items))
    return None if items is None or place is None else items[place]


@rule("SequenceLength(s)", shape_safe=True)
def sequence_length(m: Match, make: Draft) -> Tensor | None:
    items = elements(m.graph, m["s"])
    return None if items is None else make.constant(np.array(len(items), np.int64), "length")


@rule("ConcatFromSequence(s)", shape_safe=True)
def concat_from_sequence(m: Match, make: Draft) -> Tensor | None:
    items, axis = elements(m.graph, m["s"]), int(make.attr(m.root, "axis"))
    if not items:
        return None
    if make.attr(m.root, "new_axis"):
        items = [_unsqueeze(make, item, axis) for item in items]
    return make.node("Concat", *items, attrs={"axis": axis})


def _unsqueeze(make: Draft, x: Tensor, axis: int) -> Tensor:
    if make.graph.opset < 13:
        return make.node("Unsqueeze", x, attrs={"axes": [axis]})
    return make.node("Unsqueeze", x, make.constant(np.array([axis], np.int64), "axes"))


RULES = (sequence_at, sequence_length, concat_from_sequence)


def split_sequences(graph: Graph) -> int:
    """Replaces each SplitToSequence of which only known pieces are asked for; returns how many."""
    found = [node for node in graph.walk() if node.op == "SplitToSequence" and not node.domain]
    if not found:
        return 0
    shapes.infer(graph)
    count = 0
    for node in found:
        sizes = _sizes(graph, node)
        wanted = None if sizes is None else _wanted(graph, node, len(sizes))
        if sizes is not None and wanted is not None:
            _split(graph, node, sizes, wanted)
            count += 1
    return count


def _sizes(graph: Graph, node: Node) -> list[int] | None:
    """The length of each piece along the axis, where that is known."""
    x, axis = node.inputs[0], int(attribute(graph, node, "axis"))
    dim = x.shape[axis] if x.shape is not None and -len(x.shape) <= axis < len(x.shape) else None
    given = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1].name else None
    array = np.array(1) if given is None else graph.array(given)
    if array is None or array.ndim > 1 or (array < 0).any():
        return None
    if given is not None and not attribute(graph, node, "keepdims"):
        return None
    if array.ndim == 1:
        sizes = [int(n) for n in array]
        fits = not isinstance(dim, int) or dim == sum(sizes)
        return sizes if 0 < len(sizes) <= MOST and fits else None
    piece = int(array)
    if not isinstance(dim, int) or not 0 < dim <= piece * MOST:
        return None
    return [min(piece, dim - start) for start in range(0, dim, piece)]


def _wanted(graph: Graph, node: Node, count: int) -> set[int] | None:
    """The places of the pieces that are read; None where something else is done with the sequence."""
    sequence, wanted = node.outputs[0], set[int]()
    if graph.is_output(sequence) or not sequence.outputs:
        return None
    for reader in sequence.outputs:
        if reader.domain or reader.op not in ("SequenceAt", "SequenceLength", *WHOLE):
            return None
        if reader.op in WHOLE:
            wanted.update(range(count))
        elif reader.op == "SequenceAt":
            place = _position(graph, reader, 1, count)
            if place is None:
                return None
            wanted.add(place)
    return wanted


def _split(graph: Graph, node: Node, sizes: Sequence[int], wanted: set[int]) -> None:
    """Makes the pieces that are wanted, and in place of the node a sequence of them, which the rules will resolve."""
    scope, x, out = node.scope, node.inputs[0], node.outputs[0]
    assert scope is not None
    axis, squeezed = int(attribute(graph, node, "axis")), not attribute(graph, node, "keepdims")
    if len(wanted) > 1 and 2 * len(wanted) > len(sizes):
        pieces = _pieces(scope, node, x, axis, sizes, squeezed)
    else:
        ends = np.cumsum([0, *sizes]).tolist()
        cuts = {at: _cut(scope, node, x, axis, ends[at], ends[at + 1], squeezed) for at in sorted(wanted)}
        pieces = [cuts.get(at, x) for at in range(len(sizes))]  # what nobody asks for may be anything
    scope.add("SequenceConstruct", pieces, [out], name=node.name, before=node)
    scope.remove(node)


def _cut(scope: Graph, node: Node, x: Tensor, axis: int, start: int, end: int, squeezed: bool) -> Tensor:
    piece = scope.variable("piece", x.dtype)
    if squeezed:
        scope.add("Gather", [x, scope.constant(np.array(start), "at")], [piece], {"axis": axis}, before=node)
        return piece
    ends = [
        scope.constant(np.array([v], np.int64), hint) for v, hint in ((start, "start"), (end, "end"), (axis, "axis"))
    ]
    scope.add("Slice", [x, *ends], [piece], before=node)
    return piece


def _pieces(scope: Graph, node: Node, x: Tensor, axis: int, sizes: Sequence[int], squeezed: bool) -> list[Tensor]:
    pieces: list[Tensor] = [scope.variable("piece", x.dtype) for _ in sizes]
    if scope.opset < 13:
        scope.add("Split", [x], pieces, {"axis": axis, "split": list(sizes)}, before=node)
    else:
        lengths = scope.constant(np.array(sizes, np.int64), "split")
        scope.add("Split", [x, lengths], pieces, {"axis": axis}, before=node)
    return [_squeeze(scope, node, piece, axis) for piece in pieces] if squeezed else pieces


def _squeeze(scope: Graph, node: Node, piece: Tensor, axis: int) -> Tensor:
    out = scope.variable("row", piece.dtype)
    axes = [scope.constant(np.array([axis], np.int64), "axes")] if scope.opset >= 13 else []
    scope.add("Squeeze", [piece, *axes], [out], {} if axes else {"axes": [axis]}, before=node)
    return out


def map_sequences(graph: Graph) -> int:
    """Replaces each SequenceMap over known elements by copies of its body; returns how many."""
    count = 0
    for scope in reversed(list(graph.scopes())):
        for node in list(scope.nodes):
            turns = None if node.op != "SequenceMap" or node.domain else _turns(graph, node)
            if not turns or len(turns) > TRIPS or not is_pure(node):
                continue
            if len(turns) * sum(1 for _ in node.attrs["body"].walk()) > NODES:
                continue
            made = [scope.paste(node.attrs["body"], inputs, node) for inputs in turns]
            outputs = list(node.outputs)
            node.outputs.clear()
            for out, elements_of in zip(outputs, zip(*made, strict=True), strict=False):
                if out.name:
                    scope.add("SequenceConstruct", elements_of, [out], name=node.name, before=node)
            scope.remove(node)
            count += 1
    return count


def _turns(graph: Graph, node: Node) -> list[list[Tensor]] | None:
    """What each copy of a SequenceMap's body reads, where the elements are known."""
    first = elements(graph, node.inputs[0])
    if not first:
        return None
    columns = [first]
    for tensor in node.inputs[1:]:
        known = [tensor] * len(first) if tensor.dtype is not None else elements(graph, tensor)
        if known is None or len(known) != len(first):
            return None
        columns.append(known)
    return [list(row) for row in zip(*columns, strict=True)]
