"""The way of the data, top to bottom: a model in, a verified artifact out."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from platformdirs import user_cache_path

from optimizer import artifact, registry, targets
from optimizer.backend import Backend
from optimizer.build import Builder, Watch
from optimizer.choose import Choice, pick
from optimizer.context import Context
from optimizer.data import Data, Given, interface, open_data
from optimizer.dims import Shapes, fix_dims
from optimizer.engine import BuildError, EngineOptions, make_profiles
from optimizer.errors import DataError, GateError, ModelError, UnavailableError, UserError
from optimizer.evaluate import Evaluate
from optimizer.fidelity import MAX_DROP, Gate, Metric, make_gate
from optimizer.graph import Graph
from optimizer.instrument import Limit
from optimizer.io import load, save
from optimizer.journal import METADATA
from optimizer.judge import ORIGINAL, Tell, Variant, clock, judge
from optimizer.lint import lint
from optimizer.manifest import Engine, Record, manifest
from optimizer.plan import Plan, make_plan
from optimizer.precision import MIN_INT8, layers, report, shortfall
from optimizer.statistics import Statistics
from optimizer.stored import nbytes
from optimizer.targets import Target

log = logging.getLogger(__name__)
VARIANTS = "variants"
HEAVY = 1 << 30  # bytes of weights above which a portable model is not run to compare outputs


@dataclass(frozen=True)
class Result:
    """A finished artifact. `manifest` is what its manifest.json holds (docs/manifest.md)."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def model(self) -> Path:
        """The model to deploy."""
        return self.folder / str(self.manifest["output"]["file"])

    @property
    def engine(self) -> Path | None:
        """The engine built of it; None where the target compiles nothing, or nothing could be compiled here."""
        built = self.manifest.get("engine")
        return self.folder / str(built["file"]) if built else None

    @property
    def shipped(self) -> str:
        """The scheme of the shipped model: `original`, `float`, or one of the target's candidates."""
        return str(self.manifest["shipped"])

    @property
    def reverted(self) -> dict[str, Any] | None:
        """Why a faster or smaller candidate is not shipped; None where the best one is."""
        return self.manifest["reverted"]  # type: ignore[no-any-return]  # JSON


