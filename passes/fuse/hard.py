"""HardSwish and HardSigmoid from their spellings (Howard et al. 2019; operators since 14 and 6).

    Clip(x + b, 0, n) / n  =  Clip(x / n + b / n, 0, 1)  =  HardSigmoid(alpha=1/n, beta=b/n)
    x Clip(x + 3, 0, 6) / 6  =  x HardSigmoid(alpha=1/6, beta=1/2)  =  HardSwish(x)

with the product and the quotient in any order. Below operator set 14 the form with HardSigmoid is the shortest.
Runtimes have the operators for float32 and float16 only. (E11 of the usual catalogues.)
"""

from __future__ import annotations

import math

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank
from passes.fuse.clip import bounds

DTYPES = ("float16", "float32")


def _spells_hard_sigmoid(m: Match, make: Draft) -> bool:
    clip = bounds(make, m.node("Clip"))
    return clip == (0, 6) and has_dtype(m["x"], *DTYPES) and keeps_rank(m, m["x"])


@rule(
    "Div(Mul(x, Clip(Add(x, 3), *bounds)), 6)",
    "Mul(Mul(x, Clip(Add(x, 3), *bounds)), 0.16666667)",
    "Mul(Mul(x, 0.16666667), Clip(Add(x, 3), *bounds))",
    "Mul(Div(x, 6), Clip(Add(x, 3), *bounds))",
)
def hard_swish_clip(m: Match, make: Draft) -> Tensor | None:
    if not _spells_hard_sigmoid(m, make):
        return None
    if make.graph.opset >= 14:
        return make.node("HardSwish", m["x"])
    return make.node("Mul", m["x"], make.node("HardSigmoid", m["x"], attrs={"alpha": 1 / 6, "beta": 0.5}))


@rule("Mul(x, HardSigmoid(x))", since=14)
def hard_swish(m: Match, make: Draft) -> Tensor | None:
    gate = m.node("HardSigmoid")
    alpha, beta = make.attr(gate, "alpha"), make.attr(gate, "beta")
    if not (math.isclose(alpha, 1 / 6, rel_tol=1e-6) and math.isclose(beta, 0.5, rel_tol=1e-6)):
        return None
    if not has_dtype(m["x"], *DTYPES):
        return None
    return make.node("HardSwish", m["x"])


@rule("Div|Mul(Clip(Add(a, b), *bounds), n)")
def hard_sigmoid(m: Match, make: Draft) -> Tensor | None:
    x, shift = (m["a"], m["b"]) if scalar(make.graph, m["b"]) is not None else (m["b"], m["a"])
    b, n = scalar(make.graph, shift), scalar(make.graph, m["n"])
    if b is None or not n or not has_dtype(x, *DTYPES) or not keeps_rank(m, x):
        return None
    scale = 1 / n if m.root.op == "Div" else n
    low, high = bounds(make, m.node("Clip")) or (None, None)
    if low != 0 or high is None or not math.isclose(high * scale, 1, rel_tol=1e-6):
        return None
    return make.node("HardSigmoid", x, attrs={"alpha": float(scale), "beta": float(b * scale)})


@rule("Clip(Add(Mul(a, b), c), *bounds)")
def hard_sigmoid_affine(m: Match, make: Draft) -> Tensor | None:
    x, scale = (m["a"], m["b"]) if scalar(make.graph, m["b"]) is not None else (m["b"], m["a"])
    alpha, beta = scalar(make.graph, scale), scalar(make.graph, m["c"])
    if alpha is None or beta is None or not has_dtype(x, *DTYPES) or not keeps_rank(m, x):
        return None
    if bounds(make, m.root) != (0, 1):
        return None
    return make.node("HardSigmoid", x, attrs={"alpha": float(alpha), "beta": float(beta)})
