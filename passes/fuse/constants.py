"""Constants in a row are added, multiplied or compared once.

    (x + c) + d = x + (c + d)        (x c) d = x (c d)        min(min(x, c), d) = min(x, min(c, d))        max likewise
    d - (x - c) = (d + c) - x        d / (x / c) = (d c) / x        and every other order of sums and of quotients

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


@rule("Add|Sub(Add|Sub(a, b), d)", "Sub(d, Add|Sub(a, b))")
def add_sub(m: Match, make: Draft) -> Tensor | None:
    found = None if {node.op for node in m.nodes} == {"Add"} else _chain(m, make)
    if found is None:
        return None
    x, c, d = found
    if c.dtype.kind not in "iu":
        c, d = wide(c), wide(d)
    with np.errstate(over="ignore", invalid="ignore"):
        total, turned = _merged(m, c, d, np.add, np.negative)
    if total.dtype.kind in "iu":
        return _placed(make, "Sub" if turned else "Add", x, total)
    if (np.abs(total) < np.maximum(np.abs(c), np.abs(d)) / 2).any():
        return None
    rounded = narrow(total, found[1].dtype)
    return None if rounded is None else _placed(make, "Sub" if turned else "Add", x, rounded)


@rule("Mul|Div(Mul|Div(a, b), d)", "Div(d, Mul|Div(a, b))")
def mul_div(m: Match, make: Draft) -> Tensor | None:
    found = None if {node.op for node in m.nodes} == {"Mul"} else _chain(m, make)
    if found is None or found[1].dtype.name not in SMALLEST:
        return None
    x, c, d = found
    with np.errstate(all="ignore"):
        factor, turned = _merged(m, c.astype(np.float64), d.astype(np.float64), np.multiply, np.reciprocal)
    rounded = narrow(factor, c.dtype) if (np.abs(factor) >= SMALLEST[c.dtype.name]).all() else None
    return None if rounded is None else _placed(make, "Div" if turned else "Mul", x, rounded)


def _chain(m: Match, make: Draft) -> tuple[Tensor, Array, Array] | None:
    """What varies in the inner of two nodes, its constant, and the outer node's."""
    found, d = constant_operand(m, make), make.array(m["d"])
    return None if found is None or d is None or found[1].dtype != d.dtype else (*found, d)


def _merged(m: Match, c: Array, d: Array, join: np.ufunc, inverse: np.ufunc) -> tuple[Array, bool]:
    """The one constant that two nodes come to, and whether x is subtracted from it or divides it in the end."""
    outer, inner = m.nodes
    turned = False
    if inner.op in ("Sub", "Div"):
        turned = m.graph.is_constant(inner.inputs[0])
        c = c if turned else inverse(c)
    if outer.op in ("Sub", "Div"):
        if outer.inputs[0] is inner.outputs[0]:
            d = inverse(d)
        else:
            c, turned = inverse(c), not turned
    return np.asarray(join(c, d)), turned


def _placed(make: Draft, op: str, x: Tensor, values: Array) -> Tensor:
    constant = make.constant(values, op.lower())
    return make.node(op, constant, x) if op in ("Sub", "Div") else make.node(op, x, constant)


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
