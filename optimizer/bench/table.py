"""A bench on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optimizer.bench.overview import overview
from optimizer.bench.summary import Cell, Column, cells, headline, problems, setting_name, settings, shown
from optimizer.report import listing

STYLES = {"good": "green", "bad": "red", "status bad": "red"}


def table(facts: Mapping[str, Any]) -> list[RenderableType]:
    """The headline, a table a setting, and a line for each row that has something to say."""
    parts: list[RenderableType] = [Text(headline(facts), "bold")]
    for place, setting in enumerate(settings(facts)):
        parts += [Text(setting_name(setting)), _setting(facts, place)]
    return [*parts, *(Text(line) for line in problems(facts["rows"]))]


def side_by_side(results: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Several models: what they come to, a row each."""
    found = overview(results)
    return [Text(found.headline, "bold"), _grid(found.columns, found.rows)]


def _setting(facts: Mapping[str, Any], place: int) -> Table:
    return _grid(shown(facts, place), [cells(row, place, facts) for row in facts["rows"]])


def _grid(columns: Sequence[Column], rows: Sequence[Mapping[str, Cell | None]]) -> Table:
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column.title, justify="right" if column.number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(_cell(row[column.key]) for column in columns))
    return made


def _cell(cell: Cell | None) -> Text:
    return Text("") if cell is None else Text(cell.text, STYLES.get(cell.kind, ""))


def changes(found: Mapping[str, Any]) -> list[RenderableType]:
    """What --compare found."""
    rows = []
    for change in found["changes"]:
        if change["slower"] is None:
            rows.append([change["name"], "", "", "", f"does not run any more: {change['by']}"])
            continue
        setting = setting_name((change["batch"], change["concurrency"]))
        ratios = "" if change["by"] == "latency" else f"{change['old_ratio']:.2f}x to {change['new_ratio']:.2f}x"
        said = "REGRESSION" if change["regression"] else ""
        took = f"{change['old_ms']:.3g} to {change['new_ms']:.3g} ms"
        rows.append([change["name"], setting, took, ratios, f"{change['slower']:+.1%} {said}".strip()])
    parts: list[RenderableType] = [listing(("backend", "setting", "p50", "speed", "slower by"), rows)]
    if not found["same_machine"]:
        parts.append(Text("the two results are of different machines or threads"))
    if not found["same_model"]:
        parts.append(Text("the two results are of different models"))
    parts += [Text(f"{name} is not in the new result") for name in found["missing"]]
    count = len(found["regressions"])
    limit = f"{found['max_regression']:.0%}"
    parts.append(Text(f"{count or 'no'} backend{'' if count == 1 else 's'} slower by more than {limit}"))
    return parts
