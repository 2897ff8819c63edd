"""A Concat that feeds a Concat along the same axis joins it: concatenation is associative.

(S10 of the usual catalogues.)
"""

from __future__ import annotations

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
