"""The simplifier beside its peers: how few nodes are left, how fast, what that saves, and whether it is right.

    python -m benchmarks.simplify --part completeness,speed,runtime,soundness [--only NAME,NAME] [--json FILE]
    python -m benchmarks.simplify --rows FILE ... [--json FILE]

completeness: nodes of the original, of the portable pipeline's result and of each peer's; each result must load in ONNX
Runtime, take the original's inputs and give its outputs on two of them. speed: read, simplify and write in a process of
its own, the best of three, tools in turn. runtime: ONNX Runtime with two threads, the original and the result in turn.
soundness: fuzzed models (tests/fuzz.py) on special values; what differs is kept as files.

Rows are merged into the JSON file, so the parts can be run piecewise: a row takes the place of the one with the same
key, and soundness goes on where it stopped. Peers come with `pip install -e '.[peers]'`, or live in another Python
(--peer-python). A script, not a test: it takes hours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from textwrap import shorten
from typing import ClassVar

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from benchmarks import exports, simplifiers, soundness, table
from benchmarks.launch import launch
from benchmarks.zoo import Timed, opened
from models import data, zoo
from optimizer.backend import measure, ratio
from optimizer.compare import compare
from optimizer.evaluate import Feeds, session

THREADS = 2
ORIGINAL, OURS = "original", "ours"
HEAVY = ("isnet-fp16", "isnet-fp32", "isnet-int8")  # 3 TMACs: last, with a single input
SYNTHETIC = {"synthetic-20k": 20_000, "synthetic-100k": 100_000}
CHUNK = 250  # fuzzed models a row


@dataclass
class Completeness:
    """One tool's result on one model. `operators`: nodes by operator; `failed`: why the result is none, or wrong."""

    part: ClassVar[str] = "completeness"
    model: str
    tool: str
    version: str = ""
    nodes: int = 0
    megabytes: float = 0.0
    operators: dict[str, int] = field(default_factory=dict)
    failed: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.tool


@dataclass
class Speed:
    """Seconds of the best run: `seconds` without imports, `wall` and `cpu` of the whole process, its peak memory."""

    part: ClassVar[str] = "speed"
    model: str
    tool: str
    nodes: int = 0
    seconds: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0
    peak_mb: float = 0.0
    runs: int = 0
    failed: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.tool


@dataclass
class Runtime:
    """Milliseconds per run; `speed` is the median over the rounds of the original's time over the result's."""

    part: ClassVar[str] = "runtime"
    model: str
    milliseconds: float = 0.0
    simplified: float = 0.0
    speed: float = 0.0
    rounds: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        return (self.model,)


@dataclass
class Soundness:
    """The models of some seeds. `refused`: those that ONNX Runtime does not run as they are.

    `excused`: feeds that are not judged, by the reason why outputs may differ on them.
    """

    part: ClassVar[str] = "soundness"
    first: int
    models: int = 0
    refused: int = 0
    feeds: int = 0
    before: int = 0
    after: int = 0
    excused: dict[str, int] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        return (self.first,)


Row = Completeness | Speed | Runtime | Soundness
Rows = dict[tuple[object, ...], Row]
KINDS: dict[str, Callable[..., Row]] = {kind.part: kind for kind in (Completeness, Speed, Runtime, Soundness)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="completeness,speed,runtime,soundness", help="parts, separated by commas")
    parser.add_argument("--only", default="", help="models, separated by commas (default: all of the part)")
    parser.add_argument("--tools", default=",".join(simplifiers.TOOLS), help="simplifiers, separated by commas")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one simplification may take")
    parser.add_argument("--repeats", type=int, default=3, help="of speed: runs, of which the best counts")
    parser.add_argument("--models", type=int, default=10_000, help="of soundness: how many")
    parser.add_argument("--jobs", type=int, default=2, help="of soundness: processes")
    parser.add_argument("--keep", type=Path, default=Path("mismatches"), help="of soundness: folder for what differs")
    parser.add_argument("--json", type=Path, help="where to merge the rows into")
    parser.add_argument("--rows", type=Path, nargs="+", help="no runs: the tables of these --json files")
    options = parser.parse_args(argv)
    runs: dict[str, Callable[[argparse.Namespace, Rows], Iterator[Row]]] = {
        "completeness": completeness,
        "speed": speed,
        "runtime": runtime,
        "soundness": sound,
    }
    known = options.rows or [options.json] * bool(options.json and options.json.exists())
    rows = table.read(known, KINDS)
    if not options.rows:
        fresh = (row for part in options.part.split(",") for row in runs[part](options, rows))
        table.keep(fresh, rows, options.json, KINDS)
    table.write(rows, options.json, KINDS)
    print(tables(list(rows.values())))
    return 0


