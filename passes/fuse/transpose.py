"""Transposes in a row become one, or none, and one that moves no element becomes a Reshape.

    y = transpose(x, p), z = transpose(y, q):  axis i of z is axis q[i] of y, which is axis p[q[i]] of x

Where y has other readers, only two that undo each other are taken out. Elements keep their places in memory where the
axes of a size other than 1 keep their order: runtimes reshape without a copy. (S1, N3 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank
from passes.fuse.reshape import written


def _permutation(node: Node, x: Tensor) -> list[int] | None:
    """The axes a Transpose takes, in order; its default reverses them, for which x's rank must be known."""
    written, n = node.attrs.get("perm"), rank(x)
    if written is not None:
        return list(written)
    return None if n is None else list(range(n))[::-1]


@rule("Transpose(Transpose(x))", shape_safe=True, shared=True)
def transpose_transpose(m: Match, make: Draft) -> Tensor | None:
    x = m["x"]
    outer, inner = (_permutation(node, x) for node in m.nodes)
    if inner is None or outer is None:
        return None
    composed = [inner[axis] for axis in outer]
    if composed == sorted(composed):
        return x
    if not m.graph.only_feeds(m.nodes[1].outputs[0], m.root):
        return None
    return make.node("Transpose", x, attrs={"perm": composed})


@rule("Transpose(x)")
def transpose_reshape(m: Match, make: Draft) -> Tensor | None:
    x = m["x"]
    perm = _permutation(m.root, x)
    if perm is None or x.shape is None or (moved := [p for p in perm if x.shape[p] != 1]) != sorted(moved):
        return None
    shape = written(x.shape, [x.shape[p] for p in perm])
    return None if shape is None else make.node("Reshape", x, make.constant(np.array(shape, np.int64), "shape"))
