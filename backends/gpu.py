"""ONNX Runtime on an NVIDIA GPU: CUDA's kernels, TensorRT through onnxruntime-gpu, TensorRT for RTX as a plugin.

Inputs and outputs stay bound to the device's memory during a run, so that what is timed is the model; copies to and
from it are part of a run, as a caller meets them. CUDA's provider has no kernels for int8 activations: what is in int8
would go back and forth to the CPU, so there is no such target. Written against the documentation; it has not been run
on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from backends.file import FileBackend
from backends.plugin import devices
from optimizer.backend import Kernel, Session
from optimizer.engine import Built
from optimizer.errors import ModelError, UnavailableError
from optimizer.evaluate import Feeds

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
RTX_PACKAGES = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
GPU = "pip install 'onnx-optimize[cuda]' (onnxruntime-gpu takes the place of onnxruntime: uninstall that first)"


@dataclass(frozen=True)
class GpuBackend(FileBackend):
    """A provider of onnxruntime-gpu: CUDA, or TensorRT with CUDA for what it does not take."""

    provider: str = CUDA

    def available(self) -> str | None:
        import onnxruntime as ort

        if self.provider not in ort.get_available_providers():
            return f"onnxruntime has no {self.provider} here: {GPU}"
        return None if _gpu() else "there is no NVIDIA GPU here, or its driver is not"

    def recipe(self) -> Mapping[str, Any]:
        return {"library": "onnxruntime-gpu", "version": _version("onnxruntime-gpu"), "provider": self.provider}

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """None: a GPU's kernels run on when the profiler's clock has stopped."""
        return None

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[Session]:
        """Raises ModelError, with the runtime's own reason, where the model does not load."""
        import onnxruntime as ort

        if (missing := self.available()) is not None:
            raise UnavailableError(missing)
        providers = [self.provider] if self.provider == CUDA else [self.provider, CUDA]
        yield _bound(lambda options: ort.InferenceSession(str(built.file), options, providers=providers), threads)


@dataclass(frozen=True)
class RtxBackend(GpuBackend):
    """TensorRT for RTX as a plugin of onnxruntime: engines are made when the model is loaded."""

    def available(self) -> str | None:
        if not _version(*RTX_PACKAGES):
            return f"TensorRT for RTX does not plug into onnxruntime here: pip install {RTX_PACKAGES[0][:-5]}"
        return None if _rtx() else "TensorRT for RTX offers no device here: it needs an NVIDIA GPU from Turing on"

    def recipe(self) -> Mapping[str, Any]:
        return {"library": "onnxruntime-ep-nv-tensorrt-rtx", "version": _version(*RTX_PACKAGES)}

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[Session]:
        """Raises ModelError, with the runtime's own reason, where the model does not load."""
        import onnxruntime as ort

        if (missing := self.available()) is not None:
            raise UnavailableError(missing)

        def load(options: Any) -> Any:
            options.add_provider_for_devices(list(_rtx()[:1]), {})
            return ort.InferenceSession(str(built.file), options)

        yield _bound(load, threads)


def tensorrt() -> GpuBackend:
    """The backend of targets ort-tensorrt-*."""
    return GpuBackend(TENSORRT)


class _Bound:
    """A session whose outputs stay on the device until a run has ended."""

    def __init__(self, ready: Any):
        self._ready = ready
        self._inputs = [value.name for value in ready.get_inputs()]
        self._outputs = [value.name for value in ready.get_outputs()]

    def run(self, feeds: Feeds) -> Feeds:
        binding = self._ready.io_binding()
        for name in self._inputs:
            if name in feeds:
                binding.bind_cpu_input(name, feeds[name])
        for name in self._outputs:
            binding.bind_output(name, "cuda")
        self._ready.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


def _bound(load: Any, threads: int) -> Session:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return _Bound(load(options))
    except Exception as error:  # onnxruntime raises several bare classes of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"ONNX Runtime cannot load the model on the GPU: {reason}") from error


def _gpu() -> bool:
    """True where NVIDIA's driver lists a GPU."""
    from backends.trt.library import present

    return present() is not None


def _rtx() -> tuple[Any, ...]:
    return next((found for package in RTX_PACKAGES if (found := devices(RTX_MODULE, package))), ())


def _version(*packages: str) -> str:
    """Of the first that is installed; '' where none is."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""
