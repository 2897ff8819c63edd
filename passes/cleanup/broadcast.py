"""Operands of elementwise operators that are repeated or filled only to have the other operand's shape.

Broadcasting repeats an element wherever its dim is 1, which is all that Expand does, and Tile along a dim of 1. So an
elementwise operator may read what was repeated, and the one value of a tensor that ConstantOfShape filled, as long as
every dim that is lost thereby is another operand's too: then the result has it all the same, for all values of the
symbols. (C7, C8, S20 of the rewrite catalogue.)

It costs where the result is then computed in many short runs of elements: kernels step over dims of the same kind, the
last ones, in one go, and begin anew for each further index. ONNX Runtime copies some RUN elements in the time it takes
to begin. So the runs must be RUN times as long as there are elements of the result for each one that is not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import inf, prod

import numpy as np

from optimizer.graph import Constant, Dim, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule

BROADCAST = 8  # the first operator set in which all of these broadcast both ways
RUN = 128
ELEMENTWISE = (
    "Add|And|BitwiseAnd|BitwiseOr|BitwiseXor|Div|Equal|Greater|GreaterOrEqual|Less|LessOrEqual|Max|Mean|Min|Mod|Mul|"
    "Or|Pow|Sub|Sum|Where|Xor"
)
Dims = Sequence[Dim]


@rule(f"{ELEMENTWISE}(*xs)")
def repeated_operand(m: Match, make: Draft) -> Tensor | None:
    """S20, C7, C8. The operand as it was before it was repeated, or its only value."""
    xs, result = m.lists["xs"], m.root.outputs[0].shape
    if m.graph.opset < BROADCAST or result is None or any(x.shape is None for x in xs):
        return None
    for place, x in enumerate(xs):
        before, after = xs[:place], xs[place + 1 :]
        others = [other.shape for other in (*before, *after)]
        own = _own(x)
        if own is not None and _is_lost(make, x, own, others) and _pays(x, own, others, result):
            return make.node(m.root.op, *before, _source(make, x), *after, attrs=m.root.attrs)
    return None


def _own(x: Tensor) -> Dims | None:
    """The dims of what Expand or Tile repeats, none for a fill; None where `x` comes from elsewhere."""
    maker: Node | None = x.inputs[0] if x.inputs else None
    if maker is None or maker.domain or maker.op not in ("Expand", "Tile", "ConstantOfShape"):
        return None
    dims: Dims | None = [] if maker.op == "ConstantOfShape" else maker.inputs[0].shape
    return dims


def _is_lost(make: Draft, x: Tensor, own: Dims, others: Sequence[Dims]) -> bool:
    """True where each dim that is not x's own is another operand's."""
    tile = x.inputs[0] if x.inputs[0].op == "Tile" else None
    repeats = make.array(tile.inputs[1]) if tile else None
    for place in range(-len(x.shape), 0):
        dim = x.shape[place]
        if place >= -len(own) and own[place] is not None and own[place] == dim:
            continue
        if repeats is not None and repeats[place] == 1:
            continue
        if tile and own[place] != 1:
            return False
        dims = [other[place] for other in others if place >= -len(other)]
        if dim is None or not (dim in dims or (dim == 1 and dims)):
            return False
    return True


def _pays(x: Tensor, own: Dims, others: Sequence[Dims], result: Dims) -> bool:
    """True where the elements that need not be copied outweigh the runs that begin anew."""
    places = range(-1, -len(result) - 1, -1)
    kinds = [tuple(_at(dims, place) == result[place] for dims in (own, *others)) for place in places]
    alike = list(takewhile(lambda place: kinds[-place - 1] == kinds[0], places))
    run = inf if len(alike) == len(result) else prod(d for p in alike if isinstance(d := result[p], int))
    repeated = [result[place] for place in places if _at(x.shape, place) != result[place]]
    if not all(isinstance(d, int) for d in repeated):
        return run == inf
    return run >= RUN * prod(d for d in repeated if isinstance(d, int)) * len(x.outputs)


def _at(dims: Dims, place: int) -> Dim:
    """A dim counted from the last; 1 where there are not so many."""
    return dims[place] if place >= -len(dims) else 1


def _source(make: Draft, x: Tensor) -> Tensor:
    maker: Node = x.inputs[0]
    if maker.op != "ConstantOfShape":
        tensor: Tensor = maker.inputs[0]
        return tensor
    held = maker.attrs.get("value", np.zeros(1, np.float32))
    value = make.array(held) if isinstance(held, Constant) else held
    return make.constant(np.asarray(value).reshape(()), "fill")


RULES = (repeated_operand,)
