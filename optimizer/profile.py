"""Where the time goes: the kernels of a model on a target, beside the least that this machine needs for their work.

The runtime's own profiler tells the kernels as it has fused them; their multiply-accumulates and bytes come from the
shapes it tells, the bound from the machine's best rates (`roofline`), which are measured once. What a kernel takes
above its bound is what is left to win; below it is a kernel whose data stayed in the caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from optimizer import artifact, registry, roofline, targets
from optimizer.api import check_numbers
from optimizer.backend import Kernel
from optimizer.bench import results
from optimizer.bench.build import Making, Request, build
from optimizer.bench.results import ORIGINAL
from optimizer.bench.rounds import Contender
from optimizer.data import Given, open_data
from optimizer.engine import Built
from optimizer.errors import ModelError, UnavailableError
from optimizer.evaluate import Evaluate
from optimizer.fidelity import MAX_DROP, make_gate
from optimizer.io import load
from optimizer.judge import Tell, few
from optimizer.machine import device, versions

FORMAT = 1


def profile(
    model: Path | str,
    *,
    target: str = ORIGINAL,
    data: Given | None = None,
    preprocess: str | None = None,
    threads: int = 0,
    seed: int = 0,
    artifacts: Path | str | None = None,
    progress: Tell = lambda what, done, total: None,
) -> dict[str, Any]:
    """Facts as `optimize profile --json` prints them (docs/bench.md): `operators` and `nodes`, the slowest first.

    `target` "original" is the file as it is on ONNX Runtime's CPU; of another the artifact is made where it is missing.
    Raises UserError, and UnavailableError where the target does not run here or its runtime tells nothing.
    """
    check_numbers(threads=threads, seed=seed)
    path = Path(model)
    graph, evaluate = load(path), Evaluate(threads)
    feeds = open_data(data, graph, evaluate, preprocess=preprocess, seed=seed, tell=progress)
    row: dict[str, Any] = {"scheme": ORIGINAL}
    contender = Contender(ORIGINAL, "ort", Built(path))
    if target != ORIGINAL:
        folder = Path(artifacts) if artifacts is not None else Path(f"{path.stem}.bench")
        gate = make_gate(None, None, None, MAX_DROP)
        making = Making(
            path, artifact.sha256(path), folder, data, feeds, preprocess, None, None, MAX_DROP, gate, threads, seed,
            progress,
        )  # fmt: skip
        targets.target(target)  # one that does not exist is the caller's mistake here, not a row
        row, contender = _made(target, making)
    progress(f"profiling {target}", 0, 0)
    backend = registry.load_backend(contender.backend)
    kernels = backend.profile(contender.built, threads, few(feeds.check))
    if not kernels:
        raise UnavailableError(f"the runtime of '{target}' tells nothing of its kernels here")
    best = roofline.peaks(threads, user_cache_path("onnx-optimize"), progress)
    seconds = sum(kernel.seconds for kernel in kernels)
    return {
        "schema": "onnx-optimize/profile",
        "format": FORMAT,
        "model": str(path),
        "target": target,
        "scheme": row["scheme"],
        "runtime": dict(backend.recipe()),
        "threads": threads,
        "machine": device(),
        "versions": versions(),
        "data": {"source": feeds.source, "synthetic": feeds.synthetic},
        "peaks": {"float32_macs": best.float32, "int8_macs": best.int8, "memory_bytes": best.memory},
        "ms": float(f"{seconds * 1000:.4g}"),
        "bound_ms": _bound(kernels, best),
        "operators": roofline.by_operator(kernels, best),
        "nodes": roofline.by_node(kernels, best),
    }


def _made(target: str, making: Making) -> tuple[dict[str, Any], Contender]:
    row, contender = build(Request(target, target), making)
    if contender is None:
        kind = UnavailableError if row["status"] == results.UNAVAILABLE else ModelError
        raise kind(str(row["reason"]))
    return row, contender


def _bound(kernels: list[Kernel], best: roofline.Peaks) -> float | None:
    told = [roofline.bound(kernel, best) for kernel in kernels if kernel.outputs]
    return float(f"{sum(told) * 1000:.4g}") if told else None
