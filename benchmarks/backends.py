"""The zoo through the bench, on every backend that this machine runs, and what `--target auto` would ship of them.

    python -m benchmarks.backends [--only NAME,NAME] [--targets ort-fp32,...] [--feeds 32] [--out benchmarks/backends]
    optimize bench --show benchmarks/backends/*.json --html benchmarks/backends.html

Each model's own task on held-out data is the metric, so a backend that loses more than .01 of it is marked and not
shipped. `auto` is the same bench over the same targets, with fewer launches, and picks from its rows in the same way.
One file a model is written, so that the models can be run piecewise. A script, not a test: it takes hours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo import THREADS, write
from models import data, metrics, zoo
from optimizer.bench import overview, results, run, table
from optimizer.evaluate import Feeds
from optimizer.report import show

TARGETS = "ort-fp32,ort-int8,openvino-fp32,openvino-bf16,openvino-int8"
# Every candidate of every target is scored, and by the oracle too: few inputs and samples, or it takes the day.
FEWER = {"isnet-fp32": 8, "isnet-fp16": 8, "ddddocr-det": 24}
SCORED = {"isnet-fp32": 4, "isnet-fp16": 4, "magika": 8, "minilm-l3": 20}  # of the last two batches of 64 and 32


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models, separated by commas (default: all with a task)")
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--feeds", type=int, default=32, help="calibration feeds")
    parser.add_argument("--limit", type=int, default=200, help="evaluation samples at most")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--artifacts", type=Path, help="a folder that keeps what was built (default: none)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "backends")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    names = [n for n in options.only.split(",") if n] or [n for n, m in zoo.MODELS.items() if m.task]
    found = []
    for name in names:
        start = time.perf_counter()
        found.append(one(name, options))
        (options.out / f"{name}.json").write_text(json.dumps(found[-1], indent=1, allow_nan=False) + "\n")
        print(name, line(found[-1]), f"{time.perf_counter() - start:.0f} s", flush=True)
    show(*table.side_by_side(found))
    return 0


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `optimize bench NAME.onnx --targets ... --data 'calib/*.npz' --metric ...` finds."""
    with tempfile.TemporaryDirectory() as work:
        write(data.calibration(name, min(options.feeds, FEWER.get(name, options.feeds))), Path(work) / "calib")
        bench = run.bench(
            zoo.path(name),
            targets=options.targets.split(","),
            data=str(Path(work) / "calib" / "*.npz"),
            metric=task(name, min(options.limit, SCORED.get(name, options.limit))),
            threads=THREADS,
            seconds=options.seconds,
            launches=options.launches,
            artifacts=(options.artifacts or Path(work)) / name,
        )
    facts = json.loads(json.dumps(bench.facts).replace(f"{work}/", ""))
    facts["model"]["file"] = f"{name}.onnx"
    facts["command"] = f"python -m benchmarks.backends --only {name}"
    return facts  # type: ignore[no-any-return]  # JSON


def task(name: str, limit: int) -> Callable[[Callable[[Feeds], Feeds]], float]:
    def score(model: Callable[[Feeds], Feeds]) -> float:
        return metrics.evaluate(name, model, limit=limit).value

    score.__name__ = name
    return score


def line(facts: dict[str, Any]) -> str:
    best = results.pick(facts["rows"])
    speeds = []
    for row in facts["rows"]:
        found = row["points"][0]["ratio"] if row["points"] else None
        speeds.append(f"{row['name']} {found['middle']:.2f}x" if found else f"{row['name']} {row['status']}")
    return f"{overview.label(facts)}: {', '.join(speeds)}; auto: {best['name'] if best else 'float'}"


if __name__ == "__main__":
    sys.exit(main())