def optimize(
    model: onnx.ModelProto | Path | str,
    *,
    target: str,
    data: Given | None = None,
    preprocess: str | None = None,
    out: Path | str | None = None,
    opset: int | None = None,
    prune: float | str | None = None,
    passes: str | None = None,
    scheme: str | None = None,
    statistics: Path | str | None = None,
    metric: str | Metric | None = None,
    max_drop: float = MAX_DROP,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    strict: bool = False,
    threads: int = 0,
    seed: int = 0,
    verify_each: bool = False,
    dump: Path | str | None = None,
    bisect_limit: int | None = None,
    keep_provenance: bool = False,
    fixed: Mapping[str, float] | None = None,
    shapes: Shapes | None = None,
    engine: EngineOptions | None = None,
    emit: Literal["engine", "onnx"] = "engine",
    min_int8: float = MIN_INT8,
    progress: Tell = lambda what, done, total: None,
) -> Result:
    """Makes `model` fast on `target` and proves that it is no worse; writes the artifact's folder `out`.

    `data` is what --data takes, a list of feeds, or a function that returns an iterable of them; `metric` a function
    of a callable model, higher is better. Limits: `min_sqnr` in dB, `min_agreement` a share of rows, `max_drop` in the
    metric's unit. `threads` 0 means all cores. `fixed` gives inputs the one value they will ever have, `shapes` gives
    them dims: numbers, the names that dims keep or get, None for what stays. `prune` is the share to remove before
    anything else is done, or the options of that pass as text. `opset` is the operator set to raise the model to first
    of all, for what newer sets alone have operators for. `keep_provenance`: nodes of the written model say in their
    metadata what they were made of (docs/explain.md).

    For targets that compile: `engine` says how, `emit` "onnx" stops at the model that the compiler takes, `min_int8` is
    the least share of the eligible MACs that must be int8.

    Raises UserError (ModelError, DataError, PipelineError), UnavailableError, GateError (with `strict`, or where the
    promised precision was not built) and BugError; then nothing is written, and an artifact that was there before
    stays. Only where a compiler is missing is the model written all the same before UnavailableError says so.
    """
    if target == "auto":
        _refuse({
            "passes": passes, "scheme": scheme, "statistics": statistics, "engine": engine, "dump": dump,
            "opset": opset, "freeze": fixed, "shape": shapes, "bisect-limit": bisect_limit,
            "verify-each": verify_each or None, "keep-provenance": keep_provenance or None,
        })  # fmt: skip
        from optimizer import auto

        folder = auto.choose(
            model, out=out, data=data, preprocess=preprocess, prune=prune, metric=metric, max_drop=max_drop,
            min_sqnr=min_sqnr, min_agreement=min_agreement, strict=strict, threads=threads, seed=seed,
            progress=progress,
        )  # fmt: skip
        return Result(folder, json.loads((folder / artifact.MANIFEST).read_text()))
    start = time.perf_counter()
    check_numbers(threads=threads, seed=seed, bisect_limit=bisect_limit or 0)
    if not 0 <= min_int8 <= 1:
        raise UserError(f"--min-int8 {min_int8:g} is not a share: give a number from 0 to 1, such as 0.9")
    source = model if isinstance(model, onnx.ModelProto) else Path(model)
    path = source if isinstance(source, Path) else None
    goal = targets.target(target)
    backend = registry.load_backend(goal.backend)
    missing = lacking(goal, backend, engine, emit)
    runs = emit == "engine" and backend.runs(engine or EngineOptions())
    plan = make_plan(goal, passes, scheme, fixed or {}, prune, opset)
    gate = make_gate(min_sqnr, min_agreement, metric, max_drop)
    known = _given(statistics, plan)
    calibrated_on = known.data
    limit = None if bisect_limit is None else Limit(bisect_limit)
    folder = artifact.destination(path, goal.family, out)
    graph = load(source)
    narrowed = fix_dims(graph, shapes or {})
    watch = Watch(verify_each, None if dump is None else Path(dump), limit, keep_provenance and _holds_metadata(graph))
    _check_inputs(graph, fixed or {}, engine)
    evaluate = Evaluate(threads)
    with artifact.writing(folder) as temporary:
        must_run = runs or bool(plan.tails) or gate.metric is not None
        feeds, blind = _inputs(data, preprocess, graph, evaluate, seed, fixed, must_run, progress)
        calibration, held_out = (feeds.calibration, feeds.check) if feeds else ((), ())
        synthetic = feeds is not None and feeds.synthetic
        ctx = Context(goal, evaluate, calibration, seed, statistics=known, progress=progress, synthetic=synthetic)
        builder = Builder(backend, plan, ctx, temporary / VARIANTS, Path(f"{folder}.bug"), held_out, watch, runs)
        options = fitted(engine or EngineOptions(), graph, feeds)
        builder.engine = options if backend.compiles and emit == "engine" and missing is None else None

        original, plain = builder.original(graph, path), builder.plain(graph)
        checked = builder.check_float(graph, plain.graph) if feeds else {"outputs": False, "reason": blind}
        base = builder.start(plain.graph)
        variants = [original, plain, *(builder.candidate(name, base) for name in plan.first(runs))]
        if must_run:
            judge(variants, original, builder.open, held_out, gate, evaluate, progress)
        while late := plan.late(variants[2:]):
            stand_ins = [builder.candidate(name, base) for name in late]
            judge(stand_ins, original, builder.open, held_out, gate, evaluate, progress)
            variants += stand_ins
        if runs:
            clock(variants, builder.open, held_out, progress)
        choice = pick(variants, plan.forced, plan.rivals)
        _compile(builder, choice)
        _report(feeds, checked, choice, gate, strict, calibrated_on, known.data)
        choice.shipped.graph.notes = _notes(choice.shipped, variants)
        engine_ = _engine(choice, goal, backend, options, min_int8, missing)

        files = _ship(choice.shipped, temporary)
        if known:
            known.save(temporary / artifact.STATISTICS)
        seconds = time.perf_counter() - start
        record = Record(
            goal, plan, gate, variants, choice, feeds, checked, known, source, seed, threads, seconds, engine_,
            backend.recipe(), fixed or {}, narrowed,
        )  # fmt: skip
        made = manifest(record, files)
        artifact.write_manifest(temporary, made)
    if missing is not None and emit == "engine":
        raise UnavailableError(
            f"'{folder / artifact.MODEL}' is written, but no engine: {missing}; or build it elsewhere with "
            f"'{made['compile']}' (--emit onnx asks for no engine)"
        )
    return Result(folder, made)


