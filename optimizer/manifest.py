"""What an artifact says of itself: docs/manifest.md lists every field.

Everything that another run on the same inputs would repeat stands at the top level; what depends on the hour and on
the machine's mood (times, memory) is under `measured`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from optimizer import __version__
from optimizer.artifact import SCHEMA, TOOL, describe
from optimizer.backend import ratio
from optimizer.choose import Choice
from optimizer.compare import Difference
from optimizer.data import Data
from optimizer.engine import Built
from optimizer.fidelity import Gate, class_scores
from optimizer.graph import Dim, Graph
from optimizer.judge import Variant
from optimizer.machine import device, peak_memory, versions
from optimizer.manager import Step
from optimizer.ops import parameters
from optimizer.plan import Plan
from optimizer.sparsity import sparsity
from optimizer.statistics import Statistics
from optimizer.stored import outside
from optimizer.targets import Target

SECONDS = "seconds"  # the fact about an engine that is a measurement
SPARSIFY = "sparsify"  # the pass that makes weights sparse


@dataclass(frozen=True)
class Record:
    """All that a run knows at its end. `variants` starts with the original and the float model."""

    target: Target
    plan: Plan
    gate: Gate
    variants: Sequence[Variant]
    choice: Choice
    data: Data | None
    checked: Mapping[str, Any]
    statistics: Statistics
    source: onnx.ModelProto | Path
    seed: int
    threads: int
    seconds: float
    engine: Engine | None = None
    runtime: Mapping[str, Any] = field(default_factory=dict)  # what opens the file, as it was measured
    frozen: Mapping[str, float] = field(default_factory=dict)  # inputs of one value
    narrowed: Mapping[str, Sequence[Dim]] = field(default_factory=dict)  # new shapes of inputs


@dataclass(frozen=True)
class Engine:
    """Of a target that compiles: what was built, with which precision, how to build it elsewhere.

    `missing` says why nothing could be built, `findings` are the linter's, `dropped` the operators that the compiler
    refused in int8.
    """

    built: Built | None
    precision: Mapping[str, Any]
    command: str
    missing: str | None
    findings: Sequence[Mapping[str, Any]]
    dropped: Sequence[str]


def manifest(record: Record, files: Sequence[Path]) -> dict[str, Any]:
    """The manifest of an artifact made of these files, the model first."""
    original, shipped = record.variants[0], record.choice.shipped
    return {
        "schema": SCHEMA,
        "tool": {"name": TOOL, "version": __version__},
        "target": record.target.name,
        "runtime": dict(record.runtime),
        "shipped": shipped.scheme,
        "reverted": record.choice.reverted,
        "source": {**_source(record.source, original.graph), **_graph(original.graph)},
        "output": {**describe(files[0]), "data": [describe(f) for f in files[1:]], **_graph(shipped.graph)},
        "pipeline": "" if shipped is original else record.plan.text(shipped.scheme),
        "passes": [_step(step) for step in shipped.steps],
        "data": _data(record.data),
        "statistics": {"tensors": len(record.statistics), "data": record.statistics.data}
        if record.statistics
        else None,
        "checked": dict(record.checked),
        "gate": _gate(record.gate),
        "fidelity": _fidelity(shipped, class_scores(original.graph)),
        "candidates": [_candidate(v, record) for v in record.variants],
        **_interface(record),
        **_engine(record.engine),
        **_sparsity(shipped),
        **shipped.graph.reports,
        "seed": record.seed,
        "versions": versions(),
        "measured": _measured(record),
    }


def _interface(record: Record) -> dict[str, Any]:
    """What was asked of the interface: the model need only be right for these values and shapes."""
    if not record.frozen and not record.narrowed:
        return {}
    shapes = {name: list(dims) for name, dims in record.narrowed.items()}
    return {"interface": {"frozen": dict(record.frozen), "shapes": shapes}}


def _engine(engine: Engine | None) -> dict[str, Any]:
    """The rows that only targets that compile have."""
    if engine is None:
        return {}
    facts = None if engine.built is None else {k: v for k, v in engine.built.facts.items() if k != SECONDS}
    return {
        "engine": facts,
        "engine_missing": engine.missing,
        "compile": engine.command,
        "precision": dict(engine.precision),
        "lint": list(engine.findings),
        "dropped": list(engine.dropped),
    }


def _sparsity(shipped: Variant) -> dict[str, Any]:
    """The row of models that were made sparse; of others the weights are not read again."""
    return {"sparsity": sparsity(shipped.graph)} if _changed(shipped.steps, SPARSIFY) else {}


def _changed(steps: Sequence[Step], name: str) -> bool:
    """True where a pass of that name, wherever it stands, rewrote something."""
    ran = (step for step in steps if step.count)
    return any(step.name.partition("{")[0] == name or _changed(step.children, name) for step in ran)


def _source(source: onnx.ModelProto | Path, graph: Graph) -> dict[str, Any]:
    if isinstance(source, Path):
        files = sorted({path for c in graph.constants().values() if (path := outside(c)) is not None})
        return {**describe(source), "data": [describe(path) for path in files]}
    raw = source.SerializeToString(deterministic=True)
    return {"file": None, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "data": []}


def _graph(graph: Graph) -> dict[str, Any]:
    return {"nodes": sum(1 for _ in graph.walk()), "parameters": parameters(graph), "opset": graph.opset}


def _step(step: Step) -> dict[str, Any]:
    row: dict[str, Any] = {"pass": step.name, "rewrites": step.count, "nodes": step.nodes}
    return row | ({"passes": [_step(child) for child in step.children]} if step.children else {})


def _data(data: Data | None) -> dict[str, Any] | None:
    if data is None:
        return None
    counts = {"calibration": len(data.calibration), "held_out": len(data.check)}
    sizes = {"sizes": dict(data.sizes)} if data.sizes else {}
    return {"source": data.source, "synthetic": data.synthetic, **counts, **sizes, "sha256": data.digest}


def _gate(gate: Gate) -> dict[str, Any]:
    metric = None if gate.metric is None else {"name": gate.name, "max_drop": gate.max_drop}
    return {"min_sqnr_db": gate.min_sqnr, "min_agreement": gate.min_agreement, "metric": metric}


def _fidelity(variant: Variant, scores: set[str]) -> dict[str, Any]:
    rows = {name: _difference(d, name in scores) for name, d in variant.differences.items()}
    return {"outputs": rows, "metric": _round(variant.metric)}


def _difference(difference: Difference, scores: bool) -> dict[str, Any]:
    if difference.broken:
        return {"broken": difference.broken}
    agreement = {"agreement": _round(difference.agreement)} if scores else {}
    sqnr = difference.sqnr
    exact = {"exact": True} if math.isinf(sqnr) and sqnr > 0 else {}
    return {"max_abs": _round(difference.max_abs), "sqnr_db": _round(sqnr), **agreement, **exact}


def _candidate(variant: Variant, record: Record) -> dict[str, Any]:
    return {
        "scheme": variant.scheme,
        "pipeline": "" if variant is record.variants[0] else record.plan.text(variant.scheme),
        "usable": variant.usable,
        "reason": variant.failed or variant.misses or None,
        "bytes": variant.bytes or None,
        "nodes": None if variant.failed else sum(1 for _ in variant.graph.walk()),
        "fidelity": _fidelity(variant, class_scores(record.variants[0].graph)),
    }


def _measured(record: Record) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(record.seconds, 3),
        "peak_memory": peak_memory(),
        "device": device(),
        "threads": record.threads,
        **({"build": record.engine.built.facts.get(SECONDS)} if record.engine and record.engine.built else {}),
        "latency": {v.scheme: _latency(v, record.variants) for v in record.variants if v.timing is not None},
        "passes": [_seconds(step) for step in record.choice.shipped.steps],
    }


def _seconds(step: Step) -> dict[str, Any]:
    row: dict[str, Any] = {"pass": step.name, "seconds": round(step.seconds, 4)}
    return row | ({"passes": [_seconds(child) for child in step.children]} if step.children else {})


def _latency(variant: Variant, variants: Sequence[Variant]) -> dict[str, Any]:
    timing, original, plain = variant.timing, variants[0].timing, variants[1].timing
    assert timing is not None and original is not None and plain is not None
    spread = np.quantile(timing.seconds, [0.25, 0.75]) * 1000
    return {
        "median_ms": round(timing.median * 1000, 4),
        "quartiles_ms": [round(float(q), 4) for q in spread],
        "rounds": len(timing.seconds),
        "speedup": round(ratio(original, timing), 4),
        "speedup_over_float": round(ratio(plain, timing), 4),
    }


def _round(value: float | None) -> float | None:
    """Six significant digits; infinity, which JSON lacks, becomes None."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
