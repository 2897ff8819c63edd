"""Runs an engine: buffers on the GPU through cuda-python, one stream, device events for the time of the run itself.

Sizes come from the feeds, those of outputs from TensorRT; an output whose size depends on values is allocated when
TensorRT asks for it. Written against the documentation of both libraries; it has not been run on a GPU yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.trt import library
from backends.trt.library import Library, listening, load_plugins, quiet
from backends.trt.messages import NOISE, clean
from optimizer.engine import Built
from optimizer.errors import DataError, ModelError, UnavailableError
from optimizer.evaluate import Feeds
from optimizer.graph import Array

REBUILD = "build it again with --gpu"


@contextmanager
def open_engine(built: Built) -> Iterator[TrtSession]:
    """A session of an engine that `build` made.

    Raises UnavailableError where there is no GPU that it is for, ModelError where TensorRT does not load it.
    """
    found = _library(built)
    cuda = Cuda()
    for path in built.facts.get("plugins", ()):
        load_plugins(found, Path(path))
    with listening(found) as lines, quiet():
        runtime = found.trt.Runtime(found.log)
        engine = runtime.deserialize_cuda_engine(built.file.read_bytes())
        context = engine.create_execution_context() if engine is not None else None
    if context is None:
        said = next((clean(text) for _, text in lines if not NOISE.search(text)), "it gave no reason")
        raise ModelError(f"{found.title} does not load '{built.file}': {said}; {REBUILD}")
    session = TrtSession(found, cuda, engine, context)
    try:
        yield session
    finally:
        session.close()


def _library(built: Built) -> Library:
    name, version = built.facts["library"], built.facts["version"]
    found = library.load(name)
    if found is None:
        raise UnavailableError(
            f"'{built.file}' was built by {name} {version}, which is not here: {library.INSTALL[name]}"
        )
    if found.version != version and "version_compatible" not in built.facts["flags"]:
        raise UnavailableError(f"'{built.file}' was built by {name} {version}, and {found.version} is here: {REBUILD}")
    here, gpus = library.present(), built.facts["gpus"]
    if here is None:
        raise UnavailableError(f"'{built.file}' runs on an NVIDIA GPU ({', '.join(gpus)}), and none is here")
    if here not in gpus:
        raise UnavailableError(f"'{built.file}' is for {', '.join(gpus)}, and the GPU here is {here}: {REBUILD} {here}")
    return found


class Cuda:
    """The CUDA runtime's calls that sessions need; every error becomes an exception with CUDA's own words."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.runtime = runtime
        kinds = runtime.cudaMemcpyKind
        self.to_device, self.to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost

    def __call__(self, name: str, *arguments: Any) -> Any:
        """`cuda("cudaMalloc", 64)`: the call's result. Raises UnavailableError with CUDA's reason."""
        error, *results = getattr(self.runtime, name)(*arguments)
        if error != self.runtime.cudaError_t.cudaSuccess:
            _, text = self.runtime.cudaGetErrorString(error)
            raise UnavailableError(f"CUDA failed in {name}: {text.decode()}; see what else uses the GPU")
        return results[0] if results else None


@dataclass
class Buffer:
    """Device memory that grows when more is asked for."""

    cuda: Cuda
    pointer: int = 0
    size: int = 0

    def reserve(self, size: int) -> int:
        size = max(size, 1)  # an empty tensor needs an address too
        if size > self.size:
            self.free()
            self.pointer, self.size = int(self.cuda("cudaMalloc", size)), size
        return self.pointer

    def free(self) -> None:
        if self.pointer:
            self.cuda("cudaFree", self.pointer)
        self.pointer, self.size = 0, 0


