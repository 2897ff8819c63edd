"""Reductions of one element each: over dims that are 1, or over no axes at all (`noop_with_empty_axes`).

    sum, mean, max, min, prod of one x = x      |x|, x^2 and log x for L1, SumSquare and LogSum

Where the axes are not kept, a Squeeze takes them off. L2 and LogSumExp of one element overflow where the element does
not, so `fuse` has them, among its fast-math rules. IDs are those of the rewrite catalogue (N16, N17).
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.ranges import is_float
from optimizer.rewrite import Draft, rule

PLAIN = "ReduceSum|ReduceMean|ReduceMax|ReduceMin|ReduceProd"


def single(make: Draft, node: Node) -> tuple[int, ...] | None:
    """The axes over which a reduction takes one element each, none or more; None where that is not certain."""
    x = node.inputs[0]
    rank = None if x.shape is None else len(x.shape)
    over = axes(make.graph, node, rank)
    if over is None or node.attrs.get("axes") == []:
        return None
    if not over and make.attr(node, "noop_with_empty_axes"):
        return ()
    if rank is None:
        return None
    over = over or tuple(range(rank))
    return over if all(x.shape[axis] == 1 for axis in over) else None


def without(make: Draft, node: Node, y: Tensor, over: tuple[int, ...]) -> Tensor:
    """y less the reduced axes, unless the reduction keeps them."""
    if not over or make.attr(node, "keepdims"):
        return y
    if make.graph.opset < 13:
        return make.node("Squeeze", y, attrs={"axes": list(over)})
    if len(node.inputs) > 1 and node.inputs[1].name:
        return make.node("Squeeze", y, node.inputs[1])
    return make.node("Squeeze", y, make.constant(np.array(over, np.int64), "axes"))


@rule(f"{PLAIN}(x, axes?)", shape_safe=True)
def reduce_one(m: Match, make: Draft) -> Tensor | None:
    """N16, N17. x itself."""
    over = single(make, m.root)
    return None if over is None else without(make, m.root, m["x"], over)


@rule("ReduceL1|ReduceSumSquare|ReduceLogSum(x, axes?)")
def reduce_one_mapped(m: Match, make: Draft) -> Tensor | None:
    """N16, N17. What these do to each element before or after summing them."""
    over, x, op = single(make, m.root), m["x"], m.root.op
    if over is None or not is_float(x):
        return None
    y = make.node("Mul", x, x) if op == "ReduceSumSquare" else make.node("Abs" if op == "ReduceL1" else "Log", x)
    return without(make, m.root, y, over)


RULES = (reduce_one, reduce_one_mapped)
