"""A model's file as it lies on disk: large weights are found there and left there.

protobuf reads a file whole and copies every value that is asked for. Here the file is gone through field by field, and
the values of the graph's large initializers are left out of what is parsed: a model takes the memory of its nodes.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from optimizer.errors import ModelError

LARGE = 1 << 14  # bytes: smaller initializers are parsed with the rest
GRAPH, INITIALIZER, RAW_DATA = (number << 3 | 2 for number in (7, 5, 9))  # of ModelProto, GraphProto, TensorProto


class Held:
    """A file that stays open, so that its weights can be read when it is replaced by another one of its name."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._state = self._look()

    def read(self, offset: int, size: int) -> bytes:
        """Raises ModelError where the file was written to in the meantime."""
        self._file.seek(offset)
        found = self._file.read(size) or b""
        if len(found) != size or self._look() != self._state:
            raise ModelError(f"'{self.path}' was changed while it was read; restore it and run again")
        return found

    def mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def is_at(self, path: Path) -> bool:
        """True where `path` names this very file."""
        return path.exists() and os.path.samestat(path.stat(), os.fstat(self._file.fileno()))

    def _look(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


@dataclass(frozen=True)
class Place:
    """Where an initializer's values are, little-endian and without gaps."""

    file: Held
    offset: int
    size: int


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, Place]]:
    """A model without the values of its large initializers, and where those are, by name.

    Raises DecodeError for what is no model, OSError where the file cannot be read.
    """
    file = Held(path)
    try:
        with file.mapped() as data:
            lean, found = _lean(data)
    except (ValueError, IndexError):  # no protobuf, or nothing at all: the parser says so in its own way
        lean, found = path.read_bytes(), []
    model = onnx.ModelProto()
    model.ParseFromString(lean)
    places = {model.graph.initializer[number].name: Place(file, at, end - at) for number, at, end in found}
    return model, places


def tag(number: int) -> bytes:
    """What opens a field that says how long it is."""
    return varint(number << 3 | 2)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _lean(data: mmap.mmap) -> tuple[bytes, list[tuple[int, int, int]]]:
    """The model without the values of large initializers; for each its number, and begin and end of its values."""
    model, left_out, count = bytearray(), list[tuple[int, int, int]](), 0
    for key, begin, at, end in _fields(data, 0, len(data)):
        if key != GRAPH:
            model += data[begin:end]
            continue
        graph, kept = bytearray(), at
        for inner, start, value, stop in _fields(data, at, end):
            if inner != INITIALIZER:
                continue
            if stop - value > LARGE and (raw := _raw_data(data, value, stop)) is not None:
                tensor = data[value : raw[0]] + data[raw[2] : stop]
                graph += data[kept:start] + varint(INITIALIZER) + varint(len(tensor)) + tensor
                left_out.append((count, *raw[1:]))
                kept = stop
            count += 1
        graph += data[kept:end]
        model += varint(GRAPH) + varint(len(graph)) + graph
    return bytes(model), left_out


def _raw_data(data: mmap.mmap, at: int, end: int) -> tuple[int, int, int] | None:
    """Begin of the field, begin and end of its value, where a TensorProto has one and it is large."""
    found = [each[1:] for each in _fields(data, at, end) if each[0] == RAW_DATA]
    return found[0] if len(found) == 1 and found[0][2] - found[0][1] > LARGE else None


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Key, begin, begin of the value and end of each field. Raises ValueError or IndexError for what is no message."""
    while at < end:
        begin = at
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == 2:
            size, at = _read_varint(data, at)
            stop = at + size
        elif kind == 0:
            stop = _read_varint(data, at)[1]
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("groups, which models do not have")
        if stop > end:
            raise ValueError("a field is longer than what it is in")
        yield key, begin, at, stop
        at = stop


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
    return value | byte << shift, at + 1