def _refuse(asked: Mapping[str, Any]) -> None:
    """Raises UserError for an option that belongs to one target, where several are tried."""
    given = [name for name, value in asked.items() if value not in (None, {}, [])]
    if given:
        raise UserError(f"--{given[0]} is for one target, and --target auto tries several: name the target instead")


def check_numbers(**numbers: int) -> None:
    """Raises UserError for an option below zero."""
    for name, number in numbers.items():
        if number < 0:
            raise UserError(f"--{name.replace('_', '-')} {number} makes no sense: give 0 or more")


def lacking(goal: Target, backend: Backend, engine: EngineOptions | None = None, emit: str = "engine") -> str | None:
    """What a target's compiler lacks here; raises UnavailableError for a runtime, which nothing can stand in for."""
    if not backend.compiles and (engine not in (None, EngineOptions()) or emit != "engine"):
        raise UserError(f"target '{goal.name}' builds no engine: options of engines are for targets trt-*")
    missing = backend.available()
    if missing is not None and not backend.compiles:
        raise UnavailableError(f"target '{goal.name}' is not available here: {missing}")
    return missing


def _given(statistics: Path | str | None, plan: Plan) -> Statistics:
    """The statistics to start with. Raises DataError for a file of another kind, UserError where they cannot fit."""
    if statistics is None:
        return Statistics()
    if plan.shared:
        raise UserError(
            "--statistics and --prune do not go together: ranges change with what is removed; drop the first"
        )
    return Statistics.load(Path(statistics))


def _check_inputs(graph: Graph, fixed: Mapping[str, float], engine: EngineOptions | None) -> None:
    """Finds what is wrong with options that name inputs before the long work starts. Raises UserError."""
    inputs = interface(graph)
    if unknown := [name for name in fixed if name not in inputs]:
        raise UserError(f"--freeze names '{unknown[0]}', but the model's inputs are {', '.join(inputs)}")
    if engine is not None:
        make_profiles(inputs, {}, engine.profiles)


def _holds_metadata(graph: Graph) -> bool:
    """True where the file format has a place for what nodes were made of; else says on stderr that it has not."""
    assert graph.header is not None
    if graph.header.ir_version < METADATA:
        log.warning(
            "--keep-provenance: nothing is kept, for nodes have metadata from IR version %d on, and the model's is %d",
            METADATA, graph.header.ir_version,
        )  # fmt: skip
    return graph.header.ir_version >= METADATA


def fitted(engine: EngineOptions, graph: Graph, feeds: Data | None) -> EngineOptions:
    """The options with a profile for every input that needs one and was seen, and a folder for timings."""
    profiles = make_profiles(interface(graph), feeds.shapes if feeds else {}, engine.profiles)
    return replace(engine, profiles=profiles, cache=engine.cache or user_cache_path("onnx-optimize") / "tensorrt")


def _notes(shipped: Variant, variants: Sequence[Variant]) -> dict[str, str]:
    """Why operators stay in float, with what candidates found out that had nothing to do."""
    idle = [variant.graph.notes for variant in reversed(variants) if variant.idle]
    return {name: reason for notes in [*idle, shipped.graph.notes] for name, reason in notes.items()}


def _compile(builder: Builder, choice: Choice) -> None:
    """Builds what is shipped. Where that was second best and is refused, the error says what the best one lacked."""
    try:
        builder.compile(choice.shipped)
    except BuildError as error:
        if choice.reverted is None:
            raise
        raise BuildError(f"{choice.reverted['detail']}; {choice.shipped.scheme} in its place: {error}") from error


