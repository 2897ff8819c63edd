"""`--target auto`: every target that this machine can run is built and measured, and the best artifact is shipped.

Best is the fastest of those whose outputs pass the gate, by the bench's ratio to the original on ONNX Runtime's CPU;
within the noise of each other, the one closest to the original. Where nothing is surely faster, that is the original's
own runtime with the float model.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from optimizer import artifact, registry, targets
from optimizer.bench import results
from optimizer.bench.run import bench
from optimizer.data import Given
from optimizer.engine import EngineOptions
from optimizer.errors import GateError, UserError
from optimizer.fidelity import Metric
from optimizer.judge import Tell

log = logging.getLogger(__name__)
AUTO = "auto"
PLAIN = "ort-fp32"  # what is shipped where nothing is faster
LAUNCHES, SECONDS = 3, 4.0  # seconds for each target
TOLD = ("name", "scheme", "status", "reason", "note", "runtime", "bytes", "parity", "metric", "peak_bytes")


def candidates() -> list[str]:
    """The targets that can be measured here, the plain one first."""
    found = []
    for name, goal in targets.targets().items():
        backend = registry.load_backend(goal.backend)
        if backend.available() is None and backend.runs(EngineOptions()):
            found.append(name)
    return sorted(found, key=lambda name: name != PLAIN)


def choose(
    model: onnx.ModelProto | Path | str,
    *,
    out: Path | str | None,
    data: Given | None,
    preprocess: str | None,
    prune: float | str | None,
    metric: str | Metric | None,
    max_drop: float,
    min_sqnr: float | None,
    min_agreement: float | None,
    strict: bool,
    threads: int,
    seed: int,
    progress: Tell,
) -> Path:
    """Builds, measures and ships; the artifact's folder. Its manifest lists what was tried (docs/manifest.md).

    Raises what `optimize` raises; GateError under `strict` where nothing is surely faster than the original.
    """
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    folder = artifact.destination(path, AUTO, out)
    names = candidates()
    with artifact.writing(folder) as temporary:
        work = temporary / "tried"
        found = bench(
            model,
            targets=names,
            data=data,
            preprocess=preprocess,
            prune=prune,
            metric=metric,
            max_drop=max_drop,
            min_sqnr=min_sqnr,
            min_agreement=min_agreement,
            threads=threads,
            seconds=SECONDS * (1 + len(names)),
            launches=LAUNCHES,
            artifacts=work,
            profile=False,
            seed=seed,
            progress=progress,
        )
        if found.facts["interrupted"]:
            raise KeyboardInterrupt
        best = results.pick(found.rows)
        if best is None and strict:
            raise GateError("nothing is surely faster than the original; nothing was written because of --strict")
        shipped = best or next(row for row in found.rows if row["name"] == PLAIN)
        if shipped["status"] not in results.MEASURED:
            raise UserError(f"'{PLAIN}' could not be built: {shipped['reason']}")
        for file in (work / shipped["name"]).iterdir():
            file.rename(temporary / file.name)
        shutil.rmtree(work)
        manifest = json.loads((temporary / artifact.MANIFEST).read_text())
        artifact.write_manifest(temporary, manifest | {"auto": told(found.rows, shipped["name"])})
    return folder


def told(rows: Sequence[Mapping[str, Any]], shipped: str) -> dict[str, Any]:
    """What the manifest says: the target shipped, and each row with its first point, without its distribution."""
    tried = []
    for row in rows:
        point = {k: v for k, v in row["points"][0].items() if k != "quantiles_ms"} if row["points"] else None
        tried.append({key: row[key] for key in TOLD} | {"point": point})
    return {"shipped": shipped, "tried": tried}
