"""The zoo through the TensorRT targets, without a GPU: engines built, their precision, accuracy in simulation.

    python -m benchmarks.tensorrt [--only NAME,NAME] [--targets trt-int8,trt-fp16] [--feeds 32] [--json FILE]
    python -m benchmarks.tensorrt --rows FILE ...

Each model goes through `optimize MODEL --target T --data 'calib/*.npz' --gpu sm_89,sm_120` in a process of its own,
with TensorRT for RTX, which builds for GPUs that are not there. Then the shipped model is scored by the model's own
task on other data, in simulation: ONNX Runtime on the CPU with its optimizations off, Q/DQ executed as written, every
number in half precision rounded as such. What runs on a GPU, and how fast, is not measured here. A script, not a test:
it takes an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import onnx

from benchmarks.zoo import write
from models import zoo
from models.tasks import speech, task
from models.tasks.base import Task, open_ort
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.io import load
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import target

THREADS = 2
GPUS = "sm_89,sm_120"
TELLING = 0.005  # share of the work below which a reason is not told
RATE = 16000
# TensorRT has no branch whose sides differ in shape: a model for two sample rates is built for one of them.
FIXED = {"silero-vad": f"sr={RATE}", "silero-vad-ifless": f"sr={RATE}"}
LOOSE = {"isnet-int8": "5"}  # dB: one of its outputs is 8.6 dB from its own float form, by the noise of its int8
FEWER = {"isnet-fp32": 8, "isnet-fp16": 8, "isnet-int8": 8}  # feeds: a run takes seconds
SCORED = {"isnet-fp32": 4, "isnet-fp16": 4, "isnet-int8": 4}


@dataclass
class Row:
    """One model on one target; `shares` of the MACs by precision, `kept` the same by reason to be in another."""

    model: str
    target: str
    shipped: str = ""
    nodes: int = 0
    quantize: int = 0
    dequantize: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    achieved: float | None = None
    kept: dict[str, float] = field(default_factory=dict)
    findings: int = 0
    build: float = 0.0
    megabytes: float = 0.0
    seconds: float = 0.0
    before: float | None = None
    after: float | None = None
    metric: str = ""
    failed: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models, separated by commas (default: all)")
    parser.add_argument("--targets", default="trt-int8,trt-fp16")
    parser.add_argument("--feeds", type=int, default=32, help="calibration feeds")
    parser.add_argument("--limit", type=int, default=None, help="evaluation samples at most")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--rows", type=Path, nargs="+", help="no runs: the table of these --json files")
    options = parser.parse_args(argv)
    if options.rows:
        known = [Row(**row) for file in options.rows for row in json.loads(file.read_text())]
        print(table(known) + "\n" + reasons(known))
        return 0
    rows: list[Row] = []
    for name in [n for n in options.only.split(",") if n] or list(zoo.MODELS):
        rows += measure(name, options)
        if options.json:
            options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    print(table(rows) + "\n" + reasons(rows))
    return 0


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    source, goal = zoo.path(name), _task(name)
    limit = min(filter(None, (options.limit, SCORED.get(name))), default=None)
    before = goal.evaluate(open_ort(source, THREADS), limit)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write(goal.calibration(min(options.feeds, FEWER.get(name, options.feeds))), folder / "calib")
        for text in options.targets.split(","):
            row = Row(name, text, metric=before.metric, before=before.value)
            shipped = ship(source, text, folder, row)
            if shipped is not None:
                with simulated(shipped, text) as run:
                    row.after = goal.evaluate(run, limit).value
            rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
    return rows


def _task(name: str) -> Task:
    if name in FIXED:
        return replace(speech.TASKS[name], rates=(RATE,))
    return task(name)


def ship(source: Path, text: str, folder: Path, row: Row) -> Path | None:
    """Runs the command as a user would; the shipped model, or None where it failed."""
    out = folder / text
    command = [str(Path(sys.executable).with_name("optimize")), str(source), "--target", text, "-o", str(out), "-q"]
    command += ["--data", str(folder / "calib" / "*.npz"), "--threads", str(THREADS), "--gpu", GPUS]
    command += ["--freeze", FIXED[row.model]] if row.model in FIXED else []
    command += ["--min-sqnr", LOOSE[row.model]] if row.model in LOOSE else []
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    row.seconds = round(time.perf_counter() - start, 1)
    if done.returncode:
        row.failed = f"exit {done.returncode}: {done.stderr.strip()[-400:].replace(str(folder), '')}"
        return None
    manifest = json.loads((out / "manifest.json").read_text())
    precision = manifest["precision"]
    row.shipped, row.nodes = manifest["shipped"], manifest["output"]["nodes"]
    row.shares, row.achieved, row.findings = precision["shares"], precision["achieved"], len(manifest["lint"])
    row.build, row.megabytes = manifest["measured"]["build"], manifest["engine"]["bytes"] / 1e6
    reasons = Counter[str]()
    for layer in precision["others"]:
        reasons[layer["reason"] or "?"] += layer["share"] or 0
    row.kept = {reason: round(share, 4) for reason, share in reasons.most_common()}
    ops = Counter(n.op_type for n in onnx.load(out / "model.onnx", load_external_data=False).graph.node)
    row.quantize, row.dequantize = ops["QuantizeLinear"], ops["DequantizeLinear"]
    return out / "model.onnx"


@contextmanager
def simulated(model: Path, text: str) -> Iterator[Callable[[Feeds], Feeds]]:
    """The model as the target computes it, on the CPU."""
    goal, graph = target(text), load(model)
    evaluate = Evaluate(THREADS)
    PassManager().run(build(goal.simulate), graph, Context(goal, evaluate))
    with evaluate.open(graph) as run:
        yield run


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line a model and target."""
    titles = ["model", "target", "shipped", "nodes", "Q", "DQ", "int8", "of eligible", "fp16", "build s", "engine MB"]
    titles += ["lint", "metric", "float", "simulated", "change"]
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|" + "---:|" * 9 + "---|" + "---:|" * 3]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def reasons(rows: Sequence[Row]) -> str:
    """Markdown: why what could not be int8 is not, a line a model; those kept for accuracy together."""
    lines = []
    for row in rows:
        if row.failed or not row.target.startswith("trt-int8"):
            continue
        shares: dict[str, float] = {}
        for reason, share in row.kept.items():
            key = "accuracy" if reason.startswith("accuracy") else reason.partition(";")[0]
            shares[key] = shares.get(key, 0.0) + share
        heaviest = sorted(shares.items(), key=lambda item: -item[1])
        told = [f"{reason} {_percent(share)}" for reason, share in heaviest if share >= TELLING]
        lines += [f"- {row.model}: {', '.join(told)}"] if told else []
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    if row.failed:
        return [row.model, row.target, row.failed, *[""] * 13]
    change = None if row.after is None or row.before is None else row.after - row.before
    return [
        row.model, row.target, row.shipped, str(row.nodes), str(row.quantize), str(row.dequantize),
        _percent(row.shares.get("int8", 0.0)), _percent(row.achieved), _percent(row.shares.get("fp16", 0.0)),
        f"{row.build:.1f}", f"{row.megabytes:.1f}", str(row.findings), row.metric,
        *("-" if value is None else f"{value:.3f}" for value in (row.before, row.after)),
        "-" if change is None else f"{change:+.3f}",
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
