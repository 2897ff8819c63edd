"""Smooth activations from their spellings, where the operator set has the operator.

    x tanh(softplus(x))  =  Mish(x), from 18     (Misra 2019)
    x sigmoid(x)         =  Swish(x), from 24    (Ramachandran et al. 2017)

Below that, x sigmoid(x) is the accepted spelling of SiLU and stays. (E11 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype

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
