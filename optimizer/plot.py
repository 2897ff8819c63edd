"""Line plots as one SVG file: written by hand, so that no plotting library is needed to look at a curve.

Colours follow the reader's light or dark theme; every point says its numbers when pointed at; title and description
are there for who hears the picture instead of seeing it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 340  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 52  # margins around its axes
HEAD = 34  # height of the title above the panels
LETTER = 6.6  # pixels that a letter of the legend takes, roughly
TICKS = 5  # on an axis, roughly
LIGHT = {"back": "#ffffff", "ink": "#1f2328", "grid": "#d8dee4", "a": "#0969da", "b": "#bc4c00", "c": "#1a7f37"}
DARK = {"back": "#0d1117", "ink": "#e6edf3", "grid": "#30363d", "a": "#58a6ff", "b": "#f0883e", "c": "#56d364"}
COLOURS = "abc"

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line through points in order of x, each with a mark and a note; `guide`: dashed and without marks."""

    name: str
    points: Sequence[Point]
    notes: Sequence[str] = ()
    guide: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `x` and `y` label them."""

    title: str
    x: str
    y: str
    series: Sequence[Series]


def svg(panels: Sequence[Panel], title: str, description: str) -> str:
    """The panels side by side. The same input gives the same text."""
    width, height = WIDTH * len(panels), HEIGHT + HEAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(description)}</desc>',
        f"<style>{_style()}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
        _text(width / 2, 22, title, "middle", "head"),
    ]
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({place * WIDTH} {HEAD})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style() -> str:
    rules = [
        "svg{font:11px sans-serif}",
        ".head{font-size:14px;font-weight:600}",
        ".name{font-weight:600}",
        ".line{fill:none;stroke-width:2}",
        ".guide{fill:none;stroke-width:1.5;stroke-dasharray:5 4}",
        _theme(LIGHT),
        f"@media (prefers-color-scheme:dark){{{_theme(DARK)}}}",
    ]
    return "".join(rules)


def _theme(colours: dict[str, str]) -> str:
    rules = [
        f".back{{fill:{colours['back']}}}",
        f"text{{fill:{colours['ink']}}}",
        f".axis{{stroke:{colours['ink']}}}",
        f".grid{{stroke:{colours['grid']}}}",
        *(f".{key}{{stroke:{colours[key]}}}circle.{key}{{fill:{colours[key]}}}" for key in COLOURS),
    ]
    return "".join(rules)


@dataclass(frozen=True)
class _Scale:
    """Numbers from `low` to `high` on pixels from `start` to `end`."""

    ticks: Sequence[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def ticks(values: Iterable[float]) -> list[float]:
    """Round numbers, evenly spaced, around all finite values: the steps are 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - max(abs(low) * 0.1, 0.1), high + max(abs(high) * 0.1, 0.1)
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def _panel(panel: Panel) -> list[str]:
    points = [point for series in panel.series for point in series.points]
    across = _Scale(ticks(x for x, _ in points), LEFT, WIDTH - RIGHT)
    up = _Scale(ticks(y for _, y in points), HEIGHT - BOTTOM, TOP)
    parts = [
        _text(LEFT, 18, panel.title, "start", "name"),
        *_axes(panel, across, up),
        *_legend([series.name for series in panel.series], [series.guide for series in panel.series]),
    ]
    for series, colour in zip(panel.series, _colours(panel.series), strict=True):
        parts += _series(series, colour, across, up)
    return parts


def _colours(series: Sequence[Series]) -> list[str]:
    assert len(series) <= len(COLOURS), "more series than colours"
    return list(COLOURS[: len(series)])


def _axes(panel: Panel, across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for value in across.ticks:
        x = across(value)
        parts += [_line(x, up.start, x, up.end, "grid"), _text(x, up.start + 16, _number(value), "middle")]
    for value in up.ticks:
        y = up(value)
        parts += [_line(across.start, y, across.end, y, "grid"), _text(across.start - 8, y + 4, _number(value), "end")]
    parts.append(_line(across.start, up.start, across.end, up.start, "axis"))
    parts.append(_line(across.start, up.start, across.start, up.end, "axis"))
    parts.append(_text((across.start + across.end) / 2, HEIGHT - 12, panel.x, "middle"))
    x, y = 16, (up.start + up.end) / 2
    parts.append(
        f'<text x="{x}" y="{y:g}" text-anchor="middle" transform="rotate(-90 {x} {y:g})">{escape(panel.y)}</text>'
    )
    return parts


def _legend(names: Sequence[str], guides: Sequence[bool]) -> list[str]:
    parts, x = [], float(LEFT)
    for name, guide, colour in zip(names, guides, COLOURS, strict=False):
        parts += [
            _line(x, 36, x + 22, 36, f"{'guide' if guide else 'line'} {colour}"),
            _text(x + 28, 40, name, "start"),
        ]
        x += 28 + len(name) * LETTER + 18
    return parts


def _series(series: Series, colour: str, across: _Scale, up: _Scale) -> list[str]:
    places = sorted(zip(series.points, series.notes or [""] * len(series.points), strict=True))
    shown = [(across(x), up(y), note) for (x, y), note in places if math.isfinite(x) and math.isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in shown)
    parts = [f'<polyline class="{"guide" if series.guide else "line"} {colour}" points="{path}"/>']
    if not series.guide:
        parts += [
            f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(note)}</title></circle>'
            for x, y, note in shown
        ]
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{round(value, 10):g}"
