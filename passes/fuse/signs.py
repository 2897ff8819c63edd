"""Negations join the operator that reads them, and no number changes.

    x + (-y) = x - y      x - (-y) = x + y      (-x) (-y) = x y      (-x) c = x (-c)      |-x| = |x|
    Where(not c, a, b)  =  Where(c, b, a)

Floats have a sign bit and integers wrap around, so all of it is exact. Quotients of integers round towards 0 and stay
as they are. (E8, E9 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ranges import is_float
from optimizer.rewrite import Draft, rule


@rule("Add(x, Neg(y))")
def add_neg(m: Match, make: Draft) -> Tensor | None:
    return make.node("Sub", m["x"], m["y"])


@rule("Sub(x, Neg(y))")
def sub_neg(m: Match, make: Draft) -> Tensor | None:
    return make.node("Add", m["x"], m["y"])


@rule("Mul|Div(Neg(x), Neg(y))", "Mul(n=Neg(x), n)")
def neg_neg(m: Match, make: Draft) -> Tensor | None:
    if m.root.op == "Div" and not is_float(m["x"]):
        return None
    return make.node(m.root.op, m["x"], m["y"] if "y" in m.tensors else m["x"])


@rule("Mul|Div(Neg(x), c)")
def neg_constant(m: Match, make: Draft) -> Tensor | None:
    c = make.array(m["c"])
    return None if c is None or not is_float(m["x"]) else make.node(m.root.op, m["x"], make.constant(-c, "negated"))


@rule("Abs(Neg(x))")
def abs_neg(m: Match, make: Draft) -> Tensor | None:
    return make.node("Abs", m["x"])


@rule("Where(Not(c), a, b)")
def where_negated(m: Match, make: Draft) -> Tensor | None:
    return make.node("Where", m["c"], m["b"], m["a"])
