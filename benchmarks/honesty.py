"""Does the bench tell the truth on this machine? The same model twice, one delayed by 5 %, and backends that go wrong.

    python -m benchmarks.honesty [--model FILE] [--runs 20] [--seconds 15] [--json FILE]

twice     a model entered as two backends: the interval of the ratio must hold 1 in 19 of 20 runs
delayed   the same beside a backend whose every run takes five per cent longer: it must be found slower
broken    backends that crash, hang and return NaN: a marked row each, and the others finish
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import fashion
from optimizer.bench.run import Bench, bench

FOLDER = Path(fashion.__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER / "fashion.onnx")
    parser.add_argument("--data", default=str(FOLDER / "calib" / "*.npz"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write what was found")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"twice": [], "delayed": []}
    with tempfile.TemporaryDirectory() as work:
        for number in range(options.runs):
            for kind, name in (("twice", "ort"), ("delayed", "tests.doubles:Later")):
                row = _rows(_bench(options, Path(work), {"other": f"{options.model}@{name}"}))["other"]
                found[kind].append(row["points"][0]["ratio"])
                print(number, kind, found[kind][-1], flush=True)
        names = ("Crash", "Hang", "Nan", "Refuse", "Memory")
        also: dict[str, Path | str] = {n.lower(): f"{options.model}@tests.doubles:{n}" for n in names}
        also["plain"] = options.model
        broken = _rows(_bench(options, Path(work), also, limit=10.0))
    found["broken"] = {name: (row["status"], row["reason"], bool(row["points"])) for name, row in broken.items()}
    found["summary"] = {
        "no difference": sum(one["verdict"] == "no difference" for one in found["twice"]),
        "slower": sum(one["verdict"] == "slower" for one in found["delayed"]),
        "runs": options.runs,
    }
    print(json.dumps({key: found[key] for key in ("broken", "summary")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _bench(options: argparse.Namespace, work: Path, also: dict[str, Path | str], limit: float = 60.0) -> Bench:
    return bench(
        options.model,
        also=also,
        data=options.data,
        threads=options.threads,
        seconds=options.seconds,
        launches=options.launches,
        limit=limit,
        artifacts=work,
        profile=False,
    )


def _rows(found: Bench) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.rows}


if __name__ == "__main__":
    sys.exit(main())
