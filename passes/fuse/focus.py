"""The four quarters of an image, stacked as channels before a convolution: SpaceToDepth, and its weight reordered.

    conv(concat(x[.., i0::2, j0::2], .., x[.., i3::2, j3::2]), w) = conv(SpaceToDepth(x, 2), w')

SpaceToDepth stacks the quarters that start at row and column 00, 01, 10, 11; a detector's first layer ("focus") stacks
them as 00, 10, 01, 11. A convolution sums over its input channels, in any order: w' has the C channels of w that belong
to a quarter where SpaceToDepth has it. Concat needs quarters of one size, so height and width are even, symbols or not.
Six strided copies become one. (S13 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, rank
from passes.fuse.slices import FAR, cuts

QUARTERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column where each starts, as SpaceToDepth stacks them


@rule("Conv(Concat(Slice(x, *a), Slice(x, *b), Slice(x, *c), Slice(x, *d)), w, bias?)")
def focus_conv(m: Match, make: Draft) -> Tensor | None:
    conv, concat, *_ = m.nodes
    x, weight = m["x"], make.array(m["w"])
    if rank(x) != 4 or not has_dtype(x, "float32") or make.attr(concat, "axis") not in (1, -3):
        return None
    if weight is None or make.attr(conv, "group") != 1 or weight.shape[1] % 4:
        return None
    starts = [_start(make, part.inputs[0]) for part in concat.inputs]
    if sorted(filter(None, starts)) != QUARTERS:
        return None
    blocks = weight.reshape(weight.shape[0], 4, -1, *weight.shape[2:])
    ordered = blocks[:, [starts.index(quarter) for quarter in QUARTERS]].reshape(weight.shape)
    packed = make.node("SpaceToDepth", x, attrs={"blocksize": 2})
    return make.node("Conv", packed, make.constant(np.ascontiguousarray(ordered), "weight"), m.get("bias"),
                     attrs=conv.attrs)  # fmt: skip


def _start(make: Draft, part: Node) -> tuple[int, int] | None:
    """Row and column at which a Slice starts that takes every second of each; None where it takes anything else."""
    taken = cuts(make, part, 4)
    if taken is None or taken.keys() != {2, 3}:
        return None
    for axis, (start, end, step) in taken.items():
        dim = part.inputs[0].shape[axis]
        if start not in (0, 1) or step != 2 or end < (dim if isinstance(dim, int) else FAR):
            return None
    return taken[2][0], taken[3][0]
