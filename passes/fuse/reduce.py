"""Reductions spelt in several nodes.

    Unsqueeze(Reduce(x, axes, keepdims=0), axes)  =  Reduce(x, axes, keepdims=1), and a Reshape that makes the same dims
    ReduceSum(x x)  =  ReduceSumSquare(x)      Sqrt(ReduceSumSquare(x))  =  ReduceL2(x)
    ReduceMean over H and W of [N, C, H, W]  =  GlobalAveragePool
    Log(ReduceSum(Exp(x)))  =  ReduceLogSumExp(x)      Log(Softmax(x))  =  LogSoftmax(x)
    ReduceL2 of one x  =  |x|                          ReduceLogSumExp of one x  =  x

The last four stay finite where the spelt form overflows or underflows, so they wait for fast-math. (S17, S22, E10, N16,
N17 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.cleanup.reductions import single, without
from passes.fuse.arrays import has_dtype, rank
from passes.fuse.reshape import reshapes_to

REDUCE = "ReduceL1|ReduceL2|ReduceLogSum|ReduceLogSumExp|ReduceMax|ReduceMean|ReduceMin|ReduceProd|ReduceSum"
FLOATS = ("float16", "float32")


@rule(f"Unsqueeze({REDUCE}|ReduceSumSquare(x, a?), *how)")
def reduce_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    unsqueeze, reduce = m.nodes
    over = axes(make.graph, reduce, rank(m["x"]))
    if make.attr(reduce, "keepdims") or not over or over != axes(make.graph, unsqueeze, rank(unsqueeze.outputs[0])):
        return None
    return make.node(reduce.op, m["x"], m.get("a"), attrs={**reduce.attrs, "keepdims": 1})


@rule(f"Reshape({REDUCE}|ReduceSumSquare(x, a?), s)")
def reduce_reshape(m: Match, make: Draft) -> Tensor | None:
    reduce, n = m.nodes[1], rank(m["x"])
    over = axes(make.graph, reduce, n)
    if make.attr(reduce, "keepdims") or not over or n is None:
        return None
    kept = [1 if i in over else d for i, d in enumerate(m["x"].shape)]
    if not reshapes_to(make, m.root.outputs[0], kept, copied=over[0]):
        return None
    return make.node(reduce.op, m["x"], m.get("a"), attrs={**reduce.attrs, "keepdims": 1})


@rule("ReduceSum(Mul(x, x), a?)", "ReduceSum(Pow(x, 2), a?)")
def reduce_sum_square(m: Match, make: Draft) -> Tensor | None:
    over = axes(make.graph, m.root, rank(m["x"]))
    if not has_dtype(m["x"], *FLOATS) or rank(m["x"]) is None or not over:
        return None
    attrs = {"keepdims": make.attr(m.root, "keepdims")}
    if make.graph.opset < 18:  # ReduceSum takes its axes as an input from 13 on, ReduceSumSquare from 18
        return make.node("ReduceSumSquare", m["x"], attrs={**attrs, "axes": list(over)})
    return make.node("ReduceSumSquare", m["x"], make.constant(np.array(over, np.int64), "axes"), attrs=attrs)


@rule("Sqrt(ReduceSumSquare(x, a?))")
def reduce_l2(m: Match, make: Draft) -> Tensor | None:
    if not has_dtype(m["x"], *FLOATS):
        return None
    return make.node("ReduceL2", m["x"], m.get("a"), attrs=m.node("ReduceSumSquare").attrs)


@rule("ReduceMean(x, a?)")
def global_average_pool(m: Match, make: Draft) -> Tensor | None:
    x = m["x"]
    if rank(x) != 4 or not has_dtype(x, *FLOATS) or axes(make.graph, m.root, 4) != (2, 3):
        return None
    return make.node("GlobalAveragePool", x) if make.attr(m.root, "keepdims") else None


@rule("Log(Softmax(x))", fast_math=True)
def log_softmax(m: Match, make: Draft) -> Tensor | None:
    return make.node("LogSoftmax", m["x"], attrs=m.node("Softmax").attrs)


@rule("Log(ReduceSum(Exp(x), a?))", fast_math=True)
def reduce_log_sum_exp(m: Match, make: Draft) -> Tensor | None:
    reduce = m.node("ReduceSum")
    over = axes(make.graph, reduce, rank(m["x"]))
    if not over or not has_dtype(m["x"], *FLOATS):
        return None
    attrs = {"keepdims": make.attr(reduce, "keepdims")}
    if make.graph.opset < 18:
        return make.node("ReduceLogSumExp", m["x"], attrs={**attrs, "axes": list(over)})
    return make.node("ReduceLogSumExp", m["x"], make.constant(np.array(over, np.int64), "axes"), attrs=attrs)


@rule("ReduceL2|ReduceLogSumExp(x, a?)", shape_safe=True, fast_math=True)
def reduce_one_stable(m: Match, make: Draft) -> Tensor | None:
    over = single(make, m.root)
    if over is None or not has_dtype(m["x"], *FLOATS):
        return None
    return without(make, m.root, m["x"] if m.root.op == "ReduceLogSumExp" else make.node("Abs", m["x"]), over)
