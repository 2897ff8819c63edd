"""Blocks of pixels become channels, or the other way round: the operator instead of its spellings.

    DepthToSpace   transpose(x as [N, b, b, C, H, W], 0 3 4 1 5 2) as [N, C, Hb, Wb]          mode DCR
                   transpose(x as [N, C, b, b, H, W], 0 1 4 2 5 3) as [N, C, Hb, Wb]          mode CRD
    SpaceToDepth   transpose(x as [N, C, H, b, W, b], 0 3 5 1 2 4) as [N, b b C, H, W]
                   concat(x[.., 0::2, 0::2], x[.., 0::2, 1::2], x[.., 1::2, 0::2], x[.., 1::2, 1::2]), channels

Each is the definition in the operators' own specification; DepthToSpace has a mode from operator set 11 on. A valid
Concat has parts of one size, so the dims cut in halves are even, symbols or not. Other orders of the four parts are
other channel orders, which no operator has. Where the channels are last, as Swin merges its patches, they stay together
in memory, and one Transpose moves them in half the time that the Slices take (ONNX Runtime, CPU):

    concat(x[:, 0::2, 0::2], x[:, 0::2, 1::2], ..), channels = transpose(x as [N, H, 2, W, 2, C], 0 1 3 2 4 5)

and 0 1 3 4 2 5 where the rows change first. (S12, S13 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, rank
from passes.fuse.reshape import reshapes_to
from passes.fuse.slices import FAR, Cut, cuts

FLOATS = ("float16", "float32")
MODES: dict[tuple[int, ...], str] = {(0, 3, 4, 1, 5, 2): "DCR", (0, 1, 4, 2, 5, 3): "CRD"}  # by permutation of blocks
ROWS_FIRST = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column at which each part starts
COLUMNS_FIRST = [(0, 0), (1, 0), (0, 1), (1, 1)]
PARTED = (
    "Concat(Slice(x, *a), Slice(x, *b), Slice(x, *c), Slice(x, *d))",
    "Concat(Slice(p=Slice(x, *i), *a), Slice(p, *b), Slice(q=Slice(x, *j), *c), Slice(q, *d))",
    "Concat(Slice(p=Slice(x, *i), *a), Slice(q=Slice(x, *j), *b), Slice(p, *c), Slice(q, *d))",
)


@rule("Reshape(Transpose(Reshape(x, s)), t)", since=11)
def depth_to_space(m: Match, make: Draft) -> Tensor | None:
    blocks = m.node("Transpose").inputs[0]
    mode = MODES.get(_permutation(m))
    if mode is None or not _images(m):
        return None
    (n, c, h, w), size = m["x"].shape, blocks.shape[2]
    if not isinstance(c, int) or not isinstance(size, int) or size < 1 or c % size**2:
        return None
    depth = c // size**2
    wanted = [n, size, size, depth, h, w] if mode == "DCR" else [n, depth, size, size, h, w]
    large = [d * size if isinstance(d, int) else None for d in (h, w)]
    if not reshapes_to(make, blocks, wanted) or not reshapes_to(make, m.root.outputs[0], [n, depth, *large]):
        return None
    return make.node("DepthToSpace", m["x"], attrs={"blocksize": size, "mode": mode})


@rule("Reshape(Transpose(Reshape(x, s)), t)")
def space_to_depth(m: Match, make: Draft) -> Tensor | None:
    blocks = m.node("Transpose").inputs[0]
    if _permutation(m) != (0, 3, 5, 1, 2, 4) or not _images(m):
        return None
    (n, c, h, w), size = m["x"].shape, blocks.shape[3]
    if not isinstance(c, int) or not isinstance(size, int) or size < 1:
        return None
    if any(isinstance(d, int) and d % size for d in (h, w)):
        return None
    rows, columns = (d // size if isinstance(d, int) else None for d in (h, w))
    if not reshapes_to(make, blocks, [n, c, rows, size, columns, size]):
        return None
    if not reshapes_to(make, m.root.outputs[0], [n, size * size * c, rows, columns]):
        return None
    return make.node("SpaceToDepth", m["x"], attrs={"blocksize": size})


def _permutation(m: Match) -> tuple[int, ...]:
    return tuple(m.node("Transpose").attrs.get("perm") or ())


def _images(m: Match) -> bool:
    """Of a dtype that runtimes have kernels for, and rank 4; the blocks have rank 6."""
    return rank(m["x"]) == 4 and rank(m.node("Transpose").inputs[0]) == 6 and has_dtype(m["x"], *FLOATS)


@rule(*PARTED)
def space_to_depth_slices(m: Match, make: Draft) -> Tensor | None:
    x = m["x"]
    if rank(x) != 4 or not has_dtype(x, *FLOATS) or make.attr(m.root, "axis") not in (1, -3):
        return None
    starts = [_start(make, part, x, (2, 3)) for part in m.root.inputs]
    return make.node("SpaceToDepth", x, attrs={"blocksize": 2}) if starts == ROWS_FIRST else None


@rule(*PARTED)
def merge_patches(m: Match, make: Draft) -> Tensor | None:
    x = m["x"]
    if rank(x) != 4 or make.attr(m.root, "axis") not in (3, -1):
        return None
    _, h, w, c = x.shape
    if not all(isinstance(d, int) and d > 0 for d in (h, w, c)) or h % 2 or w % 2:
        return None
    starts = [_start(make, part, x, (1, 2)) for part in m.root.inputs]
    if starts not in (ROWS_FIRST, COLUMNS_FIRST):
        return None
    blocks = make.constant(np.array([0, h // 2, 2, w // 2, 2, c], np.int64), "blocks")
    merged = make.constant(np.array([0, h // 2, w // 2, 4 * c], np.int64), "merged")
    perm = [0, 1, 3, 2, 4, 5] if starts == ROWS_FIRST else [0, 1, 3, 4, 2, 5]
    return make.node("Reshape", make.node("Transpose", make.node("Reshape", x, blocks), attrs={"perm": perm}), merged)


def _start(make: Draft, part: Tensor, x: Tensor, axes: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column of `x` at which a part starts that takes every second of each; None where it is another."""
    found: dict[int, Cut] = {}
    while part is not x:
        own = cuts(make, part.inputs[0], 4)
        if own is None or own.keys() & found.keys():
            return None
        found |= own
        part = part.inputs[0].inputs[0]
    if found.keys() != set(axes):
        return None
    for axis, (start, end, step) in found.items():
        dim = x.shape[axis]
        if start not in (0, 1) or step != 2 or end < (dim if isinstance(dim, int) else FAR):
            return None
    return found[axes[0]][0], found[axes[1]][0]
