"""The models to compare: one artifact a target, kept in a folder and used again while nothing changed that made it.

A request is `TARGET`, `TARGET:SCHEME` (that candidate, if it passes the limits), or a file of somebody else's,
`FILE` for ONNX Runtime on the CPU and `FILE@BACKEND` for another backend.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer import api, artifact, registry, targets
from optimizer.backend import Backend
from optimizer.bench import results
from optimizer.bench.rounds import Contender
from optimizer.data import Data, Given
from optimizer.engine import Built, EngineOptions
from optimizer.errors import OptimizeError, UnavailableError, UserError
from optimizer.fidelity import Gate, Metric
from optimizer.judge import Tell
from optimizer.machine import versions
from optimizer.targets import Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One row to be. `file` is one that is there already, and `backend` what opens it."""

    name: str
    target: str
    scheme: str | None = None
    file: Path | None = None
    backend: str = "ort"


@dataclass(frozen=True)
class Making:
    """What all builds share: the model, its data and limits, and where artifacts are kept."""

    source: Any  # a path or a ModelProto, as `optimize` takes it
    sha256: str
    folder: Path
    data: Given | None
    feeds: Data
    preprocess: str | None
    prune: float | str | None
    metric: str | Metric | None
    max_drop: float
    gate: Gate
    threads: int
    seed: int
    progress: Tell


def requests(names: Sequence[str], files: Mapping[str, Path | str]) -> list[Request]:
    """Rows in the order given; what is asked for twice is two rows. Raises UserError where there is none."""
    found = [_request(name) for name in names]
    for name, text in files.items():
        file, _, backend = str(text).partition("@")
        if not Path(file).is_file():
            raise UserError(f"--also {name}={text}: there is no file '{file}'")
        if not registry.has_backend(backend or "ort"):
            raise UserError(f"--also {name}={text}: the backends are {', '.join(registry.backend_names())}")
        found.append(Request(name, Path(file).name, file=Path(file), backend=backend or "ort"))
    if not found:
        raise UserError("--targets names none: give some, such as ort-fp32,ort-int8 ('optimize targets' lists them)")
    return _distinct(found)


def _request(text: str) -> Request:
    name, _, scheme = text.partition(":")
    return Request(text, name, scheme or None)


def _distinct(found: Sequence[Request]) -> list[Request]:
    """Names told apart: the second of two gets `#2`."""
    seen: dict[str, int] = {}
    made = []
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        name = one.name if seen[one.name] == 1 else f"{one.name}#{seen[one.name]}"
        made.append(replace(one, name=name))
    return made


def build(request: Request, making: Making) -> tuple[dict[str, Any], Contender | None]:
    """The row of a request, and what is to be measured; None where that cannot be had here, the row says why."""
    row = results.row(request.name, request.target)
    try:
        if request.file is not None:
            return _theirs(row, request.file, request)
        goal = targets.target(request.target)
        backend = registry.load_backend(goal.backend)
        if not backend.runs(EngineOptions()):
            raise UnavailableError(backend.available() or _idle(goal, backend))
        folder, manifest = _artifact(request, making, json.loads(json.dumps(backend.recipe())))
    except UnavailableError as error:
        results.end(row, results.UNAVAILABLE, str(error))
        return row, None
    except UserError as error:
        unknown = request.file is None and request.target.partition("{")[0] not in targets.targets()
        results.end(row, results.UNAVAILABLE if unknown else results.FAILED, str(error))
        return row, None
    except OptimizeError as error:
        results.end(row, results.FAILED, str(error))
        return row, None
    row["scheme"], row["runtime"] = manifest["shipped"], manifest["runtime"]
    row["note"] = (manifest["reverted"] or {}).get("detail")
    row["bytes"] = manifest["output"]["bytes"] + sum(one["bytes"] for one in manifest["output"]["data"])
    return row, Contender(request.name, goal.backend, _built(folder, manifest))


def _theirs(row: dict[str, Any], file: Path, request: Request) -> tuple[dict[str, Any], Contender]:
    backend = registry.load_backend(request.backend)
    if (missing := backend.available()) is not None:
        raise UnavailableError(missing)
    row["bytes"], row["runtime"] = file.stat().st_size, dict(backend.recipe())
    return row, Contender(request.name, request.backend, Built(file))


def _idle(goal: Target, backend: Backend) -> str:
    """Why there is nothing to measure though nothing is missing."""
    if backend.compiles:
        return f"'{goal.name}' makes an engine for an NVIDIA GPU, and there is none here: run the bench where one is"
    return f"'{goal.name}' makes a file for any runtime: name one that runs it, such as ort-fp32"


def _artifact(request: Request, making: Making, runtime: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The artifact's folder and manifest, made now unless a fresh one is there."""
    name = f"{request.target}-{request.scheme}" if request.scheme else request.target
    folder = making.folder / re.sub(r"[^\w.+-]+", "-", name)
    kept = _read(folder)
    if kept is not None and kept.get("runtime") == runtime and _fresh(kept, request, making):
        return folder, kept
    log.info("building %s", request.name)
    made = api.optimize(
        making.source,
        target=request.target,
        scheme=request.scheme,
        data=making.data,
        preprocess=making.preprocess,
        prune=making.prune,
        metric=making.metric,
        max_drop=making.max_drop,
        min_sqnr=making.gate.min_sqnr,
        min_agreement=None if making.gate.by_chance else making.gate.min_agreement,
        threads=making.threads,
        seed=making.seed,
        out=folder,
        progress=lambda what, done, total: making.progress(f"{request.name}: {what}", done, total),
    )
    return made.folder, made.manifest


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / artifact.MANIFEST).read_text())
        return found if found["schema"] == artifact.SCHEMA and (folder / found["output"]["file"]).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fresh(kept: Mapping[str, Any], request: Request, making: Making) -> bool:
    """True where building again would make the same of the same."""
    limits, gate = kept.get("gate", {}), making.gate
    metric = None if gate.metric is None else {"name": gate.name, "max_drop": gate.max_drop}
    return bool(
        kept["source"]["sha256"] == making.sha256
        and kept["target"] == request.target
        and (kept.get("data") or {}).get("sha256") == making.feeds.digest
        and kept.get("versions") == versions()
        and kept.get("seed") == making.seed
        and making.prune is None  # what was pruned is not told apart
        and (request.scheme is None or kept["shipped"] == request.scheme)
        and limits.get("min_sqnr_db") == gate.min_sqnr
        and limits.get("min_agreement") == gate.min_agreement
        and limits.get("metric") == metric
    )


def _built(folder: Path, manifest: Mapping[str, Any]) -> Built:
    engine = manifest.get("engine")
    if engine is None:
        return Built(folder / manifest["output"]["file"])
    return Built(folder / engine["file"], engine)
