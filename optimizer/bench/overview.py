"""Benches of several models side by side: a row each, a column a backend, and what `--target auto` would ship."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.bench.charts import ratio_of
from optimizer.bench.results import OK, ORIGINAL, pick
from optimizer.bench.summary import Cell, Column

Facts = Mapping[str, Any]
Row = Mapping[str, Any]
MEAN = "geometric mean"


@dataclass(frozen=True)
class Overview:
    """Ratios are to each bench's own baseline, in its first setting."""

    columns: list[Column]
    rows: list[dict[str, Cell | None]]
    headline: str


def overview(results: Sequence[Facts]) -> Overview:
    names = list(dict.fromkeys(row["name"] for facts in results for row in facts["rows"] if row["name"] != ORIGINAL))
    columns = [
        Column("model", "model", "the file", number=False),
        Column("p50", "original ms", "median latency of the original"),
        *(Column(name, name, "times as fast as the baseline; what misses the limits says so") for name in names),
        Column("best", "auto", "what --target auto ships: surely faster and in agreement", number=False),
        Column("speed", "speed", "of that, 1 where the original's float model stays"),
        Column("before", "metric", "the task's own number for the original, higher is better"),
        Column("after", "after", "the same for what is shipped"),
    ]
    made = [_line(facts, names) for facts in results]
    mean = _mean([cell.value for row in made if (cell := row["speed"])])
    last: dict[str, Cell | None] = {column.key: None for column in columns}
    last |= {"model": Cell(MEAN, MEAN), "speed": Cell(f"{mean:.2f}x", mean)}
    count = sum(row["best"] is not None for row in made)
    said = (
        f"{count} of {len(results)} models are served faster by a backend that agrees with the original; "
        f"over all {mean:.2f} times as fast."
    )
    rows = [*made, last]
    return Overview([column for column in columns if any(row[column.key] for row in rows)], rows, said)


def _line(facts: Facts, names: Sequence[str]) -> dict[str, Cell | None]:
    rows = {row["name"]: row for row in facts["rows"]}
    original, best = rows[ORIGINAL], pick(facts["rows"])
    speed = best["points"][0]["ratio"]["middle"] if best else 1.0
    point = original["points"][0] if original["points"] else None
    return {
        "model": Cell(label(facts), label(facts)),
        "p50": Cell(f"{point['p50_ms']:.3g}", point["p50_ms"]) if point else None,
        **{name: _speed(rows[name]) if name in rows else None for name in names},
        "best": Cell(best["name"], best["name"]) if best else None,
        "speed": Cell(f"{speed:.2f}x", speed),
        "before": _metric(original),
        "after": _metric(best or original),
    }


def label(facts: Facts) -> str:
    return Path(facts["model"]["file"]).stem


def _speed(row: Row) -> Cell:
    """The ratio, green or red where it surely is one; a word where there is none, and beside one that disagrees."""
    found = ratio_of(row, 0)
    if found is None:
        return Cell(row["status"] if row["status"] != OK else "baseline", -1.0)
    kind = {"faster": "good", "slower": "bad"}.get(found["verdict"], "")
    text = f"{found['middle']:.2f}x"
    return Cell(text, found["middle"], kind) if row["status"] == OK else Cell(f"{text} {row['status']}", 0.0, "bad")


def _metric(row: Row) -> Cell | None:
    return None if row["metric"] is None else Cell(f"{row['metric']:.3f}", row["metric"])


def _mean(speeds: Sequence[float | str]) -> float:
    logs = [math.log(float(speed)) for speed in speeds]
    return math.exp(sum(logs) / len(logs))
