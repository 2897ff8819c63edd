"""Models in and out: weights stay in the file until a pass asks for them, and are streamed when written.

A model is read into a `Graph` and written from one; what the file says of itself (interface, metadata, doc
strings) is kept as protobufs. Local functions are inlined. A model whose weights live outside its file, or whose
file would pass `LIMIT` bytes, is written with one `.data` file beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import ModelError, UserError
from optimizer.graph import Array, Constant, Graph, Header, Names, Node, Tensor, Variable
from optimizer.ir import LazyValues, PlainGraph

LIMIT = 1_500_000_000  # bytes of weights kept inside the .onnx file; protobuf ends at 2 GiB
ALIGN = 4096  # offset of each tensor in the .data file, so that runtimes can map it
CHUNK = 1 << 24
SMALL = 1024  # bytes: smaller tensors always stay inside the file

log = logging.getLogger(__name__)


class Stored(LazyValues):
    """Weights that are still in the model's file: shape and dtype known, values read on demand, never cached."""

    def __init__(self, proto: TensorProto, folder: Path | None):
        self.tensor = proto
        self.shape = tuple(proto.dims)
        self.dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
        self.file: Path | None = None
        self.offset = 0
        if folder is not None:
            self.file, self.offset = _external(proto, folder)
        bits = 4 if proto.data_type in (TensorProto.INT4, TensorProto.UINT4) else 8 * np.dtype(self.dtype).itemsize
        self.nbytes = (int(np.prod(self.shape, dtype=np.int64)) * bits + 7) // 8
        if self.file is not None:
            _check_extent(proto, self.file, self.offset, self.nbytes)

    def load(self) -> Array:
        """The values, read anew each time."""
        if self.file is None:
            return numpy_helper.to_array(self.tensor)
        proto = TensorProto(dims=self.tensor.dims, data_type=self.tensor.data_type)
        proto.raw_data = b"".join(self.chunks())
        return numpy_helper.to_array(proto)

    def chunks(self) -> Iterator[bytes]:
        """The raw little-endian bytes, in pieces of at most 16 MiB."""
        if self.file is None:
            yield self.tensor.raw_data or _proto(self.load(), "").raw_data
            return
        with self.file.open("rb") as f:
            f.seek(self.offset)
            left = self.nbytes
            while left > 0:
                piece = f.read(min(CHUNK, left))
                left -= len(piece)
                yield piece


def load(source: Path | str | onnx.ModelProto) -> Graph:
    """Reads a model from a file, or takes a ModelProto (which is left as it is).

    Raises ModelError for anything that is not a complete ONNX model: not a protobuf, truncated, weights missing or
    outside the model's folder, an operator set this version of onnx does not know, a construct that cannot be kept.
    """
    if isinstance(source, onnx.ModelProto):
        folder, model = None, source
    else:
        folder, model = Path(source).parent, _parse(Path(source))
    _check(model, source)
    if model.functions:
        model = _inline(model)
    header = _header(model)
    names = Names()
    graph = _read_graph(model.graph, names, {}, folder, None)
    graph.header = header
    initializers = {t.name: t for t in graph.ir.__dict__.pop("_initializers")}
    inputs = {v.name for v in header.inputs}
    graph.overridable = {name: t for name, t in initializers.items() if name in inputs}
    graph.tidy()
    return graph


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"no model at '{path}': give the path of an .onnx file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or it is cut short: export or download it again") from None
    return model


def _check(model: onnx.ModelProto, source: Path | str | onnx.ModelProto) -> None:
    where = "the model" if isinstance(source, onnx.ModelProto) else f"'{source}'"
    if not model.opset_import or not (model.graph.node or model.graph.output):
        raise ModelError(f"{where} is not an ONNX model, or it is cut short: it has no graph or no operator set")
    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= known:
            raise ModelError(
                f"{where} uses operator set {entry.version}; onnx {onnx.__version__} knows 1 to {known}: "
                "upgrade the onnx package or export for an older operator set"
            )
    imports = {e.domain for e in model.opset_import} | {f.domain for f in model.functions}
    local = {(f.domain, f.name) for f in model.functions}
    _check_operators(model.graph, model.opset_import, imports, local, where)


