"""Operators that move data and here move nothing: each rule returns its input in place of the result.

Rules marked `shape_safe` prove equal shapes themselves; for the others the engine demands that both shapes are known
and equal for all values of the symbols (G3). IDs are those of the rewrite catalogue (N3 to N11).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer import shapes
from optimizer.graph import Array, Dim, Graph, Node, Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule

FAR = 2**31 - 1  # an `end` of Slice that no dim reaches; exporters write this or 2**63-1


def producer(tensor: Tensor, op: str) -> Node | None:
    """The standard node of this operator that makes `tensor` as its first output, or None."""
    node: Node | None = tensor.inputs[0] if tensor.inputs else None
    return node if node and node.op == op and not node.domain and node.outputs[0] is tensor else None


def ints(make: Draft, node: Node, position: int, attr: str) -> list[int] | None:
    """A list of integers from an attribute (older operator sets) or a constant input; None where it is neither."""
    value: Sequence[int] | Array | None = make.attr(node, attr)
    if value is None and len(node.inputs) > position and node.inputs[position].name:
        value = make.array(node.inputs[position])
    return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]


def given(node: Node, position: int, attr: str) -> bool:
    return attr in node.attrs or (len(node.inputs) > position and bool(node.inputs[position].name))


@rule("Identity(x)", shape_safe=True)
def identity(m: Match, make: Draft) -> Tensor | None:
    """H1. An Identity that gives a graph output its name stays, unless its producer can take that name over."""
    out, x, scope = m.root.outputs[0], m["x"], m.root.scope
    named = x.inputs and x.inputs[0].scope is scope and not m.graph.is_output(x)
    return None if m.graph.is_output(out) and not named else x


@rule("Transpose(x)", shape_safe=True)
def transpose_identity(m: Match, make: Draft) -> Tensor | None:
    """N3. The axes keep their order, or only axes of size 1 change place and every dim stays where it was."""
    x, perm = m["x"], make.attr(m.root, "perm")
    if perm is not None and list(perm) == list(range(len(perm))):
        return x
    if x.shape is None:
        return None
    perm = perm or range(len(x.shape))[::-1]
    moved = [p for p in perm if x.shape[p] != 1]
    same = shapes.same_shape(m.root.outputs[0], x) or len(x.shape) < 2
    return x if moved == sorted(moved) and same else None


@rule("Reshape(x, shape)", shape_safe=True)
def reshape_same(m: Match, make: Draft) -> Tensor | None:
    """N4. Same shape, or a target that copies every dim (0) but at most one, which is then what is left (-1)."""
    x, target = m["x"], make.array(m["shape"])
    if shapes.same_shape(m.root.outputs[0], x):
        return x
    if target is None or x.shape is None or len(target) != len(x.shape) or make.attr(m.root, "allowzero"):
        return None
    free = [t for t, d in zip(target.tolist(), x.shape, strict=True) if t != 0 and not (t == d and t > 0)]
    return x if free in ([], [-1]) else None


@rule("Flatten(x)")
def flatten_matrix(m: Match, make: Draft) -> Tensor | None:
    """N5. A matrix cut after its first axis is itself; the engine compares the dims."""
    return m["x"]


@rule("Unsqueeze(x, axes?)", shape_safe=True)
def unsqueeze_nothing(m: Match, make: Draft) -> Tensor | None:
    """N6. No axes to insert. A missing list is invalid here, so it is left to the runtime."""
    return m["x"] if ints(make, m.root, 1, "axes") == [] else None


@rule("Squeeze(x, axes?)")
def squeeze_nothing(m: Match, make: Draft) -> Tensor | None:
    """N6. No dim of size 1 to remove: without axes every dim must be a number other than 1."""
    x = m["x"]
    if given(m.root, 1, "axes") and ints(make, m.root, 1, "axes") != []:
        return None
    known = shapes.static(x)
    return None if known is None or 1 in known else x


@rule("Squeeze(y, axes?)", shape_safe=True)
def squeeze_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    """N6. Removes exactly the axes that were just inserted."""
    inner = producer(m["y"], "Unsqueeze")
    return None if inner is None else _undone(m.graph, m.root, inner, m["y"])


@rule("Unsqueeze(y, axes?)", shape_safe=True)
def unsqueeze_squeeze(m: Match, make: Draft) -> Tensor | None:
    """N6. Inserts exactly the axes that were just removed, which were of size 1."""
    inner = producer(m["y"], "Squeeze")
    return None if inner is None else _undone(m.graph, m.root, inner, inner.inputs[0])


def _undone(graph: Graph, outer: Node, inner: Node, full: Tensor) -> Tensor | None:
    """The inner node's input where both name the same axes of the tensor that has them all."""
    rank = None if full.shape is None else len(full.shape)
    mine, its = axes(graph, outer, rank), axes(graph, inner, rank)
    tensor: Tensor = inner.inputs[0]
    return tensor if mine and mine == its else None


