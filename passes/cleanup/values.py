"""Arithmetic that gives back one of its operands: neutral constants, repeated casts, repeated idempotent operators.

Constants are compared exactly (an almost-one scale is a scale) and must not enlarge the other operand by
broadcasting (G3). IDs are those of the rewrite catalogue (N1, N2, N13, N19, N20, N22).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from optimizer.graph import Constant, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from optimizer.stored import nbytes
from passes.cleanup.movement import producer

READ = 1 << 20  # bytes: a larger constant is not read to see whether it is neutral
EITHER = {"Add": 0, "Mul": 1, "And": True, "Or": False, "Xor": False, "BitwiseAnd": -1, "BitwiseOr": 0, "BitwiseXor": 0}
SECOND = {"Sub": 0, "Div": 1, "Pow": 1, "BitShift": 0}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@rule("Add|Mul|And|Or|Xor|BitwiseAnd|BitwiseOr|BitwiseXor(a, b)", shape_safe=True)
def neutral_operand(m: Match, make: Draft) -> Tensor | None:
    """N13. x+0, x*1, x and true, ... in either order. (-0 + 0 gives +0: accepted, the values are equal.)"""
    neutral = EITHER[m.root.op]
    if _is_all(m, make, m["b"], neutral, m["a"]):
        return m["a"]
    return m["b"] if _is_all(m, make, m["a"], neutral, m["b"]) else None


@rule("Sub|Div|Pow|BitShift(x, c)", shape_safe=True)
def neutral_second(m: Match, make: Draft) -> Tensor | None:
    """N13. x-0, x/1, x**1: only as the second operand."""
    return m["x"] if _is_all(m, make, m["c"], SECOND[m.root.op], m["x"]) else None


@rule("Min|Max(a, b)", shape_safe=True)
def extreme_bound(m: Match, make: Draft) -> Tensor | None:
    """N13. min(x, +inf) and max(x, -inf); for integers the ends of their range. NaN passes through both ways."""
    for x, c in ((m["a"], m["b"]), (m["b"], m["a"])):
        end = None if c.dtype is None else _end(np.dtype(c.dtype), m.root.op == "Min")
        if end is not None and _is_all(m, make, c, end, x):
            return x
    return None


def _end(dtype: np.dtype[Any], largest: bool) -> float | int | None:
    if dtype.kind == "f":
        return np.inf if largest else -np.inf
    if dtype.kind not in "iu":
        return None
    return int(np.iinfo(dtype).max if largest else np.iinfo(dtype).min)


def _is_all(m: Match, make: Draft, c: Tensor, value: float, x: Tensor) -> bool:
    """True where `c` is a constant of nothing but `value`, and x keeps its shape when `c` is broadcast onto it.

    Before operator set 7 operands were aligned by attributes, so nothing is claimed there.
    """
    if m.graph.opset < 7 or not isinstance(c, Constant) or nbytes(c) > READ or not _fits(c, x):
        return False
    array = make.array(c)
    return array is not None and array.size > 0 and bool(np.all(array == np.asarray(value).astype(array.dtype)))


def _fits(c: Tensor, x: Tensor) -> bool:
    if len(c.shape) == 0:
        return True
    if x.shape is None or len(c.shape) > len(x.shape):
        return False
    pairs = zip(c.shape[::-1], list(x.shape)[::-1], strict=False)
    return all(m in (1, n) for m, n in pairs)


@rule("Cast(x)", shape_safe=True)
def cast_same(m: Match, make: Draft) -> Tensor | None:
    """N1. To the type it has."""
    return m["x"] if _code(m["x"]) == make.attr(m.root, "to") else None


@rule("CastLike(x, like)", shape_safe=True)
def cast_like_same(m: Match, make: Draft) -> Tensor | None:
    """N1. To the type it has."""
    return m["x"] if _code(m["x"]) is not None and _code(m["x"]) == _code(m["like"]) else None


@rule("Cast(y)", shape_safe=True)
def cast_cast(m: Match, make: Draft) -> Tensor | None:
    """N2. A cast of a cast that lost nothing is a cast of the source, or the source itself."""
    inner, to = producer(m["y"], "Cast"), make.attr(m.root, "to")
    if inner is None or not _lossless(inner.inputs[0], m["y"]):
        return None
    x: Tensor = inner.inputs[0]
    if _code(x) == to:
        return x
    return make.node("Cast", x, attrs=dict(m.root.attrs)) if _direct(x, m["y"], to) else None


def _code(tensor: Tensor) -> int | None:
    return None if tensor.dtype is None else int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def _lossless(x: Tensor, y: Tensor) -> bool:
    """True where every value of x's type is a value of y's. (numpy calls int64 to float64 safe; it is not.)"""
    if x.dtype is None or y.dtype is None:
        return False
    source, target = np.dtype(x.dtype), np.dtype(y.dtype)
    if BFLOAT16 in (source, target):
        return target in (np.float32, np.float64) or (source.kind in "biu" and source.itemsize == 1)
    if source.kind not in "biuf" or target.kind not in "biuf":
        return False
    if source.kind in "iu" and source.itemsize == 8 and target.kind == "f":
        return False
    return np.can_cast(source, target, "safe")


def _direct(x: Tensor, y: Tensor, to: int) -> bool:
    """True where the runtime's one-step cast surely equals the two steps.

    Text depends on the source's digits, eight-bit floats on saturation; integers reach half precision by two
    roundings, and a float out of range becomes an integer in a way of its own per source type.
    """
    plain = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL)
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    whole = np.dtype(x.dtype).kind in "biu"
    if to in plain or (to in halves and not whole):
        return True
    integer = np.dtype(helper.tensor_dtype_to_np_dtype(to)).kind in "iu"
    return integer and whole and np.dtype(y.dtype).kind in "biu"


@rule("Neg|Not|BitwiseNot(y)", shape_safe=True)
def undone(m: Match, make: Draft) -> Tensor | None:
    """N19. Negation of a negation; exact for two's complement as well."""
    inner = producer(m["y"], m.root.op)
    return None if inner is None else inner.inputs[0]