# ------------------------------------------------------------------ models


def names() -> list[str]:
    """Exports and the zoo, the heaviest last."""
    return sorted([*exports.NAMES, *zoo.MODELS], key=lambda name: name in HEAVY)


def chosen(options: argparse.Namespace, default: Sequence[str]) -> list[str]:
    return [name for name in options.only.split(",") if name] or list(default)


def source(name: str, folder: Path) -> Path:
    """The model's file; a synthetic one is made in the folder."""
    if name not in SYNTHETIC:
        return exports.any_path(name)
    file = folder / f"{name}.onnx"
    if not file.exists():
        onnx.save(synthetic(SYNTHETIC[name]), file)
    return file


def inputs(name: str, model: onnx.ModelProto) -> list[Feeds]:
    """Real inputs of the zoo's task; seeded ones of an export, of two batch sizes."""
    if name in exports.NAMES:
        return [exports.feeds(model, count, seed) for seed, count in enumerate((1, 2))]
    return data.calibration(name, 1 if name in HEAVY else 2)


def synthetic(nodes: int) -> onnx.ModelProto:
    """Blocks of ten nodes of which three are needed: a convolution with what folds into it, a Relu, and a sum."""
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights = [numpy_helper.from_array(np.zeros(4, np.int64), "zeros")]
    last = "x"

    def add(op: str, inputs: Sequence[str], perm: Sequence[int] | None = None) -> str:
        attrs = {} if perm is None else {"perm": perm}
        made.append(helper.make_node(op, inputs, [f"{op}{len(made)}"], f"node{len(made)}", None, None, None, **attrs))
        return str(made[-1].output[0])

    def constant(hint: str, values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{hint}{len(weights)}"))
        return str(weights[-1].name)

    for _ in range(nodes // 10):
        y = add("Conv", [last, constant("w", rng.standard_normal((4, 4, 1, 1)) * 0.3)])
        y = add("BatchNormalization", [y, *(constant("c", rng.uniform(0.5, 1.5, 4)) for _ in range(4))])
        y = add("Identity", [add("Relu", [y])])
        y = add("Transpose", [add("Transpose", [y], perm=[0, 2, 3, 1])], perm=[0, 3, 1, 2])
        shape = add("Shape", [y])
        last = add("Add", [add("Reshape", [add("Reshape", [y, "zeros"]), shape]), last])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4, 8, 8]) for n in ("x", last))
    graph = helper.make_graph(made, "synthetic", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Nodes by operator, in subgraphs and functions too; Constant nodes are data."""
    found: Counter[str] = Counter()
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop():
            found[f"{node.domain}.{node.op_type}" if node.domain else node.op_type] += 1
            for attr in node.attribute:
                graphs = [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs
                pending.extend(graph.node for graph in graphs)
    del found["Constant"]
    return found


# ------------------------------------------------------------------ completeness


def completeness(options: argparse.Namespace, rows: Rows) -> Iterator[Completeness]:
    for name in chosen(options, names()):
        with tempfile.TemporaryDirectory() as work:
            file = source(name, Path(work))
            model = onnx.load(file)
            yield _counted(Completeness(name, ORIGINAL), file)
            feeds = inputs(name, model)
            expected = outputs(file, feeds)
            for tool in options.tools.split(","):
                row, out = Completeness(name, tool), Path(work) / f"{tool}.onnx"
                done = launch(tool, file, out, python(tool, options), options.limit)
                row.version, row.failed = done.version, done.failed
                if not done.failed:
                    _counted(row, out)
                    row.failed = wrong(model, out, feeds, expected)
                yield row


def _counted(row: Completeness, file: Path) -> Completeness:
    found = operators(onnx.load(file, load_external_data=False))
    row.nodes, row.operators = sum(found.values()), dict(found.most_common())
    row.megabytes = round(file.stat().st_size / 1e6, 3)
    return row


def python(tool: str, options: argparse.Namespace) -> str:
    return sys.executable if tool == OURS else str(options.peer_python)


def outputs(file: Path, feeds: Sequence[Feeds]) -> list[Feeds]:
    opened = session(file, threads=THREADS)
    return [soundness.run(opened, feed) for feed in feeds]


def wrong(original: onnx.ModelProto, out: Path, feeds: Sequence[Feeds], expected: Sequence[Feeds]) -> str:
    """Why a result cannot take the original's place, or ''."""
    if reason := _interface(original, onnx.load(out, load_external_data=False)):
        return reason
    try:
        made = outputs(out, feeds)
    except Exception as error:  # of any class: the runtime has several of its own
        return shorten(f"does not run: {error}".replace(f"{out.parent}/", ""), 240)
    for name, difference in compare(zip(expected, made, strict=True)).items():
        if not difference.within_rounding():
            return f"another output {name}: {difference.broken or f'{difference.sqnr:.0f} dB'}"
    return ""


def _interface(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Inputs must be as they were, but for a name given to a nameless dim; an output's shape may be known better."""
    weights = {tensor.name for tensor in before.graph.initializer}
    given, taken = (
        {value.name: value.type for value in model.graph.input if value.name not in weights}
        for model in (before, after)
    )
    other = [n for n in given | taken if n not in given or n not in taken or not _same(given[n], taken[n])]
    if other:
        return f"another input {', '.join(other)}"
    made, kept = ([v.name for v in model.graph.output] for model in (before, after))
    return "" if made == kept else f"other outputs: {', '.join(kept)}"


def _same(before: onnx.TypeProto, after: onnx.TypeProto) -> bool:
    """True where a tensor's type, rank and sizes are the same, and every name of a dim is kept."""
    a, b = before.tensor_type, after.tensor_type
    if a.elem_type != b.elem_type or len(a.shape.dim) != len(b.shape.dim):
        return False
    pairs = zip(a.shape.dim, b.shape.dim, strict=True)
    return all(m.dim_value == n.dim_value and m.dim_param in ("", n.dim_param) for m, n in pairs)


# ------------------------------------------------------------------ speed and runtime


def speed(options: argparse.Namespace, rows: Rows) -> Iterator[Speed]:
    for name in chosen(options, [*names(), *SYNTHETIC]):
        with tempfile.TemporaryDirectory() as work:
            file = source(name, Path(work))
            made = {tool: Speed(name, tool) for tool in options.tools.split(",")}
            for _ in range(options.repeats):
                for tool, row in made.items():
                    if not row.failed:
                        _time(row, file, Path(work) / f"{tool}.onnx", python(tool, options), options.limit)
            yield from made.values()


def _time(row: Speed, file: Path, out: Path, interpreter: str, limit: float) -> None:
    out.unlink(missing_ok=True)  # to write over a large file takes long, and nobody does
    done = launch(row.tool, file, out, interpreter, limit)
    row.failed, row.runs = done.failed, row.runs + 1
    if done.failed or (row.wall and done.wall >= row.wall):
        return
    row.seconds, row.wall, row.cpu, row.peak_mb = done.seconds, done.wall, done.cpu, done.peak_mb
    row.nodes = sum(operators(onnx.load(out, load_external_data=False)).values())


def runtime(options: argparse.Namespace, rows: Rows) -> Iterator[Runtime]:
    for name in chosen(options, names()):
        with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
            files = {ORIGINAL: source(name, Path(work)), OURS: Path(work) / "ours.onnx"}
            simplifiers.ours()(str(files[ORIGINAL]), str(files[OURS]))
            model = onnx.load(files[ORIGINAL], load_external_data=False)
            feed = exports.typical(name, model)
            sessions = {tool: Timed(stack.enter_context(opened(file))) for tool, file in files.items()}
            timings = measure(sessions, [feed], seconds=20.0, rounds=400)
            before, after = timings[ORIGINAL], timings[OURS]
            speed = ratio(before, after)
            yield Runtime(name, before.median * 1e3, after.median * 1e3, speed, len(before.seconds))


# ------------------------------------------------------------------ soundness


def sound(options: argparse.Namespace, rows: Rows) -> Iterator[Soundness]:
    """Chunks that the rows hold already are not run again: another --json file, or none, starts afresh."""
    starts = [first for first in range(0, options.models, CHUNK) if ("soundness", first) not in rows]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        sizes = [min(CHUNK, options.models - first) for first in starts]
        for done, row in enumerate(pool.map(partial(_chunk, options.keep), starts, sizes), 1):
            print(f"soundness: {done} of {len(starts)} chunks", file=sys.stderr, flush=True)
            yield row


def _chunk(keep: Path, first: int, count: int) -> Soundness:
    start, row = time.perf_counter(), Soundness(first, count)
    for seed in range(first, first + count):
        found = soundness.judge(seed, keep)
        row.refused += not found.ran
        row.feeds, row.before, row.after = row.feeds + found.ran, row.before + found.nodes, row.after + found.left
        row.excused = dict(Counter(row.excused) + Counter(found.excused))
        row.mismatches += [f"seed {seed}, {why}" for why in found.why]
    row.seconds = round(time.perf_counter() - start, 1)
    return row


# ------------------------------------------------------------------ tables


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each part that has rows."""
    made = [
        completeness_table([row for row in rows if isinstance(row, Completeness)]),
        speed_table([row for row in rows if isinstance(row, Speed)]),
        runtime_table([row for row in rows if isinstance(row, Runtime)]),
        soundness_table([row for row in rows if isinstance(row, Soundness)]),
    ]
    return "\n".join(one for one in made if one)


def completeness_table(rows: Sequence[Completeness]) -> str:
    """`best` is the fewest nodes of a peer whose outputs are right; a wrong result is struck out, with its reason."""
    found = {row.key: row for row in rows}
    models = dict.fromkeys(row.model for row in rows)
    columns = [ORIGINAL, OURS, *simplifiers.PEERS]
    cells = []
    for model in models:
        counts = [row.nodes for tool in simplifiers.PEERS if (row := found.get((model, tool))) and not row.failed]
        mine, best = found.get((model, OURS)), min(counts, default=0)
        more = f"{mine.nodes - best:+d}" if mine and best else ""
        cells.append([model, *(_nodes(found.get((model, tool))) for tool in columns), str(best or ""), more])
    failures = [f"* {row.model}, {row.tool}: {row.failed}\n" for row in rows if row.failed]
    return "\n".join(filter(None, [table.markdown(["model", *columns, "best", "more"], cells), "".join(failures)]))


def _nodes(row: Completeness | None) -> str:
    if row is None or not row.nodes:
        return "-"
    return f"~~{row.nodes}~~" if row.failed else str(row.nodes)


def speed_table(rows: Sequence[Speed]) -> str:
    """By tool: seconds without imports, wall and CPU seconds of the whole process, and its peak memory."""
    found = {row.key: row for row in rows}
    cells = [
        [model, *(_seconds(found.get((model, tool))) for tool in simplifiers.TOOLS)]
        for model in dict.fromkeys(row.model for row in rows)
    ]
    return table.markdown(["model", *simplifiers.TOOLS], cells)


def _seconds(row: Speed | None) -> str:
    if row is None or row.failed:
        return "-" if row is None else row.failed
    return f"**{row.seconds:.2f} s** ({row.wall:.2f} s, CPU {row.cpu:.2f} s, {row.peak_mb:.0f} MB)"


def runtime_table(rows: Sequence[Runtime]) -> str:
    cells = [
        [r.model, f"{r.milliseconds:.2f}", f"{r.simplified:.2f}", f"**{r.speed:.2f}x**", str(r.rounds)] for r in rows
    ]
    return table.markdown(["model", "original ms", "simplified ms", "speed", "rounds"], cells)


def soundness_table(rows: Sequence[Soundness]) -> str:
    if not rows:
        return ""
    wrong = [why for row in rows for why in row.mismatches]
    total = [str(sum(getattr(row, n) for row in rows)) for n in ("models", "refused", "feeds", "before", "after")]
    excused = sum((Counter(row.excused) for row in rows), Counter[str]())
    reasons = ", ".join(f"{why} {count}" for why, count in excused.most_common())
    titles = ["models", "not run by the runtime", "feeds", "nodes before", "after", "not judged", "mismatches"]
    cells = [[*total, reasons or "0", str(len(wrong))]]
    return "\n".join([table.markdown(titles, cells, left=0), *(f"* {why}" for why in wrong)])


if __name__ == "__main__":
    sys.exit(main())
