"""Two Slices in a row become one.

Slices of different axes commute, so their lists are joined. On one axis of known length the indices compose exactly:
range(n)[a:b:c][d:e:f] is a range again, and Python clamps as ONNX does. On an axis of unknown length, with nothing
negative, element i of the second slice is element d + f i of the first, which is element a + c (d + f i) of x: it ends
before min(b, a + c e). (S6 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Dim, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank

END = np.iinfo(np.int64).max
FAR = 2**31 - 1  # an end that no dim reaches
Cut = tuple[int, int, int]  # start, end, step


def cuts(make: Draft, node: Node, n: int | None) -> dict[int, Cut] | None:
    """What a Slice takes, by axis; None where any of it is not constant."""
    if make.graph.opset < 10:
        starts, ends, over, steps = node.attrs["starts"], node.attrs["ends"], node.attrs.get("axes"), None
    else:
        lists = []
        for tensor in [t if t.name else None for t in node.inputs[1:]] + [None] * (5 - len(node.inputs)):
            values = make.array(tensor)
            if tensor is not None and values is None:
                return None
            lists.append(None if values is None else [int(v) for v in values])
        starts, ends, over, steps = lists
    assert starts is not None and ends is not None
    over = list(range(len(starts))) if over is None else over
    if any(a < 0 for a in over) and n is None:
        return None
    return {
        (a % n if n else a): (s, e, t)
        for a, s, e, t in zip(over, starts, ends, steps or [1] * len(starts), strict=True)
    }


def composed(inner: Cut, outer: Cut, dim: Dim) -> Cut | None:
    """One cut that does what `inner`, then `outer`, do to an axis of length `dim`; None where that is not certain."""
    if isinstance(dim, int):
        left = range(dim)[slice(*inner)][slice(*outer)]
        if not left:
            return 0, 0, 1
        end = left.stop if left.stop >= 0 else -dim - 1
        return left.start, end, left.step
    (a, b, c), (d, e, f) = inner, outer
    if min(a, b, c, d, e, f) < 0:
        return None
    return min(a + c * d, END), min(b, a + c * e), c * f


@rule("Slice(Slice(x, *how), *further)")
def slice_slice(m: Match, make: Draft) -> Tensor | None:
    n = rank(m["x"])
    outer, inner = (cuts(make, node, n) for node in m.nodes)
    if outer is None or inner is None:
        return None
    merged = dict(inner)
    for axis, cut in outer.items():
        if axis in inner:
            one = composed(inner[axis], cut, None if n is None else m["x"].shape[axis])
            if one is None:
                return None
            cut = one
        merged[axis] = cut
    return sliced(make, m["x"], merged)


def sliced(make: Draft, x: Tensor, taken: dict[int, Cut]) -> Tensor | None:
    """A Slice that takes from `x` what is given by axis; None where the operator set has no such steps."""
    over = sorted(taken)
    starts, ends, steps = ([taken[a][i] for a in over] for i in range(3))
    if max(steps, default=1) > END:
        return None
    if make.graph.opset < 10:
        if any(t != 1 for t in steps):
            return None
        return make.node("Slice", x, attrs={"starts": starts, "ends": ends, "axes": over})
    names = ("starts", "ends", "axes", "steps")
    lists = [
        make.constant(np.array(v, np.int64), name) for v, name in zip((starts, ends, over, steps), names, strict=True)
    ]
    return make.node("Slice", x, *lists)
