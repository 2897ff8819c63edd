"""Operators that find their operand as they would make it: clamped already, without a sign, whole.

Each rule returns the operand in place of the result; what is known of it is `optimizer.ranges`. NaN passes through all
of them. IDs are those of the rewrite catalogue (N18, N19).
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import clamp
from optimizer.ranges import has_sign, is_float, span
from optimizer.rewrite import Draft, rule
from passes.cleanup.movement import producer


@rule("Relu(x)", shape_safe=True)
def relu_positive(m: Match, make: Draft) -> Tensor | None:
    """N18. Of what is at least 0."""
    return m["x"] if span(m.graph, m["x"])[0] >= 0 else None


@rule("Abs(x)", shape_safe=True)
def abs_positive(m: Match, make: Draft) -> Tensor | None:
    """N18. Of what has no sign; a Relu may let a -0 through."""
    return None if has_sign(m.graph, m["x"]) else m["x"]


@rule("Clip(x, *bounds)", shape_safe=True)
def clip_within(m: Match, make: Draft) -> Tensor | None:
    """N18. Of what lies between the bounds. An absent bound of a float is its type's largest number, not infinity."""
    x, ends = m["x"], clamp(m.graph, m.root)
    if ends is None or x.dtype is None:
        return None
    low, high = span(m.graph, x)
    if is_float(x) and not all(np.isfinite(v) or _written(m.root, i) for i, v in ((1, low), (2, high))):
        return None
    return x if ends[0] <= low and high <= ends[1] else None


def _written(node: Node, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index].name)


@rule("Ceil|Floor|Round(y)", shape_safe=True)
def rounded(m: Match, make: Draft) -> Tensor | None:
    """N19. Of whole numbers: rounded before in any way, signs, or integers in another type."""
    y = m["y"]
    if any(producer(y, op) for op in ("Ceil", "Floor", "Round", "Sign")):
        return y
    cast = producer(y, "Cast")
    source = None if cast is None else cast.inputs[0].dtype
    return y if source is not None and np.dtype(source).kind in "iub" else None


RULES = (relu_positive, abs_positive, clip_within, rounded)
