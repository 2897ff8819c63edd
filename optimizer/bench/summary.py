"""What a bench comes to, in words and cells: one source for the terminal's table, Markdown and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.bench.charts import ratio_of
from optimizer.bench.results import MEASURED, OK, ORIGINAL

Facts = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column; those without a cell in any row are left out. `about` explains it."""

    key: str
    title: str
    about: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by, and how it is marked: good, bad, or not at all."""

    text: str
    value: float | str
    kind: str = ""


COLUMNS = (
    Column("name", "backend", "target, or file of somebody else's", number=False),
    Column("status", "status", "whether it ran and agrees with the original", number=False),
    Column("ratio", "speed", "times as fast as the baseline, with the 95 % interval"),
    Column("p50", "p50 ms", "median latency of one call"),
    Column("p90", "p90", "nine of ten calls are faster, ms"),
    Column("p99", "p99", "99 of 100 calls are faster, ms"),
    Column("throughput", "per s", "examples a second"),
    Column("sqnr", "SQNR dB", "signal to noise of the worst output, against the float original"),
    Column("agreement", "same top-1", "rows whose largest score is at the same place"),
    Column("metric", "metric", "the task's own number, higher is better"),
    Column("peak", "peak MB", "memory of the process, at most"),
    Column("size", "file MB", "the model's files"),
    Column("load", "load s", "opening the model"),
    Column("first", "first ms", "the first call after that"),
    Column("device", "GPU ms", "median by the device's own clock, without copies"),
    Column("joules", "J", "energy a call, as the processor counts it"),
    Column("scheme", "ships", "the candidate that the target ships", number=False),
)


def settings(facts: Facts) -> list[tuple[int, int]]:
    """(batch, concurrency) of all points, in order."""
    found = {(point["batch"], point["concurrency"]): None for row in facts["rows"] for point in row["points"]}
    return sorted(found)


def setting_name(setting: tuple[int, int]) -> str:
    batch, callers = setting
    return f"Batch {batch}" + (f", {callers} requests at once" if callers > 1 else "")


def cells(row: Row, place: int, facts: Facts) -> dict[str, Cell | None]:
    """A row's cells by column, in the setting at this place; None for what was not measured."""
    point = row["points"][place] if len(row["points"]) > place else None
    parity, ratio = row["parity"], ratio_of(row, place)
    sqnr = None if parity is None or parity["broken"] else math.inf if parity["exact"] else parity["sqnr_db"]
    return {
        "name": Cell(row["name"], row["name"]),
        "ratio": _ratio(ratio, row, facts) if point else None,
        "p50": _number(point and point["p50_ms"], "{:.3g}"),
        "p90": _number(point and point["p90_ms"], "{:.3g}"),
        "p99": _number(point and point["p99_ms"], "{:.3g}"),
        "throughput": _number(point and point["throughput"], "{:.4g}"),
        "sqnr": Cell("equal", 1e9) if sqnr == math.inf else _number(sqnr, "{:.1f}"),
        "agreement": _number(parity and parity["agreement"], "{:.1%}"),
        "metric": _number(row["metric"], "{:.4g}"),
        "peak": _number(row["peak_bytes"] and row["peak_bytes"] / 1e6, "{:.0f}"),
        "size": _number(row["bytes"] and row["bytes"] / 1e6, "{:.1f}"),
        "load": _number(row["load_seconds"], "{:.2g}"),
        "first": _number(row["first_seconds"] and row["first_seconds"] * 1000, "{:.3g}"),
        "device": _number(point and point["device_ms"], "{:.3g}"),
        "joules": _number(point and point["joules"], "{:.3g}"),
        "scheme": None if row["scheme"] in (None, row["name"]) else Cell(row["scheme"], row["scheme"]),
        "status": Cell(status(row), row["status"], "" if row["status"] == OK else "status bad"),
    }


