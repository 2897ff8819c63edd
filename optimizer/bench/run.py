"""A bench from top to bottom: targets built, each opened in a process of its own, outputs compared, rounds run.

Whatever goes wrong with one backend is its row's reason, and the others go on; Ctrl-C keeps what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from optimizer import __version__, artifact, registry
from optimizer.api import check_numbers
from optimizer.bench import results
from optimizer.bench.build import Making, Request, build, requests
from optimizer.bench.inputs import settings
from optimizer.bench.machine import machine
from optimizer.bench.process import Process
from optimizer.bench.rounds import Contender, Course, Setting, Taken, Tell, Watched, run, start
from optimizer.compare import Difference
from optimizer.data import Data, Given, interface, open_data
from optimizer.engine import Built
from optimizer.errors import UserError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.fidelity import MAX_DROP, Gate, Metric, class_scores, flat, make_gate
from optimizer.graph import Graph
from optimizer.io import load, save
from optimizer.judge import few
from optimizer.machine import versions
from optimizer.ops import parameters
from optimizer.roofline import by_operator

log = logging.getLogger(__name__)
OPERATORS = 12  # that take most time, of each backend


@dataclass
class Bench:
    """A bench under way or done. `facts` is what --json prints (docs/bench.md)."""

    facts: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.facts["rows"]  # type: ignore[no-any-return]  # JSON

    @property
    def ran(self) -> bool:
        """True where a backend beside the original was measured."""
        return any(row["points"] for row in self.rows if row["name"] != results.ORIGINAL)


@dataclass
class _State:
    """What the stages hand on: rows and contenders by name, and what was measured of them."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)
    taken: dict[str, Taken] = field(default_factory=dict)

    def able(self) -> list[Contender]:
        return [one for name, one in self.contenders.items() if self.rows[name]["status"] in results.MEASURED]


