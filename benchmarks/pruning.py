"""Pruning on the zoo and on well-known nets: what it covers, what time it saves, what it costs.

    python -m benchmarks.pruning --part coverage,speed,accuracy [--only NAME,NAME] [--ratios R,R] [--json FILE]
    python -m benchmarks.pruning --rows FILE ... [--json FILE]

coverage: the float model, `prune{criterion=l2 recover=false}`, with the mask oracle on after every cut (a mismatch is a
BugError). speed: ONNX Runtime with 2 threads, the float model and the pruned one interleaved. accuracy: the model's own
task on held-out data, of the default criterion, with and without recovery. Rows are merged into the JSON file, so the
parts can be run piecewise: a row takes the place of the one with the same key. A script, not a test: it takes hours.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx

from benchmarks import exports, table
from benchmarks.zoo import Timed, opened
from models import data, metrics, zoo
from optimizer.backend import measure, ratio
from optimizer.context import Context
from optimizer.errors import OptimizeError, PipelineError
from optimizer.evaluate import Evaluate, Feeds, session
from optimizer.graph import Graph
from optimizer.inspect import macs, sized
from optimizer.io import load, save, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import target
from passes.prune import Prune
from passes.prune.masked import Equality

THREADS = 2
DEFAULTS = {"coverage": (0.3, 0.5), "speed": (0.5,), "accuracy": (0.1, 0.2, 0.3, 0.4, 0.5)}
HEAVY = ("isnet-fp16", "isnet-fp32", "isnet-int8")  # 3 TMACs: last, with a single input
TIMED = ("resnet18", "resnet50", "mobilenetv2", "vit-s")
SCORED = ("fashion", "pplcnet-orientation", "minilm-l3", "ddddocr-det", "efficientnet-lite0")
FEWER = {"ddddocr-det": 24}  # calibration inputs: its maps are large
SCHEMES = ("macs", "latency")


@dataclass
class Coverage:
    """One model at one ratio. `reported` is the pass's own count of what went, `counted` that of the two files."""

    part: ClassVar[str] = "coverage"
    model: str
    asked: float
    groups: int = 0
    units: int = 0
    reported: float = 0.0
    counted: float = 0.0
    approximate: list[str] = field(default_factory=list)
    oracle: float | None = None
    rounding: float = 0.0
    loads: bool = False
    interface: bool = False
    seconds: float = 0.0
    failed: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.asked


@dataclass
class Speed:
    """Milliseconds per run; `speed` is the median over the rounds of the float model's time over the pruned one's."""

    part: ClassVar[str] = "speed"
    model: str
    asked: float
    scheme: str
    macs: float = 0.0
    milliseconds: float = 0.0
    pruned: float = 0.0
    speed: float = 0.0
    rounds: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.asked, self.scheme


@dataclass
class Accuracy:
    """One model at one ratio; `recovered` counts the fitted operators that were kept, None where none was asked for."""

    part: ClassVar[str] = "accuracy"
    model: str
    asked: float
    recovery: bool
    feeds: int
    metric: str = ""
    samples: int = 0
    before: float = 0.0
    after: float = 0.0
    reported: float = 0.0
    recovered: int | None = None
    seconds: float = 0.0
    failed: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.asked, self.recovery


Row = Coverage | Speed | Accuracy
KINDS: dict[str, Callable[..., Row]] = {kind.part: kind for kind in (Coverage, Speed, Accuracy)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="coverage,speed,accuracy", help="parts, separated by commas")
    parser.add_argument("--only", default="", help="models, separated by commas (default: all of the part)")
    parser.add_argument("--ratios", default="", help="shares to remove (default: those of the part)")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of speed: what the ratio is a share of")
    parser.add_argument("--feeds", type=int, default=64, help="calibration inputs for accuracy")
    parser.add_argument("--limit", type=int, default=None, help="evaluation samples at most")
    parser.add_argument("--json", type=Path, help="where to merge the rows into")
    parser.add_argument("--rows", type=Path, nargs="+", help="no runs: the tables of these --json files")
    options = parser.parse_args(argv)
    runs: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
        "coverage": coverage,
        "speed": speed,
        "accuracy": accuracy,
    }
    logging.getLogger("passes.prune").setLevel(logging.INFO)
    known = options.rows or [options.json] * bool(options.json and options.json.exists())
    rows = table.read(known, KINDS)
    if not options.rows:
        fresh = (row for part in options.part.split(",") for row in runs[part](options))
        table.keep(fresh, rows, options.json, KINDS)
    table.write(rows, options.json, KINDS)
    print(tables(list(rows.values())))
    return 0


def _chosen(options: argparse.Namespace, part: str, names: Sequence[str]) -> tuple[list[str], list[float]]:
    only = [name for name in options.only.split(",") if name] or list(names)
    return only, [float(text) for text in options.ratios.split(",") if text] or list(DEFAULTS[part])


def covered() -> list[str]:
    """Every net of the zoo but the recurrent ones, and the exports; the heaviest last."""
    names = [name for name, model in zoo.MODELS.items() if not model.family.startswith("RNN")]
    return sorted([*names, *exports.NAMES], key=lambda name: name in HEAVY)


