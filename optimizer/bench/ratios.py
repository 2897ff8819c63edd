"""How many times faster one backend is than another, and how sure that is.

In each round all backends take a turn, so a round gives one ratio: what slowed the machine then slowed both. Rounds
of one launch share its luck, such as where its memory lies; so each backend is launched several times, and resampling
draws launches first, then rounds within them (hierarchical bootstrap; Kalibera and Jones, Rigorous Benchmarking in
Reasonable Time, 2013). Few launches say little of how much launches differ: the spread between their means is widened
by what Student's t says of so few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
DRAWS = 4000
Verdict = Literal["faster", "slower", "no difference"]

# Student's t at 97.5 % over the normal's 1.96, by degrees of freedom: launches less one.
STUDENT = {1: 6.48, 2: 2.20, 3: 1.62, 4: 1.42, 5: 1.31, 6: 1.25, 7: 1.21, 8: 1.18, 9: 1.15}


@dataclass(frozen=True)
class Ratio:
    """Times faster than the baseline: the middle and the ends of a 95 % interval."""

    middle: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"


def ratio(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], seed: int = 0) -> Ratio:
    """Of seconds by launch and round; both have the same launches and rounds. Raises ValueError where there are none.

    The middle is exp of the mean over launches of the median over rounds of log(base / other).
    """
    logs = [np.log(np.asarray(b) / np.asarray(o)) for b, o in zip(base, other, strict=True) if len(b)]
    if not logs:
        raise ValueError("a ratio needs at least one round")
    middle = float(np.mean([np.median(one) for one in logs]))
    drawn = _draws(logs, np.random.default_rng(seed))
    wide = STUDENT.get(len(logs) - 1, 1.0) if len(logs) > 1 else 1.0
    half = wide * (np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - middle)
    return Ratio(
        float(np.exp(middle)), float(np.exp(middle + min(half[0], 0))), float(np.exp(middle + max(half[1], 0)))
    )


def _draws(logs: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means over redrawn launches of medians over redrawn rounds, [DRAWS]."""
    count = len(logs)
    medians = np.stack([np.median(one[rng.integers(len(one), size=(DRAWS, len(one)))], axis=1) for one in logs])
    chosen = rng.integers(count, size=(DRAWS, count))
    return np.asarray(np.take_along_axis(medians, chosen.T, axis=0).mean(0))
