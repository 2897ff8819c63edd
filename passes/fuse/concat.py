"""A Concat that feeds a Concat along the same axis joins it: concatenation is associative.

Where a constant chooses between a constant and the parts of a vector, it is known of each part whether it stays:
exporters choose like that between a dim given to Expand and -1. (S10 of the usual catalogues.)
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank


@rule("Concat(*before, Concat(*inner), *after)")
def concat_concat(m: Match, make: Draft) -> Tensor | None:
    outer, inner = (make.attr(node, "axis") for node in m.nodes)
    n = rank(m.root.outputs[0])
    if outer != inner and (n is None or outer % n != inner % n):
        return None
    parts = [*m.lists["before"], *m.lists["inner"], *m.lists["after"]]
    return make.node("Concat", *parts, attrs={"axis": outer})


@rule("Where(c, a, Concat(*xs))", "Where(c, Concat(*xs), b)")
def where_concat(m: Match, make: Draft) -> Tensor | None:
    parts, condition, kept = m.lists["xs"], make.array(m["c"]), m.get("a") is None
    given = make.array(m["b"] if kept else m["a"])
    sizes = [part.shape[0] for part in parts if rank(part) == 1 and isinstance(part.shape[0], int)]
    if condition is None or given is None or len(sizes) != len(parts):
        return None
    total = sum(sizes)
    if condition.ndim > 1 or given.ndim > 1 or not {condition.size, given.size} <= {1, total}:
        return None
    stays, values = np.broadcast_to(condition == kept, total), np.broadcast_to(given, total)
    made = []
    for part, (start, end) in zip(parts, pairwise(np.cumsum([0, *sizes]).tolist()), strict=True):
        if stays[start:end].any() != stays[start:end].all():
            return None
        made.append(part if stays[start:end].all() else make.constant(values[start:end], "part"))
    return make.node("Concat", *made, attrs=m.node("Concat").attrs)