class TrtSession:
    """An engine on the GPU: arrays by input name in, arrays by output name out.

    `seconds` is the device's time for the latest run, without the copies to and from it; 0 before the first.
    """

    def __init__(self, found: Library, cuda: Cuda, engine: Any, context: Any):
        self._library, self._cuda, self._engine, self._context = found, cuda, engine, context
        self.seconds = 0.0
        trt = found.trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._dtypes = {name: _dtype(engine.get_tensor_dtype(name)) for name in names}
        self._on_host = {name for name in names if engine.get_tensor_location(name) == trt.TensorLocation.HOST}
        self._buffers = {name: Buffer(cuda) for name in names if name not in self._on_host}
        self._stream = cuda("cudaStreamCreate")
        self._events = (cuda("cudaEventCreate"), cuda("cudaEventCreate"))

    def run(self, feeds: Feeds) -> Feeds:
        """Raises DataError for feeds that the engine was not built for."""
        if unknown := [name for name in feeds if name not in self._inputs]:
            raise DataError(f"the engine takes no '{unknown[0]}'; its inputs are {', '.join(self._inputs)}")
        kept = {name: self._give(name, feeds) for name in self._inputs}  # alive until the run is over
        if missing := self._context.infer_shapes():
            raise DataError(f"the engine cannot tell sizes from these feeds: {', '.join(missing)} are not known")
        hosts = {name: self._take(name) for name in self._outputs}
        begin, end = self._events
        self._cuda("cudaEventRecord", begin, self._stream)
        with listening(self._library) as lines, quiet():
            done = self._context.execute_async_v3(int(self._stream))
        self._cuda("cudaEventRecord", end, self._stream)
        self._cuda("cudaStreamSynchronize", self._stream)
        if not done:
            said = next((clean(text) for _, text in lines), "it gave no reason")
            raise ModelError(f"{self._library.title} could not run the engine: {said}; {REBUILD}")
        self.seconds = self._cuda("cudaEventElapsedTime", begin, end) / 1e3  # it counts milliseconds
        del kept
        return {name: hosts[name]() for name in self._outputs}

    def layers(self) -> list[Any]:
        """What the engine's inspector says of each layer, as it says it."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        report = json.loads(inspector.get_engine_information(self._library.trt.LayerInformationFormat.JSON))
        return list(report["Layers"])

    def close(self) -> None:
        """Gives the GPU's memory back; the session cannot run any more."""
        self._cuda("cudaStreamSynchronize", self._stream)
        for buffer in self._buffers.values():
            buffer.free()
        for event in self._events:
            self._cuda("cudaEventDestroy", event)
        self._cuda("cudaStreamDestroy", self._stream)
        del self._context, self._engine

    def _give(self, name: str, feeds: Feeds) -> Array:
        """Hands one input over, and returns the array that must live until the run is over."""
        if name not in feeds:
            raise DataError(f"input '{name}' is missing from the feed")
        array = np.ascontiguousarray(feeds[name]).reshape(np.shape(feeds[name]))
        wanted = self._dtypes[name]
        if array.dtype != wanted:
            if not (array.dtype == np.float64 and wanted == np.float32):  # TensorRT has no float64
                raise DataError(f"input '{name}' is {array.dtype}, and the engine takes {wanted}")
            array = array.astype(wanted)
        if not self._context.set_input_shape(name, array.shape):
            sizes = self._engine.get_tensor_profile_shape(name, 0)
            raise DataError(
                f"input '{name}' of shape {list(array.shape)} is outside what the engine was built for, "
                f"{' to '.join(str(list(size)) for size in (sizes[0], sizes[-1]))}: build it with another --shape"
            )
        if name in self._on_host:
            self._context.set_tensor_address(name, array.ctypes.data)
            return array
        pointer = self._buffers[name].reserve(array.nbytes)
        self._cuda("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, self._cuda.to_device, self._stream)
        self._context.set_tensor_address(name, pointer)
        return array

    def _take(self, name: str) -> Callable[[], Array]:
        """Prepares one output; what it returns fetches the array after the run."""
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 in shape:
            return self._take_later(name)
        host = np.empty(shape, self._dtypes[name])
        if name in self._on_host:
            self._context.set_tensor_address(name, host.ctypes.data)
            return lambda: host
        self._context.set_tensor_address(name, self._buffers[name].reserve(host.nbytes))
        return lambda: self._fetch(name, host)

    def _take_later(self, name: str) -> Callable[[], Array]:
        """An output whose size depends on values: TensorRT asks for memory, then says the shape."""
        allocator = _allocator(self._library.trt, self._buffers[name])
        self._context.set_output_allocator(name, allocator)
        return lambda: self._fetch(name, np.empty(allocator.shape, self._dtypes[name]))

    def _fetch(self, name: str, host: Array) -> Array:
        pointer = self._buffers[name].pointer
        self._cuda("cudaMemcpyAsync", host.ctypes.data, pointer, host.nbytes, self._cuda.to_host, self._stream)
        self._cuda("cudaStreamSynchronize", self._stream)
        return host


def _allocator(trt: Any, buffer: Buffer) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the module is known when asked for
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            return buffer.reserve(size)

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return buffer.reserve(size)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()


def _dtype(kind: Any) -> np.dtype[Any]:
    """The NumPy type of a TensorRT one; bfloat16 and float8 are ml_dtypes'."""
    import ml_dtypes

    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn"}
    name = names.get(kind.name, kind.name.lower())
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name, name))
    return found