def status(row: Row) -> str:
    """`ok`, or what went wrong in a word or two; numbers that are not finite are counted."""
    lost = (row["parity"] or {}).get("not_finite", 0)
    return f"{row['status']}, {lost} NaN or infinite" if lost else str(row["status"])


def _number(value: float | None, form: str) -> Cell | None:
    return None if value is None else Cell(form.format(value), value)


def _ratio(found: Mapping[str, Any] | None, row: Row, facts: Facts) -> Cell | None:
    if found is None:
        return Cell("baseline", 1.0) if row["name"] == facts["settings"]["baseline"] else None
    text = f"{found['middle']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"
    if found["verdict"] == "no difference":
        return Cell(f"{text} no difference", found["middle"])
    return Cell(text, found["middle"], "good" if found["verdict"] == "faster" else "bad")


def headline(facts: Facts) -> str:
    """One sentence: the fastest backend that agrees with the original, and how sure that is."""
    base = facts["settings"]["baseline"]
    rows = [row for row in facts["rows"] if row["status"] == OK and ratio_of(row, 0) is not None]
    faster = [row for row in rows if ratio_of(row, 0)["verdict"] == "faster"]  # type: ignore[index]  # looked at above
    if not faster:
        if not any(row["points"] for row in facts["rows"]):
            return "Nothing was measured."
        return f"Nothing that agrees with the original is surely faster than {base}."
    best = max(faster, key=lambda row: ratio_of(row, 0)["middle"])  # type: ignore[index]
    found = ratio_of(best, 0)
    assert found is not None
    between = f"between {found['low']:.2f} and {found['high']:.2f}"
    text = f"{best['name']} is {found['middle']:.2f} times as fast as {base} ({between})"
    original = next((row for row in facts["rows"] if row["name"] == ORIGINAL), None)
    if best["metric"] is not None and original is not None and original["metric"] is not None:
        return f"{text}; the metric goes from {original['metric']:.4g} to {best['metric']:.4g}."
    sqnr = (best["parity"] or {}).get("sqnr_db")
    return text + (f", its outputs within {sqnr:.0f} dB of the original's." if sqnr is not None else ".")


def shown(facts: Facts, place: int) -> list[Column]:
    """The columns that have something to show."""
    made = [cells(row, place, facts) for row in facts["rows"]]
    return [column for column in COLUMNS if any(one[column.key] for one in made)]


def problems(rows: Sequence[Row]) -> list[str]:
    """One line for each row that did not go well, or has something to say."""
    found = [f"{row['name']}: {row['status']}: {row['reason']}" for row in rows if row["reason"]]
    return found + [f"{row['name']}: {row['note']}" for row in rows if row["note"] and row["status"] in MEASURED]


def grid(columns: Sequence[Column], made: Sequence[Mapping[str, Cell | None]]) -> list[str]:
    """A table as lines of Markdown."""
    lines = ["| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "".join("---:|" if column.number else "---|" for column in columns))
    for row in made:
        texts = [(row[column.key] or Cell("", "")).text.replace("|", "\\|") for column in columns]
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def markdown(facts: Facts) -> str:
    """For a pull request: the headline, a table a setting, what went wrong, the machine, the command."""
    lines = [f"### {facts['model']['file']}", "", headline(facts)]
    if facts["data"]["synthetic"]:
        lines += ["", f"**Inputs were RANDOM ({facts['data']['source']}).**"]
    for place, setting in enumerate(settings(facts)):
        made = [cells(row, place, facts) for row in facts["rows"]]
        lines += ["", f"{setting_name(setting)}:", "", *grid(shown(facts, place), made)]
    if told := problems(facts["rows"]):
        lines += ["", *(f"- {line}" for line in told)]
    machine = facts["machine"]
    threads = facts["settings"]["threads"] or "all"
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores, {threads} threads; {facts['time']}."]
    if facts["command"]:
        lines += ["", "```", facts["command"], "```"]
    return "\n".join(lines) + "\n"
