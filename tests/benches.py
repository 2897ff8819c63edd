"""A bench's result with rows of every kind, made without running anything."""

from __future__ import annotations

from typing import Any

from optimizer.bench import results
from optimizer.bench.rounds import Samples, Setting, Taken
from optimizer.compare import Difference


def samples(seconds: float) -> Samples:
    """Three launches of six rounds around a time, all different."""
    runs = [[[seconds * (1 + 0.01 * (i + j + k)) for k in range(3)] for j in range(6)] for i in range(3)]
    return Samples(runs, [[sum(one) for one in launch] for launch in runs])


def facts(file: str = "net.onnx") -> dict[str, Any]:
    """As `optimize bench --json` prints it."""
    base = Taken({Setting(): samples(0.010)}, [0.1], [0.02], 200_000_000, 60_000_000)
    made = []
    for place, (name, seconds) in enumerate([("original", 0.010), ("ort-int8", 0.004), ("openvino-fp32", 0.0101)]):
        row = results.row(name, name)
        taken = Taken({Setting(): samples(seconds)}, [0.1], [0.02], 200_000_000 + place, 60_000_000)
        results.measured(row, taken, None if name == "original" else base)
        difference = Difference(0.01 * place, 1.0, 1e-3 * place, 1.0, 10, 10 - place, dtype="float32")
        row["parity"] = results.parity({"y": difference}, 0)
        row["bytes"], row["metric"], row["runtime"] = 10_000_000 // (1 + place), 0.9 - 0.01 * place, {"library": "x"}
        row["operators"] = [{"op": "Conv", "count": 3, "ms": seconds * 900, "share": 0.9, "macs": 1, "bytes": 1}]
        made.append(row)
    for name, status, reason in (("trt-int8", results.UNAVAILABLE, "no GPU"), ("other", results.CRASHED, "SIGSEGV")):
        made.append(results.row(name, name))
        results.end(made[-1], status, reason)
    results.mark_front(made, True)
    return {
        "schema": results.SCHEMA, "format": results.FORMAT,
        "rows": made, "interrupted": False, "command": "optimize bench net.onnx", "time": "2026-01-01T00:00:00+00:00",
        "model": {"file": file, "sha256": "0" * 64, "nodes": 10, "parameters": 1000}, "versions": {"onnx": "1"},
        "data": {"source": "calib/*.npz", "synthetic": False, "feeds": 4}, "gate": {"metric": {"name": "top1"}},
        "settings": {"baseline": "original", "threads": 2, "launches": 3, "seconds": 1.0},
        "machine": {
            "cpu": "cpu", "arch": "x86_64", "cores": 2, "flags": ["avx2"], "gpus": [], "memory_bytes": 1 << 34,
            "system": "Linux", "virtual": True,
        },
    }  # fmt: skip
