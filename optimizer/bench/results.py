"""What a bench knows, in the form that docs/bench.md describes: plain dictionaries, made from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimizer.bench.ratios import Ratio, ratio
from optimizer.bench.rounds import Samples, Setting, Taken
from optimizer.compare import Difference

FORMAT = 1
ORIGINAL = "original"
SCHEMA = "onnx-optimize/bench"
QUANTILES = tuple(q / 40 for q in range(41))  # of a distribution that is drawn

# How a row can end, from best to worst.
OK, DISAGREES, FAILED, CRASHED, HUNG, UNAVAILABLE = "ok", "disagrees", "failed", "crashed", "hung", "unavailable"

MEASURED = (OK, DISAGREES)


def row(name: str, target: str) -> dict[str, Any]:
    """One backend before anything is known of it."""
    return {
        "name": name,
        "target": target,
        "status": OK,
        "reason": None,
        "scheme": None,
        "note": None,
        "runtime": None,
        "bytes": None,
        "parity": None,
        "metric": None,
        "load_seconds": None,
        "first_seconds": None,
        "peak_bytes": None,
        "idle_bytes": None,
        "points": [],
        "operators": None,
        "front": False,
    }


def end(into: dict[str, Any], status: str, reason: str) -> None:
    """The row could not be measured to its end. The first reason is the one that is told."""
    if into["status"] in MEASURED:
        into["status"], into["reason"] = status, reason


def parity(differences: Mapping[str, Difference], broken: int) -> dict[str, Any]:
    """How outputs differ from the float original's; `broken` numbers are NaN or infinite where its are not."""
    whole = [d for d in differences.values() if not d.broken]
    sqnr = min((d.sqnr for d in whole), default=math.nan)
    agreement = [d.agreement for d in whole if d.agreement is not None]
    return {
        "max_abs": _round(max((d.max_abs for d in whole), default=math.nan)),
        "sqnr_db": None if math.isinf(sqnr) else _round(sqnr),
        "exact": bool(whole) and math.isinf(sqnr) and sqnr > 0 and len(whole) == len(differences),
        "agreement": _round(min(agreement)) if agreement else None,
        "not_finite": broken,
        "broken": {name: d.broken for name, d in differences.items() if d.broken},
    }


def measured(into: dict[str, Any], taken: Taken, base: Taken | None) -> None:
    """Fills in what the clock said; ratios are to `base`, None for the baseline itself."""
    into["load_seconds"] = _median(taken.loads)
    into["first_seconds"] = _median(taken.firsts)
    into["peak_bytes"], into["idle_bytes"] = taken.peak or None, taken.before or None
    into["points"] = [
        point(setting, samples, base.samples.get(setting) if base else None)
        for setting, samples in sorted(taken.samples.items())
        if samples.flat
    ]
    if taken.ended is not None:
        end(into, taken.ended.how, str(taken.ended))


def point(setting: Setting, samples: Samples, base: Samples | None) -> dict[str, Any]:
    """One backend in one setting. Latencies are what one caller waits for a batch, throughput counts examples."""
    runs = np.array(samples.flat) * 1000
    p50, p90, p99 = np.quantile(runs, [0.5, 0.9, 0.99])
    return {
        "batch": setting.batch,
        "concurrency": setting.callers,
        "p50_ms": _round(p50),
        "p90_ms": _round(p90),
        "p99_ms": _round(p99),
        "min_ms": _round(runs.min()),
        "mean_ms": _round(runs.mean()),
        "quantiles_ms": [_round(q) for q in np.quantile(runs, QUANTILES)],
        "throughput": _round(samples.throughput * setting.batch),
        "runs": len(runs),
        "rounds": [len(launch) for launch in samples.runs],
        "device_ms": _round(float(np.median(samples.device)) * 1000) if samples.device else None,
        "joules": _round(sum(samples.joules) / len(runs)) if samples.joules else None,
        "ratio": None if base is None else _ratio(base, samples),
    }


def _ratio(base: Samples, other: Samples) -> dict[str, Any] | None:
    """Over the rounds that both took part in."""
    pairs = [(b[: len(o)], o[: len(b)]) for b, o in zip(base.medians, other.medians, strict=False)]
    pairs = [(b, o) for b, o in pairs if b and o]
    if not pairs:
        return None
    return told(ratio([b for b, _ in pairs], [o for _, o in pairs]))


def told(found: Ratio) -> dict[str, Any]:
    return {
        "middle": _round(found.middle),
        "low": _round(found.low),
        "high": _round(found.high),
        "verdict": found.verdict,
    }


def mark_front(rows: Sequence[dict[str, Any]], scored: bool) -> None:
    """Marks the rows that no other one beats in both speed and accuracy: the metric, or else the SQNR."""
    placed = []
    for one in rows:
        if one["status"] == OK and one["points"] and (height := quality(one, scored)) is not None:
            placed.append((one["points"][0]["p50_ms"], height, one))
    for latency, height, one in placed:
        one["front"] = not any(
            (other_latency <= latency and other_height >= height) and (other_latency < latency or other_height > height)
            for other_latency, other_height, _ in placed
        )


def quality(one: Mapping[str, Any], scored: bool) -> float | None:
    """What the front is about: the metric where there is one, else SQNR in dB, infinite where nothing differs."""
    if scored:
        return one["metric"]  # type: ignore[no-any-return]  # JSON
    found = one["parity"]
    if found is None:
        return None
    return math.inf if found["exact"] else found["sqnr_db"]


def pick(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row to ship: surely faster than the original, agreeing with it; of those that no measured difference tells
    apart from the fastest, the one closest to the original. None where there is none.
    """
    able = [row for row in rows if row["name"] != ORIGINAL and row["status"] == OK and row["points"]]
    faster = [row for row in able if (found := row["points"][0]["ratio"]) and found["verdict"] == "faster"]
    if not faster:
        return None
    best = max(faster, key=_speed)
    close = [row for row in faster if row["points"][0]["ratio"]["high"] >= _speed(best)]
    return max(close, key=lambda row: (_near(row), _speed(row)))


def _speed(row: Mapping[str, Any]) -> float:
    return float(row["points"][0]["ratio"]["middle"])


def _near(row: Mapping[str, Any]) -> float:
    """SQNR in dB, infinite where nothing differs."""
    parity = row["parity"]
    return math.inf if parity["exact"] else float(parity["sqnr_db"] or -math.inf)


def _median(values: Sequence[float]) -> float | None:
    return _round(float(np.median(values))) if values else None


def _round(value: float | None) -> float | None:
    """Six significant digits; what JSON lacks becomes None."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
