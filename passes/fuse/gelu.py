"""GELU from its spellings, where the operator set has the operator (from 20; Hendrycks & Gimpel 2016).

    erf    x (1 + erf(x / sqrt(2))) / 2
    tanh   x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2

The three factors x, 1 + f and 1/2 meet in any order, and half of 1 + f may be spelt 1/2 + f/2. The tables below spell
them all out; commutation is the matcher's. (E12, E13 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank

DTYPES = ("float16", "float32")
ERF = ("Erf(Div(x, 1.4142135))", "Erf(Mul(x, 0.70710678))")
CUBE = ("Pow(x, 3)", "Mul(x, Mul(x, x))")
TANH = (
    *(f"Tanh(Mul(Add(x, Mul({cube}, 0.044715)), 0.79788456))" for cube in CUBE),
    "Tanh(Mul(Add(x, Mul(x, Mul(Mul(x, x), 0.044715))), 0.79788456))",
    "Tanh(Mul(Add(x, Mul(x, Mul(x, Mul(x, 0.044715)))), 0.79788456))",
    "Tanh(Mul(Add(x, Mul(Mul(x, x), Mul(x, 0.044715))), 0.79788456))",
    "Tanh(Mul(Mul(x, 0.79788456), Add(Mul(Mul(x, x), 0.044715), 1)))",
    "Tanh(Mul(Mul(x, 0.79788456), Add(Mul(Mul(x, 0.044715), x), 1)))",
)


def _spellings(inner: tuple[str, ...]) -> list[str]:
    """Every way to multiply x, 1 + f and 1/2, for every spelling of f."""
    orders = (
        "Mul(Mul(x, Add({f}, 1)), 0.5)",
        "Div(Mul(x, Add({f}, 1)), 2)",
        "Mul(x, Mul(Add({f}, 1), 0.5))",
        "Mul(x, Div(Add({f}, 1), 2))",
        "Mul(Mul(x, 0.5), Add({f}, 1))",
        "Mul(Div(x, 2), Add({f}, 1))",
        "Mul(x, Add(Mul({f}, 0.5), 0.5))",
    )
    return [order.format(f=f) for order in orders for f in inner]


def _gelu(m: Match, make: Draft, approximate: bytes) -> Tensor | None:
    x = m["x"]
    if not has_dtype(x, *DTYPES) or not keeps_rank(m, x):
        return None
    return make.node("Gelu", x, attrs={"approximate": approximate})


@rule(*_spellings(ERF), since=20)
def gelu(m: Match, make: Draft) -> Tensor | None:
    return _gelu(m, make, b"none")


@rule(*_spellings(TANH), since=20)
def gelu_tanh(m: Match, make: Draft) -> Tensor | None:
    return _gelu(m, make, b"tanh")
