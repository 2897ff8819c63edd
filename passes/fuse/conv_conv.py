"""Two convolutions in a row, with nothing between them, are one where one has a kernel of a single element.

    W2 * (W1[m, i] x + b1)  =  (W2 W1)[o, i, k] * x + (b2 + sum over m, k of W2[o, m, k] b1[m])
    W2[o, m] (W1 * x + b1)  =  (W2 W1)[o, i, k] * x + (b2 + W2 b1)

The single element must come in steps of 1 and without pads. In the first line a pad of zeros is W1 0, but not b1, so b1
must be 0 where the second one pads, or is a ConvTranspose, at whose borders fewer terms meet.

The cost: the product has o i k weights, and each is multiplied at every place. It is taken only where the two have
no fewer together, and where the second one has no more places than the first (so it must not pad beyond the size of its
input). In the second line a ConvTranspose multiplies at the places of x, so there o must not be above m. Of an infinite
x the first one may make inf - inf, which is NaN, where the product makes inf: so the rule waits for fast-math. (W11 of
the usual catalogues.)
"""

from __future__ import annotations

import math

import numpy as np

from optimizer.graph import Array, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import narrow
from passes.fuse.window import Window


@rule("Conv|ConvTranspose(Conv(x, v, c?), w, b?)", "Conv(ConvTranspose(x, v, c?), w, b?)", fast_math=True)
def conv_conv(m: Match, make: Draft) -> Tensor | None:
    second, first = m.nodes
    if any(make.attr(node, "group") != 1 for node in m.nodes) or not _pays(first, second):
        return None
    if _single(make, second):
        kept = first
    elif _single(make, first) and _passes(m, make, second):
        kept = second
    else:
        return None
    inner, outer = _weights(make, first), _weights(make, second)
    if inner is None or outer is None:
        return None
    (v, c), (w, b) = inner, outer
    bias = b + w.sum(axis=tuple(range(2, w.ndim))) @ c
    product = _by_channels(_by_taps(w) @ _by_taps(v))
    return _conv(m, make, kept, product, bias)


def _pays(first: Node, second: Node) -> bool:
    """True where the product has no more weights than its factors, and a ConvTranspose in front no more channels."""
    v, w = first.inputs[1].shape, second.inputs[1].shape
    if any(s is None or not all(isinstance(d, int) for d in s) for s in (v, w)):
        return False
    middle, into = (v[0], v[1]) if first.op == "Conv" else (v[1], v[0])
    out = w[0] if second.op == "Conv" else w[1]
    taps = math.prod(v[2:]) * math.prod(w[2:])  # one of them has one
    if first.op == "ConvTranspose":
        return bool(out <= middle)
    return bool(out * into * taps <= math.prod(v) + math.prod(w))


def _single(make: Draft, conv: Node) -> bool:
    window = Window.of(conv, make)
    return conv.op == "Conv" and window is not None and window.single


def _passes(m: Match, make: Draft, second: Node) -> bool:
    """True where a bias in front goes through the second convolution unchanged, and it makes no more than it reads."""
    bias = make.array(m.get("c"))
    plain = m.get("c") is None or (bias is not None and not bias.any())
    if second.op == "ConvTranspose":
        return plain
    window = Window.of(second, make)
    if window is None:
        return plain and make.attr(second, "auto_pad").startswith("SAME")
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.size, strict=True)]
    if any(p + q > r for p, q, r in zip(window.begins, window.ends, reach, strict=True)):
        return False
    return plain or not any(window.pads)


def _weights(make: Draft, conv: Node) -> tuple[Array, Array] | None:
    """Weight [out, in, k...] and bias [out] in float64, zeros where it has none; None where one is not constant."""
    w, given = make.array(conv.inputs[1]), conv.inputs[2:3]
    bias = make.array(given[0]) if given else None
    if w is None or (given and bias is None):
        return None
    w = w.astype(np.float64) if conv.op == "Conv" else w.astype(np.float64).swapaxes(0, 1)
    return w, np.zeros(len(w)) if bias is None else bias.astype(np.float64)


def _by_taps(w: Array) -> Array:
    """[out, in, k...] as one matrix [out, in] for each tap."""
    return np.moveaxis(w, (0, 1), (-2, -1))


def _by_channels(taps: Array) -> Array:
    return np.moveaxis(taps, (-2, -1), (0, 1))


def _conv(m: Match, make: Draft, kept: Node, w: Array, bias: Array) -> Tensor | None:
    dtype, axis = np.dtype(m["w"].dtype), 0
    if kept.op == "ConvTranspose":
        w, axis = w.swapaxes(0, 1), 1
    weight, b = narrow(w, dtype, axis), narrow(bias, dtype)
    if weight is None or b is None:
        return None
    given = make.constant(b, "bias") if bias.any() else None
    return make.node(kept.op, m["x"], make.constant(weight, "weight"), given, attrs=kept.attrs)