@rule("Relu|Abs|Ceil|Floor|Round|Sign(y)", shape_safe=True)
def idempotent(m: Match, make: Draft) -> Tensor | None:
    """N19. f(f(x)) = f(x)."""
    return None if producer(m["y"], m.root.op) is None else m["y"]


@rule("Clip(y, *bounds)", shape_safe=True)
def clip_again(m: Match, make: Draft) -> Tensor | None:
    """N19. The same bounds a second time: the same tensors, or the same attributes in older operator sets."""
    inner = producer(m["y"], "Clip")
    if inner is None or inner.attrs != m.root.attrs or len(inner.inputs) != len(m.root.inputs):
        return None
    pairs = zip(inner.inputs[1:], m.root.inputs[1:], strict=True)
    return m["y"] if all(a is b or not (a.name or b.name) for a, b in pairs) else None


@rule("Where(condition, a, b)")
def where_constant(m: Match, make: Draft) -> Tensor | None:
    """N20. A condition that is true (or false) everywhere; the engine sees to the broadcast shape."""
    c = m["condition"]
    array = make.array(c) if isinstance(c, Constant) and nbytes(c) <= READ else None
    if array is None or array.size == 0 or array.any() != array.all():
        return None
    return m["a"] if array.all() else m["b"]


@rule("Where(condition, x, x)")
def where_same(m: Match, make: Draft) -> Tensor | None:
    """N20. The same tensor either way; the engine sees to the broadcast shape."""
    return m["x"]


@rule("Sum(x)", "Mean(x)", "Max(x)", "Min(x)", shape_safe=True)
def one_operand(m: Match, make: Draft) -> Tensor | None:
    """N22. The sum, mean, largest or smallest of one operand."""
    return m["x"]


@rule("Einsum(x)", shape_safe=True)
def einsum_nothing(m: Match, make: Draft) -> Tensor | None:
    """N22. `ij->ij`: every axis once and in its place."""
    left, arrow, right = make.attr(m.root, "equation").replace(" ", "").partition("->")
    return m["x"] if arrow and left == right and left.isalpha() and len(set(left)) == len(left) else None


RULES = (
    neutral_operand,
    neutral_second,
    extreme_bound,
    cast_same,
    cast_like_same,
    cast_cast,
    undone,
    idempotent,
    clip_again,
    where_constant,
    where_same,
    one_operand,
    einsum_nothing,
)
