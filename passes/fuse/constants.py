"""Constants in a row are added, multiplied or compared once.

    (x + c) + d = x + (c + d)        (x c) d = x (c d)        min(min(x, c), d) = min(x, min(c, d))        max likewise

Broadcasting is associative too, so the shape is the same. Integers wrap around, which is exact. Floats round once
instead of twice, unless c d overflows or vanishes, or c + d cancels: x + c - c rounds x on purpose. The
least and the largest are exact, and NaN wins wherever it stands. (E3, E4 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import constant_operand, narrow, wide

SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}  # normal numbers


@rule("Add(Add(a, b), d)")
def add_add(m: Match, make: Draft) -> Tensor | None:
    found, d = constant_operand(m, make), make.array(m["d"])
    if found is None or d is None:
        return None
    x, c = found
    if c.dtype.kind in "iu":
        return make.node("Add", x, make.constant(c + d, "sum"))
    with np.errstate(over="ignore", invalid="ignore"):
        total = wide(c) + wide(d)
    if (np.abs(total) < np.maximum(np.abs(c), np.abs(d)) / 2).any():
        return None
    return _made(make, "Add", x, total, c)


@rule("Mul(Mul(a, b), d)")
def mul_mul(m: Match, make: Draft) -> Tensor | None:
    found, d = constant_operand(m, make), make.array(m["d"])
    if found is None or d is None:
        return None
    x, c = found
    if c.dtype.kind in "iu":
        return make.node("Mul", x, make.constant(c * d, "product"))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = wide(c) * wide(d)
    vanished = np.abs(product) < SMALLEST.get(c.dtype.name, 0.0)
    return _made(make, "Mul", x, product, c) if not (vanished & (c != 0) & (d != 0)).any() else None


def _made(make: Draft, op: str, x: Tensor, exact: Array, like: Array) -> Tensor | None:
    values = narrow(exact, like.dtype)
    return None if values is None else make.node(op, x, make.constant(values, op.lower()))


@rule("Min(Min(a, b), d)", "Max(Max(a, b), d)")
def min_min(m: Match, make: Draft) -> Tensor | None:
    found, d = constant_operand(m, make), make.array(m["d"])
    if found is None or d is None or found[1].dtype.kind not in "iuf":
        return None
    x, c = found
    chosen = np.minimum(c, d) if m.root.op == "Min" else np.maximum(c, d)
    return make.node(m.root.op, x, make.constant(chosen, "bound"))