def bench(
    model: onnx.ModelProto | Path | str,
    *,
    targets: Sequence[str] = (),
    also: Mapping[str, Path | str] | None = None,
    data: Given | None = None,
    preprocess: str | None = None,
    prune: float | str | None = None,
    metric: str | Metric | None = None,
    max_drop: float = MAX_DROP,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    threads: int = 0,
    batches: Sequence[int] = (),
    callers: Sequence[int] = (1,),
    seconds: float = 20.0,
    launches: int = 5,
    limit: float = 120.0,
    baseline: str = results.ORIGINAL,
    artifacts: Path | str | None = None,
    profile: bool = True,
    seed: int = 0,
    command: str = "",
    progress: Tell = lambda what, done, total: None,
) -> Bench:
    """Compares backends on `model`: the original on ONNX Runtime's CPU, one artifact a target, and files in `also`.

    `seconds` are spent on each pair of a batch size and a number of callers, over all backends and launches; `limit`
    is what one request may take before its process is stopped. Artifacts stay in the folder `artifacts` and are used
    again. Raises UserError (DataError, ModelError) for what is wrong with the input; what is wrong with a backend is
    its row's reason. An interruption ends the measuring, not the bench: `interrupted` is true in the facts then.
    """
    check_numbers(threads=threads, seed=seed)
    _check(seconds, launches, limit, batches, callers)
    wanted = requests(targets, also or {})
    gate = make_gate(min_sqnr, min_agreement, metric, max_drop)
    source = model if isinstance(model, onnx.ModelProto) else Path(model)
    path = source if isinstance(source, Path) else None
    folder = Path(artifacts) if artifacts is not None else Path(f"{path.stem if path else 'model'}.bench")
    graph, evaluate = load(source), Evaluate(threads)
    if baseline not in (results.ORIGINAL, *(one.name for one in wanted)):
        raise UserError(
            f"--baseline {baseline} is no row: there are {', '.join([results.ORIGINAL, *(o.name for o in wanted)])}"
        )
    feeds = open_data(data, graph, evaluate, preprocess=preprocess, seed=seed, tell=progress)
    inputs = settings(few(feeds.check), interface(graph), batches, callers)
    if feeds.synthetic:
        log.warning(
            "measured and compared on RANDOM inputs (%s), not on real ones: give some with --data", feeds.source
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = path or _saved(graph, folder)
    making = Making(
        source, artifact.sha256(file), folder, data, feeds, preprocess, prune, metric, max_drop, gate, threads, seed,
        progress,
    )  # fmt: skip
    state, interrupted = _State(), False
    state.rows[results.ORIGINAL], state.contenders[results.ORIGINAL] = _original(graph, file)
    course = Course(threads, seconds, launches, limit)
    try:
        _build(state, wanted, making)
        _compare(state, graph, feeds, gate, evaluate, course, progress)
        state.taken = {one.name: Taken() for one in state.able()}
        run(state.able(), inputs, course, state.taken, progress)
        if profile:
            _profile(state, inputs, course, progress)
    except KeyboardInterrupt:
        interrupted = True
        log.warning("interrupted: what was measured until now is kept")
    _finish(state, wanted, baseline, gate)
    return Bench(
        {
            "schema": results.SCHEMA,
            "format": results.FORMAT,
            "tool": {"name": artifact.TOOL, "version": __version__},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "interrupted": interrupted,
            "model": _about(graph, file),
            "data": {
                "source": feeds.source,
                "synthetic": feeds.synthetic,
                "feeds": len(feeds.check),
                "sha256": feeds.digest,
            },
            "machine": machine(),
            "versions": versions(),
            "settings": {
                "threads": threads,
                "seconds": seconds,
                "launches": launches,
                "timeout": limit,
                "baseline": baseline,
                "batches": sorted({one.batch for one in inputs}),
                "concurrency": sorted({one.callers for one in inputs}),
                "seed": seed,
            },
            "gate": {
                "min_sqnr_db": gate.min_sqnr,
                "min_agreement": gate.min_agreement,
                "metric": None if gate.metric is None else {"name": gate.name, "max_drop": gate.max_drop},
            },
            "rows": list(state.rows.values()),
        }
    )


def _check(seconds: float, launches: int, limit: float, batches: Sequence[int], callers: Sequence[int]) -> None:
    if not seconds > 0 or not limit > 0:
        raise UserError("--seconds and --timeout are above 0")
    if launches < 1:
        raise UserError(f"--launches {launches}: give 1 or more")
    if any(number < 1 for number in (*batches, *callers)):
        raise UserError("--batch and --concurrency take numbers of 1 and more, such as 1,8,32")


def _saved(graph: Graph, folder: Path) -> Path:
    """A model that came without a file gets one."""
    (folder / results.ORIGINAL).mkdir(exist_ok=True)
    file = folder / results.ORIGINAL / artifact.MODEL
    save(graph, file)
    return file


def _original(graph: Graph, file: Path) -> tuple[dict[str, Any], Contender]:
    row = results.row(results.ORIGINAL, results.ORIGINAL)
    row["scheme"] = results.ORIGINAL
    row["runtime"] = dict(registry.load_backend("ort").recipe())
    row["bytes"] = file.stat().st_size
    return row, Contender(results.ORIGINAL, "ort", Built(file))


def _build(state: _State, wanted: Sequence[Request], making: Making) -> None:
    for number, one in enumerate(wanted):
        making.progress(f"building {one.name}", number, len(wanted))
        state.rows[one.name], contender = build(one, making)
        if contender is not None:
            state.contenders[one.name] = contender


# ---------------------------------------------------------------------- outputs


def _compare(
    state: _State, graph: Graph, feeds: Data, gate: Gate, evaluate: Evaluate, course: Course, tell: Tell
) -> None:
    """Every backend's outputs beside the float original's in the oracle, feed by feed; then the metric."""
    ends = {one.name: Taken() for one in state.able()}
    scores = class_scores(graph)
    with ExitStack() as stack:
        live = start(state.able(), course, ends, stack)
        found: dict[str, dict[str, Difference]] = {name: {} for name in live}
        lost = dict.fromkeys(live, 0)
        reference = stack.enter_context(evaluate.open(graph))
        for done, feed in enumerate(feeds.check):
            expected = flat(reference(feed))
            for name, process in list(live.items()):
                with Watched(name, live, ends):
                    lost[name] += _add(found[name], expected, flat(process.ask("outputs", feed)))
            tell("comparing outputs", done + 1, len(feeds.check))
        for name, process in list(live.items()):
            tell(f"scoring {name}", 0, 0)
            with Watched(name, live, ends):
                state.rows[name]["metric"] = gate.measure(_asking(process))
    for name, taken in ends.items():
        row = state.rows[name]
        if taken.ended is not None:
            results.end(row, taken.ended.how, str(taken.ended))
        elif name in found:
            row["parity"] = results.parity(found[name], lost[name])
            if misses := gate.misses(found[name], scores, row["metric"], state.rows[results.ORIGINAL]["metric"]):
                results.end(row, results.DISAGREES, misses)


def _asking(process: Process) -> Run:
    """The model in the other process, as a metric calls it."""

    def call(feeds: Feeds) -> Feeds:
        return process.ask("outputs", feeds)  # type: ignore[no-any-return]  # it comes through a pipe

    return call


def _add(found: dict[str, Difference], expected: Feeds, got: Feeds) -> int:
    """Takes one feed's outputs into account; returns how many numbers are not finite that should be."""
    lost = 0
    for name, array in expected.items():
        difference = found.setdefault(name, Difference())
        if name not in got:
            difference.broken = "missing"
            continue
        difference.add(array, got[name])
        if got[name].shape == array.shape and array.dtype.kind == "f":
            lost += int((np.isfinite(array) & ~np.isfinite(got[name].astype(np.float64))).sum())
    return lost


# ---------------------------------------------------------------------- the rest


def _profile(state: _State, inputs: Mapping[Setting, Sequence[Feeds]], course: Course, tell: Tell) -> None:
    """Where the time goes, of each backend that tells: in a process of its own, since telling costs time."""
    feeds = next(iter(inputs.values()))
    for name, one in state.contenders.items():
        if state.rows[name]["status"] not in results.MEASURED or state.taken[name].ended is not None:
            continue
        tell(f"profiling {name}", 0, 0)
        ends = {name: Taken()}
        with ExitStack() as stack:
            live = start([one], course, ends, stack, load=False)
            with Watched(name, live, ends):
                if name in live:
                    told = live[name].ask("profile", one.backend, one.built, course.threads, list(feeds))
                    state.rows[name]["operators"] = None if told is None else by_operator(told)[:OPERATORS]


def _finish(state: _State, wanted: Sequence[Request], baseline: str, gate: Gate) -> None:
    base = state.taken.get(baseline)
    for one in wanted:  # interrupted before its turn
        if one.name not in state.rows:
            state.rows[one.name] = results.row(one.name, one.target)
            results.end(state.rows[one.name], results.FAILED, "interrupted before it was built")
    for name, taken in state.taken.items():
        results.measured(state.rows[name], taken, None if name == baseline else base)
    results.mark_front(list(state.rows.values()), gate.metric is not None)


def _about(graph: Graph, file: Path) -> dict[str, Any]:
    return {
        **artifact.describe(file),
        "nodes": sum(1 for _ in graph.walk()),
        "parameters": parameters(graph),
        "opset": graph.opset,
    }
