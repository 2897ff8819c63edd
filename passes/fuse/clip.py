"""Clip and Relu in a row become one Clip; Max and Min with constants become Clip and Relu.

    Clip(Clip(x, a, b), c, d) = Clip(x, clamp(a, c, d), clamp(b, c, d))        where a <= b and c <= d

because clamping is monotone: the inner bounds move through the outer ones. Relu is Clip(x, 0), so a negative b turns
Relu(Clip(x, a, b)) into the constant 0 = Clip(x, 0, 0), not into Clip(x, 0, b).

    Min(Max(x, a), b)  =  Max(Min(x, b), a)  =  Clip(x, a, b)        where a <= b        Max(x, 0)  =  Relu(x)

for infinity is clamped as well where both bounds are there, and NaN passes through all of them. (Relu and Clip let -0
through, and Max may: ONNX Runtime's does in half precision. It is 0 either way.) A Clip without bounds stops infinity,
so that one goes only with fast-math. (E1, E2, E3, N18 of the usual catalogues.)
"""

from __future__ import annotations

import math

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.ranges import is_float
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank

FLOATS = ("float16", "float32")  # the types that runtimes clip in any operator set
CLIPPED = (*FLOATS, "float64", "int32", "int64")  # from 12 on


def bounds(make: Draft, clip: Node) -> tuple[float, float] | None:
    """Lower and upper bound of a Clip, infinite where absent; None where one is not constant or they cross.

    A Relu counts as a Clip from 0. A bound that is written as infinite gives None: it lets infinity pass, where an
    absent one stops at the largest number.
    """
    if clip.op == "Relu":
        return 0.0, math.inf
    if make.graph.opset < 11:
        low, high = clip.attrs.get("min", -math.inf), clip.attrs.get("max", math.inf)
        return (low, high) if low <= high else None
    given = [t if t.name else None for t in clip.inputs[1:3]]
    values = [math.inf * sign for sign in (-1, 1)]
    for i, tensor in enumerate(given):
        if tensor is None:
            continue
        value = scalar(make.graph, tensor)
        if value is None or not math.isfinite(value):
            return None
        values[i] = value
    return (values[0], values[1]) if values[0] <= values[1] else None


def _clip(m: Match, make: Draft, x: Tensor, low: float, high: float) -> Tensor | None:
    """Clip(x, low, high) in the dtype of the match's tensors; a bound that is infinite is left out."""
    out = m.root.outputs[0]
    if make.graph.opset < 11:
        pairs = (("min", low), ("max", high))
        return make.node("Clip", x, attrs={k: float(v) for k, v in pairs if math.isfinite(v)})
    if out.dtype is None:
        return None
    limits = [make.constant(np.array(v, out.dtype), "bound") if math.isfinite(v) else None for v in (low, high)]
    while limits and limits[-1] is None:
        limits.pop()
    return make.node("Clip", x, *limits)


@rule("Clip(Clip|Relu(x, *inner), *outer)", "Relu(Clip(x, *inner))")
def clip_clip(m: Match, make: Draft) -> Tensor | None:
    inner, outer = bounds(make, m.nodes[1]), bounds(make, m.root)
    if inner is None or outer is None:
        return None
    low, high = (min(max(v, outer[0]), outer[1]) for v in inner)
    return _clip(m, make, m["x"], low, high)


@rule("Min(Max|Relu(*inner), *outer)", "Max(Min(*inner), *outer)", "Relu(Min(*inner))")
def min_max(m: Match, make: Draft) -> Tensor | None:
    upper, lower = sorted(m.nodes, key=lambda node: node.op != "Min")
    high, low = _limit(make, upper), _limit(make, lower)
    varying = [t for t in m.nodes[1].inputs if scalar(make.graph, t) is None]
    if low is None or high is None or not -math.inf < low <= high < math.inf or len(varying) != 1:
        return None
    (x,) = varying
    if not has_dtype(x, *(CLIPPED if make.graph.opset >= 12 else FLOATS)) or not keeps_rank(m, x):
        return None
    return _clip(m, make, x, low, high)


def _limit(make: Draft, node: Node) -> float | None:
    """The constant of a Min or a Max of two operands, or the 0 of a Relu."""
    if node.op == "Relu":
        return 0.0
    found = [value for t in node.inputs if (value := scalar(make.graph, t)) is not None]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


@rule("Max(x, 0)")
def max_relu(m: Match, make: Draft) -> Tensor | None:
    return make.node("Relu", m["x"]) if is_float(m["x"]) and keeps_rank(m, m["x"]) else None


@rule("Clip(x)", shape_safe=True, fast_math=True)
def clip_unbounded(m: Match, make: Draft) -> Tensor | None:
    return None if m.root.attrs else m["x"]
