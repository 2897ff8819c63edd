"""The place of the largest value does not change under a function that grows (N24 of the usual catalogues).

    ArgMax(f(x)) = ArgMax(x)        f: Sigmoid, Tanh, Exp, ..., and Softmax along the same axis

But for numbers that f rounds to the same one, which become ties, and for NaN where f is not defined: fast-math.
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank

GROWING = "Sigmoid|Tanh|Exp|Log|Sqrt|Softplus|Softsign|Erf|Atan|Sinh|Asinh|Softmax|LogSoftmax"


@rule(f"ArgMax|ArgMin({GROWING}(x))", fast_math=True)
def arg_max(m: Match, make: Draft) -> Tensor | None:
    if m.nodes[1].op in ("Softmax", "LogSoftmax") and not _same_axis(m, make):
        return None
    return make.node(m.root.op, m["x"], attrs=m.root.attrs)


def _same_axis(m: Match, make: Draft) -> bool:
    """Before operator set 13 a Softmax goes over all axes from its own on, so nothing is claimed there."""
    n = rank(m["x"])
    if not n or make.graph.opset < 13:
        return False
    return bool((make.attr(m.nodes[1], "axis") - make.attr(m.root, "axis")) % n == 0)