def _check_operators(graph: onnx.GraphProto, opsets: Any, imports: set[str], local: set[Any], where: str) -> None:
    versions = {e.domain: e.version for e in opsets}
    version = versions.get("", versions.get("ai.onnx", 1))
    for node in graph.node:
        standard = node.domain in ("", "ai.onnx") and (node.domain, node.op_type) not in local
        if standard and not onnx.defs.has(node.op_type, max_inclusive_version=version, domain=""):
            raise ModelError(
                f"node '{node.name or node.output[0]}' in {where} uses operator '{node.op_type}', which operator "
                f"set {version} does not have: give the operator its own domain, or export the model again"
            )
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPHS:
                raise ModelError(
                    f"node '{node.name}' ({node.op_type}) in {where} holds a list of graphs in '{attr.name}': no "
                    "standard operator does, and it cannot be kept safely; remove the node"
                )
            if attr.type == onnx.AttributeProto.GRAPH:
                _check_operators(attr.g, opsets, imports, local, where)


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the inliner raises bare C++ exceptions
        raise ModelError(f"the model's local functions cannot be inlined: {str(error).splitlines()[0]}") from error


def _header(model: onnx.ModelProto) -> Header:
    rest = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name in ("graph", "functions", "opset_import", "ir_version"):
            continue
        if descriptor.is_repeated:
            getattr(rest, descriptor.name).extend(value)
        else:
            setattr(rest, descriptor.name, value)
    graph = model.graph
    return Header(
        ir_version=model.ir_version,
        imports={"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import},
        inputs=list(graph.input),
        outputs=list(graph.output),
        model=rest,
        name=graph.name,
        doc=graph.doc_string,
        metadata={p.key: p.value for p in graph.metadata_props},
        annotations=list(graph.quantization_annotation),
    )


# -------------------------------------------------------------------- protobuf -> Graph


def _read_graph(
    proto: onnx.GraphProto, names: Names, outer: dict[str, Tensor], folder: Path | None, parent: Graph | None
) -> Graph:
    """One scope; `outer` maps the names visible from enclosing scopes. Names are made unique over all scopes."""
    local: dict[str, Tensor] = {}
    visible = ChainView(local, outer)

    def unique(name: str) -> str:
        return names.fresh(name)

    initializers = []
    for tensor in [*proto.initializer, *proto.sparse_initializer]:
        constant = _constant(tensor, folder, names)
        local[constant.name] = constant
        constant.name = unique(constant.name)
        initializers.append(constant)
    inputs = []
    for info in proto.input:
        if info.name not in local:
            local[info.name] = _variable(info, unique(info.name))
            inputs.append(local[info.name])
    for node in proto.node:
        for name in filter(None, node.output):
            if name in local:
                raise ModelError(f"tensor '{name}' is made twice (again by node '{node.name}'): not a valid graph")
            local[name] = Variable(unique(name))
    for info in [*proto.value_info, *proto.output]:
        made = local.get(info.name)
        if isinstance(made, Variable) and made.dtype is None:
            _describe(made, info)
    ir = PlainGraph(inputs=inputs, name=proto.name, doc_string=proto.doc_string)
    ir.__dict__["_initializers"] = initializers
    graph = Graph(ir, names, parent=parent)
    for node in proto.node:
        ir.nodes.append(_read_node(node, visible, names, folder, graph))
    ir.outputs = [_output(info.name, visible, graph) for info in proto.output]
    names.outputs.update(t.name for t in ir.outputs)
    for place, made in enumerate(ir.nodes, 1):
        made.order, made.scope = float(place), graph
    return graph


class ChainView:
    """Names of a scope laid over those of the scopes around it, without copying either."""

    def __init__(self, local: dict[str, Tensor], outer: Any):
        self.local, self.outer = local, outer

    def get(self, name: str) -> Tensor | None:
        found = self.local.get(name)
        return found if found is not None else self.outer.get(name)


def _output(name: str, visible: ChainView, graph: Graph) -> Tensor:
    tensor = visible.get(name)
    if tensor is None:
        raise ModelError(f"graph output '{name}' is made by no node: the model is incomplete")
    if name not in visible.local or (graph.parent is not None and not tensor.inputs):
        bridge = graph.variable(name, getattr(tensor, "dtype", None), getattr(tensor, "shape", None))
        graph.ir.nodes.append(Node("Identity", graph.fresh("Identity"), {}, [tensor], [bridge]))
        return bridge
    return tensor


def _read_node(proto: onnx.NodeProto, visible: ChainView, names: Names, folder: Path | None, graph: Graph) -> Node:
    inputs = []
    for name in proto.input:
        tensor = visible.get(name) if name else Variable.empty()
        if tensor is None:
            raise ModelError(f"node '{proto.name}' ({proto.op_type}) reads '{name}', which nothing makes")
        inputs.append(tensor)
    outputs = [visible.local[name] if name else Variable.empty() for name in proto.output]
    attrs = {a.name: _read_attribute(a, visible, names, folder, graph) for a in proto.attribute}
    domain = None if proto.domain in ("", "ai.onnx") else proto.domain
    node = Node(proto.op_type, names.fresh(proto.name or proto.op_type), attrs, inputs, outputs, domain)
    node.overload, node.doc = proto.overload, proto.doc_string
    node.metadata = {p.key: p.value for p in proto.metadata_props}
    return node


def _read_attribute(
    attr: onnx.AttributeProto, visible: ChainView, names: Names, folder: Path | None, graph: Graph
) -> Any:
    kind = onnx.AttributeProto
    if attr.type == kind.GRAPH:
        return _read_graph(attr.g, names, visible, folder, graph)  # type: ignore[arg-type]
    if attr.type == kind.TENSOR:
        return Constant("", Stored(attr.t, folder if _is_external(attr.t) else None))
    if attr.type in (kind.FLOAT, kind.INT, kind.STRING, kind.FLOATS, kind.INTS, kind.STRINGS):
        value = helper.get_attribute_value(attr)
        return list(value) if attr.type in (kind.FLOATS, kind.INTS, kind.STRINGS) else value
    return attr  # sparse tensors, types: kept as they are


def _constant(tensor: Any, folder: Path | None, names: Names) -> Constant:
    if isinstance(tensor, onnx.SparseTensorProto):
        return Constant(tensor.values.name, _dense(tensor))
    if _is_external(tensor) and folder is None:
        raise ModelError(f"weights of '{tensor.name}' are in another file: pass the model's path, not a ModelProto")
    return Constant(tensor.name, Stored(tensor, folder if _is_external(tensor) else None))


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
    dense.reshape(-1)[flat] = values
    return dense


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _external(proto: TensorProto, folder: Path) -> tuple[Path, int]:
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
    return path, int(entries.get("offset", 0) or 0)


def _check_extent(proto: TensorProto, path: Path, offset: int, nbytes: int) -> None:
    entries = {e.key: e.value for e in proto.external_data}
    if int(entries.get("length") or nbytes) != nbytes or offset + nbytes > path.stat().st_size:
        raise ModelError(f"weights of '{proto.name}' do not fit in '{path.name}': the file is cut short or not its own")


def _variable(info: onnx.ValueInfoProto, name: str) -> Variable:
    variable = Variable(name)
    _describe(variable, info)
    return variable


def _describe(variable: Variable, info: onnx.ValueInfoProto) -> None:
    """Takes dtype and shape of a tensor type; other kinds (sequence, optional, map) are kept as their protobuf."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        variable.type = info.type if kind else "tensor_type"
        return
    tensor = info.type.tensor_type
    variable.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if tensor.HasField("shape"):
        variable.shape = [_dim(d) for d in tensor.shape.dim]


def _dim(dim: Any) -> int | str | None:
    if dim.WhichOneof("value") == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


# -------------------------------------------------------------------- Graph -> protobuf


def to_model(graph: Graph, *, keep_weights: bool = True) -> onnx.ModelProto:
    """The graph as one ModelProto (weights inside; at most 2 GiB).

    With `keep_weights=False` tensors above 1 KiB are left out of the protobuf, in place.
    """
    model = _frame(graph)
    for constant in _initializers(graph):
        if keep_weights or nbytes(constant) <= SMALL:
            model.graph.initializer.append(_tensor(constant))
    return model


def save(graph: Graph, path: Path) -> list[Path]:
    """Writes `path` (and `<path>.data` where weights are kept outside) and returns the files written.

    Weights are streamed, one tensor at a time; the bytes depend on the graph alone. Raises UserError where the
    folder cannot be written.
    """
    constants = list(_initializers(graph))
    outside = sum(map(nbytes, constants)) > LIMIT or any(_stored_outside(c) for c in constants)
    try:
        with path.open("wb") as f:
            if not outside:
                _write_inside(graph, constants, f)
                return [path]
            data = path.with_name(path.name + ".data")
            _write_outside(graph, constants, f, data)
            return [path, data]
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another folder with -o") from error


def _write_inside(graph: Graph, constants: list[Constant], f: BinaryIO) -> None:
    """Protobuf fields may come in any order, so the graph's body is written first and each tensor after it."""
    model = _frame(graph)
    body = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    sizes = [_size(c) for c in constants]
    total = len(body) + sum(1 + len(_varint(n)) + n for n in sizes)
    f.write(model.SerializeToString(deterministic=True))
    f.write(_tag(7) + _varint(total) + body)  # ModelProto.graph
    for constant, size in zip(constants, sizes, strict=True):
        f.write(_tag(5) + _varint(size))  # GraphProto.initializer
        f.write(_tensor(constant).SerializeToString(deterministic=True))


def _write_outside(graph: Graph, constants: list[Constant], f: BinaryIO, path: Path) -> None:
    model = _frame(graph)
    with path.open("wb") as data:
        for constant in constants:
            if nbytes(constant) <= SMALL or constant.dtype == object:
                model.graph.initializer.append(_tensor(constant))
                continue
            data.seek(-(-data.tell() // ALIGN) * ALIGN)
            proto = TensorProto(name=constant.name, dims=constant.shape)
            proto.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(constant.dtype))
            proto.data_location = TensorProto.EXTERNAL
            where = {"location": path.name, "offset": str(data.tell()), "length": str(nbytes(constant))}
            for key, value in where.items():
                proto.external_data.add(key=key, value=value)
            for piece in _chunks(constant):
                data.write(piece)
            model.graph.initializer.append(proto)
    f.write(model.SerializeToString(deterministic=True))


def _frame(graph: Graph) -> onnx.ModelProto:
    """Everything but the initializers of the outermost scope."""
    header = graph.header
    assert header is not None
    model = onnx.ModelProto()
    model.CopyFrom(header.model)
    model.ir_version = header.ir_version
    used = {node.domain or "" for node in graph.walk()} | {""}
    for domain, version in header.imports.items():
        if domain in used:
            model.opset_import.add(domain=domain, version=version)
    proto = model.graph
    _write_nodes(graph, proto)
    proto.name, proto.doc_string = header.name, header.doc
    proto.input.extend(header.inputs)
    proto.output.extend(header.outputs)
    kept = graph.tensors()
    proto.quantization_annotation.extend(a for a in header.annotations if a.tensor_name in kept)
    for key, value in header.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return model


def _write_nodes(graph: Graph, proto: onnx.GraphProto) -> None:
    interface = {t.name for t in [*graph.inputs, *graph.outputs]}
    for node in graph.nodes:
        made = helper.make_node(
            node.op,
            [t.name for t in node.inputs],
            [t.name for t in node.outputs],
            name=node.name,
            domain=node.domain or "",
            doc_string=node.doc or None,
            overload=node.overload or None,
        )
        made.attribute.extend(_attribute(key, value) for key, value in node.attrs.items())
        for key, value in node.metadata.items():
            made.metadata_props.add(key=key, value=value)
        proto.node.append(made)
        for tensor in node.outputs:
            if tensor.name not in interface and (info := _value_info(tensor)) is not None:
                proto.value_info.append(info)


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto | None:
    kind = getattr(tensor, "type", "tensor_type")
    if isinstance(kind, onnx.TypeProto):
        return onnx.ValueInfoProto(name=tensor.name, type=kind)
    if isinstance(tensor, Constant) or not tensor.name or tensor.dtype is None:
        return None
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
    )


def to_node(op: str, inputs: list[str], outputs: list[str], attrs: Mapping[str, Any]) -> onnx.NodeProto:
    """A NodeProto of the standard domain with attributes held as in a `Node`."""
    made = helper.make_node(op, inputs, outputs)
    made.attribute.extend(_attribute(key, value) for key, value in attrs.items())
    return made


def _attribute(key: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, onnx.AttributeProto):
        return value
    if isinstance(value, Constant):
        return helper.make_attribute(key, _tensor(value))
    if isinstance(value, np.ndarray):
        return helper.make_attribute(key, _proto(value, ""))
    if isinstance(value, Graph):
        return helper.make_attribute(key, _body(value))
    if isinstance(value, list) and not value:
        return helper.make_attribute(key, value, attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(key, value)


def _body(graph: Graph) -> onnx.GraphProto:
    proto = onnx.GraphProto(name=graph.ir.name or "body", doc_string=graph.ir.doc_string or "")
    _write_nodes(graph, proto)
    for tensors, infos in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
        infos.extend(_value_info(t) or onnx.ValueInfoProto(name=t.name) for t in tensors)
    proto.initializer.extend(_tensor(c) for c in _own_constants(graph))
    return proto


def _own_constants(graph: Graph) -> list[Constant]:
    """The initializers a scope holds: those that it reads, unless a scope around it holds them."""
    outer = graph.parent
    visible: set[int] = set()
    while outer is not None:
        visible.update(id(t) for n in outer.nodes for t in n.inputs if isinstance(t, Constant))
        visible.update(id(t) for t in outer.root.overridable.values())
        outer = outer.parent
    found = {id(t): t for n in graph.nodes for t in n.inputs if isinstance(t, Constant) and t.name}
    found.update({id(t): t for t in graph.outputs if isinstance(t, Constant)})
    return [t for key, t in found.items() if key not in visible]


def _initializers(graph: Graph) -> Iterator[Constant]:
    """Initializers of the outermost scope, in order of use; the overridable ones stay, used or not."""
    found = {t.name: t for t in _own_constants(graph)}
    return iter((found | {n: t for n, t in graph.overridable.items() if n not in found}).values())


def _tensor(constant: Constant) -> TensorProto:
    stored = constant._values
    if not isinstance(stored, Stored):
        return _proto(stored, constant.name)
    if stored.file is not None:
        return _proto(stored.load(), constant.name)
    proto = TensorProto()
    proto.CopyFrom(stored.tensor)
    proto.name = constant.name
    return proto


def _proto(values: Array, name: str) -> TensorProto:
    if values.dtype.kind in "OSU":
        return helper.make_tensor(name, TensorProto.STRING, values.shape, [_bytes(v) for v in values.reshape(-1)])
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def nbytes(constant: Constant) -> int:
    """Size of an initializer's values in bytes, without reading them."""
    stored = constant._values
    if isinstance(stored, Stored):
        return int(stored.nbytes)
    four = stored.dtype in (ml_dtypes.int4, ml_dtypes.uint4)
    return (stored.size + 1) // 2 if four else int(stored.nbytes)


def _stored_outside(constant: Constant) -> bool:
    return isinstance(constant._values, Stored) and constant._values.file is not None


def _chunks(constant: Constant) -> Iterator[bytes]:
    stored = constant._values
    return stored.chunks() if isinstance(stored, Stored) else iter([_proto(stored, "").raw_data])


def _size(constant: Constant) -> int:
    """Serialised size of an initializer; arrays are measured without serialising them."""
    stored = constant._values
    if isinstance(stored, np.ndarray) and stored.dtype.kind not in "OSU":
        empty = TensorProto(name=constant.name, dims=stored.shape)
        empty.data_type = helper.np_dtype_to_tensor_dtype(stored.dtype)
        size = nbytes(constant)
        return empty.ByteSize() + 1 + len(_varint(size)) + size
    return _tensor(constant).ByteSize()


def _tag(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
