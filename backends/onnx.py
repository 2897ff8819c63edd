"""The .onnx file is the artifact: for any runtime, with nothing to compile and nothing to time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from optimizer.backend import Kernel, Session
from optimizer.engine import Built, EngineOptions
from optimizer.errors import UnavailableError
from optimizer.evaluate import Feeds
from optimizer.graph import Graph


class OnnxBackend:
    """Portable files. Whether outputs are kept is checked in the oracle, so there is no session to open here."""

    compiles = False

    def runs(self, options: EngineOptions) -> bool:
        return False

    def available(self) -> str | None:
        return None

    def lower(self, graph: Graph) -> None:
        pass

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        return Built(model)

    def command(self, model: Path, options: EngineOptions) -> str:
        return ""

    def open(self, built: Built, threads: int = 0) -> AbstractContextManager[Session]:
        """Raises UnavailableError: a portable file has no runtime of its own."""
        raise UnavailableError("target 'onnx' has no runtime of its own: use --target ort-fp32 to run and time a model")

    def recipe(self) -> Mapping[str, Any]:
        return {}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        return None
