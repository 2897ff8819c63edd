"""Weights in int8: symmetric, one scale per output channel, codes within +-(2^(bits-1) - 1).

Seven bits are for x86 processors without VNNI, whose u8*s8 instruction saturates at 16 bits: half the range is safe.

A runtime adds a bias to the sums as an int32 in steps of input scale times weight scale. A channel that training has
left dead (weights of 1e-10, a bias of 1) would overflow it, so its weights get a larger scale: they do not matter.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array

BIAS = 2.0**30  # the largest code of a bias


def quantize_weights(weights: Array, axis: int, bits: int = 8, least: Array | None = None) -> tuple[Array, Array]:
    """(int8 codes, float32 scales along `axis`): weights ~ codes * scales. A channel of zeros gets scale 1.

    `least` holds the smallest scale that each channel may have.
    """
    top = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(weights.ndim) if i != axis)
    peak = np.abs(weights).max(axis=others).astype(np.float64) if weights.size else np.zeros(weights.shape[axis])
    scales = np.where(peak > 0, peak / top, 1.0).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1.0)).astype(np.float32)
    if least is not None:
        scales = np.maximum(scales, least).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weights / scales.reshape(shape)), -top, top).astype(np.int8)
    return codes, scales


def least_scales(bias: Array, scale: float, channels: int) -> Array:
    """The smallest weight scale per channel with which int32 holds the bias, for an input in steps of `scale`."""
    peaks: Array = np.abs(np.broadcast_to(bias.reshape(-1), channels)).astype(np.float64)
    return np.asarray(peaks / (scale * BIAS), np.float32)


def rounding_shift(weights: Array, codes: Array, scales: Array, axis: int, mean: Array, groups: int = 1) -> Array:
    """What rounding the weights adds, on average, to each output channel: sum over inputs of (Q(w) - w) E[x].

    `mean` is E[x] by input channel [C]. Padding is not counted. This is the bias correction of Nagel et al., Data-Free
    Quantization Through Weight Equalization and Bias Correction (2019), section 4.2, with measured means.
    """
    others = [i for i in range(weights.ndim) if i != axis]
    error = np.moveaxis(codes * np.expand_dims(scales, others) - weights, axis, 0)
    outputs, inputs = error.shape[:2]
    by_input = error.reshape(groups, outputs // groups, inputs, -1).sum(axis=-1, dtype=np.float64)
    return np.asarray(np.einsum("goi,gi->go", by_input, mean.reshape(groups, inputs)).reshape(-1))
