"""Convolutions of one tensor, side by side and added, are one with the sum of their kernels.

    W1 * x + b1 + W2 * x + b2  =  (W1 + W2) * x + (b1 + b2)

for the same steps and groups, where the smaller kernel lies inside the larger one: at the taps where both meet the same
elements of x, pads included, which are 0 in both. The tensor itself is its convolution with a kernel of one element 1,
batch normalisation with one element s and bias t. No weight is multiplied more often than before. Of an infinite x the
sum may be inf - inf, which is NaN, where the sum of the weights makes inf: so the rules wait for fast-math. (W13 of the
usual catalogues; Ding et al. 2021, RepVGG.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.graph import Array, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import narrow
from passes.fuse.conv_affine import batch_norm
from passes.fuse.window import Window


@rule("Add(Conv(x, v, c?), Conv(x, w, b?))", fast_math=True)
def conv_sum(m: Match, make: Draft) -> Tensor | None:
    one, other = m.nodes[1:]
    if make.attr(one, "group") != make.attr(other, "group"):
        return None
    windows = [Window.of(node, make) for node in (one, other)]
    arrays = [make.array(node.inputs[1]) for node in (one, other)]
    if windows[0] is None or windows[1] is None or arrays[0] is None or arrays[1] is None:
        return None
    if len(arrays[0]) != len(arrays[1]):
        return None
    if (at := windows[0].offsets(windows[1])) is not None:
        return _sum(m, make, other, arrays[0], at, _bias(make, one))
    if (at := windows[1].offsets(windows[0])) is not None:
        return _sum(m, make, one, arrays[1], at, _bias(make, other))
    return None


@rule("Add(Conv(x, w, b?), x)", fast_math=True)
def conv_add_input(m: Match, make: Draft) -> Tensor | None:
    shape = m["w"].shape
    return None if shape is None or not isinstance(shape[0], int) else _point(m, make, np.ones(shape[0]), 0.0)


@rule("Add(Conv(x, w, b?), BatchNormalization(x, gamma, beta, mean, var))", fast_math=True)
def conv_add_bn(m: Match, make: Draft) -> Tensor | None:
    affine = batch_norm(m, make)
    return None if affine is None else _point(m, make, *affine)


def _point(m: Match, make: Draft, scale: Array, shift: Array | float) -> Tensor | None:
    """The matched Conv plus  scale x + shift  per channel."""
    conv, w = m.node("Conv"), make.array(m["w"])
    window = Window.of(conv, make)
    if w is None or window is None or not len(w) == w.shape[1] * make.attr(conv, "group") == len(scale):
        return None
    if (at := Window.one(w.ndim - 2).offsets(window)) is None:
        return None
    inside = np.zeros((*w.shape[:2], *[1] * (w.ndim - 2)))
    channel = np.arange(len(w))
    inside[channel, channel % w.shape[1]] = scale.reshape(-1, *[1] * (w.ndim - 2))
    return _sum(m, make, conv, inside, at, shift)


def _bias(make: Draft, conv: Node) -> Array | float | None:
    """In float64; 0 where the Conv has none, None where it is not constant."""
    given = conv.inputs[2:3]
    bias = make.array(given[0]) if given else None
    return None if given and bias is None else 0.0 if bias is None else bias.astype(np.float64)


def _sum(
    m: Match, make: Draft, conv: Node, inside: Array, at: Sequence[int], shift: Array | float | None
) -> Tensor | None:
    """A Conv with the weight `inside` added to its own from the taps `at` on, and `shift` to its bias."""
    w, bias = make.array(conv.inputs[1]), _bias(make, conv)
    if w is None or bias is None or shift is None:
        return None
    taps = tuple(slice(first, first + n) for first, n in zip(at, inside.shape[2:], strict=True))
    total = w.astype(np.float64)
    total[:, :, *taps] += inside
    weight, b = narrow(total, w.dtype, axis=0), narrow(np.broadcast_to(bias + shift, len(w)), w.dtype)
    if weight is None or b is None:
        return None
    given = make.constant(b, "bias") if b.any() else None
    return make.node("Conv", m["x"], make.constant(weight, "weight"), given, attrs=conv.attrs)
