"""Operators that work on each element by itself: axes are the same, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.graph import Node, Tensor
from optimizer.ops import attribute
from passes.prune.coupling import Coupling

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
BROADCAST = (
    "Add", "And", "BiasGelu", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "FastGelu",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow",
    "Sub", "Sum",
    "Where", "Xor",
)  # fmt: skip


def unary(c: Coupling, node: Node) -> bool:
    """Every output that has the input's rank is indexed as the input is; other inputs are scalars."""
    return all(same(c, node.inputs[0], out) for out in node.outputs if out.name)


def same(c: Coupling, a: Tensor, b: Tensor) -> bool:
    """All axes of two tensors are the same."""
    first, second = c.of(a), c.of(b)
    if first is None or second is None or len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        c.tie(one, other)
    return True


def broadcast(c: Coupling, node: Node) -> bool:
    return broadcasts(c, [t for t in node.inputs if t.name], node.outputs[0])


def broadcasts(c: Coupling, inputs: Sequence[Tensor], out: Tensor, leave: int = 0) -> bool:
    """Axes aligned at the last, but for the last `leave`; an axis of size 1 stands for all indices."""
    made, sizes = c.of(out), c.sizes(out)
    if made is None or sizes is None:
        return False
    for tensor in inputs:
        terms, own = c.of(tensor), c.sizes(tensor)
        if terms is None or own is None or len(terms) > len(made):
            return False
        shift = len(made) - len(terms)
        for axis in range(len(terms) - leave):
            if own[axis] != 1:
                c.tie(terms[axis], made[axis + shift])
    return True


def linear(c: Coupling, node: Node) -> bool:
    """QuantizeLinear, DequantizeLinear: a scale per channel goes with its channel."""
    x = node.inputs[0]
    if attribute(c.graph, node, "block_size") or not same(c, x, node.outputs[0]):
        return False
    terms, axis = c.of(x), attribute(c.graph, node, "axis")
    axis = 1 if axis is None else int(axis)
    for tensor in node.inputs[1:]:
        if tensor.name and c.sizes(tensor) not in ([], [1]):
            own = c.of(tensor)
            if terms is None or own is None or len(own) != 1 or not -len(terms) <= axis < len(terms):
                return False
            c.tie(own[0], terms[axis])
    return True


RELATIONS = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BROADCAST, broadcast),
    "QuantizeLinear": linear,
    "DequantizeLinear": linear,
}
