"""Weights that stay in the model's file until a pass asks for them, and what they weigh meanwhile.

Shape, dtype and size of a stored weight are known without reading it; its values are read anew each time and never
cached, so the memory a model takes does not grow with its weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import ModelError
from optimizer.graph import Array, Constant
from optimizer.ir import LazyValues
from optimizer.wire import Held, Place

CHUNK = 1 << 20  # bytes copied at a time: with more, most of the time goes into getting the memory
WHOLE = 1 << 30  # bytes that one call to the system can read, and less than it can at most
KINDS = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}  # bits


class Stored(LazyValues):
    """An initializer's values where they were found: in the protobuf, in the model's file, or in one beside it.

    `folder` is the model's folder where the values are in a file of their own, `place` says where they are in the
    model's. Raises ModelError where that file is missing, outside the folder, or too short.
    """

    def __init__(self, proto: TensorProto, folder: Path | None = None, place: Place | None = None):
        _check_type(proto)
        self.tensor = proto
        self.shape = tuple(proto.dims)
        self.dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
        self.nbytes = _size(proto.data_type, proto.dims, proto.string_data)
        self.file: Path | None = None
        self.offset = 0
        self.place = place
        if folder is not None:
            self.file, self.offset = _locate(proto, folder)
            _check_extent(proto, self.file, self.offset, self.nbytes)
        else:
            _check_values(proto, self.nbytes, place)

    @property
    def parsed(self) -> bool:
        """True where the protobuf itself holds the values."""
        return self.file is None and self.place is None

    def load(self) -> Array:
        """The values, read anew each time."""
        if self.parsed and not (_is_plain(self.dtype) and self.tensor.HasField("raw_data")):
            return numpy_helper.to_array(self.tensor)
        raw = self.tensor.raw_data if self.parsed else b"".join(self.chunks(WHOLE))
        if _is_plain(self.dtype):
            return np.frombuffer(raw, self.dtype).reshape(self.shape)
        proto = TensorProto(dims=self.tensor.dims, data_type=self.tensor.data_type, raw_data=raw)
        return numpy_helper.to_array(proto)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The values as little-endian bytes, in pieces of at most `size` where they are in a file."""
        if self.parsed and self.tensor.HasField("raw_data"):
            yield self.tensor.raw_data
        elif self.parsed:
            yield tensor_proto(self.load(), "").raw_data
        for begin in range(0, 0 if self.parsed else self.nbytes, size):
            yield self.read(begin, min(size, self.nbytes - begin))

    def read(self, begin: int, size: int) -> bytes:
        """Some of the bytes of values that are in a file."""
        if self.place is not None:
            return self.place.file.read(self.place.offset + begin, size)
        assert self.file is not None
        with self.file.open("rb") as f:
            f.seek(self.offset + begin)
            if len(piece := f.read(size)) < size:
                raise ModelError(f"'{self.file}' was cut short while it was read; restore it and run again")
            return piece


def tensor(constant: Constant) -> TensorProto:
    """The initializer as a protobuf with its values inside."""
    stored = constant._values
    if not isinstance(stored, Stored):
        return tensor_proto(stored, constant.name)
    if stored.file is not None:
        return tensor_proto(stored.load(), constant.name)
    proto = TensorProto()
    proto.CopyFrom(stored.tensor)
    if stored.place is not None:
        proto.raw_data = b"".join(stored.chunks())
    if constant.name:  # a tensor in an attribute keeps its own
        proto.name = constant.name
    return proto


def tensor_proto(values: Array, name: str) -> TensorProto:
    """An array as a protobuf; zero-dimensional arrays stay so, strings become UTF-8."""
    if values.dtype.kind in "OSU":
        strings: Any = [_bytes(v) for v in values.reshape(-1)]  # the signature asks for numbers only
        return helper.make_tensor(name, TensorProto.STRING, values.shape, strings)
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)


def nbytes(constant: Constant) -> int:
    """Size of an initializer's values in bytes, without reading them."""
    stored = constant._values
    if isinstance(stored, Stored):
        return int(stored.nbytes)
    if stored.dtype.isbuiltin == 1 and stored.dtype.kind not in "OSU":
        return int(stored.nbytes)
    kind = tensor_type(constant)
    if kind == TensorProto.STRING:
        return sum(len(_bytes(v)) for v in stored.reshape(-1))
    return _size(kind, stored.shape, ())


