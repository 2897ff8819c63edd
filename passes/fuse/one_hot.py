"""A product with one-hot rows picks rows: MatMul(OneHot(i, depth, [0, 1]), W) = Gather(W, i) for W [depth, n].

Each sum has one term that is 1 w, and the others are 0 because W is finite. An index out of range makes a row of zeros
there and is an error here, so i must provably lie in [-depth, depth), where both count from the end alike. (W27 of the
usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.ranges import span
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, rank


@rule("MatMul(OneHot(i, depth, values), w)", "MatMul(Cast(OneHot(i, depth, values)), w)")
def one_hot_matmul(m: Match, make: Draft) -> Tensor | None:
    w, depth = make.array(m["w"]), scalar(make.graph, m["depth"])
    if w is None or w.ndim != 2 or w.dtype.kind != "f" or w.shape[0] != depth or not np.isfinite(w).all():
        return None
    low, high = span(make.graph, m["i"])
    if not _marks_last(m, make, m.node("OneHot")) or not -w.shape[0] <= low <= high < w.shape[0]:
        return None
    return make.node("Gather", m["w"], m["i"], attrs={"axis": 0})


def _marks_last(m: Match, make: Draft, node: Node) -> bool:
    """True where a 1 among zeros, along a new last axis, marks each index."""
    values, axis, n = make.array(m["values"]), make.attr(node, "axis"), rank(m["i"])
    if values is None or values.tolist() != [0, 1] or not has_dtype(m["i"], "int32", "int64"):
        return False
    return axis == -1 or (n is not None and axis == n)
