"""A bench as pictures: SVG to stand inside a page, whose style gives the colours (`--c0` and so on, light and dark).

Every mark carries its numbers (`data-tip`), which the page shows to who points at it, and can be reached by keyboard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from optimizer.bench.results import OK, QUANTILES, quality
from optimizer.plot import ticks

Row = Mapping[str, Any]
WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 180, 70, 10, 34
LINE = 34  # height of a row
COLOURS = 8
LETTERS = 20  # of a name that stands beside its row
NAME, LETTER = 170, 16  # pixels that a name and a line of text take
PARTS = 6  # operators told apart in one bar


@dataclass(frozen=True)
class Scale:
    """Numbers on pixels."""

    marks: Sequence[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def colour(place: int) -> str:
    return f"k{place % COLOURS}"


def tradeoff(rows: Sequence[Row], scored: bool) -> str:
    """Latency against accuracy: a mark a backend, as large as its file, and the front of those that none beats."""
    shown = [(place, row, height) for place, row in enumerate(rows) if (height := _height(row, scored)) is not None]
    if not shown:
        return ""
    finite = [height for _, _, height in shown if math.isfinite(height)]
    roof = max(finite, default=100.0) * (1.0 if scored else 1.1)
    across = Scale(ticks([0.0, *(row["points"][0]["p50_ms"] for _, row, _ in shown)]), 70, WIDTH - 30)
    up = Scale(ticks([*finite, roof] if scored else [0.0, roof]), 300, 20)
    largest = max(row["bytes"] or 1 for _, row, _ in shown)
    parts = _frame(across, up, "p50 latency, ms", "metric" if scored else "SQNR, dB (equal: at the top)")
    placed = [(across(row["points"][0]["p50_ms"]), up(min(height, roof)), place, row) for place, row, height in shown]
    front = sorted((x, y) for x, y, _, row in placed if row["front"])
    if len(front) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>')
    levels = _apart([(x, y) for x, y, _, _ in placed])
    for (x, y, place, row), level in zip(placed, levels, strict=True):
        size = 5 + 9 * math.sqrt((row["bytes"] or 1) / largest)
        kind = f"mark {colour(place)}" + ("" if row["status"] == OK else " hollow")
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"{_tip(_tradeoff(row, scored))}/>')
        side = "end" if x > WIDTH - 170 else "start"
        parts.append(_text(x + (-size - 4 if side == "end" else size + 4), level + 4, row["name"], side))
    return _svg(parts, 345, "Latency and accuracy of each backend")


def _apart(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights for the names of marks, so that names of marks near each other do not cover each other."""
    levels: list[float] = []
    for x, y in places:
        while any(
            abs(x - other) < NAME and abs(y - level) < LETTER for (other, _), level in zip(places, levels, strict=False)
        ):
            y += LETTER
        levels.append(y)
    return levels


def _height(row: Row, scored: bool) -> float | None:
    return quality(row, scored) if row["points"] else None


def _tradeoff(row: Row, scored: bool) -> str:
    height = quality(row, scored)
    told = "equal" if height is None or math.isinf(height) else f"{height:.4g}{'' if scored else ' dB'}"
    return f"{row['name']}: {row['points'][0]['p50_ms']:.3g} ms, {told}, {megabytes(row['bytes'])}"


def speeds(rows: Sequence[Row], place: int) -> str:
    """Ratios to the baseline with their intervals, in the setting at this place."""
    shown = [(i, row, found) for i, row in enumerate(rows) if (found := ratio_of(row, place)) is not None]
    if not shown:
        return ""
    across = Scale(ticks([0.0, 1.0, *(found["high"] for _, _, found in shown)]), LEFT, WIDTH - RIGHT)

    def draw(y: float, number: int) -> list[str]:
        i, row, found = shown[number]
        low, high, middle = (across(found[key]) for key in ("low", "high", "middle"))
        ends = f"95 % between {found['low']:.2f}x and {found['high']:.2f}x"
        tip = f"{row['name']}: {found['middle']:.2f}x, {ends}: {found['verdict']}"
        return [
            f'<line class="whisker {colour(i)}" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>',
            f'<circle class="mark {colour(i)}" cx="{middle:.1f}" cy="{y}" r="6"{_tip(tip)}/>',
            _text(max(high, middle) + 10, y + 4, f"{found['middle']:.2f}x", "start"),
        ]

    one = across(1.0)
    height = TOP + LINE * len(shown)
    guide = f'<line class="guide" x1="{one:.1f}" y1="{TOP}" x2="{one:.1f}" y2="{height}"/>'
    return _bars([row["name"] for _, row, _ in shown], across, "times as fast", draw, "Speed of each backend", [guide])


def latencies(rows: Sequence[Row], place: int) -> str:
    """The distribution of latencies: half of all runs in the thick part, 98 % in the thin one, marks at p50 and p99."""
    shown = [(i, row, row["points"][place]) for i, row in enumerate(rows) if len(row["points"]) > place]
    if not shown:
        return ""
    across = Scale(ticks([0.0, *(point["p99_ms"] for _, _, point in shown)]), LEFT, WIDTH - RIGHT)

    def draw(y: float, number: int) -> list[str]:
        i, row, point = shown[number]
        quantile = dict(zip(QUANTILES, point["quantiles_ms"], strict=True))
        low, left, right = (across(quantile[q]) for q in (0.025, 0.25, 0.75))
        p50, p99 = across(point["p50_ms"]), across(point["p99_ms"])
        told = ", ".join(f"{key} {point[f'{key}_ms']:.3g}" for key in ("p50", "p90", "p99"))
        tip = f"{row['name']}: {told} ms over {point['runs']} runs"
        return [
            f'<line class="thin {colour(i)}" x1="{low:.1f}" y1="{y}" x2="{p99:.1f}" y2="{y}"/>',
            f'<line class="thick {colour(i)}" x1="{left:.1f}" y1="{y}" x2="{max(right, left + 1):.1f}" y2="{y}"/>',
            f'<line class="tick" x1="{p50:.1f}" y1="{y - 9}" x2="{p50:.1f}" y2="{y + 9}"/>',
            f'<circle class="mark {colour(i)}" cx="{p99:.1f}" cy="{y}" r="5"{_tip(tip)}/>',
            _text(p99 + 10, y + 4, f"{point['p50_ms']:.3g}", "start"),
        ]

    return _bars([row["name"] for _, row, _ in shown], across, "latency, ms", draw, "Distribution of latencies")


