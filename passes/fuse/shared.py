"""A Slice that nothing but other Slices read is made part of each of them, so that it is not written and read again.

The composition is that of two Slices in a row (`slices`); here the inner one has several readers. Each of them moves as
many bytes as before and the inner one's are saved: there is nothing to lose. (S6 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.slices import slice_slice


@rule("Slice(y, *how)")
def slice_shared(m: Match, make: Draft) -> Tensor | None:
    y = m["y"]
    inner = y.inputs[0] if y.inputs else None
    if inner is None or inner.op != "Slice" or inner.domain or len(y.outputs) < 2 or m.graph.is_output(y):
        return None
    if not all(_joined(m, inner, reader, Draft(make.graph)) for reader in y.outputs):
        return None
    return _joined(m, inner, m.root, make)


def _joined(m: Match, inner: Node, outer: Node, make: Draft) -> Tensor | None:
    """What one reader becomes; None where it is no Slice of the same scope, or the two do not compose."""
    y = inner.outputs[0]
    if outer.op != "Slice" or outer.domain or outer.scope is not inner.scope:
        return None
    if outer.inputs[0] is not y or any(t is y for t in outer.inputs[1:]):
        return None
    return slice_slice.propose(Match(m.graph, {"x": inner.inputs[0]}, {}, [outer, inner]), make)
