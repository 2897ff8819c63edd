"""Symmetric scales: value = scale * code, zero point 0; codes within +-127 in s8, or up to 255 in u8.

TensorRT wants a scale in the type of the tensor it stands beside. A scale that the later type would round is rounded
here, upwards, before anything is quantised with it: so a Cast changes no number, and no range gets narrower.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from optimizer.graph import Array
from optimizer.statistics import PERCENTILE, Histogram

Rest = Literal["fp16", "bf16", "fp32"]
TOP, UNSIGNED = 127, 255  # the largest codes, of s8 and of u8
_LEAST = {"fp16": 2.0**-14, "bf16": 2.0**-126, "fp32": 2.0**-126}  # the smallest normal number
_MOST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": float(np.finfo(np.float32).max)}


def peak(histogram: Histogram, method: str, percentile: float = PERCENTILE, unsigned: bool = False) -> float:
    """The largest magnitude to represent. mse: with the least expected squared error at the levels there are.

    Those are 255 on both sides of 0, or `unsigned` 256 from 0 upwards.
    """
    largest = max(-histogram.low, histogram.high, 0.0)
    if method != "mse" or not largest:
        return max(map(abs, histogram.range(method, percentile)))
    candidates = np.linspace(0.02, 1.0, 99) * largest
    lowest = np.zeros_like(candidates) if unsigned else -candidates
    return float(candidates[int(np.argmin(histogram.noise(lowest, candidates, levels(unsigned))))])


def levels(unsigned: bool) -> int:
    """How many codes there are."""
    return UNSIGNED + 1 if unsigned else 2 * TOP + 1


def representable(scales: Array, rest: Rest) -> Array:
    """The scales [...], float32, each the least normal number of type `rest` that is not below it; 0 becomes 1."""
    wanted = np.asarray(scales, np.float64)
    wanted = np.where(wanted > 0, np.maximum(wanted, _LEAST[rest]), 1.0)
    with np.errstate(over="ignore"):
        if rest == "fp16":
            near = wanted.astype(np.float16)
            up = np.where(near < wanted, np.nextafter(near, np.float16(np.inf)), near)
        else:
            near = wanted.astype(np.float32)
            up = np.where(near < wanted, np.nextafter(near, np.float32(np.inf)), near)
            if rest == "bf16":
                up = (up.view(np.uint32) + np.uint32(0xFFFF) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.asarray(up, np.float32)


def fits(scale: float, rest: Rest) -> bool:
    """True where type `rest` has a number for the scale."""
    return 0 < scale <= _MOST[rest]


def quantize_weights(weights: Array, axis: int | None, rest: Rest, bits: int = 8) -> tuple[Array, Array]:
    """(int8 codes, float32 scales): weights ~ codes * scales, along `axis` or, where that is None, with one scale."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    top = 2 ** (bits - 1) - 1
    scales = representable(np.abs(weights).max(axis=others).astype(np.float64) / top, rest)
    wide = scales if axis is None else np.expand_dims(scales, others)
    return np.clip(np.rint(weights / wide), -top, top).astype(np.int8), scales
