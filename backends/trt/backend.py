"""The backend of the targets trt-*: lowers, builds and opens, and says how to get what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.trt import library
from optimizer.backend import Kernel
from optimizer.engine import Built, EngineOptions
from optimizer.evaluate import Feeds
from optimizer.graph import Graph

if TYPE_CHECKING:
    from backends.trt.session import TrtSession

UNKNOWN = "?"


class TrtBackend:
    """TensorRT or TensorRT for RTX, whichever is here. Engines are built without a GPU, and run only on one."""

    compiles = True

    def runs(self, options: EngineOptions) -> bool:
        """True where a GPU is present, is among those asked for, and engines can be built for it here."""
        here = library.present()
        if here is None or here not in (options.gpus or (here,)):
            return False
        return any(found.supports(here) for name in library.TITLES if (found := library.load(name)) is not None)

    def available(self) -> str | None:
        """None where engines can be built, with or without a GPU, else why not and how to get it."""
        has_gpu = library.present() is not None
        usable = [name for name in library.TITLES if library.load(name) and (has_gpu or name == library.RTX)]
        return None if usable else library.missing()

    def install(self) -> str:
        """The command that brings TensorRT for RTX, which needs no GPU to build."""
        return library.INSTALL[library.RTX]

    def lower(self, graph: Graph) -> None:
        """Names every node, so that layers and complaints can be traced back to it; frees dims called `?`.

        TensorRT takes dims of one name for equal, and exporters write `?` for any size they do not know.
        """
        graph.name_nodes()
        assert graph.header is not None
        for info in graph.header.inputs:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param == UNKNOWN:
                    dim.Clear()

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        """Writes `folder`/model.engine for the GPUs and sizes in `options`.

        Where the engine can be opened, its inspector's report of kernels is among the facts. Raises BuildError where
        TensorRT refuses the model, UserError for options that do not fit it.
        """
        from backends.trt.build import build

        built = build(model, folder, options)
        if library.present() not in built.facts["gpus"]:
            return built
        with self.open(built) as session:
            return replace(built, facts={**built.facts, "kernels": session.layers()})

    def command(self, model: Path, options: EngineOptions) -> str:
        """The line for NVIDIA's own tool that builds the same; needs nothing installed."""
        from backends.trt.command import command

        return command(model, options)

    def open(self, built: Built, threads: int = 0) -> AbstractContextManager[TrtSession]:
        """Loads an engine onto the GPU. Raises UnavailableError where there is none that it was built for."""
        from backends.trt.session import open_engine

        return open_engine(built)

    def recipe(self) -> Mapping[str, Any]:
        """The engine's facts say the rest."""
        return {"library": "TensorRT"}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """None: TensorRT's profiler has not been tried on a GPU."""
        return None
