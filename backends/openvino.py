"""OpenVINO on the CPU: its own plugin for ONNX Runtime, or its own library where the plugin takes no such processor.

The plugin (`onnxruntime-ep-openvino`) offers Intel's processors alone, though the same OpenVINO runs on others; there
the `openvino` package opens the file itself. Threads and precision are the same two properties either way. float32
files run in bfloat16 where the precision asks for it and the processor has such instructions; elsewhere OpenVINO would
run them in float32 without a word, so the backend says that it is not available.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from backends.file import FileBackend
from backends.ort import WARM_UPS, OrtSession
from backends.plugin import devices
from optimizer.backend import Kernel, Session
from optimizer.engine import Built
from optimizer.errors import ModelError, UnavailableError
from optimizer.evaluate import Feeds
from optimizer.machine import device

Precision = Literal["f32", "bf16"]
MODULE, PLUGIN, LIBRARY = "onnxruntime_ep_openvino", "onnxruntime-ep-openvino", "openvino"
INSTALL = "pip install 'onnx-optimize[openvino]'"
LATENCY = {"PERFORMANCE_HINT": "LATENCY"}
WORDS = {"f32": "FP32", "bf16": "BF16"}  # as OpenVINO lists what a processor can


@dataclass(frozen=True)
class OpenvinoBackend(FileBackend):
    """The .onnx is the artifact; OpenVINO compiles it each time it is loaded. `precision` is that of float layers."""

    precision: Precision = "f32"

    def available(self) -> str | None:
        way = _way()
        if way is None:
            if find_spec(MODULE) is not None:
                return f"{PLUGIN} offers no device for this processor, which is not Intel's: pip install {LIBRARY}"
            return f"OpenVINO is not installed: {INSTALL}"
        if WORDS[self.precision] not in way.abilities:
            return f"this processor has no bfloat16 arithmetic: OpenVINO offers {', '.join(way.abilities)}"
        return None

    def recipe(self) -> Mapping[str, Any]:
        way = _way()
        if way is None:
            return {}
        properties = {"INFERENCE_PRECISION_HINT": self.precision, **LATENCY}
        options = {"load_config": {"CPU": properties}} if way.package == PLUGIN else properties
        return {"library": way.package, "version": version(way.package), "device": "CPU", "options": options}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """By the library, if it is here: to onnxruntime all that the plugin does is one node."""
        if _core() is None:
            return None
        request = (
            _core()
            .compile_model(  # type: ignore[union-attr]  # looked at above
                str(built.file), "CPU", {**self._options(threads), "PERF_COUNT": "YES"}
            )
            .create_infer_request()
        )
        found: dict[tuple[str, str], list[float]] = {}
        for feed in [*[feeds[0]] * WARM_UPS, *feeds]:
            request.infer(dict(feed))
            for node in request.profiling_info:
                if node.status.name == "EXECUTED":
                    found.setdefault((node.node_name, node.node_type), []).append(node.real_time.total_seconds())
        return [
            Kernel(name, op, float(np.median(seconds[WARM_UPS:] or seconds))) for (name, op), seconds in found.items()
        ]

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[Session]:
        """Raises ModelError, with the runtime's own reason, where the model does not load."""
        if (missing := self.available()) is not None:
            raise UnavailableError(missing)
        way = _way()
        assert way is not None
        try:
            ready = way.open(built.file, self._options(threads))
        except Exception as error:  # both libraries raise bare RuntimeErrors of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise ModelError(f"OpenVINO cannot load the model: {reason}") from error
        yield ready

    def _options(self, threads: int) -> dict[str, str]:
        """Properties of OpenVINO's CPU device; latency first, as a caller who waits for each answer wants it."""
        count = threads or device()["cores"]
        return {"INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": str(count), **LATENCY}


def bf16() -> OpenvinoBackend:
    """The backend of target openvino-bf16."""
    return OpenvinoBackend("bf16")


@dataclass(frozen=True)
class _Way:
    """How to reach OpenVINO here; `abilities` as it lists them for the processor."""

    package: str
    abilities: tuple[str, ...]

    def open(self, file: Path, options: Mapping[str, str]) -> Session:
        return _by_plugin(file, options) if self.package == PLUGIN else _by_library(file, options)


@cache
def _way() -> _Way | None:
    """The plugin where it has a device, else the library; None where neither is here."""
    if (device := _device()) is not None:
        return _Way(PLUGIN, tuple(str(device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "FP32")).split()))
    if (core := _core()) is not None:
        return _Way(LIBRARY, tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return None


# ---------------------------------------------------------------------- the plugin


def _device() -> Any | None:
    """The plugin's CPU as onnxruntime lists it; None without."""
    found = devices(MODULE, PLUGIN)
    return next((device for device in found if device.ep_metadata.get("ov_device") == "CPU"), None)


def _by_plugin(file: Path, options: Mapping[str, str]) -> Session:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_provider_for_devices([_device()], {"load_config": json.dumps({"CPU": dict(options)})})
    # What OpenVINO leaves to onnxruntime's own kernels has as many threads.
    settings.intra_op_num_threads = int(options["INFERENCE_NUM_THREADS"])
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return OrtSession(ort.InferenceSession(str(file), settings))


# ---------------------------------------------------------------------- the library


@cache
def _core() -> Any | None:
    try:
        import openvino

        version(LIBRARY)
        core = openvino.Core()
        return core if "CPU" in core.available_devices else None
    except (ImportError, PackageNotFoundError, RuntimeError):
        return None


def _by_library(file: Path, options: Mapping[str, str]) -> Session:
    core = _core()
    assert core is not None
    graph = onnx.load(file, load_external_data=False).graph
    return _Compiled(core.compile_model(str(file), "CPU", dict(options)), [output.name for output in graph.output])


class _Compiled:
    """An openvino.CompiledModel: one request for each thread that calls it.

    `outputs` are the file's, in order: a tensor of several names is told by any of them.
    """

    def __init__(self, ready: Any, outputs: Sequence[str]):
        self._ready, self._outputs = ready, outputs
        self._inputs = [port.get_names() for port in ready.inputs]
        self._own = threading.local()

    def run(self, feeds: Feeds) -> Feeds:
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._ready.create_infer_request()
        given = {place: feeds[name] for place, names in enumerate(self._inputs) for name in names & feeds.keys()}
        request.infer(given, share_inputs=True)
        return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(self._outputs)}
