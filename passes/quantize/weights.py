"""Weights in int8: symmetric, one scale per output channel, codes within +-(2^(bits-1) - 1).

Seven bits are for x86 processors without VNNI, whose u8*s8 instruction saturates at 16 bits: half the range is safe.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array


def quantize_weights(weights: Array, axis: int, bits: int = 8) -> tuple[Array, Array]:
    """(int8 codes, float32 scales along `axis`): weights ~ codes * scales. A channel of zeros gets scale 1."""
    top = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(weights.ndim) if i != axis)
    peak = np.abs(weights).max(axis=others).astype(np.float64) if weights.size else np.zeros(weights.shape[axis])
    scales = np.where(peak > 0, peak / top, 1.0).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1.0)).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weights / scales.reshape(shape)), -top, top).astype(np.int8)
    return codes, scales
