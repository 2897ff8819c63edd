"""How an operator reads and writes when its operands come in another order of axes.

Let t be Transpose(u, perm): axis i of t is axis perm[i] of u. Each function below gives a node's form that reads u in
the place of t and makes v where Transpose(v, perm') is what the node made of t; None where there is none or it is not
certain. Elements are computed one by one, or along axes that only change their numbers:

    elementwise     any operands, aligned to the right at full rank, are turned alike
    along an axis   axis a of t is axis perm[a] of u
    fewer axes      the axes that are left keep their order in u, which numbers them anew
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.io import nbytes
from optimizer.ops import attribute, axes
from optimizer.rewrite import SLACK

Perm = tuple[int, ...]

UNARY = frozenset([
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
])  # fmt: skip
BROADCAST = frozenset([
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
])  # fmt: skip
REDUCE = frozenset([
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
])  # fmt: skip


@dataclass(frozen=True)
class Moved:
    """A node in its other form. Its outputs are `perm` away from what they were.

    `arrays`: inputs that become these constants. `turned`: inputs that are turned back, constants or not.
    """

    perm: Perm
    attrs: dict[str, Any] = field(default_factory=dict)  # only those that change
    arrays: dict[int, Array] = field(default_factory=dict)
    turned: tuple[int, ...] = ()


def moved(graph: Graph, node: Node, perms: Sequence[Perm | None]) -> Moved | None:
    """The form of a node whose inputs are `perms` away from what it shall read (None: not at all, or unknown)."""
    if node.domain or not node.inputs:
        return None
    if node.op in BROADCAST:
        return _broadcast(graph, node, perms)
    if node.op == "Concat":
        return _concat(graph, node, perms)
    if perms[0] is None or any(p is not None for p in perms[1:]):
        return None
    if node.op in UNARY:
        return Moved(perms[0])
    form = _reduce if node.op in REDUCE else FORMS.get(node.op)
    return None if form is None else form(graph, node, perms[0])


def inverse(perm: Perm) -> Perm:
    return tuple(int(i) for i in np.argsort(perm))


def composed(inner: Perm, outer: Perm) -> Perm:
    """The order of axes that comes of `inner`, then `outer`."""
    return tuple(inner[axis] for axis in outer)


def permutation(node: Node) -> Perm | None:
    """The order of axes a Transpose makes; None where it reverses an unknown number of them."""
    written, shape = node.attrs.get("perm"), node.inputs[0].shape
    if written is not None:
        return tuple(written)
    return None if shape is None else tuple(range(len(shape)))[::-1]


def turned(values: Array, perm: Perm) -> Array:
    """A constant that broadcasts with t, as it broadcasts with u."""
    full = values.reshape((1,) * (len(perm) - values.ndim) + values.shape)
    return np.ascontiguousarray(full.transpose(inverse(perm)))


def without(perm: Perm, removed: Collection[int]) -> Perm:
    """What is left of `perm` when these axes of t are gone."""
    left = [p for i, p in enumerate(perm) if i not in removed]
    return tuple(sorted(left).index(p) for p in left)


def _broadcast(graph: Graph, node: Node, perms: Sequence[Perm | None]) -> Moved | None:
    known = {p for p in perms if p is not None}
    if len(known) != 1:
        return None
    (perm,) = known
    others = []
    for i, tensor in enumerate(node.inputs):
        if perms[i] is not None:
            continue
        if tensor.shape is None or len(tensor.shape) > len(perm):
            return None
        if all(d == 1 for d in tensor.shape):
            continue
        if not _turns(graph, node, tensor, len(perm)):
            return None
        others.append(i)
    return Moved(perm, turned=tuple(others))


def _turns(graph: Graph, node: Node, tensor: Tensor, rank: int) -> bool:
    """True where the tensor has all axes, or is a constant that nobody else keeps in the file as it is."""
    if not isinstance(tensor, Constant) or not graph.is_constant(tensor):
        return tensor.shape is not None and len(tensor.shape) == rank
    return graph.only_feeds(tensor, node) or nbytes(tensor) <= SLACK


def _concat(graph: Graph, node: Node, perms: Sequence[Perm | None]) -> Moved | None:
    known = {p for p in perms if p is not None}
    if len(known) != 1:
        return None
    (perm,) = known
    others = tuple(i for i, p in enumerate(perms) if p is None)
    if not all(_turns(graph, node, node.inputs[i], len(perm)) for i in others):
        return None
    return Moved(perm, {"axis": perm[node.attrs["axis"] % len(perm)]}, turned=others)


def _axis(graph: Graph, node: Node, perm: Perm) -> int:
    """The axis of t that a node works along."""
    return int(attribute(graph, node, "axis")) % len(perm)


def _along(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    return Moved(perm, {"axis": perm[_axis(graph, node, perm)]})


def _softmax(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    """Before 13 it runs along all axes from the given one on."""
    axis = _axis(graph, node, perm)
    if graph.opset < 13 and (axis != len(perm) - 1 or perm[axis] != axis):
        return None
    return Moved(perm, {"axis": perm[axis]})


def _arg(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    axis = _axis(graph, node, perm)
    return Moved(perm if attribute(graph, node, "keepdims") else without(perm, [axis]), {"axis": perm[axis]})


def _gather(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    axis, shape = _axis(graph, node, perm), node.inputs[1].shape
    if shape is None or len(shape) > 1:
        return None
    return Moved(perm if shape else without(perm, [axis]), {"axis": perm[axis]})


def _cast(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    """Only to what every runtime can transpose."""
    dtype = node.outputs[0].dtype
    return None if dtype is None or np.dtype(dtype).kind not in "biuf" else Moved(perm)


def _quantize(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    shape = node.inputs[1].shape
    if shape is None or len(shape) > 1 or attribute(graph, node, "block_size"):
        return None
    return Moved(perm) if all(d == 1 for d in shape) or graph.opset < 13 else _along(graph, node, perm)


def _over(node: Node, old: Sequence[int], perm: Perm) -> tuple[dict[str, Any], dict[int, Array]]:
    """Axes of t as those of u, where the node has them: in its attributes, or in its second input."""
    new = [perm[a] for a in old]
    if "axes" in node.attrs:
        return {"axes": new}, {}
    return {}, {1: np.array(new, np.int64)} if new else {}


def _reduce(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    over = axes(graph, node, len(perm))
    if over is None or (not over and attribute(graph, node, "noop_with_empty_axes")):
        return None
    gone = over or tuple(range(len(perm)))
    attrs, arrays = _over(node, over, perm)
    if attribute(graph, node, "keepdims"):
        return Moved(perm if over else tuple(range(len(perm))), attrs, arrays)  # all of size 1: in order as they are
    return Moved(without(perm, gone), attrs, arrays)


def _squeeze(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    if not (over := axes(graph, node, len(perm))):
        return None
    return Moved(without(perm, over), *_over(node, over, perm))


def _unsqueeze(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    """The new axes stay where they are, so the node itself stays as it is."""
    shape = node.outputs[0].shape
    if shape is None or not (over := axes(graph, node, len(shape))):
        return None
    places = [i for i in range(len(shape)) if i not in over]
    old = iter(perm)
    return Moved(tuple(i if i in over else places[next(old)] for i in range(len(shape))))


def _listed(graph: Graph, node: Node, index: int) -> list[int] | None:
    """The integers of an optional input; None where it is absent or not constant."""
    given = node.inputs[index : index + 1]
    values = graph.array(given[0]) if given and given[0].name else None
    return None if values is None else [int(v) for v in values.reshape(-1)]


def _given(node: Node, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index].name)


def _slice(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    if "starts" in node.attrs:  # before 10
        over = node.attrs.get("axes", range(len(node.attrs["starts"])))
        return Moved(perm, {"axes": [perm[a % len(perm)] for a in over]})
    if _given(node, 3):
        known = _listed(graph, node, 3)
    else:
        count = node.inputs[1].shape
        known = list(range(count[0])) if count and isinstance(count[0], int) else None
    kind = node.inputs[1].dtype  # all four lists are of one type
    if known is None or kind is None:
        return None
    return Moved(perm, arrays={3: np.array([perm[a % len(perm)] for a in known], kind)})


def _pad(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    n = len(perm)
    if _given(node, 3):
        known = _listed(graph, node, 3)
        return None if known is None else Moved(perm, arrays={3: np.array([perm[a % n] for a in known], np.int64)})
    amounts = list(node.attrs["pads"]) if "pads" in node.attrs else _listed(graph, node, 1)
    if amounts is None or len(amounts) != 2 * n:
        return None
    back = inverse(perm)
    new = [amounts[back[i]] for i in range(n)] + [amounts[n + back[i]] for i in range(n)]
    return Moved(perm, {"pads": new}) if "pads" in node.attrs else Moved(perm, arrays={1: np.array(new, np.int64)})


def _resize(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    """Runtimes interpolate along the last two of four axes only; any axes can be resized to the nearest element."""
    if attribute(graph, node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    place = 1 if graph.opset < 11 else 3 if _given(node, 3) else 2
    values = graph.array(node.inputs[place]) if _given(node, place) else None
    over = [a % len(perm) for a in node.attrs.get("axes") or range(len(perm))]
    if values is None or len(values) != len(over):
        return None
    factors = dict(zip([perm[a] for a in over], values.tolist(), strict=True))
    new = sorted(factors)
    inner = len(perm) == 4 and place != 3 and all(factors.get(a, 1) == 1 for a in (0, 1))
    if attribute(graph, node, "mode") != "nearest" and not inner:
        return None
    attrs = {"axes": new} if "axes" in node.attrs else {}
    return Moved(perm, attrs, {place: np.array([factors[a] for a in new], values.dtype)})


FORMS: dict[str, Callable[[Graph, Node, Perm], Moved | None]] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Cast": _cast,
    "CastLike": _cast,
    "DequantizeLinear": _quantize,
    "Gather": _gather,
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "LpNormalization": _along,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _along,
    "Squeeze": _squeeze,
    "TopK": _along,
    "Unsqueeze": _unsqueeze,
}
