"""Operands of elementwise operators that are repeated or filled only to have the other operand's shape.

Broadcasting repeats an element wherever its dim is 1, which is all that Expand does, and Tile along a dim of 1. So an
elementwise operator may read what was repeated, and the one value of a tensor that ConstantOfShape filled, as long as
every dim that is lost thereby is another operand's too: then the result has it all the same, for all values of the
symbols. (C7, C8, S20 of the rewrite catalogue.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.graph import Constant, Dim, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule

BROADCAST = 8  # the first operator set in which all of these broadcast both ways
ELEMENTWISE = (
    "Add|And|BitwiseAnd|BitwiseOr|BitwiseXor|Div|Equal|Greater|GreaterOrEqual|Less|LessOrEqual|Max|Mean|Min|Mod|Mul|"
    "Or|Pow|Sub|Sum|Where|Xor"
)


@rule(f"{ELEMENTWISE}(*xs)")
def repeated_operand(m: Match, make: Draft) -> Tensor | None:
    """S20, C7, C8. The operand as it was before it was repeated, or its only value."""
    xs = m.lists["xs"]
    if m.graph.opset < BROADCAST or not all(x.name for x in xs):
        return None
    for place, x in enumerate(xs):
        before, after = xs[:place], xs[place + 1 :]
        if _is_lost(x, [*before, *after]):
            return make.node(m.root.op, *before, _source(make, x), *after, attrs=m.root.attrs)
    return None


def _is_lost(x: Tensor, others: Sequence[Tensor]) -> bool:
    """True where `x` was repeated or filled, and the result would have its dims without that."""
    maker: Node | None = x.inputs[0] if x.inputs else None
    if maker is None or maker.domain or maker.op not in ("Expand", "Tile", "ConstantOfShape") or x.shape is None:
        return False
    own: Sequence[Dim] | None = [] if maker.op == "ConstantOfShape" else maker.inputs[0].shape
    if own is None:
        return False
    for place in range(-len(x.shape), 0):
        dim, single = x.shape[place], place < -len(own)
        if not single and own[place] is not None and own[place] == dim:
            continue
        if maker.op == "Tile" and own[place] != 1:
            return False
        dims = [o.shape[place] for o in others if o.shape is not None and len(o.shape) >= -place]
        if dim is None or not (dim in dims or (dim == 1 and dims)):
            return False
    return True


def _source(make: Draft, x: Tensor) -> Tensor:
    maker: Node = x.inputs[0]
    if maker.op != "ConstantOfShape":
        tensor: Tensor = maker.inputs[0]
        return tensor
    held = maker.attrs.get("value", np.zeros(1, np.float32))
    value = make.array(held) if isinstance(held, Constant) else held
    return make.constant(np.asarray(value).reshape(()), "fill")


RULES = (repeated_operand,)