def outside(constant: Constant) -> Path | None:
    """The file beside the model that holds the values, or None where they are in the model's own or in memory."""
    return constant._values.file if isinstance(constant._values, Stored) else None


def held(constant: Constant) -> Held | None:
    """The model's own file, where the values are still in it."""
    stored = constant._values
    return stored.place.file if isinstance(stored, Stored) and stored.place is not None else None


def chunks(constant: Constant) -> Iterator[bytes | memoryview]:
    """The values as little-endian bytes, piece by piece."""
    stored = constant._values
    if isinstance(stored, Stored):
        return stored.chunks()
    if _is_plain(stored.dtype):
        return iter([np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data])  # not copied
    return iter([tensor_proto(stored, "").raw_data])


def streamed(constant: Constant) -> TensorProto | None:
    """The initializer as a protobuf that lacks nothing but its values, to be followed by `chunks`.

    None where the values are written by protobuf: strings, and those that were parsed.
    """
    stored = constant._values
    kind = tensor_type(constant)
    if kind == TensorProto.STRING or (isinstance(stored, Stored) and stored.parsed):
        return None
    if isinstance(stored, Stored) and stored.place is not None:
        proto = TensorProto()
        proto.CopyFrom(stored.tensor)
        proto.name = constant.name
        return proto
    return TensorProto(name=constant.name, dims=stored.shape, data_type=kind)


def tensor_type(constant: Constant) -> int:
    """The protobuf's number for the element type."""
    stored = constant._values
    if isinstance(stored, Stored):
        return int(stored.tensor.data_type)
    return TensorProto.STRING if stored.dtype.kind in "OSU" else int(helper.np_dtype_to_tensor_dtype(stored.dtype))


def _size(kind: int, shape: Any, strings: Any) -> int:
    if kind == TensorProto.STRING:
        return sum(map(len, strings))
    return int(math.prod(shape) * _bits(kind) + 7) // 8


@cache
def _bits(kind: int) -> int:
    """Bits of one element in the file."""
    return PACKED.get(TensorProto.DataType.Name(kind), 8 * np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _check_type(proto: TensorProto) -> None:
    if proto.data_type not in KINDS:
        raise ModelError(
            f"tensor '{proto.name}' has element type {proto.data_type}, which this onnx does not know: upgrade onnx"
        )
    if any(n < 0 for n in proto.dims) or proto.HasField("segment"):
        raise ModelError(f"tensor '{proto.name}' has negative dims or comes in segments: export the model again")


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """True where numpy's bytes are the file's: not for strings, big-endian numbers, and types that numpy lacks."""
    return sys.byteorder == "little" and dtype.isbuiltin == 1 and dtype.kind not in "OSU"


def _check_values(proto: TensorProto, size: int, place: Place | None) -> None:
    if place is not None:
        complete = place.size == size
    elif proto.HasField("raw_data"):
        complete = len(proto.raw_data) == size
    elif (kind := TensorProto.DataType.Name(proto.data_type)) in PACKED or kind.startswith("COMPLEX"):
        return
    else:
        values = getattr(proto, helper.tensor_dtype_to_field(proto.data_type))
        complete = len(values) == math.prod(proto.dims)
    if not complete:
        raise ModelError(
            f"tensor '{proto.name}' does not hold the {list(proto.dims)} values it promises: export the model again"
        )


def _locate(proto: TensorProto, folder: Path) -> tuple[Path, int]:
    entries = {e.key: e.value for e in proto.external_data}
    location = entries.get("location", "")
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"weights of '{proto.name}' point outside the model's folder ('{location}'): refused for safety; "
            "move the file beside the model"
        )
    if not path.is_file():
        raise ModelError(f"weights of '{proto.name}' are missing: put '{location}' beside the model in '{folder}'")
    offset = entries.get("offset") or "0"
    if not offset.isdecimal() or not (entries.get("length") or "0").isdecimal():
        raise ModelError(f"weights of '{proto.name}' have no readable place in '{location}': export the model again")
    return path, int(offset)


def _check_extent(proto: TensorProto, path: Path, offset: int, size: int) -> None:
    entries = {e.key: e.value for e in proto.external_data}
    if int(entries.get("length") or size) != size or offset + size > path.stat().st_size:
        raise ModelError(f"weights of '{proto.name}' do not fit in '{path.name}': the file is cut short or not its own")
