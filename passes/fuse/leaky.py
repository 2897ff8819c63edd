"""LeakyRelu from its spellings: x where it is positive, a x where it is not.

    max(x, a x)  =  LeakyRelu(x, a)  where 0 < a <= 1
    Where(x > 0, x, a x)  =  Where(x < 0, a x, x)  =  LeakyRelu(x, a)

At 0 both branches are 0; of infinity a positive a makes infinity again, and a 0 NaN, which Max would let through and
LeakyRelu not. (E22 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank

LARGEST = 3e38  # of the finite slopes


def _leaky(m: Match, make: Draft, most: float) -> Tensor | None:
    x, alpha = m["x"], scalar(make.graph, m["a"])
    if alpha is None or not 0 < alpha <= most or not has_dtype(x, "float16", "float32") or not keeps_rank(m, x):
        return None
    return make.node("LeakyRelu", x, attrs={"alpha": float(alpha)})


@rule("Max(x, Mul(x, a))")
def leaky_relu(m: Match, make: Draft) -> Tensor | None:
    return _leaky(m, make, 1.0)


@rule("Where(Greater|GreaterOrEqual(x, 0), x, Mul(x, a))", "Where(Less|LessOrEqual(x, 0), Mul(x, a), x)")
def leaky_where(m: Match, make: Draft) -> Tensor | None:
    return _leaky(m, make, LARGEST)
