"""What pruning costs and gives at several ratios: every pruned model beside the original, all in one run.

Each ratio starts anew from the float model that the target prepares. Outputs are compared on the held-out feeds as
`optimize` does it, one model at a time; latency is measured last, of all models interleaved. What comes out are the
float models' figures: int8 and half precision are another matter, which `optimize --prune` judges.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

from optimizer import __version__, artifact, pipeline, registry, targets
from optimizer.api import check_numbers, fitted, lacking
from optimizer.backend import Backend, ratio
from optimizer.build import Builder
from optimizer.context import Context
from optimizer.data import Data, Given, open_data
from optimizer.engine import EngineOptions
from optimizer.errors import UserError
from optimizer.evaluate import Evaluate
from optimizer.fidelity import MAX_DROP, Gate, Metric, class_scores, make_gate
from optimizer.graph import Graph
from optimizer.inspect import macs, sized
from optimizer.io import load
from optimizer.judge import Tell, Variant, clock, judge
from optimizer.machine import device, versions
from optimizer.ops import parameters
from optimizer.pipeline import Pass
from optimizer.plan import PRUNED, Plan, is_ratio, pruning
from optimizer.plot import Panel, Series, svg
from optimizer.statistics import Statistics
from optimizer.targets import Target

log = logging.getLogger(__name__)
FORMAT = 1
CURVE, PICTURE = "curve.json", "curve.svg"
SCRATCH = "variants"


@dataclass(frozen=True)
class Curve:
    """A finished curve. `facts` is what its curve.json holds (docs/manifest.md)."""

    folder: Path
    facts: dict[str, Any]


@dataclass
class _Point:
    """One model of the curve; `ratio` 0 is one that is not pruned."""

    ratio: float
    variant: Variant
    macs: int | None = None
    parameters: int | None = None
    nodes: int | None = None


def prune_curve(
    model: onnx.ModelProto | Path | str,
    *,
    ratios: Sequence[float],
    target: str = "ort-fp32",
    data: Given | None = None,
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    options: str = "",
    out: Path | str | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Tell = lambda what, done, total: None,
) -> Curve:
    """Prunes `model` at each of `ratios` and writes curve.json and curve.svg into the folder `out`.

    `options` are those of the pass `prune`, but for the ratio; the rest is as for `optimize`. A ratio that cannot be
    had is a row with its reason. Raises UserError where none can, or an option is wrong; then nothing is written.
    """
    passes = _passes(ratios, options)
    check_numbers(threads=threads, seed=seed)
    source = model if isinstance(model, onnx.ModelProto) else Path(model)
    path = source if isinstance(source, Path) else None
    goal = targets.target(target)
    backend = registry.load_backend(goal.backend)
    untimed = _untimed(goal, backend)
    gate = make_gate(None, None, metric, MAX_DROP)
    folder = artifact.destination(path, "curve", out)
    graph, evaluate = load(source), Evaluate(threads)
    with artifact.writing(folder) as temporary:
        feeds = open_data(data, graph, evaluate, preprocess=preprocess, seed=seed, tell=progress)
        ctx = Context(
            goal,
            evaluate,
            feeds.calibration,
            seed,
            statistics=Statistics(),
            progress=progress,
            synthetic=feeds.synthetic,
        )
        plan = Plan(pipeline.build(goal.prepare), {_scheme(ratio): (one,) for ratio, one in passes.items()})
        builder = Builder(
            backend, plan, ctx, temporary / SCRATCH, Path(f"{folder}.bug"), feeds.check, runs=untimed is None
        )
        builder.engine = fitted(EngineOptions(), graph, feeds) if backend.compiles and untimed is None else None
        shapes = {name: array.shape for name, array in next(iter(feeds.check)).items()}
        points = _points(builder, graph, path, list(passes), gate, shapes)
        if untimed is None:
            clock([point.variant for point in points], builder.open, feeds.check, progress)
        facts = {
            **_about(goal, path, options, gate, feeds),
            "macs_at": {name: list(shape) for name, shape in shapes.items()},
            "untimed": untimed,
            "rows": [_row(point, points, plan) for point in points],
            "seed": seed,
            "versions": versions(),
            "measured": {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": device(),
                "threads": threads,
            },
        }
        shutil.rmtree(temporary / SCRATCH)
        _write(temporary, facts, "the model" if path is None else path.name)
    if feeds.synthetic:
        log.warning("pruned and compared on RANDOM inputs (%s), not on real ones: give some with --data", feeds.source)
    return Curve(folder, facts)


def _about(goal: Target, path: Path | None, options: str, gate: Gate, feeds: Data) -> dict[str, Any]:
    """What the curve is of."""
    return {
        "format": FORMAT,
        "tool": {"name": artifact.TOOL, "version": __version__},
        "target": goal.name,
        "source": None if path is None else artifact.describe(path),
        "options": options,
        "metric": None if gate.metric is None else {"name": gate.name},
        "data": {"source": feeds.source, "synthetic": feeds.synthetic, "sha256": feeds.digest},
    }


def _passes(ratios: Sequence[float], options: str) -> dict[float, Pass]:
    """The pass for each ratio, in order. Raises UserError for what is no ratio, PipelineError for a wrong option."""
    if not ratios:
        raise UserError("--ratios names none: give the shares to remove, such as 0.1,0.2,0.3")
    if not all(map(is_ratio, ratios)):
        given = ",".join(f"{one:g}" for one in ratios)
        raise UserError(f"--ratios {given}: give shares to remove, each above 0 and below 1, such as 0.1,0.2,0.3")
    if any(word.startswith("ratio=") for word in options.split()):
        raise UserError("--prune-options holds a ratio: --ratios gives those")
    return {one: pruning(f"{one} {options}") for one in sorted(set(ratios))}


def _scheme(ratio: float) -> str:
    return f"{PRUNED} {ratio}"


def _untimed(goal: Target, backend: Backend) -> str | None:
    """Why nothing can be timed on the target here; None where it can. Raises UnavailableError as `optimize` does."""
    missing = lacking(goal, backend)
    if missing is not None:
        return missing
    if backend.runs(EngineOptions()):
        return None
    return f"target '{goal.name}' does not run here: --target ort-fp32 measures on this CPU"


def _points(
    builder: Builder, graph: Graph, path: Path | None, ratios: list[float], gate: Gate, shapes: Mapping[str, Any]
) -> list[_Point]:
    """All models, built and compared; only the one at work is in memory. Raises UserError where no ratio works."""
    ctx, check = builder.context, builder.checks
    original, plain = builder.original(graph, path), builder.plain(graph)
    builder.check_float(graph, plain.graph)
    points = [_Point(0, original), _Point(0, plain)]
    judge([original, plain], original, builder.open, check, gate, ctx.evaluate, ctx.progress)
    for point in points:
        _count(point, shapes)
    refused = None
    for share in ratios:
        try:
            variant = builder.candidate(_scheme(share), plain.graph)
        except UserError as error:  # this ratio cannot be had; another may
            variant = Variant(_scheme(share), graph, Path(), Path(), failed=str(error))
            refused = refused or error
        if not variant.failed:
            judge([variant], original, builder.open, check, gate, ctx.evaluate, ctx.progress)
        points.append(_Point(share, variant))
        if not variant.failed:
            _count(points[-1], shapes)
        variant.graph = graph  # its own is in its file
    if all(point.variant.failed for point in points[2:]):
        raise refused or UserError(f"no ratio could be pruned: {points[2].variant.failed}")
    return points


def _count(point: _Point, shapes: Mapping[str, Any]) -> None:
    graph = point.variant.graph
    twin = sized(graph, shapes)
    point.macs = sum(macs(twin, node) or 0 for node in twin.walk())
    point.parameters = parameters(graph)
    point.nodes = sum(1 for _ in graph.walk())


def _row(point: _Point, points: Sequence[_Point], plan: Plan) -> dict[str, Any]:
    """One row; shares are of the float model, which is the one that is pruned."""
    original, plain = points[0], points[1]
    variant = point.variant
    floats = [d for d in variant.differences.values() if not d.broken]
    broken = next((f"output '{n}': {d.broken}" for n, d in variant.differences.items() if d.broken), None)
    scores = class_scores(original.variant.graph)
    return {
        "ratio": point.ratio,
        "model": PRUNED if point.ratio else variant.scheme,
        "pipeline": "" if point is original else plan.text(variant.scheme),
        "reason": variant.failed or broken,
        "macs": point.macs,
        "macs_left": _share(point.macs, plain.macs),
        "parameters": point.parameters,
        "parameters_left": _share(point.parameters, plain.parameters),
        "bytes": variant.bytes or None,
        "nodes": point.nodes,
        "exact": bool(floats) and all(math.isinf(d.sqnr) and d.sqnr > 0 for d in floats) and not broken,
        "sqnr_db": None if broken else _finite(min((d.sqnr for d in floats), default=math.inf)),
        "agreement": _least([d.agreement for n, d in variant.differences.items() if n in scores]),
        "metric": _finite(variant.metric),
        "latency": _latency(variant, original.variant, plain.variant),
    }


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(part / whole, 6)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _least(shares: Sequence[float | None]) -> float | None:
    return _finite(min((share for share in shares if share is not None), default=None))


def _latency(variant: Variant, original: Variant, plain: Variant) -> dict[str, float] | None:
    if variant.timing is None or original.timing is None or plain.timing is None:
        return None
    return {
        "median_ms": round(variant.timing.median * 1000, 4),
        "rounds": len(variant.timing.seconds),
        "speedup": round(ratio(original.timing, variant.timing), 4),
        "speedup_over_float": round(ratio(plain.timing, variant.timing), 4),
    }


def _write(folder: Path, facts: dict[str, Any], name: str) -> None:
    """The numbers, the picture, and a manifest that says whose folder this is."""
    (folder / CURVE).write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    (folder / PICTURE).write_text(picture(facts, name))
    artifact.write_manifest(folder, {"schema": artifact.SCHEMA, "tool": facts["tool"], "curve": CURVE})


def picture(facts: Mapping[str, Any], name: str) -> str:
    """What is lost and what is gained against the share of the work that is left, as SVG."""
    rows = [row for row in facts["rows"] if row["reason"] is None and row["model"] != "original"]
    panels = [_quality(rows, facts["metric"])]
    if facts["untimed"] is None:
        panels.append(_speed(rows))
    count = sum(row["model"] == PRUNED for row in rows)
    what = " and ".join(panel.y for panel in panels)
    return svg(
        panels,
        f"{name}, pruned",
        f"The {what} of {count} pruned models against their share of the MACs; {CURVE} has the numbers",
    )


X = "MACs left, as a share of the float model's"


def _quality(rows: Sequence[Mapping[str, Any]], metric: str | None) -> Panel:
    """The metric where there is one, with the unpruned model's as a guide; else the signal-to-noise ratio."""
    if metric is None:
        return Panel("Output error", X, "SQNR, dB", [_series("pruned", rows, "sqnr_db", "{:.1f} dB")])
    series = _series("pruned", rows, "metric", "{:.4g}")
    level = rows[0]["metric"]
    ends = [min((x for x, _ in series.points), default=0.0), 1.0]
    return Panel("Task metric", X, "metric", [series, Series("not pruned", [(x, level) for x in ends], guide=True)])


def _speed(rows: Sequence[Mapping[str, Any]]) -> Panel:
    flat = [{**row, "speed": row["latency"]["speedup_over_float"]} for row in rows if row["latency"]]
    series = _series("measured", flat, "speed", "{:.2f}x")
    ideal = Series("if time followed MACs", [(x, 1 / x) for x, _ in series.points if x], guide=True)
    return Panel("Latency", X, "speed, times the float model's", [series, ideal])


def _series(name: str, rows: Sequence[Mapping[str, Any]], key: str, form: str) -> Series:
    known = [row for row in rows if row[key] is not None and row["macs_left"] is not None]
    if key == "sqnr_db":
        known = [row for row in known if row["ratio"]]  # the float model's is rounding alone, off any scale
    notes = [f"ratio {row['ratio']:g}: {form.format(row[key])} at {row['macs_left']:.0%} of the MACs" for row in known]
    return Series(name, [(row["macs_left"], row[key]) for row in known], notes)
