"""Squeeze and Unsqueeze in a row become one; where they undo each other entirely, `cleanup` has removed both.

An axis of Unsqueeze counts in its output, an axis of Squeeze in its input. To merge two, the axes of the tensor between
them are renumbered: skipping the axes b that a second Unsqueeze adds, or that a first Squeeze has removed. (S4 of the
usual catalogues.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank


def shifted(inside: Iterable[int], skipped: Collection[int]) -> list[int]:
    """Axes of a tensor, renumbered in one that has the axes `skipped` besides."""
    found = []
    for axis in inside:
        place = -1
        for _ in range(axis + 1):
            place += 1
            while place in skipped:
                place += 1
        found.append(place)
    return found


def unshifted(outside: Iterable[int], skipped: Collection[int]) -> list[int]:
    """The inverse of `shifted`: axes renumbered as if those in `skipped` were not there."""
    return [axis - sum(s < axis for s in skipped) for axis in outside]


def _axes(make: Draft, node: Node) -> tuple[int, ...] | None:
    """Axes of a Squeeze or Unsqueeze, non-negative and sorted; None where unknown or, for Squeeze, left out."""
    source = node.inputs[0] if node.op == "Squeeze" else node.outputs[0]
    return axes(make.graph, node, rank(source)) or None


def _make(make: Draft, op: str, x: Tensor, over: Iterable[int]) -> Tensor:
    if make.graph.opset < 13:
        return make.node(op, x, attrs={"axes": sorted(over)})
    return make.node(op, x, make.constant(np.array(sorted(over), np.int64), "axes"))


@rule("Unsqueeze(Unsqueeze(x, *how), *further)", shared=True)
def unsqueeze_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    outer, inner = (_axes(make, node) for node in m.nodes)
    if outer is None or inner is None:
        return None
    return _make(make, "Unsqueeze", m["x"], [*outer, *shifted(inner, outer)])


@rule("Squeeze(Squeeze(x, *how), *further)", shared=True)
def squeeze_squeeze(m: Match, make: Draft) -> Tensor | None:
    outer, inner = (_axes(make, node) for node in m.nodes)
    if outer is None or inner is None:
        return None
    return _make(make, "Squeeze", m["x"], [*inner, *shifted(outer, inner)])


@rule("Squeeze(Unsqueeze(x, *how), *further)", shared=True)
def squeeze_unsqueeze(m: Match, make: Draft) -> Tensor | None:
    removed, added = (_axes(make, node) for node in m.nodes)
    if removed is None or added is None:
        return None
    if set(removed) < set(added):
        return _make(make, "Unsqueeze", m["x"], unshifted(set(added) - set(removed), removed))
    if set(added) < set(removed):
        return _make(make, "Squeeze", m["x"], unshifted(set(removed) - set(added), added))
    return None
