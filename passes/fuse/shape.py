"""Computing a shape in fewer nodes: part of it is taken by Shape itself, a fill value is written in its final type.

    shape(x)[a:b] = shape(x, start=a, end=b)        concat(shape(x)[a:b], shape(x)[b:c]) = shape(x)[a:c]        from 15
    cast(constant_of_shape(s, v)) = constant_of_shape(s, cast(v))

Shape clamps `start` and `end`, and counts them from the end, as Slice does. A fill value must survive the cast, so that
no runtime's way of rounding or saturating matters. (C6, C10, C11 of the usual catalogues.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.slices import FAR, cuts

KINDS = "biuf"


@rule("Slice(Shape(x), *part)", since=15)
def shape_slice(m: Match, make: Draft) -> Tensor | None:
    shape, taken = m.node("Shape"), cuts(make, m.root, 1)
    if taken is None or taken.keys() != {0}:
        return None
    ((start, end, step),) = taken.values()
    if step != 1 or shape.attrs.get("start", 0) or "end" in shape.attrs:
        return None
    attrs = {"start": start, **({} if end >= FAR else {"end": end})}
    return make.node("Shape", m["x"], attrs=attrs)


@rule("Gather(Shape(x), i)", since=15)
def shape_gather(m: Match, make: Draft) -> Tensor | None:
    shape, indices = m.node("Shape"), make.array(m["i"])
    if indices is None or indices.ndim != 1 or not indices.size or (np.diff(indices) != 1).any():
        return None
    start, end = int(indices[0]), int(indices[-1]) + 1
    if (start < 0) != (end <= 0) or shape.attrs.get("start", 0) or "end" in shape.attrs:
        return None
    return make.node("Shape", m["x"], attrs={"start": start, **({"end": end} if end else {})})


@rule("Concat(*before, Shape(x), Shape(x), *after)", since=15)
def concat_shape(m: Match, make: Draft) -> Tensor | None:
    _, first, second = m.nodes
    middle, end = first.attrs.get("end"), second.attrs.get("end")
    if middle is None or middle != second.attrs.get("start", 0):
        return None
    start = first.attrs.get("start", 0)
    if min(start, middle) < 0 or (end is not None and end < middle) or middle < start:
        return None
    whole = make.node("Shape", m["x"], attrs={"start": start, **({} if end is None else {"end": end})})
    return make.node("Concat", *m.lists["before"], whole, *m.lists["after"], attrs=m.root.attrs)


@rule("Cast(ConstantOfShape(s))")
def filled_cast(m: Match, make: Draft) -> Tensor | None:
    value, to = _value(make, m.node("ConstantOfShape").attrs.get("value")), m.root.outputs[0].dtype
    if to is None or np.dtype(to).kind not in KINDS or value is None or value.dtype.kind not in KINDS:
        return None
    with np.errstate(all="ignore"):
        made = value.astype(to)
        same = np.array_equal(made.astype(value.dtype), value) and np.array_equal(np.signbit(made), np.signbit(value))
    return make.node("ConstantOfShape", m["s"], attrs={"value": made}) if same else None


def _value(make: Draft, held: Any) -> Array | None:  # an attribute: an array, or weights that are still in the file
    if held is None:
        return np.zeros(1, np.float32)
    return make.array(held) if isinstance(held, Constant) else np.asarray(held)
