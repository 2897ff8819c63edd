"""The zoo through the default command, beside today's tools: what is shipped, how fast, how accurate.

    python -m benchmarks.zoo [--only NAME,NAME] [--peers] [--feeds 32] [--json FILE] [--markdown FILE]
    python -m benchmarks.zoo --rows FILE ...

Each model goes through `optimize MODEL --target ort-int8 --data 'calib/*.npz'` in a process of its own (its seconds
and peak memory are that process's), and through `--target ort-fp32`. Then the original, both artifacts and, with
`--peers`, the files of ONNX Runtime's own quantizer are timed in one interleaved run, and scored by the model's own
task on held-out data. Calibration and evaluation inputs are disjoint. A script, not a test: it takes an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import peers
from models import data, metrics, zoo
from optimizer.backend import measure, ratio
from optimizer.errors import OptimizeError
from optimizer.evaluate import Feeds, session

THREADS = 2
# A process of its own: a child's peak memory starts at that of the process which forked it, and this one is large.
LAUNCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclass
class Row:
    """One model: `speed` is time of the original over time of the variant; `score` the task metric, by variant."""

    model: str
    metric: str
    megabytes: float
    nodes: int
    shipped: str = ""
    reason: str = ""
    milliseconds: float = 0.0
    shipped_megabytes: float = 0.0
    shipped_nodes: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    speed: dict[str, float] = field(default_factory=dict)
    score: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models, separated by commas (default: all with a task)")
    parser.add_argument("--peers", action="store_true", help="also ONNX Runtime's quantizer")
    parser.add_argument("--feeds", type=int, default=32, help="calibration feeds")
    parser.add_argument("--limit", type=int, default=None, help="evaluation samples at most")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    parser.add_argument("--rows", type=Path, nargs="+", help="no runs: the tables of these --json files")
    options = parser.parse_args(argv)
    if options.rows:
        rows = [Row(**row) for file in options.rows for row in json.loads(file.read_text())]
        print(table(rows) + "\n" + peers_table(rows))
        return 0
    names = [n for n in options.only.split(",") if n] or [n for n, m in zoo.MODELS.items() if m.task]
    rows = []
    for name in names:
        rows.append(one(name, options))
        print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    tables = table(rows) + ("\n" + peers_table(rows) if options.peers else "")
    print(tables)
    if options.markdown:
        options.markdown.write_text(tables)
    return 0


def one(name: str, options: argparse.Namespace) -> Row:
    source = zoo.path(name)
    feeds = data.calibration(name, options.feeds)
    graph = onnx.load(source, load_external_data=False).graph
    row = Row(name, "", source.stat().st_size / 1e6, len(graph.node))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write(feeds, folder / "calib")
        files = {"original": source, "float": ship(source, "ort-fp32", folder, row)}
        files["shipped"] = ship(source, "ort-int8", folder, row)
        if options.peers:
            files |= peers.all_variants(source, feeds, folder, row.failed)
        score_and_time(name, files, feeds, row, options.limit)
    return row


def write(feeds: Sequence[Feeds], folder: Path) -> None:
    folder.mkdir()
    for number, feed in enumerate(feeds):
        np.savez(folder / f"{number:04}.npz", **feed)  # type: ignore[arg-type]  # numpy's stub wants bool here


def ship(source: Path, target: str, folder: Path, row: Row) -> Path:
    """Runs the command as a user would and notes what it said, how long it took and its peak memory."""
    out = folder / target
    command = [str(Path(sys.executable).with_name("optimize")), str(source), "--target", target, "-o", str(out), "-q"]
    command += ["--data", str(folder / "calib" / "*.npz"), "--threads", str(THREADS)]
    start = time.perf_counter()
    launched = subprocess.run([sys.executable, "-c", LAUNCH, *command], check=True, stdout=subprocess.PIPE, text=True)
    manifest = json.loads((out / "manifest.json").read_text())
    if target == "ort-int8":
        row.seconds, row.peak_mb = time.perf_counter() - start, int(launched.stdout) / 1024
        row.shipped = manifest["shipped"]
        row.reason = (manifest["reverted"] or {}).get("detail", "")
        row.shipped_nodes = manifest["output"]["nodes"]
        row.shipped_megabytes = manifest["output"]["bytes"] / 1e6
    return out / "model.onnx"


@contextmanager
def opened(path: Path) -> Iterator[Callable[[Feeds], Feeds]]:
    made = session(path, threads=THREADS, optimized=True)
    names = [o.name for o in made.get_outputs()]
    yield lambda feeds: dict(zip(names, made.run(names, feeds), strict=True))


@dataclass
class Timed:
    run: Callable[[Feeds], Feeds]


def score_and_time(name: str, files: dict[str, Path], feeds: Sequence[Feeds], row: Row, limit: int | None) -> None:
    with ExitStack() as stack:
        sessions: dict[str, Any] = {}
        for variant, path in files.items():
            try:
                run = stack.enter_context(opened(path))
                run(feeds[0])
                sessions[variant] = Timed(run)
            except (OptimizeError, RuntimeError) as error:
                row.failed[variant] = str(error).splitlines()[0].replace(f"{path.parent}/", "")
        timings = measure(sessions, feeds, seconds=20.0, rounds=400)
        row.milliseconds = timings["original"].median * 1e3
        for variant, made in sessions.items():
            row.speed[variant] = ratio(timings["original"], timings[variant])
            score = metrics.evaluate(name, made.run, limit=limit)
            row.metric, row.score[variant] = score.metric, score.value


def line(row: Row) -> str:
    return json.dumps(asdict(row))


def table(rows: Sequence[Row]) -> str:
    """What is shipped, as Markdown."""
    columns = [
        "model",
        "MB",
        "nodes",
        "ms",
        "float",
        "shipped",
        "",
        "MB",
        "nodes",
        "metric",
        "before",
        "after",
        "s",
        "peak MB",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * 4 + "---|" + "---:|" * 3 + "---|" + "---:|" * 4]
    for r in rows:
        cells = [
            r.model, f"{r.megabytes:.1f}", r.nodes, f"{r.milliseconds:.2f}", f"{r.speed['float']:.2f}x",
            r.shipped, f"**{r.speed['shipped']:.2f}x**", f"{r.shipped_megabytes:.1f}", r.shipped_nodes,
            r.metric, f"{r.score['original']:.3f}", f"{r.score['shipped']:.3f}", f"{r.seconds:.0f}", f"{r.peak_mb:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    mean = float(np.exp(np.mean([np.log(r.speed["shipped"]) for r in rows])))
    return "\n".join([*lines, "", f"Geometric mean over these models: {mean:.2f}x."]) + "\n"


def peers_table(rows: Sequence[Row]) -> str:
    """Speed and change of the metric beside the peers', as Markdown; a peer that fails has a dash."""
    names = ["shipped", *peers.PEERS]
    lines = [f"| model | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for r in rows:
        cells = [f"{r.speed[n]:.2f}x {r.score[n] - r.score['original']:+.3f}" if n in r.score else "-" for n in names]
        lines.append(f"| {r.model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
