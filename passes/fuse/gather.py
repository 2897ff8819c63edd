"""Gather of a run of elements is a Slice, and Slice of a single one, without its axis, is a Gather.

    gather(x, [i, i+1, .., j-1]) = x[i:j]     unsqueeze(gather(x, i)) = x[i:i+1]     squeeze(x[i:i+1]) = gather(x, i)

The dim must be known: Gather refuses an index outside of it, Slice takes what there is. (S9 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank
from passes.fuse.slices import cuts, sliced


def _taken(m: Match, make: Draft) -> tuple[int, Array] | None:
    """Axis and indices of the matched Gather, non-negative; None where they are not constant or may be out of range."""
    x, indices = m["x"], make.array(m["i"])
    if indices is None or not rank(x) or m.graph.is_constant(x):
        return None
    axis = make.attr(m.node("Gather"), "axis") % rank(x)
    dim = x.shape[axis]
    if not isinstance(dim, int) or not indices.size or indices.min() < -dim or indices.max() >= dim:
        return None
    return axis, indices % dim


@rule("Gather(x, i)")
def gather_run(m: Match, make: Draft) -> Tensor | None:
    taken = _taken(m, make)
    if taken is None or taken[1].ndim != 1 or (np.diff(taken[1]) != 1).any():
        return None
    axis, indices = taken
    return sliced(make, m["x"], {axis: (int(indices[0]), int(indices[-1]) + 1, 1)})


@rule("Unsqueeze(Gather(x, i), *how)")
def gather_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    taken = _taken(m, make)
    if taken is None or taken[1].ndim:
        return None
    axis, index = taken
    if axes(make.graph, m.root, rank(m["x"])) != (axis,):
        return None
    return sliced(make, m["x"], {axis: (int(index), int(index) + 1, 1)})


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
