"""The oracle: runs a graph as it is written, on ONNX Runtime's CPU kernels with every optimization off.

What a pass did is judged by it, and constants are folded with it, so that a folded value is the value the model
would have computed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import onnx

from optimizer.errors import ModelError
from optimizer.graph import Array, Constant, Graph, peek
from optimizer.io import LIMIT, nbytes, save, to_model

Feeds = dict[str, Array]


class Run(Protocol):
    """A model that is ready to run: input arrays by name in, output arrays by name out."""

    def __call__(self, feeds: Feeds) -> Feeds: ...


class Evaluate:
    """Opens graphs for running. `threads` bounds the runtime's threads; results do not depend on it."""

    def __init__(self, threads: int = 0):
        self.threads = threads

    def __call__(self, graph: Graph, feeds: Feeds, fetch: Sequence[str] | None = None) -> Feeds:
        """Runs once. `fetch` names any tensors; the default is the graph's outputs."""
        with self.open(graph, fetch) as run:
            return run(feeds)

    @contextmanager
    def open(self, graph: Graph, fetch: Sequence[str] | None = None) -> Iterator[Run]:
        """A runnable copy of the graph whose outputs are the tensors in `fetch` (names, any scope's outermost).

        Raises ModelError where the runtime refuses the model, with the runtime's own reason.
        """
        wanted = list(fetch) if fetch is not None else [t.name for t in graph.outputs]
        tensors = graph.tensors() | dict(graph.overridable)
        constants = {n: peek(t) for n in wanted if isinstance(t := tensors.get(n), Constant)}
        names = [n for n in wanted if n not in constants and n not in {t.name for t in graph.inputs}]
        with tempfile.TemporaryDirectory(prefix="optimize-") as folder:
            session = self._session(graph, names, Path(folder)) if names else None

            def run(feeds: Feeds) -> Feeds:
                made = dict(zip(names, session.run(names, feeds), strict=True)) if session else {}
                known = feeds | constants | made
                return {n: known[n] for n in wanted}

            yield run

    def _session(self, graph: Graph, names: list[str], folder: Path) -> Any:
        if sum(nbytes(c) for c in graph.constants().values()) > LIMIT:
            twin = graph.copy()
            _set_outputs(twin, names)
            save(twin, folder / "model.onnx")
            return session(folder / "model.onnx", threads=self.threads)
        model = to_model(graph)
        if names != [v.name for v in model.graph.output]:
            del model.graph.output[:]
            model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        return session(model.SerializeToString(), threads=self.threads)


def _set_outputs(graph: Graph, names: list[str]) -> None:
    tensors = graph.tensors()
    assert graph.header is not None
    graph.ir.outputs = [tensors[n] for n in names]
    graph.header.outputs = [onnx.ValueInfoProto(name=n) for n in names]


def session(
    model: bytes | Path,
    *,
    threads: int = 0,
    optimized: bool = False,
    profile: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> Any:
    """An onnxruntime.InferenceSession on the CPU, silent, its threads pinned (0: all cores).

    `profile`: what the runtime's profiler writes starts with this path; it slows the model down.
    `config`: entries of the session's configuration.

    Raises ModelError with the runtime's reason where the model does not load.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads of one session must not spin on the cores that another one is being timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = optimized  # the oracle keeps no memory between runs, whatever the model's size
    options.enable_mem_pattern = optimized  # nor a plan of memory for every shape it has seen
    if not optimized:  # in the file's order: what is read soon after it is made is freed soon
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises several bare classes of its own
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"ONNX Runtime cannot load the model: {reason}") from error
