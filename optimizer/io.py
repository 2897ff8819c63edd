"""Models in and out: weights stay in the file until a pass asks for them, and are streamed when written.

A model whose weights live outside its file, or whose file would pass `LIMIT` bytes, is written with one `.data` file
beside it. What the file says is turned into a Graph in `decode`, and back in `encode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx import TensorProto

from optimizer import wire
from optimizer.collector import paused
from optimizer.decode import read_model
from optimizer.encode import SMALL, frame, skeleton, to_model, to_node
from optimizer.errors import ModelError, UserError
from optimizer.graph import Constant, Graph
from optimizer.inline import inline
from optimizer.stored import chunks, held, nbytes, outside, streamed, tensor, tensor_type
from optimizer.wire import Place, tag, varint

__all__ = ["LIMIT", "SMALL", "load", "nbytes", "save", "skeleton", "to_model", "to_node"]

LIMIT = 1_500_000_000  # bytes of weights kept inside the .onnx file; protobuf ends at 2 GiB
ALIGN = 4096  # offset of each tensor in the .data file, so that runtimes can map it


def load(source: Path | str | onnx.ModelProto) -> Graph:
    """Reads a model from a file, or takes a ModelProto (which is left as it is).

    Raises ModelError for anything that is not a complete ONNX model: not a protobuf, truncated, weights missing or
    outside the model's folder, an operator set this version of onnx does not know, a construct that cannot be kept.
    """
    if isinstance(source, onnx.ModelProto):
        folder, model, places = None, source, dict[str, Place]()
    else:
        folder = Path(source).parent
        model, places = _parse(Path(source))
    _check(model, "the model" if isinstance(source, onnx.ModelProto) else f"'{source}'")
    with paused():
        return read_model(inline(model) if model.functions else model, folder, places)


def _parse(path: Path) -> tuple[onnx.ModelProto, dict[str, Place]]:
    if not path.is_file():
        raise ModelError(f"no model at '{path}': give the path of an .onnx file")
    try:
        return wire.read(path)
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from error
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or it is cut short: export or download it again") from None


def _check(model: onnx.ModelProto, where: str) -> None:
    if not model.opset_import or not (model.graph.node or model.graph.output):
        raise ModelError(f"{where} is not an ONNX model, or it is cut short: it has no graph or no operator set")
    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= known:
            raise ModelError(
                f"{where} uses operator set {entry.version}; onnx {onnx.__version__} knows 1 to {known}: "
                "upgrade the onnx package or export for an older operator set"
            )
    if model.training_info:
        raise ModelError(f"{where} carries training information, which no rewrite keeps true: export it for inference")
    versions = {e.domain: e.version for e in model.opset_import}
    local = {(f.domain, f.name) for f in model.functions}
    _check_operators(model.graph, versions.get("", versions.get("ai.onnx", 1)), local, where)


def _check_operators(graph: onnx.GraphProto, version: int, local: set[tuple[str, str]], where: str) -> None:
    for node in graph.node:
        if (
            node.domain in ("", "ai.onnx")
            and not _has(node.op_type, version)
            and (node.domain, node.op_type) not in local
        ):
            raise ModelError(
                f"node '{node.name or next(iter(node.output), '')}' in {where} uses operator '{node.op_type}', which "
                f"operator set {version} does not have: give the operator its own domain, or export the model again"
            )
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPHS:
                raise ModelError(
                    f"node '{node.name}' ({node.op_type}) in {where} holds a list of graphs in '{attr.name}': no "
                    "standard operator does, and it cannot be kept safely; remove the node"
                )
            if attr.type == onnx.AttributeProto.GRAPH:
                _check_operators(attr.g, version, local, where)


@cache
def _has(op: str, version: int) -> bool:
    """True where an operator set has the operator."""
    return onnx.defs.has(op, max_inclusive_version=version, domain="")


def save(graph: Graph, path: Path) -> list[Path]:
    """Writes `path` (and `<path>.data` where weights are kept outside) and returns the files written.

    Weights are streamed, one tensor at a time; the bytes depend on the graph alone. Raises UserError where the
    folder cannot be written, or where a file to be written holds weights that are still to be read.
    """
    model, constants = frame(graph)
    sources = {file.resolve() for c in constants if (file := outside(c)) is not None}
    data = path.with_name(path.name + ".data")
    if data.resolve() in sources:
        raise UserError(f"'{data}' holds the weights being read: write the model to another folder or name")
    # written under another name first, where the weights are read from the very file that is to be replaced
    here = any(file.is_at(path) for file in {held(c) for c in constants} if file is not None)
    target = path.with_name(path.name + ".new") if here else path
    try:
        with target.open("wb") as f:
            apart = bool(sources) or sum(map(nbytes, constants)) > LIMIT
            if apart:
                _write_outside(model, constants, f, data)
            else:
                _write_inside(model, constants, f)
        if here:
            target.replace(path)
        return [path, data] if apart else [path]
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another folder with -o") from error


def _write_inside(model: onnx.ModelProto, constants: Sequence[Constant], f: BinaryIO) -> None:
    """Protobuf fields may come in any order, so the graph's body is written first and each tensor after it."""
    body = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    sizes = [_serialised(c) for c in constants]
    total = len(body) + sum(1 + len(varint(n)) + n for n in sizes)
    f.write(model.SerializeToString(deterministic=True))
    f.write(tag(7) + varint(total) + body)  # ModelProto.graph
    for constant, size in zip(constants, sizes, strict=True):
        f.write(tag(5) + varint(size))  # GraphProto.initializer
        head = streamed(constant)
        f.write((head or tensor(constant)).SerializeToString(deterministic=True))
        if head is not None:
            f.write(tag(9) + varint(nbytes(constant)))  # TensorProto.raw_data
            for piece in chunks(constant):
                f.write(piece)


def _write_outside(model: onnx.ModelProto, constants: Sequence[Constant], f: BinaryIO, path: Path) -> None:
    with path.open("wb") as data:
        for constant in constants:
            if nbytes(constant) <= SMALL or tensor_type(constant) == TensorProto.STRING:
                model.graph.initializer.append(tensor(constant))
                continue
            data.seek(-(-data.tell() // ALIGN) * ALIGN)
            proto = model.graph.initializer.add(name=constant.name, dims=constant.shape)
            proto.data_type = tensor_type(constant)
            proto.data_location = TensorProto.EXTERNAL
            where = {"location": path.name, "offset": str(data.tell()), "length": str(nbytes(constant))}
            for key, value in where.items():
                proto.external_data.add(key=key, value=value)
            for piece in chunks(constant):
                data.write(piece)
    f.write(model.SerializeToString(deterministic=True))


def _serialised(constant: Constant) -> int:
    """Serialised size of an initializer; values that are streamed are measured without reading them."""
    head = streamed(constant)
    if head is None:
        return int(tensor(constant).ByteSize())
    size = nbytes(constant)
    return int(head.ByteSize()) + 1 + len(varint(size)) + size
