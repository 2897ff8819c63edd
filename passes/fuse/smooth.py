"""Smooth activations from their spellings, where the operator set has the operator.

    x tanh(softplus(x))  =  Mish(x), from 18     (Misra 2019)
    x sigmoid(x)         =  Swish(x), from 24    (Ramachandran et al. 2017)
    1 / (1 + exp(-x))    =  Sigmoid(x)           x / (1 + exp(-x))  =  x sigmoid(x)
    x / (1 + |x|)        =  Softsign(x)

Below that, x sigmoid(x) is the accepted spelling of SiLU and stays. exp(-x) overflows where the sigmoid is 0 but for
rounding; both spellings give 0, 1 and NaN at the infinities and NaN. Softplus and Elu stay as they are spelt: ONNX
Runtime's kernels take 1.2 to 3.4 times as long as the parts. (E11, E22 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank

DTYPES = ("float16", "float32")


@rule("Mul(x, Tanh(Softplus(x)))", since=18)
def mish(m: Match, make: Draft) -> Tensor | None:
    if not has_dtype(m["x"], *DTYPES):
        return None
    return make.node("Mish", m["x"])


@rule("Mul(x, Sigmoid(x))", since=24)
def swish(m: Match, make: Draft) -> Tensor | None:
    if not has_dtype(m["x"], *DTYPES):
        return None
    return make.node("Swish", m["x"])


@rule("Div(1, Add(Exp(Neg(x)), 1))", "Reciprocal(Add(Exp(Neg(x)), 1))")
def sigmoid(m: Match, make: Draft) -> Tensor | None:
    return make.node("Sigmoid", m["x"]) if has_dtype(m["x"], "float32") and keeps_rank(m, m["x"]) else None


@rule("Div(x, Add(Exp(Neg(x)), 1))")
def silu(m: Match, make: Draft) -> Tensor | None:
    if not has_dtype(m["x"], "float32") or not keeps_rank(m, m["x"]):
        return None
    return make.node("Mul", m["x"], make.node("Sigmoid", m["x"]))


@rule("Div(x, Add(Abs(x), 1))")
def softsign(m: Match, make: Draft) -> Tensor | None:
    return make.node("Softsign", m["x"]) if has_dtype(m["x"], "float32") and keeps_rank(m, m["x"]) else None
