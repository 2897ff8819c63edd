"""Reads the weights of a torch checkpoint of the older kind (before 1.6) without torch.

Such a file is a row of pickles (magic number, version, system, tensors, storage names) and then each
storage's numbers. Only the names that a plain state dict needs are resolved: the pickle can run nothing.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


@dataclass
class _Storage:
    dtype: type
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        numbers = self.storage.numbers[self.offset :]
        strides = [numbers.itemsize * stride for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Resolves tensors and storages alone; `storages` are filled after the pickles are read."""

    storages: dict[str, _Storage]

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"a checkpoint of plain tensors has no {module}.{name}")

    def persistent_load(self, reference: Any) -> _Storage:  # Any: whatever the pickle says
        _, kind, key = reference[:3]
        return self.storages.setdefault(key, _Storage(DTYPES[kind]))


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Weights by name from a state dict saved by torch before 1.6. Raises UnpicklingError for others."""
    storages: dict[str, _Storage] = {}
    with open(path, "rb") as file:

        def load() -> Any:  # Any: each pickle of the row holds something else
            unpickler = _Unpickler(file)
            unpickler.storages = storages
            return unpickler.load()

        if load() != MAGIC:
            raise pickle.UnpicklingError(f"{path} is no torch checkpoint of the older kind")
        load(), load()  # version and system: nothing here depends on them
        tensors, keys = load(), load()
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storage = storages[key]
            size = count * np.dtype(storage.dtype).itemsize
            storage.numbers = np.frombuffer(file.read(size), storage.dtype)
    return {name: tensor.array() for name, tensor in tensors.items()}
