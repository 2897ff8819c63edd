"""The report as one HTML file: opens without a network, light or dark as the reader's system is, readable on a phone.

Pictures are SVG inside the page. The script sorts the table, shows a mark's numbers, and changes nothing else; without
it the page says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from itertools import zip_longest
from typing import Any

from optimizer.bench import charts
from optimizer.bench.overview import overview
from optimizer.bench.summary import Cell, Column, cells, headline, setting_name, settings, shown

Facts = Mapping[str, Any]


def page(*results: Facts) -> str:
    """The whole document: one model's report, or an overview of several with the report of each folded below it."""
    if len(results) == 1:
        facts = results[0]
        title = f"{facts['model']['file']}: {len(facts['rows'])} backends compared"
        return _document(title, [f"<h1>{escape(facts['model']['file'])}</h1>", *_report(facts)])
    found = overview(results)
    parts = ["<h1>Backends compared</h1>", f'<p class="lead">{escape(found.headline)}</p>']
    parts.append(_grid(found.columns, [_cells(row, found.columns, "model") for row in found.rows]))
    for facts in results:
        parts += [f"<details><summary>{escape(facts['model']['file'])}</summary>", *_report(facts), "</details>"]
    return _document(f"{len(results)} models compared", parts)


def _document(title: str, parts: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_file('page.css')}</style></head>\n"
        f"<body><main>{''.join(part for part in parts if part)}</main>"
        f'<div id="tip" role="status" hidden></div><script>{_file("page.js")}</script></body></html>\n'
    )


def _report(facts: Facts) -> list[str]:
    """One model, below its name."""
    rows = facts["rows"]
    parts = [f'<p class="lead">{escape(headline(facts))}</p>', *_warnings(facts)]
    for place, setting in enumerate(settings(facts)):
        parts += [f"<h2>{escape(setting_name(setting))}</h2>", _table(facts, place)]
        parts += _figures([
            ("Times as fast as " + facts["settings"]["baseline"], charts.speeds(rows, place), SPEEDS),
            ("Latency", charts.latencies(rows, place), LATENCIES),
        ])  # fmt: skip
    parts += ["<h2>What it costs</h2>"]
    parts += _figures([
        ("Latency and accuracy", charts.tradeoff(rows, facts["gate"]["metric"] is not None), TRADEOFF),
        ("Memory", charts.memory(rows), MEMORY),
        ("Where the time goes", charts.operators(rows), OPERATORS),
    ])  # fmt: skip
    return [*parts, _problems(rows), _about(facts)]


def _file(name: str) -> str:
    return resources.files("optimizer.bench").joinpath(name).read_text("utf-8")


SPEEDS = (
    "Dots are medians over rounds in which all backends took turns, lines their 95 % intervals. Where a line crosses 1 "
    "there is no difference."
)
LATENCIES = "Thick: the middle half of all runs. Thin: from the 2.5th percentile to the 99th. Upright: the median."
TRADEOFF = (
    "Left is faster, up is closer to the original or better at the task; a mark is as large as its file. The line "
    "joins backends that none beats in both."
)
MEMORY = "Peak of each backend's own process; pale is what it held before the model was loaded."
OPERATORS = (
    "By the runtimes' own profilers, which slow them down a little; kernels are theirs, fused as they fuse them."
)


def _figures(figures: Sequence[tuple[str, str, str]]) -> list[str]:
    drawn = [
        f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for title, svg, caption in figures
        if svg
    ]
    return [f'<div class="figures">{"".join(drawn)}</div>'] if drawn else []


def _warnings(facts: Facts) -> list[str]:
    found = []
    if facts["data"]["synthetic"]:
        source = facts["data"]["source"]
        found.append(f"Inputs were RANDOM ({source}), not real ones: what is said of accuracy is worth little.")
    if facts["interrupted"]:
        found.append("The bench was interrupted: what was measured until then is shown.")
    return [f'<p class="warn">{escape(text)}</p>' for text in found]


def _table(facts: Facts, place: int) -> str:
    columns = shown(facts, place)
    rows = [_cells(cells(row, place, facts), columns, "name", number) for number, row in enumerate(facts["rows"])]
    return _grid(columns, rows, [row["status"] for row in facts["rows"]])


def _grid(columns: Sequence[Column], rows: Sequence[str], kinds: Sequence[str] = ()) -> str:
    head = "".join(map(_head, columns))
    body = "".join(f'<tr class="{kind}">{row}</tr>' for row, kind in zip_longest(rows, kinds, fillvalue=""))
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _head(column: Column) -> str:
    kind = "number" if column.number else ""
    return (
        f'<th scope="col" class="{kind}" aria-sort="none" title="{escape(column.about)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
    )


def _cells(row: Mapping[str, Cell | None], columns: Sequence[Column], name: str, place: int | None = None) -> str:
    """One row; the cell of column `name` heads it, with the colour of its place in the pictures."""
    texts = []
    for column in columns:
        cell = row[column.key]
        value = "" if cell is None else f' data-value="{escape(str(cell.value))}"'
        text = "" if cell is None else escape(cell.text)
        kind = ("number " if column.number else "") + (cell.kind if cell else "")
        swatch = f'<i class="{charts.colour(place)}"></i>' if column.key == name and place is not None else ""
        tag = 'th scope="row"' if column.key == name else "td"
        texts.append(f'<{tag} class="{kind.strip()}"{value}>{swatch}{text}</{tag.split()[0]}>')
    return "".join(texts)


def _problems(rows: Sequence[Mapping[str, Any]]) -> str:
    found = [
        f"<dt>{escape(row['name'])}: {row['status']}</dt><dd>{escape(row['reason'])}</dd>"
        for row in rows
        if row["reason"]
    ]
    notes = [f"<dt>{escape(row['name'])}</dt><dd>{escape(row['note'])}</dd>" for row in rows if row["note"]]
    return f"<h2>Notes</h2><dl>{''.join(found + notes)}</dl>" if found or notes else ""


def _about(facts: Facts) -> str:
    machine, data, given, model = (facts[key] for key in ("machine", "data", "settings", "model"))
    gpus = "; ".join(f"{gpu['name']}, driver {gpu['driver']}" for gpu in machine["gpus"]) or "none"
    rows = {
        "processor": f"{machine['cpu']} ({machine['arch']})",
        "cores": f"{machine['cores']}, with {given['threads'] or 'all'} threads used",
        "instructions": ", ".join(machine["flags"]) or "unknown",
        "GPU": gpus,
        "memory": f"{machine['memory_bytes'] / 1e9:.0f} GB",
        "system": machine["system"] + (", virtual machine" if machine["virtual"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "inputs": f"{data['source']}: {data['feeds']} held-out feeds",
        "measured": f"{facts['time']}, {given['launches']} launches, {given['seconds']:g} s a setting",
        "model": f"{model['nodes']} nodes, {model['parameters']:,} parameters, SHA-256 {model['sha256']}",
    }
    runtimes = "".join(
        f"<dt>{escape(row['name'])}</dt><dd><code>{escape(_recipe(row))}</code></dd>"
        for row in facts["rows"]
        if row["runtime"]
    )
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in rows.items())
    command = f"<h3>To repeat it</h3><pre>{escape(facts['command'])}</pre>" if facts["command"] else ""
    return f"<h2>Machine and method</h2><dl>{listed}</dl>{command}<h3>What ran what</h3><dl>{runtimes}</dl>"


def _recipe(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in row["runtime"].items())