def memory(rows: Sequence[Row]) -> str:
    """Peak memory of each process; what it held before it loaded the model is paler."""
    shown = [(i, row) for i, row in enumerate(rows) if row["peak_bytes"]]
    if not shown:
        return ""
    across = Scale(ticks([0.0, *(row["peak_bytes"] / 1e6 for _, row in shown)]), LEFT, WIDTH - RIGHT)

    def draw(y: float, number: int) -> list[str]:
        i, row = shown[number]
        idle, peak = (row["idle_bytes"] or 0) / 1e6, row["peak_bytes"] / 1e6
        tip = f"{row['name']}: {peak:.0f} MB at most, {idle:.0f} MB of it before the model was loaded"
        return [
            _rect(across(0), y, across(idle) - across(0), f"{colour(i)} pale"),
            _rect(across(idle), y, across(peak) - across(idle), f"mark {colour(i)}", tip),
            _text(across(peak) + 8, y + 4, f"{peak:.0f} MB", "start"),
        ]

    return _bars([row["name"] for _, row in shown], across, "MB", draw, "Peak memory of each backend")


def operators(rows: Sequence[Row]) -> str:
    """Where the time of one run goes, by the runtimes' own profilers: the operators that take most of it."""
    shown = [row for row in rows if row["operators"]]
    if not shown:
        return ""
    across = Scale(ticks([0.0, *(sum(op["ms"] for op in row["operators"]) for row in shown)]), LEFT, WIDTH - RIGHT)
    names = _commonest(shown)

    def draw(y: float, number: int) -> list[str]:
        row, x, parts = shown[number], across(0), []
        for op in row["operators"]:
            width = across(op["ms"]) - across(0)
            kind = colour(names.index(op["op"])) if op["op"] in names else "rest"
            tip = f"{row['name']}, {op['op']}: {op['ms']:.3g} ms, {op['share']:.0%}, {op['count']} kernels"
            parts.append(_rect(x, y, width, f"mark {kind}", tip))
            x += width
        return [*parts, _text(x + 8, y + 4, f"{sum(op['ms'] for op in row['operators']):.3g} ms", "start")]

    drawn = _bars([row["name"] for row in shown], across, "ms of kernels in one run", draw, "Time by operator")
    keys = [f'<span class="key"><i class="{colour(i)}"></i>{escape(name)}</span>' for i, name in enumerate(names)]
    return f'{drawn}<p class="legend">{"".join(keys)}<span class="key"><i class="rest"></i>others</span></p>'


def _commonest(rows: Sequence[Row]) -> list[str]:
    total: dict[str, float] = {}
    for row in rows:
        for op in row["operators"]:
            total[op["op"]] = total.get(op["op"], 0.0) + op["share"]
    return sorted(total, key=lambda name: -total[name])[:PARTS]


def ratio_of(row: Row, place: int) -> Mapping[str, Any] | None:
    return row["points"][place]["ratio"] if len(row["points"]) > place else None


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"


# ---------------------------------------------------------------------- drawing


def _bars(
    names: Sequence[str],
    across: Scale,
    label: str,
    draw: Callable[[float, int], list[str]],
    title: str,
    under: Sequence[str] = (),
) -> str:
    """Rows with a name at the left and what `draw` makes of each, over one axis."""
    bottom = TOP + LINE * len(names)
    parts = []
    for value in across.marks:
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, f"{round(value, 10):g}", "middle", "small"))
    parts += [*under, _text(WIDTH - RIGHT, bottom + 31, label, "end", "small")]
    for number, name in enumerate(names):
        y = TOP + LINE * number + LINE / 2
        short = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
        parts += [_text(LEFT - 10, y + 4, short, "end"), *draw(y, number)]
    return _svg(parts, bottom + BOTTOM, title)


def _frame(across: Scale, up: Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in across.marks:
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{up.start}" x2="{x:.1f}" y2="{up.end}"/>')
        parts.append(_text(x, up.start + 16, f"{round(value, 10):g}", "middle", "small"))
    for value in up.marks:
        y = up(value)
        parts.append(f'<line class="grid" x1="{across.start}" y1="{y:.1f}" x2="{across.end}" y2="{y:.1f}"/>')
        parts.append(_text(across.start - 8, y + 4, f"{round(value, 10):g}", "end", "small"))
    parts.append(_text(across.end, up.start + 34, x_label, "end", "small"))
    parts.append(_text(8, 12, y_label, "start", "small"))
    return parts


def _rect(x: float, y: float, width: float, kind: str, tip: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y - 10}" width="{max(width, 0.5):.1f}" height="20"'
        f"{_tip(tip) if tip else ''}/>"
    )


def _tip(text: str) -> str:
    return f' tabindex="0" role="img" aria-label="{escape(text)}" data-tip="{escape(text)}"'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="group" aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )
