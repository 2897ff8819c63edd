"""What backends share whose artifact is the .onnx file itself: nothing is compiled, the runtime opens the model."""

from __future__ import annotations

from pathlib import Path

from optimizer.engine import Built, EngineOptions
from optimizer.graph import Graph


class FileBackend:
    compiles = False

    def runs(self, options: EngineOptions) -> bool:
        return True

    def lower(self, graph: Graph) -> None:
        """Nothing: the portable model is what the runtime takes."""

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        return Built(model)

    def command(self, model: Path, options: EngineOptions) -> str:
        return ""
