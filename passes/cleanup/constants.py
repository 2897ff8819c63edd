"""Constant nodes become initializers (H5), and initializers of equal content become one (H4).

Equal means the same dtype, shape and bytes, so NaN payloads and the sign of zero count. Stored weights are compared
by a digest streamed from the file, and only where another initializer has their dtype, their shape and the same bytes
in a few places.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx

from optimizer.graph import Array, Constant, Graph, Node, peek
from optimizer.stored import Stored, chunks

SAMPLE = 64  # bytes
KINDS = (("float", np.float32), ("int", np.int64), ("string", object))
DTYPES = {f"value_{kind}{many}": dtype for kind, dtype in KINDS for many in ("", "s")}
Key = tuple[Hashable, ...]


def lift_constants(graph: Graph) -> int:
    """Turns the Constant nodes of every scope into initializers of that scope; sparse ones are kept."""
    count = 0
    for scope in graph.scopes():
        for node in list(scope.nodes):
            if node.op == "Constant" and not node.domain and (values := _value(node)) is not None:
                _lift(scope, node, values)
                count += 1
    return count


def _lift(scope: Graph, node: Node, values: Any) -> None:
    out = node.outputs[0]
    name = scope.fresh(out.name) if scope.is_output(out) else out.name
    scope.remove(node)
    scope.replace(out, Constant(name, values))


def _value(node: Node) -> Any:
    """What a Constant node holds: an array or stored weights; None for a sparse tensor."""
    for kind, value in node.attrs.items():
        if isinstance(value, Constant):
            return value._values
        if isinstance(value, np.ndarray):
            return value
        if kind in DTYPES:
            return np.array([] if isinstance(value, onnx.AttributeProto) else value, DTYPES[kind])  # an empty list
        assert isinstance(value, onnx.AttributeProto), f"Constant holds {kind}"
    return None


def merge_duplicates(graph: Graph) -> int:
    """Readers of equal initializers, in any scope, come to read the first of them; returns how many readings changed.

    An initializer that callers may override or that is a graph output stays.
    """
    keys = _keys([c for c in graph.constants().values() if graph.is_constant(c) and not graph.is_output(c)])
    if not keys:
        return 0
    first: dict[Key, Constant] = {}
    count = 0
    with graph.equal():
        for node in graph.walk():
            for index, tensor in enumerate(node.inputs):
                if not isinstance(tensor, Constant) or (key := keys.get(id(tensor))) is None:
                    continue
                kept = first.setdefault(key, tensor)
                if kept is not tensor:
                    graph.set_input(node, index, kept)
                    count += 1
    return count


def _keys(constants: list[Constant]) -> dict[int, Key]:
    """A key of content for every initializer that another one may equal."""
    kinds: dict[int, Key] = {id(c): (c.dtype, tuple(c.shape)) for c in constants}
    for distinguish in (_sample, _digest):
        alike = Counter(kinds.values())
        constants = [c for c in constants if alike[kinds[id(c)]] > 1]
        kinds = {id(c): (*kinds[id(c)], distinguish(c)) for c in constants}
    alike = Counter(kinds.values())
    return {each: key for each, key in kinds.items() if alike[key] > 1}


def _sample(constant: Constant) -> bytes:
    """Bytes from a few places, without reading the rest; nothing where they cannot be had like that."""
    stored = constant._values
    if not isinstance(stored, Stored):
        return b"" if stored.dtype == object else _few(np.ascontiguousarray(stored).reshape(-1).view(np.uint8))
    if stored.parsed:
        return _few(np.frombuffer(stored.tensor.raw_data, np.uint8))
    middle, end = stored.nbytes // 2, max(0, stored.nbytes - SAMPLE)
    return b"".join(stored.read(at, min(SAMPLE, stored.nbytes - at)) for at in (0, middle, end))


def _few(data: Array) -> bytes:
    middle = len(data) // 2
    return data[:SAMPLE].tobytes() + data[middle : middle + SAMPLE].tobytes() + data[-SAMPLE:].tobytes()


def _digest(constant: Constant) -> bytes:
    if constant.dtype == object:
        return repr(peek(constant).tolist()).encode()
    digest = hashlib.sha256()
    for piece in chunks(constant):
        digest.update(piece)
    return digest.digest()
