"""Least squares for many outputs and several groups of inputs at once, from sums over the observations.

A correction D of weights W is fitted to what is missing: r ~ p D + s, with the ridge on D, so that an endless ridge
leaves W as it is. The ridge that predicts other data best is taken; that data may also say that nothing helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.graph import Array
from passes.prune.atoms import Floats

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # of the mean variance of an input


@dataclass
class Sums:
    """Over observations of inputs p [groups, K] and of what is missing r [groups, M]; float64."""

    count: int
    p: Floats
    r: Floats
    pp: Floats
    pr: Floats
    rr: Floats

    @classmethod
    def zero(cls, groups: int, inputs: int, outputs: int) -> Sums:
        k, m = (groups, inputs), (groups, outputs)
        return cls(0, np.zeros(k), np.zeros(m), np.zeros((*k, inputs)), np.zeros((*k, outputs)), np.zeros(m))

    def add(self, p: Array, r: Array) -> None:
        """Takes p [groups, n, K] and r [groups, n, M] into account."""
        p, r = p.astype(np.float64), r.astype(np.float64)
        self.count += p.shape[1]
        self.p += p.sum(1)
        self.r += r.sum(1)
        for g in range(len(p)) if p.shape[2] > 64 else ():
            self.pp[g] += p[g].T @ p[g]
            self.pr[g] += p[g].T @ r[g]
        if p.shape[2] <= 64:
            across = p.transpose(0, 2, 1)
            self.pp += across @ p
            self.pr += across @ r
        self.rr += np.square(r).sum(1)

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(a).all()) for a in (self.p, self.r, self.pp, self.pr, self.rr))

    def error(self, fix: Fix) -> float:
        """What is still missing after a correction: the mean square over observations, summed over outputs."""
        d, s = fix.weights, fix.shift
        left = self.rr.sum() + self.count * np.square(s).sum() - 2 * (s * self.r).sum() - 2 * (d * self.pr).sum()
        left += (d * (self.pp @ d)).sum() + 2 * ((self.p[:, None] @ d)[:, 0] * s).sum()
        return float(left) / max(1, self.count)


@dataclass(frozen=True)
class Fix:
    """A correction of weights [groups, K, M] and what to add to their products [groups, M]."""

    weights: Floats
    shift: Floats
    ridge: float


def fit(seen: Sums, held: Sums, intercept: bool) -> Fix | None:
    """The correction that leaves least of the `held` observations missing; None where none is better than nothing."""
    if not (seen.count and held.count and seen.finite and held.finite):
        return None
    zero = np.zeros_like(seen.pr)
    best, least = None, held.error(Fix(zero, np.zeros_like(seen.r), np.inf))
    p = seen.p / seen.count if intercept else np.zeros_like(seen.p)
    r = seen.r / seen.count if intercept else np.zeros_like(seen.r)
    g = seen.pp / seen.count - p[:, :, None] * p[:, None]
    h = seen.pr / seen.count - p[:, :, None] * r[:, None]
    width = max(1, g.shape[1])
    scale = np.maximum(np.trace(g, axis1=1, axis2=2) / width, 1e-30)[:, None, None] * np.eye(g.shape[1])
    for ridge in (np.inf, *RIDGES) if g.shape[1] else (np.inf,):
        try:
            d = zero if ridge == np.inf else np.linalg.solve(g + ridge * scale, h)
        except np.linalg.LinAlgError:
            continue
        made = Fix(d, r - (p[:, None] @ d)[:, 0], ridge)
        left = held.error(made)
        if np.isfinite(left) and left < least:
            best, least = made, left
    return best
