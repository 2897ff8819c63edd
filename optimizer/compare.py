"""How two sets of outputs differ: exactly for integers, by size and signal-to-noise for floats.

SQNR (signal to quantisation noise, in dB) is 10 log10(sum(reference^2) / sum((reference - value)^2)) over all batches;
equal arrays give infinity. Agreement is the share of rows whose largest class score is at the same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from optimizer.evaluate import Feeds
from optimizer.graph import Array

# Relative to the largest magnitude of an output. Float rewrites reassociate sums: an error of a few hundred units
# in the last place is rounding; more is a different function.
ROUNDING = {"float64": 1e-10, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass
class Difference:
    """How one output differs from its reference over all batches seen so far.

    `grain` is the float type that its values were rounded to before they became `dtype`.
    """

    max_abs: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    peak: float = 0.0
    rows: int = 0
    agreeing: int = 0
    broken: str = ""
    exact: bool = True
    dtype: str = ""
    grain: str = ""

    @property
    def sqnr(self) -> float:
        """In dB; inf where equal, -inf where there is noise but no signal or the value is broken."""
        if self.broken:
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same arg max; None where no batch looked like class scores."""
        return self.agreeing / self.rows if self.rows else None

    def within_rounding(self) -> bool:
        """True where a float rewrite may explain the difference, by the dtype's tolerance; integers must be equal."""
        if self.broken or self.exact:
            return not self.broken
        return self.max_abs <= ROUNDING.get(self.grain, -1.0) * max(self.peak, 1e-3)

    def add(self, reference: Array, value: Array) -> None:
        """Takes one more batch into account."""
        self.dtype = self.dtype or str(reference.dtype)
        self.grain = _finer(self.grain, _grain(reference))
        if reference.shape != value.shape or reference.dtype != value.dtype:
            self.broken = f"{value.dtype}{list(value.shape)} instead of {reference.dtype}{list(reference.shape)}"
            return
        same = np.array_equal(reference, value) or (
            reference.dtype.kind in "fV"  # V: bfloat16 and the small floats
            and np.array_equal(np.asarray(reference, np.float64), np.asarray(value, np.float64), equal_nan=True)
        )
        self.exact &= same
        if reference.dtype.kind in "OSU":
            self.broken = self.broken or ("" if same else "different strings")
            return
        r, v = np.asarray(reference, np.float64), np.asarray(value, np.float64)
        finite = np.isfinite(r)
        if not np.array_equal(finite, np.isfinite(v)) or not np.array_equal(r[~finite], v[~finite], equal_nan=True):
            self.broken = "NaN or infinity in different places"
            return
        r, v = np.where(finite, r, 0), np.where(finite, v, 0)
        error = np.abs(r - v)
        self.max_abs = max(self.max_abs, float(error.max(initial=0)))
        self.peak = max(self.peak, float(np.abs(r).max(initial=0)))
        self.signal += float((r * r).sum())
        self.noise += float((error * error).sum())
        if reference.ndim >= 2 and reference.shape[-1] > 1 and reference.size:
            self.rows += r.size // r.shape[-1]
            self.agreeing += int((r.argmax(-1) == v.argmax(-1)).sum())


def _grain(array: Array) -> str:
    """The float type whose rounding an array shows: float16 numbers cast to float32 are still float16 numbers."""
    dtype = str(array.dtype)
    if dtype not in ("float32", "float64") or np.array_equal(array, np.rint(array), equal_nan=True):
        return dtype
    with np.errstate(over="ignore"):
        fits = (n for n in ("float16", "float32") if np.array_equal(array.astype(n), array, equal_nan=True))
        return next(fits, dtype)


def _finer(a: str, b: str) -> str:
    return min(filter(None, (a, b)), key=lambda dtype: ROUNDING.get(dtype, -1.0))


def compare(pairs: Iterable[tuple[Feeds, Feeds]]) -> dict[str, Difference]:
    """Differences by output name over (reference, value) pairs of outputs, one pair per batch.

    Sequences are compared element by element; an absent optional equals only another.
    """
    found: dict[str, Difference] = {}
    for reference, value in pairs:
        for name in reference:
            difference = found.setdefault(name, Difference())
            expected, made = _arrays(reference[name]), _arrays(value[name])
            if len(expected) != len(made):
                difference.broken = f"{len(made)} elements instead of {len(expected)}"
            for one, other in zip(expected, made, strict=False):
                difference.add(one, other)
    return found


def _arrays(output: object) -> list[Array]:
    if output is None:
        return []
    return [a for one in output for a in _arrays(one)] if isinstance(output, list) else [np.asarray(output)]