def _engine(
    choice: Choice, goal: Target, backend: Backend, options: EngineOptions, min_int8: float, missing: str | None
) -> Engine | None:
    """What the manifest says of the engine, after the promise was checked; None for a target that compiles nothing.

    Raises GateError where the runtime did not keep the promised precision.
    """
    if not backend.compiles:
        return None
    shipped, built = choice.shipped, choice.shipped.built
    dims = {name: want.shape or () for name, want in interface(shipped.graph).items()}  # fixed: it holds values instead
    shapes = {n: p.best for n, p in options.profiles.items() if not all(isinstance(dim, int) for dim in dims[n])}
    instead = f"reverted: {choice.reverted['detail']}" if choice.reverted else ""
    found = layers(shipped.graph, shapes, built.precision if built else {}, instead)
    if built and (short := shortfall(found, goal.precision, min_int8)):
        raise GateError(f"{short}; nothing was written")
    if found and choice.reverted is None and goal.precision not in (layer.precision for layer in found):
        reason = max(found, key=lambda layer: layer.macs or 0).reason or "it was not asked for"
        log.warning("nothing runs in %s; of the heaviest operator: %s", goal.precision, reason)
    command = backend.command(Path(artifact.MODEL), options)
    findings = [asdict(f) for f in lint(shipped.graph, goal.rules)]
    facts = report(found, goal.precision, built is not None)
    return Engine(built, facts, command, missing, findings, shipped.dropped)


def _inputs(
    data: Given | None,
    preprocess: str | None,
    graph: Graph,
    evaluate: Evaluate,
    seed: int,
    fixed: Mapping[str, float] | None,
    must_run: bool,
    tell: Tell,
) -> tuple[Data | None, str]:
    """The feeds, or none and why. A portable model may go without: where it is too heavy, or nothing can run it."""
    weights = sum(nbytes(c) for c in graph.constants().values())
    if not must_run and weights > HEAVY:
        return None, f"weights of {weights / 1e9:.1f} GB: running both models would need them in memory twice"
    try:
        return open_data(data, graph, evaluate, preprocess=preprocess, seed=seed, fixed=fixed, tell=tell), ""
    except (DataError, ModelError) as error:
        if must_run or (data is not None and isinstance(error, DataError)):
            raise
        return None, str(error)


def _report(
    feeds: Data | None,
    checked: Mapping[str, Any],
    choice: Choice,
    gate: Gate,
    strict: bool,
    calibrated_on: str,
    data: str,
) -> None:
    """Says on stderr what the caller must know; `data` is the digest of the statistics, `calibrated_on` of those given.

    Raises GateError for a reverted choice under `strict`.
    """
    if calibrated_on not in ("", data):
        log.warning("the given statistics are of another model: calibrated again")
    if feeds is not None and feeds.synthetic:
        done = "checked" if data == calibrated_on else "calibrated and checked"
        log.warning("%s on RANDOM inputs (%s), not on real ones: give some with --data", done, feeds.source)
    if not checked["outputs"]:
        log.warning("outputs were not compared: %s", checked["reason"])
    if choice.reverted is None:
        return
    line = f"{choice.shipped.scheme} is shipped: {choice.reverted['detail']}"
    if choice.reverted["reason"] == "fidelity":
        own = "--max-drop" if gate.metric else "--min-sqnr and --min-agreement, or by a --metric of your own"
        line += f"; the limits are set by {own}"
    if strict:
        raise GateError(f"{line}; nothing was written because of --strict")
    log.warning("%s", line)


def _ship(shipped: Variant, folder: Path) -> list[Path]:
    """Moves the shipped variant's files into place, drops the others; returns the files, the model first."""
    files = list(shipped.folder.iterdir())
    if shipped.scheme == ORIGINAL:
        save(shipped.graph, folder / artifact.MODEL)
        files = [file for file in files if shipped.built is not None and file == shipped.built.file]
    for file in files:
        file.rename(folder / file.name)
    shutil.rmtree(folder / VARIANTS)
    others = (file for file in folder.iterdir() if file.suffix == ".data")
    return [folder / artifact.MODEL, *sorted(others)]
