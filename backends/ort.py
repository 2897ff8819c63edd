"""ONNX Runtime on the CPU: sessions with its own graph optimizations on, and threads under control."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optimizer.engine import Built, EngineOptions
from optimizer.evaluate import Feeds, session
from optimizer.graph import Graph


class OrtBackend:
    """The .onnx is the artifact; ONNX Runtime optimizes it further each time it is loaded."""

    compiles = False

    def runs(self, options: EngineOptions) -> bool:
        return True

    def available(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install onnxruntime"
        return None

    def lower(self, graph: Graph) -> None:
        pass

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        return Built(model)

    def command(self, model: Path, options: EngineOptions) -> str:
        return ""

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[OrtSession]:
        """Raises ModelError, with the runtime's own reason, where the model does not load."""
        yield OrtSession(session(built.file, threads=threads, optimized=True))


class OrtSession:
    """Wraps an onnxruntime.InferenceSession: arrays by input name in, arrays by output name out."""

    def __init__(self, ready: Any):
        self._ready = ready
        self._names = [output.name for output in ready.get_outputs()]

    def run(self, feeds: Feeds) -> Feeds:
        return dict(zip(self._names, self._ready.run(self._names, feeds), strict=True))