def inputs(name: str, count: int) -> list[Feeds]:
    """Real inputs of the zoo's task, seeded ones of an export."""
    if name not in exports.NAMES:
        return data.calibration(name, count)
    model = onnx.load(exports.any_path(name), load_external_data=False)
    return [exports.feeds(model, 1, seed) for seed in range(count)]


def simplified(name: str) -> Graph:
    """The model after the portable float pipeline, which is what gets pruned; an int8 one is made float first."""
    goal, graph = target("onnx"), load(exports.any_path(name))
    PassManager().run(build(f"dequantize,{goal.prepare}"), graph, Context(goal, Evaluate(THREADS)))
    return graph


def cut(graph: Graph, one: Prune, feeds: Sequence[Feeds], *, verify: bool = False) -> Graph:
    """A pruned copy. Raises PipelineError where the ratio cannot be had, BugError where the oracle disagrees."""
    twin = graph.copy()
    PassManager().run([one], twin, Context(target("onnx"), Evaluate(THREADS), list(feeds), verify=verify))
    return twin


def work(graph: Graph, feed: Feeds) -> int:
    """Multiply-accumulates of the weighted operators for one feed."""
    twin = sized(graph, {name: array.shape for name, array in feed.items()})
    return sum(macs(twin, node) or 0 for node in twin.walk())


def coverage(options: argparse.Namespace) -> Iterator[Coverage]:
    names, ratios = _chosen(options, "coverage", covered())
    for name in names:
        feeds = inputs(name, 1 if name in HEAVY else 2)
        graph = simplified(name)
        for share in ratios:
            row = Coverage(name, share)
            start = time.perf_counter()
            try:
                _cover(graph, feeds, row)
            except OptimizeError as error:
                row.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            row.seconds = round(time.perf_counter() - start, 1)
            yield row


def _cover(graph: Graph, feeds: Sequence[Feeds], row: Coverage) -> None:
    """Prunes and checks; operators that take a statistic over channels give some only where the ratio needs them."""
    with oracle() as errors:
        try:
            made = cut(graph, _plain(row.asked), feeds, verify=True)
        except PipelineError:
            made = cut(graph, _plain(row.asked, approximate=True), feeds, verify=True)
    report = made.reports["pruning"]
    row.groups, row.reported = len(report["groups"]), report["ratio"]
    row.units = sum(group["units"] - group["kept"] for group in report["groups"])
    worst = max(errors, key=lambda equal: equal.error)
    row.approximate, row.oracle, row.rounding = report["approximate"], worst.error, worst.rounding
    row.counted = 1 - work(made, feeds[0]) / work(graph, feeds[0])
    model = to_model(made)
    onnx.checker.check_model(model, full_check=_infers(to_model(graph)))
    loaded = session(model.SerializeToString(), threads=THREADS, optimized=True)
    row.loads = all(np.isfinite(y).all() for y in loaded.run(None, feeds[0]) if y.dtype.kind == "f")
    row.interface = _interface(model) == _interface(onnx.load(exports.any_path(row.model), load_external_data=False))


def _infers(model: onnx.ModelProto) -> bool:
    """False for a model whose declared output shapes are not what its operators make: so is all that is made of it."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _plain(share: float, *, approximate: bool = False) -> Prune:
    return Prune(ratio=share, criterion="l2", recover=False, approximate=approximate)


@contextmanager
def oracle() -> Iterator[list[Equality]]:
    """Collects what the oracle found, once after every cut: the pass logs it."""
    errors: list[Equality] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.extend(one for one in record.args or () if isinstance(one, Equality))

    listener, log = Listener(), logging.getLogger("passes.prune")
    log.addHandler(listener)
    try:
        yield errors
    finally:
        log.removeHandler(listener)


def _interface(model: onnx.ModelProto) -> list[bytes]:
    """Inputs and outputs with types and shapes; a weight that is listed as an input, too, is not one."""
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    return [
        b"%s %s" % (value.name.encode(), value.type.SerializeToString()) for value in [*values, *model.graph.output]
    ]


def speed(options: argparse.Namespace) -> Iterator[Speed]:
    names, ratios = _chosen(options, "speed", TIMED)
    schemes = options.schemes.split(",")
    for name in names:
        graph, feeds = simplified(name), inputs(name, 2)
        for share in ratios:
            rows = [Speed(name, share, scheme) for scheme in schemes]
            made = [cut(graph, _scheme(row), feeds) for row in rows]
            for row, pruned in zip(rows, made, strict=True):
                row.macs = 1 - work(pruned, feeds[0]) / work(graph, feeds[0])
            _time(graph, made, feeds, rows)
            yield from rows


def _scheme(row: Speed) -> Prune:
    """The time is that of the shapes alone, so magnitude will do; widths in blocks of a vector register of floats."""
    if row.scheme == "latency":
        return Prune(ratio=row.asked, of="latency", criterion="l2", recover=False)
    return Prune(ratio=row.asked, round=16, criterion="l2", recover=False)


def _time(graph: Graph, made: Sequence[Graph], feeds: Sequence[Feeds], rows: Sequence[Speed]) -> None:
    """All of a model in one interleaved run: the float model is `original`, the others go by their scheme."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        sessions = {}
        for name, one in zip(["original", *(row.scheme for row in rows)], [graph, *made], strict=True):
            file = Path(work) / f"{name}.onnx"
            save(one, file)
            sessions[name] = Timed(stack.enter_context(opened(file)))
        timings = measure(sessions, feeds, seconds=20.0, rounds=400)
    for row in rows:
        row.milliseconds, row.pruned = (timings[n].median * 1e3 for n in ("original", row.scheme))
        row.speed = ratio(timings["original"], timings[row.scheme])
        row.rounds = len(timings["original"].seconds)


