"""One element along an axis: Gather takes it without the axis, Slice with it.

    unsqueeze(gather(x, i)) = x[i:i+1]          squeeze(x[i:i+1]) = gather(x, i)

The dim must be known: Gather refuses an index outside of it, Slice takes what there is.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank
from passes.fuse.slices import cuts, sliced


@rule("Unsqueeze(Gather(x, i), *how)")
def gather_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    x, index, n = m["x"], make.array(m["i"]), rank(m["x"])
    if index is None or index.ndim or not n:
        return None
    axis = make.attr(m.node("Gather"), "axis") % n
    dim = x.shape[axis]
    if not isinstance(dim, int) or not -dim <= index < dim or axes(make.graph, m.root, n) != (axis,):
        return None
    start = int(index) % dim
    return sliced(make, x, {axis: (start, start + 1, 1)})


@rule("Squeeze(Slice(x, *part), *how)")
def slice_squeeze(m: Match, make: Draft) -> Tensor | None:
    n, part = rank(m["x"]), m.node("Slice")
    taken = cuts(make, part, n) if n else None
    if taken is None or len(taken) != 1:
        return None
    ((axis, (start, end, step)),) = taken.items()
    dim = m["x"].shape[axis]
    if not isinstance(dim, int) or axes(make.graph, m.root, n) != (axis,):
        return None
    index = range(dim)[start:end:step]
    if len(index) != 1:
        return None
    return make.node("Gather", m["x"], make.constant(np.array(index[0]), "index"), attrs={"axis": axis})
