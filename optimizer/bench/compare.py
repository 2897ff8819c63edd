"""Two results of a bench: which backends became slower.

Absolute times of two runs differ with the machine's mood, so what is compared is each backend's ratio to the same
baseline, where both results have one: a regression is a ratio that fell by more than is allowed while the intervals do
not overlap. The baseline itself, and results without one, are compared by their median latency, and marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]


def compare(old: Facts, new: Facts, most: float) -> dict[str, Any]:
    """`changes`: one a backend and setting that both have; `regressions`: the names of those beyond `most`."""
    changes = []
    for row in new["rows"]:
        before = next((one for one in old["rows"] if one["name"] == row["name"]), None)
        if before is None:
            continue
        for point in row["points"]:
            earlier = next((p for p in before["points"] if _setting(p) == _setting(point)), None)
            if earlier is not None:
                changes.append({"name": row["name"], **_change(earlier, point, most)})
        if before["points"] and not row["points"]:
            changes.append(_gone(row))
    missing = [row["name"] for row in old["rows"] if row["name"] not in {one["name"] for one in new["rows"]}]
    return {
        "schema": "onnx-optimize/bench-compare",
        "format": 1,
        "max_regression": most,
        "same_machine": _machine(old) == _machine(new),
        "same_model": old["model"]["sha256"] == new["model"]["sha256"],
        "changes": changes,
        "missing": missing,
        "regressions": list(dict.fromkeys(change["name"] for change in changes if change["regression"])),
    }


def _setting(point: Mapping[str, Any]) -> tuple[int, int]:
    return point["batch"], point["concurrency"]


def _machine(facts: Facts) -> tuple[Any, ...]:
    machine = facts["machine"]
    return machine["cpu"], machine["cores"], facts["settings"]["threads"], tuple(g["name"] for g in machine["gpus"])


def _change(old: Mapping[str, Any], new: Mapping[str, Any], most: float) -> dict[str, Any]:
    """`slower`: by which share of the old latency; below 0 where it became faster."""
    a, b = old["ratio"], new["ratio"]
    made = {
        "batch": new["batch"],
        "concurrency": new["concurrency"],
        "old_ms": old["p50_ms"],
        "new_ms": new["p50_ms"],
        "old_ratio": a and a["middle"],
        "new_ratio": b and b["middle"],
    }
    if a and b:
        slower, sure = a["middle"] / b["middle"] - 1, b["high"] < a["low"]
        return made | {"by": "ratio", "slower": round(slower, 4), "regression": slower > most and sure}
    return made | {"by": "latency", "slower": round(new["p50_ms"] / old["p50_ms"] - 1, 4), "regression": False}


def _gone(row: Mapping[str, Any]) -> dict[str, Any]:
    """What ran before and does not run now."""
    return {
        "name": row["name"],
        "batch": None,
        "concurrency": None,
        "old_ms": None,
        "new_ms": None,
        "old_ratio": None,
        "new_ratio": None,
        "by": row["status"],
        "slower": None,
        "regression": True,
    }
