"""Parses an ONNX file and builds the engine: one code path for both libraries, no precision flags.

Precision is what the file says (strong typing); options only say for which GPUs and sizes, and how hard to try.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backends.trt import profiles
from backends.trt.library import Library, find, listening, load_plugins, present, quiet
from backends.trt.messages import Complaint, builder_complaints, parser_complaints, refusal
from backends.trt.network import Typed, examine
from optimizer.engine import BuildError, Built, EngineOptions, Profile
from optimizer.errors import UserError
from optimizer.io import load
from optimizer.sparsity import sparsity

log = logging.getLogger(__name__)
ENGINE = "model.engine"
LEVELS = range(6)
FLAGS = {"strip": "STRIP_PLAN", "refit": "REFIT", "version_compatible": "VERSION_COMPATIBLE"}


@dataclass(frozen=True)
class Parsed:
    """A typed network, with what must outlive it."""

    builder: Any
    network: Any
    parser: Any


def build(model: Path, folder: Path, options: EngineOptions) -> Built:
    """Writes `folder`/model.engine. Raises BuildError, UserError, and UnavailableError where no library is."""
    library = find(options.gpus)
    gpus = library.resolve(options.gpus)
    if not options.gpus and present() is None:
        _say(f"no GPU is here: the engine is built for {gpus[0]}; --gpu names others")
    if options.level is not None and options.level not in LEVELS:
        raise UserError(f"--level {options.level}: give 0 (build fast) to {LEVELS[-1]} (run fast)")
    for path in options.plugins:
        load_plugins(library, path)
    start = time.perf_counter()
    with listening(library) as lines:
        parsed = _parse(library, model)
        sizes = profiles.used(parsed.network, options.profiles)
        typed = examine(parsed.network)
        config = _config(library, parsed, gpus, sizes, options)
        if any(row["pattern"] for row in sparsity(load(model))):  # a kernel that skips zeros may now be tried
            config.set_flag(library.trt.BuilderFlag.SPARSE_WEIGHTS)
        timings = _cache_file(library, gpus, options.cache)
        _read_timings(config, timings)
        lines.clear()  # what was said of parsing is over
        with quiet():
            plan = parsed.builder.build_serialized_network(parsed.network, config)
        if plan is None:
            graph = load(model)
            raise refusal(library.title, builder_complaints(lines, typed.nodes, graph), graph)
        _write_timings(config, timings)
    (folder / ENGINE).write_bytes(plan)
    facts = _facts(library, gpus, sizes, options, parsed, config, typed)
    facts |= {"file": ENGINE, "bytes": plan.nbytes, "seconds": round(time.perf_counter() - start, 3)}
    return Built(folder / ENGINE, facts, typed.precision)


def _parse(library: Library, model: Path) -> Parsed:
    trt = library.trt
    with quiet():
        builder = trt.Builder(library.log)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # where it is not: always
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, library.log)
        done = parser.parse_from_file(str(model))
    if not done:
        complaints = parser_complaints(parser) or [Complaint("", "", "the parser gave no reason")]
        raise refusal(library.title, complaints, load(model))
    _check_interface(library, network, model)
    return Parsed(builder, network, parser)


def _check_interface(library: Library, network: Any, model: Path) -> None:
    """The parser renames an input that is an output as well, and takes an input's default for its value."""
    graph = load(model)
    named = {tensor.name for tensor in profiles.inputs(network)}
    for tensor in graph.inputs:
        if tensor.name in named:
            continue
        if graph.is_output(tensor):
            raise BuildError(
                f"'{tensor.name}' is an input and an output of the model, which {library.title} cannot hold under one "
                "name: take it off the outputs, the caller has it already"
            )
    for name in graph.overridable:
        _say(f"input '{name}' has a default, and the engine keeps it: callers can no longer give another")


@cache
def _say(what: str) -> None:
    """Warns once in a process: several candidates of one model are built."""
    log.warning("%s", what)


def _config(
    library: Library, parsed: Parsed, gpus: Sequence[str], sizes: Mapping[str, Profile], options: EngineOptions
) -> Any:
    trt = library.trt
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the report of layers
    if library.gpus:
        config.num_compute_capabilities = len(gpus)
        for index, gpu in enumerate(gpus):
            config.set_compute_capability(getattr(trt.ComputeCapability, gpu.replace("sm_", "SM")), index)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    for option, flag in FLAGS.items():
        if getattr(options, option):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.plugins and options.version_compatible:
        config.plugins_to_serialize = [str(path) for path in options.plugins]
    profiles.apply(parsed.builder, config, parsed.network, sizes)
    return config


def _cache_file(library: Library, gpus: Sequence[str], folder: Path | None) -> Path | None:
    """Timings hold for one version of the library and one kind of GPU."""
    if folder is None or not library.keeps_timings:
        return None
    return folder / f"{library.name}-{library.version}-{'-'.join(gpus)}.timings"


def _read_timings(config: Any, path: Path | None) -> None:
    """Starts from the timings of earlier builds; a file that TensorRT does not take counts as none."""
    if path is None:
        return
    with quiet():
        known = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
        if known is None or not config.set_timing_cache(known, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timings(config: Any, path: Path | None) -> None:
    if path is None or (cache := config.get_timing_cache()) is None:
        return
    with quiet():
        content = bytes(cache.serialize())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _facts(
    library: Library,
    gpus: Sequence[str],
    sizes: Mapping[str, Profile],
    options: EngineOptions,
    parsed: Parsed,
    config: Any,
    typed: Typed,
) -> dict[str, Any]:
    flags = library.trt.BuilderFlag.__members__
    return {
        "library": library.name,
        "version": library.version,
        "gpus": list(gpus),
        "profiles": {
            name: {"min": list(p.least), "opt": list(p.best), "max": list(p.most)} for name, p in sizes.items()
        },
        "level": config.builder_optimization_level,
        "workspace": options.workspace,
        "flags": sorted(name.lower() for name, flag in flags.items() if config.get_flag(flag)),
        "plugins": [str(path) for path in options.plugins],
        "layers": parsed.network.num_layers,
        "types": typed.types,
    }