def accuracy(options: argparse.Namespace) -> Iterator[Accuracy]:
    names, ratios = _chosen(options, "accuracy", SCORED)
    for name in names:
        graph = simplified(name)
        feeds = inputs(name, min(options.feeds, FEWER.get(name, options.feeds)))
        before = score(name, graph, options.limit)
        for share in ratios:
            for recovery in (False, True):
                row = Accuracy(name, share, recovery, len(feeds), before.metric, before.samples, before.value)
                start = time.perf_counter()
                try:
                    made = cut(graph, Prune(ratio=share, recover=recovery), feeds)
                except OptimizeError as error:
                    row.failed = f"{type(error).__name__}: {error}".splitlines()[0]
                    yield row
                    continue
                row.seconds = round(time.perf_counter() - start, 1)
                report = made.reports["pruning"]
                row.reported, row.recovered = report["ratio"], len(report["recovered"]) if recovery else None
                row.after = score(name, made, options.limit).value
                yield row


def score(name: str, graph: Graph, limit: int | None) -> metrics.Score:
    loaded = session(to_model(graph).SerializeToString(), threads=THREADS, optimized=True)
    names = [output.name for output in loaded.get_outputs()]
    return metrics.evaluate(name, lambda feeds: dict(zip(names, loaded.run(names, feeds), strict=True)), limit=limit)


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each part that has rows."""
    made = [
        coverage_table([row for row in rows if isinstance(row, Coverage)]),
        speed_table([row for row in rows if isinstance(row, Speed)]),
        accuracy_table([row for row in rows if isinstance(row, Accuracy)]),
    ]
    return "\n".join(one for one in made if one)


def coverage_table(rows: Sequence[Coverage]) -> str:
    titles = ["model", "asked", "groups", "units", "reported", "counted", "oracle", "loads", "interface", "s"]
    cells = [_covered(row) for row in rows]
    return table.markdown([*titles, "approximate"], cells, left=1)


def _covered(row: Coverage) -> list[str]:
    """Of an error above 1e-4 also what rounding alone makes."""
    if row.failed:
        return [row.model, f"{row.asked:.0%}", row.failed, *[""] * 8]
    error = f"{row.oracle:.0e}" + (f" ({row.rounding:.0e})" if row.rounding else "")
    return [
        row.model, f"{row.asked:.0%}", str(row.groups), str(row.units), f"{row.reported:.1%}", f"{row.counted:.1%}",
        error, _yes(row.loads), _yes(row.interface), f"{row.seconds:.0f}", ", ".join(row.approximate),
    ]  # fmt: skip


def speed_table(rows: Sequence[Speed]) -> str:
    titles = ["model", "share of", "asked", "MACs gone", "float ms", "pruned ms", "speed", "rounds"]
    cells = [
        [
            row.model, row.scheme, f"{row.asked:.0%}", f"{row.macs:.1%}", f"{row.milliseconds:.2f}",
            f"{row.pruned:.2f}", f"**{row.speed:.2f}x**", str(row.rounds),
        ]
        for row in rows
    ]  # fmt: skip
    return table.markdown(titles, cells, left=2)


def accuracy_table(rows: Sequence[Accuracy]) -> str:
    """`regained` is the share of what pruning alone lost that recovery brings back; '-' where nothing was lost."""
    titles = ["model", "metric", "samples", "inputs", "float", "asked", "gone", "without", "with", "regained", "s"]
    found = {row.key: row for row in rows}
    cells = []
    for row in (row for row in rows if row.recovery):
        plain = found.get((row.model, row.asked, False))
        if row.failed or plain is None or plain.failed:
            cells.append([row.model, row.failed or "not run", *[""] * 9])
            continue
        lost = plain.before - plain.after
        cells.append([
            row.model, row.metric, str(row.samples), str(row.feeds), f"{row.before:.3f}", f"{row.asked:.0%}",
            f"{row.reported:.1%}", f"{plain.after:.3f}", f"{row.after:.3f}",
            f"{(row.after - plain.after) / lost:.0%}" if lost > 0 else "-", f"{row.seconds:.0f}",
        ])  # fmt: skip
    return table.markdown(titles, cells, left=2)


def _yes(true: bool) -> str:
    return "yes" if true else "**no**"


if __name__ == "__main__":
    sys.exit(main())
