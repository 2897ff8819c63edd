"""The distribution of one tensor in fixed memory, and the ranges that can be read off it.

Bins are signed and uniform over [-limit, limit), with `limit` a power of two that doubles when a value falls outside
(neighbouring bins merge exactly): one pass over the data is enough, and memory does not grow with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[str, ...] = get_args(Method)
BINS = 4096
SAMPLE = 1 << 18  # elements of one array, about, that enter the bins; the extremes are always exact
PERCENTILE = 99.99


def stride(size: int) -> int:
    """Every how many elements one enters the bins: an odd number, so as not to be in step with rows."""
    return (size + SAMPLE - 1) // (2 * SAMPLE) * 2 + 1


@dataclass
class Histogram:
    """Distribution of one tensor: `counts` over [-limit, limit), exact `low` and `high`, and the share of zeros.

    A large array enters `counts` and `zeros` by a sample that weighs as much as the whole. `size` is the number of
    elements seen, `batches` the number of arrays, `finite` False once NaN or infinity came.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    size: int = 0
    batches: int = 0
    finite: bool = True

    def add(self, values: NDArray[Any]) -> None:
        """Takes one array of numbers into account, in time linear in its size and in constant memory."""
        flat = values.reshape(-1)
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (math.inf, -math.inf)
        self.take(flat[:: stride(flat.size)], flat.size, low, high)

    def take(self, sample: NDArray[Any], size: int, low: float, high: float) -> None:
        """Takes an array of `size` numbers into account by every `stride(size)`-th of them and its exact extremes.

        An extreme that is NaN or infinite stands for an array with such values in it.
        """
        self.batches += 1
        if not size:
            return
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.size += size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        flat, weight = sample.astype(np.float64), stride(size)
        self.zeros += weight * int(flat.size - np.count_nonzero(flat))
        if self.limit:
            places = ((flat + self.limit) * (BINS / (2 * self.limit))).astype(np.int64)
            self.counts += weight * np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
        else:  # nothing but zeros so far
            self.counts[BINS // 2] += weight * flat.size

    def _grow(self, peak: float) -> None:
        if peak <= self.limit or peak == 0.0:
            return
        wanted = 2.0 ** math.ceil(math.log2(peak))
        if not self.limit:  # zeros, if any, stay in the bin that starts at 0
            self.limit = wanted
            return
        while self.limit < wanted:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.limit *= 2

    def clip(self, low: float, high: float) -> Histogram:
        """The distribution of the same tensor limited to [low, high] (a Clip behind it), with low <= 0 <= high."""
        if not self.finite or not self.size or (low <= self.low and self.high <= high):
            return self
        x = self.centers()
        limited = replace(self, low=max(self.low, low), high=min(self.high, high), counts=self.counts.copy())
        for outside, end in ((x < low, low), (x > high, high)):
            place = min(BINS - 1, int((end + self.limit) * BINS / (2 * self.limit))) if np.any(outside) else 0
            total = int(self.counts[outside].sum())
            limited.counts[outside] = 0
            limited.counts[place] += total
        return limited

    def centers(self) -> NDArray[Any]:
        """The value that stands for each bin, its middle kept within the values seen."""
        width = 2 * self.limit / BINS
        middle = -self.limit + width * (np.arange(BINS) + 0.5)
        return np.clip(middle, self.low, self.high) if self.size else middle

    def range(self, method: str, percentile: float = PERCENTILE) -> tuple[float, float]:
        """The interval (low, high) to represent, containing 0. Unit: the tensor's own.

        minmax: everything seen. percentile: `percentile` percent, split over both tails. mse: least expected squared
        error at 256 levels. entropy: least Kullback-Leibler divergence after 256-level quantisation (TensorRT's rule).
        """
        if not self.finite or not self.size:
            raise ValueError("no finite values")
        if method not in METHODS:
            raise ValueError(f"no method '{method}' (one of {', '.join(METHODS)})")
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or low == high:
            return low, high
        if method == "percentile":
            return self._percentile(percentile)
        return self._least_error() if method == "mse" else self._least_divergence()

    def _percentile(self, percentile: float) -> tuple[float, float]:
        tail = (100.0 - percentile) / 200.0 * self.counts.sum()
        left, right = np.cumsum(self.counts), np.cumsum(self.counts[::-1])
        edges = np.linspace(-self.limit, self.limit, BINS + 1)
        low = edges[int(np.searchsorted(left, tail, side="right"))]
        high = edges[BINS - int(np.searchsorted(right, tail, side="right"))]
        return max(self.low, min(float(low), 0.0)) if self.low < 0 else 0.0, (
            min(self.high, max(float(high), 0.0)) if self.high > 0 else 0.0
        )

    def noise(self, low: NDArray[Any] | float, high: NDArray[Any] | float, levels: int = 256) -> NDArray[np.float64]:
        """Expected squared error per element of rounding to `levels` steps over [low, high] and clipping outside.

        Broadcasts over arrays of ends. Inside, the error of a step s is uniform (s^2/12); exact zeros have none.
        """
        x, p = self.centers(), self.counts / max(1, int(self.counts.sum()))
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        moments = np.stack([p, p * x, p * x * x])
        below = np.concatenate([np.zeros((3, 1)), np.cumsum(moments, 1)], 1)
        first, last = np.searchsorted(x, low, "left"), np.searchsorted(x, high, "right")
        under, over = below[:, first], below[:, -1:].reshape(3, *[1] * low.ndim) - below[:, last]
        clipped = under[2] - 2 * low * under[1] + low**2 * under[0]
        clipped = clipped + over[2] - 2 * high * over[1] + high**2 * over[0]
        inside = np.maximum(below[0, last] - below[0, first] - self.zeros / max(1, int(self.counts.sum())), 0.0)
        return np.asarray(clipped + inside * ((high - low) / (levels - 1)) ** 2 / 12)

    def sqnr(self, low: float, high: float, levels: int = 256) -> float:
        """Signal to quantisation noise of this tensor alone, in dB; inf for a tensor of zeros."""
        x = self.centers()
        signal = float((x * x * self.counts).sum() / max(1, int(self.counts.sum())))
        noise = float(self.noise(low, high, levels))
        return 10 * math.log10(signal / noise) if signal and noise else math.inf

    def _least_error(self) -> tuple[float, float]:
        shrink = np.linspace(0.02, 1.0, 99)
        lows = min(self.low, 0.0) * (shrink if self.low < 0 else np.ones(1))
        highs = max(self.high, 0.0) * (shrink if self.high > 0 else np.ones(1))
        noise = self.noise(lows[:, None] + 0 * highs, highs + 0 * lows[:, None])
        row, column = np.unravel_index(int(np.argmin(noise)), noise.shape)
        return float(lows[row]), float(highs[column])

    def _least_divergence(self, levels: int = 256) -> tuple[float, float]:
        width = 2 * self.limit / BINS
        counts = self.counts.astype(np.float64)
        counts[BINS // 2] -= self.zeros  # zero is exact at any scale; its mass would hide the rest
        peak = max(-self.low, self.high)
        best, threshold = math.inf, peak
        for part in np.linspace(0.05, 1.0, 96):
            low, high = max(self.low, -peak * part), min(self.high, peak * part)
            first = max(0, math.floor((min(low, 0.0) + self.limit) / width))
            last = min(BINS, max(math.ceil((max(high, 0.0) + self.limit) / width), first + 1))
            divergence = _divergence(counts, first, last, levels)
            if divergence < best:
                best, threshold = divergence, peak * part
        return min(0.0, max(self.low, -threshold)), max(0.0, min(self.high, threshold))


def _divergence(counts: NDArray[np.float64], first: int, last: int, levels: int) -> float:
    """KL divergence of bins first..last, outliers clamped to the ends, from their `levels`-step version."""
    plain = counts[first:last]
    reference = plain.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    steps = np.arange(len(plain)) * min(levels, len(plain)) // len(plain)
    occupied = np.bincount(steps, plain > 0)
    mean = np.bincount(steps, plain) / np.maximum(occupied, 1)
    quantized = np.where(plain > 0, mean[steps], 0.0)
    p, q = reference / max(reference.sum(), 1.0), quantized / max(quantized.sum(), 1.0)
    here = p > 0
    return float((p[here] * np.log(p[here] / np.maximum(q[here], 1e-6 / len(plain)))).sum())
