"""Powers and quotients that a cheaper operator computes.

    x^2 = x x      x^-1 = 1 / x      x^0.5 = sqrt(x)      x^-0.5 = 1 / sqrt(x)
    x / 2^k = x 2^-k      (1 / x) z = z / x

The square and the division by a power of two are rounded once either way, to the same number. The roots differ at -0
and at minus infinity, so x must be proved to have no sign, unless fast-math is on. z / x rounds once where (1 / x) z
rounds twice; half precision, where 1 / x overflows for numbers in use, and integers keep their spelling. ONNX Runtime's
Pow takes 2 times as long for squares and 7 to 12 times for the others, its Div 1.6 times as long as Mul.

Two spellings stay, for runtimes know attention and layer normalisation by them: a quotient of a MatMul, and a square
that is averaged. (E5, E6, E7 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Tensor
from optimizer.match import Match
from optimizer.ranges import has_sign, is_float
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank

WIDE = ("float32", "float64")


@rule("Pow(x, 2)")
def pow_square(m: Match, make: Draft) -> Tensor | None:
    if not is_float(m["x"]) or not keeps_rank(m, m["x"]):
        return None
    if any(reader.op == "ReduceMean" for reader in m.root.outputs[0].outputs):
        return None
    return make.node("Mul", m["x"], m["x"])


@rule("Pow(x, -1)")
def pow_reciprocal(m: Match, make: Draft) -> Tensor | None:
    return make.node("Reciprocal", m["x"]) if is_float(m["x"]) and keeps_rank(m, m["x"]) else None


def _root(m: Match, make: Draft) -> Tensor | None:
    if not is_float(m["x"]) or not keeps_rank(m, m["x"]):
        return None
    root = make.node("Sqrt", m["x"])
    exponent = make.array(m.root.inputs[1])
    return root if exponent is not None and exponent.item() > 0 else make.node("Reciprocal", root)


@rule("Pow(x, 0.5)", "Pow(x, -0.5)")
def pow_root(m: Match, make: Draft) -> Tensor | None:
    return None if has_sign(make.graph, m["x"]) else _root(m, make)


@rule("Pow(x, 0.5)", "Pow(x, -0.5)", fast_math=True)
def pow_root_signed(m: Match, make: Draft) -> Tensor | None:
    return _root(m, make)


@rule("Div(x, c)")
def div_power_of_two(m: Match, make: Draft) -> Tensor | None:
    c, maker = make.array(m["c"]), m["x"].inputs[0] if m["x"].inputs else None
    if c is None or not _has_exact_reciprocal(c) or (maker is not None and maker.op == "MatMul"):
        return None
    return make.node("Mul", m["x"], make.constant(np.asarray(1 / c, c.dtype), "reciprocal"))


def _has_exact_reciprocal(c: Array) -> bool:
    """True for floats that are powers of two and whose reciprocals are normal numbers."""
    if c.dtype.kind != "f" or not c.all() or not np.isfinite(c).all():
        return False
    limits = np.finfo(c.dtype)
    with np.errstate(over="ignore", under="ignore"):
        size = np.abs(1 / c)
    return bool(np.all((np.frexp(np.abs(c))[0] == 0.5) & (size >= limits.smallest_normal) & (size <= limits.max)))


@rule("Mul(Reciprocal(x), z)", "Mul(Div(1, x), z)")
def mul_reciprocal(m: Match, make: Draft) -> Tensor | None:
    return make.node("Div", m["z"], m["x"]) if has_dtype(m["x"], *WIDE) and keeps_rank(m, m["x"]) else None
