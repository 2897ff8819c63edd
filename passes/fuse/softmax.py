"""Softmax and LogSoftmax from their parts, along the last axis.

    d = x - max(x)      exp(d) / sum(exp(d))  =  Softmax(x)      d - log(sum(exp(d)))  =  LogSoftmax(x)
    exp(x) / sum(exp(x))  =  Softmax(x)                          x - ReduceLogSumExp(x)  =  LogSoftmax(x)

with the largest value and the sum along one axis, kept. Without the largest value the exponentials overflow where
Softmax does not, and what differs from a ReduceLogSumExp of infinity is minus infinity, not NaN: these two forms wait
for fast-math. Along another axis than the last, ONNX Runtime turns the tensor for
its Softmax, which takes 2 to 8 times as long as the parts. (E10 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, rank

PARTS = "Exp(Sub(x, ReduceMax(x, m?)))"
REDUCE = ("ReduceMax", "ReduceSum", "ReduceLogSumExp")


def _along_last(m: Match, make: Draft, op: str) -> Tensor | None:
    """The operator along the last axis of x, where that is what every matched reduction goes over."""
    n = rank(m["x"])
    if not n or not has_dtype(m["x"], "float16", "float32", "float64"):
        return None
    for node in m.nodes:
        if node.op in REDUCE and (axes(make.graph, node, n) != (n - 1,) or not make.attr(node, "keepdims")):
            return None
    return make.node(op, m["x"], attrs={"axis": n - 1})


@rule(f"Div(e={PARTS}, ReduceSum(e, s?))")
def softmax(m: Match, make: Draft) -> Tensor | None:
    return _along_last(m, make, "Softmax")


@rule("Div(e=Exp(x), ReduceSum(e, s?))", fast_math=True)
def softmax_overflowing(m: Match, make: Draft) -> Tensor | None:
    return _along_last(m, make, "Softmax")


@rule("Sub(d=Sub(x, ReduceMax(x, m?)), Log(ReduceSum(Exp(d), s?)))")
def log_softmax_parts(m: Match, make: Draft) -> Tensor | None:
    return _along_last(m, make, "LogSoftmax")


@rule("Sub(x, ReduceLogSumExp(x, s?))", fast_math=True)
def log_softmax_difference(m: Match, make: Draft) -> Tensor | None:
    return _along_last(m, make, "LogSoftmax")
