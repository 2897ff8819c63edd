"""An affine map per output channel after a convolution folds into its weights and bias.

    s[oc] * (W * x + b)[oc] + t[oc]  =  (s[oc] W[oc]) * x + (s[oc] b[oc] + t[oc])

holds because convolution is linear in W. Batch normalisation in inference is such a map, with
s = gamma / sqrt(var + epsilon) and t = beta - s mean; so are Mul, Div, Add and Sub with a constant that varies along
the channels only. W of Conv is [M, C/g, k...]. W of ConvTranspose is [C, M/g, k...], where output channel
i M/g + j is made by block i of the C input channels. A convolution over one axis is often spelt as one over two, of
which a Squeeze takes one off before the bias is added. (W1, W2, W4, W5, W7 of the usual catalogues; Ioffe & Szegedy
2015.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Node, Tensor
from optimizer.match import Match
from optimizer.ops import axes
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import narrow, per_channel, wide


def batch_norm(m: Match, make: Draft) -> tuple[Array, Array] | None:
    """Scale and shift [C], float64, of the matched BatchNormalization; None where it is not an affine constant."""
    bn = m.node("BatchNormalization")
    arrays = [make.array(m[name]) for name in ("gamma", "beta", "mean", "var")]
    if make.attr(bn, "spatial") == 0 or any(a is None for a in arrays):
        return None
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    var = var + make.attr(bn, "epsilon")
    if not (var > 0).all():
        return None
    scale = gamma / np.sqrt(var)
    return scale, beta - mean * scale


def output_channels(make: Draft, conv: Node) -> int | None:
    """Number of output channels of a Conv or ConvTranspose, from the shape of its weight."""
    shape = conv.inputs[1].shape
    if shape is None or not all(isinstance(d, int) for d in shape[:2]):
        return None
    return int(shape[0] if conv.op == "Conv" else shape[1] * make.attr(conv, "group"))


def fold(m: Match, make: Draft, scale: Array | None, shift: Array | None) -> Tensor | None:
    """The matched Conv or ConvTranspose `(x, w, b?)`, scaled and shifted per output channel (None: by 1, by 0)."""
    conv = m.node("Conv|ConvTranspose")
    w: Tensor | None = m["w"]
    if m["w"].dtype is None:
        return None
    if scale is not None and (w := _scaled(m, make, conv, scale)) is None:
        return None
    bias = make.array(m.get("b"))
    if m.get("b") is not None and bias is None:
        return None
    b = m.get("b")
    if shift is not None or bias is not None:
        total = (0 if bias is None else wide(bias) * (1 if scale is None else scale)) + (0 if shift is None else shift)
        rounded = narrow(np.asarray(total), np.dtype(m["w"].dtype))
        if rounded is None:
            return None
        b = make.constant(rounded, "bias")
    return make.node(conv.op, m["x"], w, b, attrs=conv.attrs)


def _scaled(m: Match, make: Draft, conv: Node, scale: Array) -> Tensor | None:
    w = make.array(m["w"])
    if w is None:
        return None
    factors = scale.reshape(-1, 1)
    if conv.op == "ConvTranspose":
        group = make.attr(conv, "group")
        factors = np.repeat(scale.reshape(group, -1), w.shape[0] // group, axis=0)
    factors = factors.reshape(*factors.shape, *[1] * (w.ndim - 2)).astype(wide(w).dtype)
    rounded = narrow(wide(w) * factors, w.dtype, axis=0 if conv.op == "Conv" else 1)
    return None if rounded is None else make.constant(rounded, "weight")


def _constant(m: Match, make: Draft) -> Array | None:
    """The matched constant `c` per output channel, or None."""
    conv, values = m.node("Conv|ConvTranspose"), make.array(m["c"])
    channels = output_channels(make, conv)
    if values is None or channels is None:
        return None
    return per_channel(values, len(conv.inputs[1].shape), 1, channels)


@rule("BatchNormalization(Conv|ConvTranspose(x, w, b?), gamma, beta, mean, var)")
def conv_bn(m: Match, make: Draft) -> Tensor | None:
    affine = batch_norm(m, make)
    return None if affine is None else fold(m, make, *affine)


@rule("Mul(Conv|ConvTranspose(x, w, b?), c)")
def conv_mul(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    return None if c is None else fold(m, make, c, None)


@rule("Div(Conv|ConvTranspose(x, w, b?), c)")
def conv_div(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    return None if c is None or not c.all() else fold(m, make, 1 / c, None)


@rule("Add(Conv|ConvTranspose(x, w, b?), c)")
def conv_add(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    return None if c is None else fold(m, make, None, c)


@rule("Sub(Conv|ConvTranspose(x, w, b?), c)", "Sub(c, Conv|ConvTranspose(x, w, b?))")
def conv_sub(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    if c is None:
        return None
    if m.root.inputs[0] is m["c"]:
        return fold(m, make, np.full(c.shape, -1.0), c)
    return fold(m, make, None, -c)


@rule("Add|Div|Mul|Sub(Squeeze(Conv|ConvTranspose(x, w, b?), *how), c)")
def conv_squeeze(m: Match, make: Draft) -> Tensor | None:
    conv, values, op = m.node("Conv|ConvTranspose"), make.array(m["c"]), m.root.op
    n, channels = len(m["w"].shape or ()), output_channels(make, conv)
    over = axes(make.graph, m.node("Squeeze"), n)
    if values is None or channels is None or not over or 1 in over or values.ndim > n - len(over):
        return None
    aligned = values.reshape((1,) * (n - len(over) - values.ndim) + values.shape)
    c = per_channel(np.expand_dims(aligned, over), n, 1, channels)
    if c is None or (op == "Div" and not c.all()):
        return None
    scale, shift = (None, c if op == "Add" else -c) if op in ("Add", "Sub") else (c if op == "Mul" else 1 / c, None)
    y = fold(m, make, scale, shift)
    return None if y is None else make.node("Squeeze", y, *m.lists["how"], attrs=m.node("Squeeze").attrs)
