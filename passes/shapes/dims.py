"""Dims of operators' results as expressions, where onnx's own inference only says that they are unknown.

Each rule gives the dims of an operator's first output, or None where it cannot tell; a single dim may be None too.
Operators that slide a window or resample are in `spatial`, those that make, repeat, index or cut up in `making`.
"""

from __future__ import annotations

from collections.abc import Callable

from optimizer.graph import Node
from optimizer.ops import attribute, axes
from passes.shapes.algebra import Expr, is_cut, number, product, smaller
from passes.shapes.facts import Dims, Facts
from passes.shapes.making import MAKING, SEVERAL
from passes.shapes.spatial import SPATIAL

FAR = 2**31 - 1  # an `end` of Slice beyond every dim
ANY_RANK = 1 << 20  # to count axes before the rank they belong to is known


def result_dims(node: Node, facts: Facts) -> list[Dims | None]:
    """Dims of the node's outputs by its operator's rule; None where there is no rule or it cannot tell."""
    if not node.domain and node.op in SEVERAL:
        return SEVERAL[node.op](node, facts)
    rule = None if node.domain else RULES.get(node.op)
    return [None if rule is None else rule(node, facts), *[None] * (len(node.outputs) - 1)]


def _same(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    return None if dims is None else list(dims)


def _broadcast(node: Node, facts: Facts) -> Dims | None:
    if facts.graph.opset < 7:
        return None
    shapes = [facts.dims(t) for t in node.inputs]
    if any(s is None for s in shapes):
        return None
    return _merge([list(s) for s in shapes if s is not None])


def _merge(shapes: list[list[Expr]]) -> Dims:
    out: Dims = []
    rank = max(map(len, shapes))
    padded = [[number(1)] * (rank - len(s)) + s for s in shapes]
    for column in zip(*padded, strict=True):
        wide = [d for d in dict.fromkeys(column) if d != number(1)]
        wide = [d for d in wide if not any(is_cut(d, other) for other in wide)]
        sure = [d for d in wide if (d.value or 0) > 1]  # the others must be equal to it, or 1
        out.append(number(1) if not wide else wide[0] if len(wide) == 1 else sure[0] if sure else None)
    return out


def _transpose(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    if dims is None:
        return None
    perm = attribute(facts.graph, node, "perm")
    return [dims[p] for p in (perm or range(len(dims))[::-1])]


def _reshape(node: Node, facts: Facts) -> Dims | None:
    """Entries of the target; 0 copies, and -1 is what is left where that divides exactly."""
    target, dims = facts.vector(node, 1), facts.dims(node.inputs[0])
    if target is None:
        return None
    keeps_zero = attribute(facts.graph, node, "allowzero")
    out: Dims = []
    for i, entry in enumerate(target):
        copied = dims[i] if dims is not None and i < len(dims) else None
        if entry.value == 0 and not keeps_zero:
            out.append(copied)
        else:
            sure = entry.positive or (entry.natural and (keeps_zero or _copies_zero(entry, dims, i)))
            out.append(entry if sure else None)
    free = [i for i, entry in enumerate(target) if entry.value == -1]
    rest = [d for i, d in enumerate(out) if i not in free]
    if len(free) == 1 and dims is not None and all(d is not None for d in rest):
        out[free[0]] = product(dims).over(product(d for d in rest if d is not None))
    return out


def _copies_zero(entry: Expr, dims: list[Expr] | None, place: int) -> bool:
    """True where an entry that is 0 at run time, and so copies, gives 0 all the same: the dim is a multiple of it.

    Beyond the input's rank there is nothing to copy: the runtime fails, so the entry is not 0.
    """
    return dims is not None and (place >= len(dims) or dims[place].over(entry) is not None)


def _expand(node: Node, facts: Facts) -> Dims | None:
    target, dims = facts.vector(node, 1), facts.dims(node.inputs[0])
    if target is None or dims is None or not all(entry.natural for entry in target):
        return None
    return _merge([dims, target])


def _concat(node: Node, facts: Facts) -> Dims | None:
    shapes = [facts.dims(t) for t in node.inputs]
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes) or len({len(s) for s in known}) != 1:
        return None
    axis = int(attribute(facts.graph, node, "axis") or 0)
    out: Dims = list(known[0])
    out[axis] = sum((s[axis] for s in known), start=number(0))
    return out


def _matmul(node: Node, facts: Facts) -> Dims | None:
    a, b = facts.dims(node.inputs[0]), facts.dims(node.inputs[1])
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    return [*_merge([a[:-2], b[:-2]]), a[-2], b[-1]]


def _unsqueeze(node: Node, facts: Facts) -> Dims | None:
    dims, count = facts.dims(node.inputs[0]), len(axes(facts.graph, node, ANY_RANK) or ())
    where = None if dims is None else axes(facts.graph, node, len(dims) + count)
    if dims is None or not where:
        return None
    out: Dims = list(dims)
    for axis in where:
        out.insert(axis, number(1))
    return out


def _squeeze(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    where = None if dims is None else axes(facts.graph, node, len(dims))
    if dims is None or not where:
        return None
    return [d for i, d in enumerate(dims) if i not in where]


def _gather(node: Node, facts: Facts) -> Dims | None:
    dims, places = facts.dims(node.inputs[0]), facts.dims(node.inputs[1])
    if dims is None or places is None:
        return None
    axis = int(attribute(facts.graph, node, "axis")) % max(1, len(dims))
    return [*dims[:axis], *places, *dims[axis + 1 :]]


def _slice(node: Node, facts: Facts) -> Dims | None:
    """Axes that are not cut keep their dim, so do those that are taken whole; of others the first `end` are left."""
    dims = facts.dims(node.inputs[0])
    starts, ends = facts.vector(node, 1), facts.vector(node, 2)
    if dims is None or starts is None or ends is None:
        return None
    which = _optional(node, 3, facts, [number(i) for i in range(len(starts))])
    steps = _optional(node, 4, facts, [number(1)] * len(starts))
    if which is None or steps is None or not len(starts) == len(ends) == len(which) == len(steps):
        return None
    out: Dims = list(dims)
    for start, end, axis, step in zip(starts, ends, which, steps, strict=True):
        if axis.value is None:
            return None
        dim = dims[axis.value]
        far = (end - dim).natural or (end.value is not None and end.value >= FAR)
        first = dim if far else smaller(end, dim) if end.natural else None
        out[axis.value] = first if start.value == 0 and step.value == 1 else None
    return out


def _optional(node: Node, position: int, facts: Facts, default: list[Expr]) -> list[Expr] | None:
    absent = len(node.inputs) <= position or not node.inputs[position].name
    return default if absent else facts.vector(node, position)


def _reduce(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    where = None if dims is None else axes(facts.graph, node, len(dims))
    if dims is None or not where:
        return None
    if attribute(facts.graph, node, "keepdims"):
        return [number(1) if i in where else d for i, d in enumerate(dims)]
    return [d for i, d in enumerate(dims) if i not in where]


SAME = [
    "Abs", "Acos", "Asin", "Atan", "BatchNormalization", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Cos", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "GroupNormalization", "HardSigmoid",
    "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization",
    "LeakyRelu", "Log", "LogSoftmax", "LRN", "Mish", "Neg", "Not", "QuantizeLinear", "DequantizeLinear",
    "RMSNormalization", "Reciprocal", "Relu", "RotaryEmbedding", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu",
]  # fmt: skip
BROADCAST = [
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
]  # fmt: skip
REDUCE = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
]  # fmt: skip
RULES: dict[str, Callable[[Node, Facts], Dims | None]] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(REDUCE, _reduce),
    **SPATIAL,
    **MAKING,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
