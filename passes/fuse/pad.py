"""Padding with zeros before an operator that pads with zeros itself becomes part of its own pads.

Conv multiplies what it pads by the weights, and 0 is 0 either way. AveragePool counts explicit zeros as elements, so
its count_include_pad becomes 1, which changes nothing else where it had no pads of its own or counted them already.

MaxPool ignores what it pads. An explicit pad counts, so it must not be larger than anything that x can hold: the
lowest integer, or (with fast-math, for a NaN beside it) infinity below, or 0 behind an operator that gives nothing
negative. A window must hold an element of x; with pads smaller than the kernel and no dilation each does that starts
before the end of x, and an x without elements must not have windows at all. Padding twice with one value is padding
once. (W8, W9, W10, S21 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.ranges import span
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank as rank_of
from passes.fuse.window import own_pads


def _zeros(m: Match, make: Draft, rank: int) -> list[int] | None:
    """Begins, then ends, of the matched Pad along the spatial axes; None unless it adds only zeros, only there."""
    found = _spatial(m, make, rank)
    return None if found is None or found[1] != 0 else found[0]


def _spatial(m: Match, make: Draft, rank: int) -> tuple[list[int], float] | None:
    """Begins, then ends, of the matched Pad along the spatial axes, and its value; None where it pads otherwise."""
    full, value = _amounts(m.node("Pad"), make, rank)
    if full is None or value is None or any(full[:2] + full[rank : rank + 2]):
        return None
    return full[2:rank] + full[rank + 2 :], value


def _amounts(pad: Node, make: Draft, rank: int) -> tuple[list[int] | None, float | None]:
    """Begins, then ends, along every axis, and the value that a Pad adds; None for what is not constant.

    Pads that take something away, and modes that add anything but one value, give None too.
    """
    amounts, value, axes = _inputs(pad, make)
    if make.attr(pad, "mode") != "constant" or amounts is None or min(amounts, default=0) < 0:
        return None, None
    axes = list(range(rank)) if axes is None else [a % rank for a in axes]
    if len(amounts) != 2 * len(axes) or len(set(axes)) != len(axes):
        return None, None
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis], full[rank + axis] = amounts[i], amounts[len(axes) + i]
    return full, value


def _inputs(pad: Node, make: Draft) -> tuple[list[int] | None, float | None, list[int] | None]:
    """Amounts, value and axes of a Pad; amounts None where any of them is not constant."""
    if "pads" in pad.attrs:  # operator sets before 11
        return list(pad.attrs["pads"]), make.attr(pad, "value"), None
    given = {i: t for i, t in enumerate(pad.inputs) if t.name}
    arrays = {i: make.array(t) for i, t in given.items() if i in (1, 3)}
    value = scalar(make.graph, given[2]) if 2 in given else 0
    if 1 not in arrays or any(a is None for a in arrays.values()):
        return None, value, None
    lists = {i: [int(v) for v in a.reshape(-1)] for i, a in arrays.items() if a is not None}
    return lists[1], value, lists.get(3)


@rule("Conv(Pad(x, *how), w, b?)")
def pad_conv(m: Match, make: Draft) -> Tensor | None:
    conv = m.root
    if m["w"].shape is None:
        return None
    rank = len(m["w"].shape)
    extra, own = _zeros(m, make, rank), own_pads(conv, make, rank - 2)
    if extra is None or own is None:
        return None
    attrs = {k: v for k, v in conv.attrs.items() if k != "auto_pad"}
    attrs["pads"] = [a + b for a, b in zip(extra, own, strict=True)]
    return make.node("Conv", m["x"], m["w"], m.get("b"), attrs=attrs)


@rule("AveragePool(Pad(x, *how))")
def pad_average_pool(m: Match, make: Draft) -> Tensor | None:
    pool = m.root
    kernel = list(pool.attrs["kernel_shape"])
    extra, own = _zeros(m, make, len(kernel) + 2), own_pads(pool, make, len(kernel))
    if extra is None or own is None or make.attr(pool, "ceil_mode"):
        return None
    if any(own) and not make.attr(pool, "count_include_pad"):
        return None
    pads = [a + b for a, b in zip(extra, own, strict=True)]
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):  # runtimes refuse windows of pads alone
        return None
    attrs = {k: v for k, v in pool.attrs.items() if k != "auto_pad"}
    return make.node("AveragePool", m["x"], attrs=attrs | {"pads": pads, "count_include_pad": 1})


@rule("Pad(Pad(x, *inner), *outer)")
def pad_pad(m: Match, make: Draft) -> Tensor | None:
    x, (outer, inner) = m["x"], m.nodes
    n = rank_of(x)
    if not n:
        return None
    (first, value), (second, same) = (_amounts(node, make, n) for node in (inner, outer))
    if first is None or second is None or value is None or value != same:
        return None
    pads = [a + b for a, b in zip(first, second, strict=True)]
    if "pads" in outer.attrs:
        return make.node("Pad", x, attrs={**outer.attrs, "pads": pads})
    fill = outer.inputs[2] if len(outer.inputs) > 2 and outer.inputs[2].name else None
    return make.node("Pad", x, make.constant(np.array(pads, np.int64), "pads"), fill, attrs=outer.attrs)


@rule("MaxPool(Pad(x, *how))")
def pad_max_pool(m: Match, make: Draft) -> Tensor | None:
    return None if m["x"].dtype is None or np.dtype(m["x"].dtype).kind not in "iu" else _padded_max(m, make)


@rule("MaxPool(Pad(x, *how))", fast_math=True)
def pad_max_pool_float(m: Match, make: Draft) -> Tensor | None:
    """A NaN beside the pads may become another number: what ONNX Runtime makes of it depends on where it stands."""
    return _padded_max(m, make)


def _padded_max(m: Match, make: Draft) -> Tensor | None:
    pool, x = m.root, m["x"]
    kernel = list(pool.attrs["kernel_shape"])
    found, own = _spatial(m, make, len(kernel) + 2), own_pads(pool, make, len(kernel))
    if found is None or own is None or not found[1] <= span(make.graph, x)[0]:
        return None
    if make.attr(pool, "ceil_mode") or any(d != 1 for d in make.attr(pool, "dilations") or ()):
        return None
    pads = [a + b for a, b in zip(found[0], own, strict=True)]
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return None
    dims = [None] * len(kernel) if x.shape is None else x.shape[2:]
    for k, p, q, dim in zip(kernel, pads, pads[len(kernel) :], dims, strict=False):
        if p + q >= k and not (isinstance(dim, int) and dim > 0):
            return None
    attrs = {k: v for k, v in pool.attrs.items() if k != "auto_pad"}
    return make.node("MaxPool", x, attrs=attrs | {"pads": pads})