@rule("Slice(x, *rest)", shape_safe=True)
def slice_everything(m: Match, make: Draft) -> Tensor | None:
    """N7. From the first element to beyond the last, step 1, on every axis named (OnnxSlim#277: -1 is not the end)."""
    x, node = m["x"], m.root
    starts, ends = ints(make, node, 1, "starts"), ints(make, node, 2, "ends")
    if starts is None or ends is None:
        return None
    if len(node.inputs) > 4 and node.inputs[4].name and set(ints(make, node, 4, "steps") or [0]) != {1}:
        return None
    which = ints(make, node, 3, "axes") if given(node, 3, "axes") else list(range(len(starts)))
    if which is None:
        return None
    dims = [x.shape[a] if x.shape is not None and -len(x.shape) <= a < len(x.shape) else None for a in which]
    return x if all(_whole(*each) for each in zip(starts, ends, dims, strict=True)) else None


def _whole(start: int, end: int, dim: Dim) -> bool:
    if isinstance(dim, int):
        return (start == 0 or start <= -dim) and end >= dim
    return start == 0 and end >= FAR


@rule("Concat(x)", shape_safe=True)
def concat_one(m: Match, make: Draft) -> Tensor | None:
    """N9. One operand."""
    return m["x"]


@rule("Concat(*xs)")
def concat_empty(m: Match, make: Draft) -> Tensor | None:
    """N9. Operands of size 0 along the axis add nothing; all must have the same known rank."""
    xs, axis = m.lists["xs"], make.attr(m.root, "axis")
    if axis is None or len({None if x.shape is None else len(x.shape) for x in xs}) != 1 or xs[0].shape is None:
        return None
    full = [x for x in xs if x.shape[axis] != 0]
    if len(full) == len(xs) or not full:
        return None
    return make.node("Concat", *full, attrs={"axis": axis})


@rule("Split(x, *rest)", shape_safe=True)
def split_one(m: Match, make: Draft) -> Tensor | None:
    """N10. One output takes everything."""
    return m["x"] if len(m.root.outputs) == 1 else None


@rule("Expand(x, shape)", shape_safe=True)
def expand_nothing(m: Match, make: Draft) -> Tensor | None:
    """N11. A target of ones, or one that gives x's own shape. Expand broadcasts both ways, so a 1 never shrinks x."""
    x, target = m["x"], make.array(m["shape"])
    if shapes.same_shape(m.root.outputs[0], x):
        return x
    if target is None or x.shape is None or len(target) > len(x.shape):
        return None
    pairs = zip(target[::-1].tolist(), list(x.shape)[::-1], strict=False)
    return x if all(t in (1, d) for t, d in pairs) else None


@rule("Tile(x, repeats)", shape_safe=True)
def tile_nothing(m: Match, make: Draft) -> Tensor | None:
    """N11. Every axis is repeated once."""
    repeats = make.array(m["repeats"])
    return m["x"] if repeats is not None and np.all(repeats == 1) else None


@rule("Gather(x, indices)", shape_safe=True)
def gather_everything(m: Match, make: Draft) -> Tensor | None:
    """N21. Every element of an axis of known length, in order."""
    x, indices = m["x"], make.array(m["indices"])
    if not x.shape or indices is None or indices.ndim != 1:
        return None
    dim = x.shape[make.attr(m.root, "axis")]
    if not isinstance(dim, int):
        return None
    return x if any(np.array_equal(indices, np.arange(dim) - shift) for shift in (0, dim)) else None


@rule("ScatterND(x, indices, updates)", shape_safe=True)
def scatter_everything(m: Match, make: Draft) -> Tensor | None:
    """N21. Every place is written once, in order: what is written is the result."""
    known, places = shapes.static(m["x"]), make.array(m["indices"])
    if known is None or make.attr(m.root, "reduction") not in (None, "none"):
        return None
    if places is None or not places.ndim or places.shape[:-1] != known[: places.shape[-1]]:
        return None
    every = np.moveaxis(np.indices(places.shape[:-1]), 0, -1)
    return m["updates"] if np.array_equal(places, every) else None


RULES = (
    identity,
    transpose_identity,
    reshape_same,
    flatten_matrix,
    unsqueeze_nothing,
    unsqueeze_squeeze,
    squeeze_nothing,
    squeeze_unsqueeze,
    slice_everything,
    concat_one,
    concat_empty,
    split_one,
    expand_nothing,
    tile_nothing,
    gather_everything,
    scatter_everything,
)
