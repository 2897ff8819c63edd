"""Which TensorRT is here: `tensorrt` or `tensorrt_rtx`, and for which GPU.

Both are driven by the same code; what one of them lacks is looked up, never assumed. TensorRT for RTX builds for GPUs
that are named, TensorRT for the one that is present; so the latter is taken only where that is what is wanted.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optimizer.errors import UnavailableError, UserError

RTX, FULL = "tensorrt_rtx", "tensorrt"
TITLES = {RTX: "TensorRT for RTX", FULL: "TensorRT"}
OLDEST = (10, 13)  # of TensorRT; every TensorRT for RTX is younger
DEFAULT_GPU = "sm_89"
INSTALL = {
    RTX: "pip install tensorrt-rtx tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs cuda-python",
    FULL: "pip install --extra-index-url https://pypi.nvidia.com tensorrt cuda-python",
}
ONE_AT_A_TIME = threading.RLock()  # TensorRT has one logger in a process, and a process one stderr


@dataclass(frozen=True)
class Library:
    """One of the two modules, imported. `gpus`: compute capabilities it can be asked for by name; none: it cannot."""

    name: str
    trt: Any
    gpus: tuple[str, ...]

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        return f"{TITLES[self.name]} {self.version}"

    @property
    def log(self) -> Any:
        """The logger of this process; `lines` holds (severity, text) of warnings and errors."""
        return _logger(self.trt)

    @property
    def keeps_timings(self) -> bool:
        """False for TensorRT for RTX: kernels are chosen where the engine runs, a timing cache holds nothing."""
        return self.name == FULL

    def supports(self, gpu: str) -> bool:
        """True where engines of this library can be built for `gpu` here."""
        return gpu in self.gpus if self.gpus else gpu == present()

    def resolve(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The GPUs to build for: those named, else the one present, else `DEFAULT_GPU`. Raises UserError."""
        here = present()
        found = tuple(dict.fromkeys(gpu.strip().lower() for gpu in wanted))
        if not found:
            found = (here,) if here is not None and self.supports(here) else (DEFAULT_GPU,)
        for gpu in found:
            if not self.supports(gpu):
                known = ", ".join(self.gpus) or f"the GPU that is present, {here or 'none'}"
                raise UserError(f"{self.title} does not build for --gpu {gpu}; it builds for {known}")
        return found


def find(gpus: Sequence[str] = ()) -> Library:
    """The library to build with for these GPUs (none: the one present). Raises UnavailableError."""
    found = {name: library for name in TITLES if (library := load(name)) is not None}
    here = present()
    if FULL in found and here is not None and all(gpu == here for gpu in gpus):
        return found[FULL]
    if RTX in found:
        return found[RTX]
    raise UnavailableError(missing())


def missing() -> str:
    """Why no engine can be built here, and the command that changes it."""
    if load(FULL) is not None:
        return f"tensorrt builds for the GPU that is present, and none is; TensorRT for RTX needs none: {INSTALL[RTX]}"
    return f"neither tensorrt_rtx nor tensorrt {'.'.join(map(str, OLDEST))} or newer is installed: {INSTALL[RTX]}"


@cache
def load(name: str) -> Library | None:
    """The library called `name`, or None where it is not installed, not complete or too old."""
    if find_spec(name) is None:
        return None
    try:
        with quiet():
            trt = importlib.import_module(name)
            capabilities = getattr(trt, "ComputeCapability", None)
            ahead = hasattr(trt.IBuilderConfig, "num_compute_capabilities")
    except (ImportError, AttributeError, OSError, RuntimeError):  # the package without its shared libraries
        return None
    if name == FULL and _numbers(str(trt.__version__)) < OLDEST:
        return None
    named = sorted(getattr(capabilities, "__members__", ()), key=_numbers) if ahead else []
    return Library(name, trt, tuple(f"sm_{number[2:]}" for number in named if re.fullmatch(r"SM\d+", number)))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


@cache
def present() -> str | None:
    """Compute capability of the first GPU, such as `sm_89`; None where no GPU, driver or cuda-python is."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        return None
    kind = runtime.cudaDeviceAttr
    asked = (kind.cudaDevAttrComputeCapabilityMajor, kind.cudaDevAttrComputeCapabilityMinor)
    answers = [runtime.cudaDeviceGetAttribute(attribute, 0) for attribute in asked]
    return "sm_" + "".join(str(value) for _, value in answers)


@cache
def load_plugins(library: Library, path: Path) -> None:
    """Registers a shared library of plugins, once in a process. Raises UserError where it cannot be loaded."""
    if not path.is_file():
        raise UserError(f"no plugin library at '{path}': give the path of a shared library with --plugin")
    with listening(library) as lines, quiet():
        listener = library.trt.Runtime(library.log)  # the registry has no logger of its own
        handle = library.trt.get_plugin_registry().load_library(str(path))
        del listener
    if handle is None:
        said = next((text for severity, text in lines if severity <= 1), "it gave no reason")
        said = re.sub(r".*Unable to load library: |\s+In \S+ at .*", "", said)
        raise UserError(f"'{path}' is no plugin library for {library.title}: {said}")


@cache
def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the module is known when it is asked for
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                self.lines.append((int(severity), text))

    return Log()


@contextmanager
def listening(library: Library) -> Iterator[list[tuple[int, str]]]:
    """What TensorRT says of warnings and errors inside the block: (severity, text), the worst being 0."""
    with ONE_AT_A_TIME:
        lines: list[tuple[int, str]] = []
        library.log.lines = lines
        yield lines


@contextmanager
def quiet() -> Iterator[None]:
    """Drops what native code prints to stdout and stderr inside the block: they belong to results and to our log."""
    with ONE_AT_A_TIME, warnings.catch_warnings(), tempfile.TemporaryFile() as sink:
        warnings.simplefilter("ignore")
        _flush()
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(sink.fileno(), number)
            yield
        finally:
            _flush()
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)  # the C library buffers of its own
