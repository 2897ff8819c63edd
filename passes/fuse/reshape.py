"""Operators that only regroup elements, in a row, become the last one: it alone decides the final shape.

    Reshape(regroup(x), s) = Reshape(x, s')        regroup: Reshape, Flatten, Squeeze, Unsqueeze

Others than Reshape become one, where no rule of their own (`squeeze`) makes one of their kind of them.

s' = s where s is constant and copies no dim of the intermediate tensor (a 0 does, unless allowzero). Otherwise s' is
written from the inferred final shape: known dims as they are, a dim that x has at the same place as 0, and at most one
other as -1. A -1 and a 0 are not mixed, nor is -1 used beside an empty dim: it could not be computed. (S2, S3 of the
usual catalogues.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.graph import Dim, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule

OTHERS = (
    "Flatten(Flatten|Squeeze|Unsqueeze(x, *how))",
    "Squeeze(Flatten|Unsqueeze(x, *how), *further)",
    "Unsqueeze(Flatten|Squeeze(x, *how), *further)",
)


@rule("Reshape(Reshape|Flatten|Squeeze|Unsqueeze(x, *how), s)", shared=True)
def reshape_reshape(m: Match, make: Draft) -> Tensor | None:
    target = make.array(m["s"])
    if target is not None and (target.all() or make.attr(m.root, "allowzero")):
        return make.node("Reshape", m["x"], m["s"], attrs=m.root.attrs)
    return _rewritten(m, make)


@rule("Flatten|Squeeze|Unsqueeze(Reshape(x, s), *how)", *OTHERS, shared=True)
def reshape_regroup(m: Match, make: Draft) -> Tensor | None:
    return _rewritten(m, make)


def _rewritten(m: Match, make: Draft) -> Tensor | None:
    """One Reshape of the matched `x` to the inferred shape of the result; None where that is not certain."""
    shape = written(m["x"].shape, m.root.outputs[0].shape)
    return None if shape is None else make.node("Reshape", m["x"], make.constant(np.array(shape, np.int64), "shape"))


def written(source: Sequence[Dim] | None, result: Sequence[Dim] | None) -> list[int] | None:
    """The constant that reshapes `source` to `result` whatever the values of the symbols, or None."""
    if source is None or result is None:
        return None
    same = [i < len(source) and isinstance(d, str) and d == source[i] for i, d in enumerate(result)]
    shape = [d if isinstance(d, int) else 0 if copy else -1 for d, copy in zip(result, same, strict=True)]
    if any(d == 0 for d in result) or shape.count(-1) > 1:
        return None
    if 0 in shape and -1 not in shape:
        return shape
    if 0 not in shape:
        return shape
    return None


def reshapes_to(make: Draft, result: Tensor, wanted: Sequence[Dim], copied: int = 0) -> bool:
    """True where the result of a Reshape is sure to have the dims `wanted`, given that it has as many elements.

    One dim may be unknown on either side: the one that a constant target leaves open (-1), for that is what the number
    of elements says. Anything else in its place could be wrong where another dim is 0. The first `copied` dims of what
    is reshaped are wanted as they are, so there a 0 will do.
    """
    if result.shape is None or len(result.shape) != len(wanted):
        return False
    reshape = result.inputs[0]
    target = make.array(reshape.inputs[1])
    entries = [] if target is None or make.attr(reshape, "allowzero") else target.reshape(-1).tolist()
    sure = [i < copied and entry == 0 for i, entry in enumerate(entries)] or [False] * len(wanted)
    pairs = zip(result.shape, wanted, strict=True)
    places = [i for i, (d, e) in enumerate(pairs) if not sure[i] and (d is None or d != e)]
    if not places:
        return True
    known = [result.shape[places[0]], wanted[places[0]]]
    return len(places) == 1 and None in known and target is not None and target.reshape(-1)[places[0]] == -1
