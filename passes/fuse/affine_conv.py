"""An affine map per input channel before a convolution folds into its weights and bias.

    W * (s x + t)  =  (W s[ic]) * x + sum over ic, k of W[oc, ic, k] t[ic]

The sum is the same at every place only where the kernel never leaves the input: a shift folds into a Conv whose pads
are all 0, a scale always does (0 s = 0). At the borders of a ConvTranspose fewer terms meet, so it takes scales only.
Where the shift cannot follow, s x + t = s (x + t / s) lets the scale go in alone. (W3, W6 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import constant_operand, narrow, per_channel, rank, wide
from passes.fuse.conv_affine import batch_norm


def _fold(m: Match, make: Draft, x: Tensor, scale: Array | None, shift: Array | None) -> Tensor | None:
    """The matched convolution `(..., w, bias?)` reading `x`, with the affine map of its input channels inside."""
    conv, w = m.node("Conv|ConvTranspose"), make.array(m["w"])
    if w is None:
        return None
    group = make.attr(conv, "group")
    b = m.get("bias")
    if shift is not None and shift.any():
        bias = make.array(b)
        if conv.op != "Conv" or _pads(m, make) or (b is not None and bias is None):
            return None
        sums = wide(w).reshape(group, -1, w.shape[1], int(np.prod(w.shape[2:]))).sum(-1, dtype=np.float64)
        total = (sums * shift.reshape(group, 1, -1)).sum(-1).reshape(-1) + (0 if bias is None else wide(bias))
        if (rounded := narrow(total, w.dtype)) is None:
            return None
        b = make.constant(rounded, "bias")
    new: Tensor = m["w"]
    if scale is not None:
        factors = scale.reshape(-1, 1)
        if conv.op == "Conv":  # W[oc] reads the input channels of the group oc is in
            factors = np.repeat(scale.reshape(group, -1), w.shape[0] // group, axis=0)
        factors = factors.reshape(*factors.shape, *[1] * (w.ndim - 2)).astype(wide(w).dtype)
        if (rounded := narrow(wide(w) * factors, w.dtype, axis=0)) is None:
            return None
        new = make.constant(rounded, "weight")
    return make.node(conv.op, x, new, b, attrs=conv.attrs)


def _pads(m: Match, make: Draft) -> bool:
    conv = m.node("Conv")
    auto = make.attr(conv, "auto_pad")
    return auto != "VALID" and (auto != "NOTSET" or any(make.attr(conv, "pads") or ()))


def _constant(m: Match, make: Draft) -> tuple[Tensor, Array] | None:
    """The varying operand and the constant one per input channel; None where the constant enlarges the other (G3)."""
    found, shape = constant_operand(m, make), m["w"].shape
    if found is None or shape is None or not all(isinstance(d, int) for d in shape[:2]):
        return None
    x, values = found
    conv = m.node("Conv|ConvTranspose")
    channels = int(shape[1] * make.attr(conv, "group") if conv.op == "Conv" else shape[0])
    if values.size > 1 and (rank(x) != len(shape) or x.shape[1] != channels):
        return None
    if values.ndim == len(shape) and rank(x) != len(shape):
        return None
    c = per_channel(values, len(shape), 1, channels)
    return None if c is None else (x, c)


@rule("Conv|ConvTranspose(Mul(a, b), w, bias?)")
def mul_conv(m: Match, make: Draft) -> Tensor | None:
    found = _constant(m, make)
    return None if found is None else _fold(m, make, found[0], found[1], None)


@rule("Conv|ConvTranspose(Div(a, b), w, bias?)")
def div_conv(m: Match, make: Draft) -> Tensor | None:
    found = _constant(m, make)
    if found is None or found[0] is not m["a"] or not found[1].all():
        return None
    return _fold(m, make, found[0], 1 / found[1], None)


@rule("Conv(Add(a, b), w, bias?)")
def add_conv(m: Match, make: Draft) -> Tensor | None:
    found = _constant(m, make)
    return None if found is None else _fold(m, make, found[0], None, found[1])


@rule("Conv(Sub(a, b), w, bias?)")
def sub_conv(m: Match, make: Draft) -> Tensor | None:
    found = _constant(m, make)
    if found is None:
        return None
    x, c = found
    if x is m["b"]:
        return _fold(m, make, x, np.full(c.shape, -1.0), c)
    return _fold(m, make, x, None, -c)


@rule("Conv|ConvTranspose(BatchNormalization(x, gamma, beta, mean, var), w, bias?)")
def bn_conv(m: Match, make: Draft) -> Tensor | None:
    affine = batch_norm(m, make)
    return None if affine is None else _fold(m, make, m["x"], *affine)


@rule("Conv|ConvTranspose(Add(Mul(a, b), t), w, bias?)")
def mul_add_conv(m: Match, make: Draft) -> Tensor | None:
    found, shift = _constant(m, make), make.array(m["t"])
    if found is None or shift is None or shift.dtype == np.float16:  # where x + t / s may overflow
        return None
    x, scale = found
    if not scale.all() or scale.min() != scale.max():
        return None
    moved = narrow(wide(shift) / scale[0], shift.dtype)
    if moved is None:
        return None
    return _fold(m, make, make.node("Add", x, make.constant(moved, "shift")), scale, None)
