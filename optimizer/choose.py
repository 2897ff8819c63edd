"""Picks what to ship: the fastest variant that passes the gate, and says what that gave up and why.

"Faster" means a median ratio above `MARGIN` and significantly more than half of the interleaved rounds won (sign test,
5 %), so that noise alone changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from optimizer.backend import Timing, ratio, wins
from optimizer.fidelity import NORMAL
from optimizer.judge import Variant

MARGIN = 1.02


@dataclass(frozen=True)
class Choice:
    """What is shipped, and what that gave up: None where the fastest candidate, or the only one, is shipped."""

    shipped: Variant
    reverted: dict[str, Any] | None = None


def faster(base: Timing, other: Timing) -> bool:
    """True where `other` takes measurably less time than `base`."""
    chance = 0.5 + NORMAL * 0.5 / math.sqrt(len(base.seconds))
    return ratio(base, other) > MARGIN and wins(base, other) > chance


def pick(variants: list[Variant], forced: str | None, rivals: Collection[str] = ()) -> Choice:
    """The fastest variant that passes; where nothing was timed or one is forced, the first that passes.

    `variants` starts with the original and the float model. To ship one of `rivals` is to give up the others.
    """
    original, plain, *candidates = variants
    if forced is not None:
        wanted = next(v for v in variants if v.scheme == forced)
        return Choice(wanted) if wanted.usable else Choice(plain, _reverted(wanted, plain))
    if plain.timing is None or original.timing is None:
        return _first(plain, candidates, rivals)
    best = _fastest([v for v in candidates if v.usable], plain.timing)
    shipped, timing = plain, plain.timing
    if best is not None and best.timing is not None and faster(timing, best.timing):
        shipped, timing = best, best.timing
    if faster(timing, original.timing):
        return Choice(original, _reverted(shipped, original))
    if shipped.scheme in rivals and (others := [v for v in candidates if v.scheme not in rivals]):
        nearest = _fastest([v for v in others if not v.failed], timing) or others[0]
        return Choice(shipped, _reverted(nearest, shipped))
    if shipped is not plain or not candidates:
        return Choice(shipped)
    nearest = _fastest([v for v in candidates if not v.failed], plain.timing) or candidates[0]
    return Choice(plain, _reverted(nearest, plain))


def _first(plain: Variant, candidates: list[Variant], rivals: Collection[str]) -> Choice:
    """The first usable candidate. Where none finds anything to do, the model is what the target asks for already."""
    if all(v.idle for v in candidates):
        return Choice(plain)
    shipped = next((v for v in candidates if v.usable), plain)
    kept = shipped is not plain and (shipped.scheme not in rivals or shipped is candidates[0])
    return Choice(shipped, None if kept else _reverted(candidates[0], shipped))


def _fastest(candidates: list[Variant], base: Timing) -> Variant | None:
    """The fastest candidate; of those within the margin of it, the one whose outputs are closest."""
    speeds = {v.scheme: ratio(base, v.timing) for v in candidates if v.timing is not None}
    close = [v for v in candidates if speeds.get(v.scheme, 0.0) * MARGIN >= max(speeds.values(), default=1.0)]
    return max(close, key=lambda v: min((d.sqnr for d in v.differences.values()), default=0.0), default=None)


def _reverted(given_up: Variant, shipped: Variant) -> dict[str, Any]:
    """Why `given_up` is not shipped: in one word, in one line, in numbers."""
    names = {"from": given_up.scheme, "to": shipped.scheme}
    if given_up.failed:
        return {"reason": "failed", **names, "detail": f"{given_up.scheme}: {given_up.failed}"}
    if given_up.misses:
        return {"reason": "fidelity", **names, "detail": f"{given_up.scheme}: {given_up.misses}"}
    assert shipped.timing is not None and given_up.timing is not None
    speed = ratio(shipped.timing, given_up.timing)
    detail = f"{given_up.scheme} runs at {speed:.2f}x the speed of {shipped.scheme}"
    if speed > 1:
        share = wins(shipped.timing, given_up.timing)
        detail = (
            f"{given_up.scheme} is not surely faster than {shipped.scheme} ({speed:.2f}x, {share:.0%} of rounds won)"
        )
    return {"reason": "slower", **names, "detail": detail, "speedup": round(speed, 4)}
