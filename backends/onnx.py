"""The .onnx file is the artifact: for any runtime, with nothing to compile and nothing to time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from backends.file import FileBackend
from optimizer.backend import Kernel, Session
from optimizer.engine import Built, EngineOptions
from optimizer.errors import UnavailableError
from optimizer.evaluate import Feeds


class OnnxBackend(FileBackend):
    """Portable files. Whether outputs are kept is checked in the oracle, so there is no session to open here."""

    def runs(self, options: EngineOptions) -> bool:
        return False

    def available(self) -> str | None:
        return None

    def open(self, built: Built, threads: int = 0) -> AbstractContextManager[Session]:
        """Raises UnavailableError: a portable file has no runtime of its own."""
        raise UnavailableError("target 'onnx' has no runtime of its own: use --target ort-fp32 to run and time a model")

    def recipe(self) -> Mapping[str, Any]:
        return {}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        return None
