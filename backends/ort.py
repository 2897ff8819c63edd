"""ONNX Runtime on the CPU: sessions with its own graph optimizations on, and threads under control."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from backends.file import FileBackend
from optimizer.backend import Kernel
from optimizer.engine import Built
from optimizer.evaluate import Feeds, session
from optimizer.graph import Graph

WARM_UPS = 2  # runs before a profile counts
UNPACKED = {"session.disable_prepacking": "1"}
KERNEL = "_kernel_time"  # at the end of the names that the profiler gives to what a kernel took


class OrtBackend(FileBackend):
    """The .onnx is the artifact; ONNX Runtime optimizes it further each time it is loaded."""

    def available(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install onnxruntime"
        return None

    def lower(self, graph: Graph) -> None:
        """Nothing: what pays among the runtime's own operators (BiasGelu, FusedMatMul) it makes itself at load.

        SkipLayerNormalization, Attention and MultiHeadAttention make no transformer clearly faster than the portable
        file (version 1.31, `python -m benchmarks.contrib`), and are com.microsoft nodes that no pass can look into.
        """

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[OrtSession]:
        """Raises ModelError, with the runtime's own reason, where the model does not load."""
        yield OrtSession(session(built.file, threads=threads, optimized=True))

    def recipe(self) -> Mapping[str, Any]:
        return {"library": "onnxruntime", "version": version("onnxruntime"), "provider": "CPUExecutionProvider"}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """Of the graph as the runtime has optimized it, fused kernels and all.

        Weights that a kernel has packed for itself are missing among the shapes that the profiler tells: those are read
        off one run without packing, which is not timed.
        """
        timed = _nodes(_events(built.file, threads, [*[feeds[0]] * WARM_UPS, *feeds], {}))
        whole = _nodes(_events(built.file, threads, feeds[:1], UNPACKED))
        return [
            _kernel(key[1], whole.get(key, runs)[-1]["args"], runs[WARM_UPS:] or runs) for key, runs in timed.items()
        ]


Event = Mapping[str, Any]


def _events(model: Path, threads: int, feeds: Sequence[Feeds], config: Mapping[str, str]) -> list[Event]:
    with tempfile.TemporaryDirectory(prefix="optimize-") as folder:
        ready = session(model, threads=threads, optimized=True, profile=Path(folder) / "profile", config=config)
        for feed in feeds:
            ready.run(None, feed)
        found: list[Event] = json.loads(Path(ready.end_profiling()).read_text())
        return found


def _nodes(events: Sequence[Event]) -> dict[tuple[str, str], list[Event]]:
    """The events of each kernel, one a run, by place and name, in the order they run."""
    found: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            key = event["args"]["node_index"], event["name"].removesuffix(KERNEL)
            found.setdefault(key, []).append(event)
    return found


def _kernel(name: str, about: Mapping[str, Any], runs: Sequence[Event]) -> Kernel:
    """The median over the runs."""
    return Kernel(
        name,
        about["op_name"],
        float(np.median([run["dur"] for run in runs])) / 1e6,
        _shapes(about.get("input_type_shape", ())),
        _shapes(about.get("output_type_shape", ())),
    )


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(shape)) for one in listed for kind, shape in one.items()]


class OrtSession:
    """Wraps an onnxruntime.InferenceSession: arrays by input name in, arrays by output name out."""

    def __init__(self, ready: Any):
        self._ready = ready
        self._names = [output.name for output in ready.get_outputs()]

    def run(self, feeds: Feeds) -> Feeds:
        return dict(zip(self._names, self._ready.run(self._names, feeds), strict=True))
