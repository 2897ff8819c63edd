"""Computing a shape in fewer nodes: part of it is taken by Shape itself, a fill value is written in its final type.

    shape(x)[a:b] = shape(x, start=a, end=b)        concat(shape(x)[a:b], shape(x)[b:c]) = shape(x)[a:c]        from 15
    cast(constant_of_shape(s, v)) = constant_of_shape(s, cast(v))
    constant_of_shape(s, v) + c = constant_of_shape(s, v + c)        for one number c; differences and products likewise

Shape clamps `start` and `end`, and counts them from the end, as Slice does. A fill value must survive the cast, so that
no runtime's way of rounding or saturating matters. (C6, C10, C11 of the usual catalogues.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank
from passes.fuse.slices import FAR, cuts

KINDS = "biuf"
EXACT = ("float32", "float64", "int32", "int64")  # of which numpy and runtimes make the same sums and products
ARITHMETIC = {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract}


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


@rule("Add|Mul|Sub(ConstantOfShape(s), c)")
def filled_arithmetic(m: Match, make: Draft) -> Tensor | None:
    filled, c = m.node("ConstantOfShape").outputs[0], make.array(m["c"])
    value = _value(make, m.node("ConstantOfShape").attrs.get("value"))
    if value is None or c is None or c.size != 1 or c.ndim > (rank(filled) or 0) or c.dtype.name not in EXACT:
        return None
    with np.errstate(all="ignore"):
        made = ARITHMETIC[m.root.op](value, c.reshape(1))
    return make.node("ConstantOfShape", m["s"], attrs={"value": made})


def _value(make: Draft, held: Any) -> Array | None:  # an attribute: an array, or weights that are still in the file
    if held is None:
        return np.zeros(1, np.float32)
    return make.array(held) if isinstance(held, Constant) else np.asarray(held)
