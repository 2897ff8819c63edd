"""Quantizing again what was dequantized by the same parameters gives the same codes back (N23 of the catalogue).

With n = q - z and |n| < 2^b for codes of b bits, fl(fl(n s) / s) is n (1 + e1)(1 + e2), each |e| <= u, so it is off by
less than 2^b (2u + u^2): below 2^-6 for 16 bits in float32 (u = 2^-24), below 0.26 for 8 bits in float16 (u = 2^-11),
and rounding to an integer gives n. (A runtime that multiplies by the reciprocal rounds three times: still below
1/2.) n s must not overflow, and s must be a normal number, so that n s is one too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from optimizer.stored import nbytes
from passes.cleanup.movement import producer
from passes.cleanup.values import READ

SIGNIFICAND = {"float16": 11, "float32": 24}  # bits
ATTRS = ("axis", "block_size")


@rule("QuantizeLinear(y, *how)", shape_safe=True)
def quantize_again(m: Match, make: Draft) -> Tensor | None:
    """N23. The codes that were dequantized."""
    inner, outer = producer(m["y"], "DequantizeLinear"), m.root
    if inner is None or any(make.attr(inner, name) != make.attr(outer, name) for name in ATTRS):
        return None
    q: Tensor = inner.inputs[0]
    if q.dtype is None or outer.outputs[0].dtype is None or np.dtype(q.dtype) != np.dtype(outer.outputs[0].dtype):
        return None
    return q if _same_zero(make, inner, outer) and _same_scale(make, inner, outer, np.dtype(q.dtype)) else None


def _same_scale(make: Draft, inner: Node, outer: Node, codes: np.dtype[Any]) -> bool:
    ours, theirs = inner.inputs[1], outer.inputs[1]
    if codes.kind not in "iu" or not all(isinstance(t, Constant) and nbytes(t) <= READ for t in (ours, theirs)):
        return False
    scale, other = make.array(ours), make.array(theirs)
    if scale is None or other is None or scale.dtype != other.dtype or not np.array_equal(scale, other):
        return False
    bits = 8 * codes.itemsize
    if bits + 3 > SIGNIFICAND.get(scale.dtype.name, 0):
        return False
    size, limits = np.abs(scale.astype(np.float64)), np.finfo(scale.dtype)
    return bool(np.all((size >= limits.smallest_normal) & (size * 2**bits < limits.max)))


def _same_zero(make: Draft, inner: Node, outer: Node) -> bool:
    ours, theirs = _zero(make, inner), _zero(make, outer)
    return ours is not None and theirs is not None and bool(np.all(ours == theirs))


def _zero(make: Draft, node: Node) -> Array | None:
    """A constant zero point; 0 where there is none."""
    given = len(node.inputs) > 2 and bool(node.inputs[2].name)
    return make.array(node.inputs[2]) if given else np.array(0)


RULES = (quantize_again,)
