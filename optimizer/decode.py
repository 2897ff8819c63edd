"""Protobuf to Graph: names are made unique over all scopes, and what a Graph cannot hold is refused, not dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import ModelError
from optimizer.graph import Array, Constant, Dim, Graph, Header, Names, Node, Tensor, Variable
from optimizer.ir import PlainGraph
from optimizer.stored import Stored
from optimizer.wire import Place

ORIGIN = "onnx_optimize.origin"  # of a node's metadata: what an earlier run of ours made it of
# looked up once: the class finds its numbers by name each time
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = (
    getattr(onnx.AttributeProto, name)
    for name in ("FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS")
)
EXTERNAL = TensorProto.EXTERNAL
KEPT_ELSEWHERE = ("graph", "functions", "opset_import", "ir_version")


def read_model(model: onnx.ModelProto, folder: Path | None, places: Mapping[str, Place]) -> Graph:
    """The graph of a model without local functions; `folder` is where its external weights are.

    `places` says where the values of initializers are that the model lacks.
    """
    return _Reader(folder, places).model(model)


class _Scope:
    """Names of a scope laid over those of the scopes around it, without copying either."""

    def __init__(self, outer: _Scope | None):
        self.local: dict[str, Tensor] = {}
        self.outer = outer

    def get(self, name: str) -> Tensor | None:
        found = self.local.get(name)
        return found if found is not None or self.outer is None else self.outer.get(name)

    def define(self, name: str, tensor: Tensor, maker: str | None = None) -> None:
        """Enters a tensor: what the node `maker` makes, or an input or an initializer."""
        if name in self.local:
            what = "an input or an initializer" if maker is None else f"node '{maker}'"
            raise ModelError(f"tensor '{name}' is made twice (again by {what}): not a valid graph; export it again")
        self.local[name] = tensor


class _Reader:
    def __init__(self, folder: Path | None, places: Mapping[str, Place]):
        self.folder = folder
        self.places = places
        self.names = Names()

    def model(self, model: onnx.ModelProto) -> Graph:
        scope = _Scope(None)
        graph = self.graph(model.graph, scope, None)
        header = _header(model)
        graph.header = header
        for annotation in header.annotations:
            for entry in annotation.quant_parameter_tensor_names:
                if isinstance(named := scope.get(entry.value), Constant):
                    graph.annotating[entry.value] = named
        graph.tidy()
        return graph

    def graph(self, proto: onnx.GraphProto, scope: _Scope, parent: Graph | None) -> Graph:
        ir = PlainGraph(name=proto.name, doc_string=proto.doc_string)
        graph = Graph(ir, self.names, parent=parent)
        graph.metadata = {p.key: p.value for p in proto.metadata_props}
        if parent is not None and proto.quantization_annotation:
            raise ModelError(f"the subgraph '{proto.name}' carries quantization annotations, which cannot be kept")
        for tensor in [*proto.initializer, *proto.sparse_initializer]:
            constant = self.constant(tensor, self.places if parent is None else {})
            scope.define(constant.name, constant)
            constant.name = self.names.fresh(constant.name)
        for info in proto.input:
            default = scope.local.get(info.name) if parent is None else None
            variable = Variable(info.name if isinstance(default, Constant) else self.names.fresh(info.name))
            describe(variable, info)
            if isinstance(default, Constant):
                graph.overridable[info.name] = default
                if variable.shape == list(default.shape):
                    continue
                del scope.local[info.name]  # callers may give it another shape: an input like any other
            scope.define(info.name, variable)
            ir.inputs.append(variable)
            if parent is not None:
                graph.declared[variable.name] = info
        for node in proto.node:
            for name in filter(None, node.output):
                scope.define(name, Variable(self.names.fresh(name)), node.name)
        for info in [*proto.value_info, *proto.output]:
            made = scope.local.get(info.name)
            if isinstance(made, Variable) and made.dtype is None:
                describe(made, info)
        ir.nodes.extend(self.node(node, scope, graph) for node in proto.node)
        ir.outputs = [self.output(info.name, scope, graph) for info in proto.output]
        if parent is not None:
            for tensor, info in zip(ir.outputs, proto.output, strict=True):
                graph.declared.setdefault(tensor.name, info)
        graph.adopt()
        return graph

    def output(self, name: str, scope: _Scope, graph: Graph) -> Tensor:
        """An output of a scope; an outer tensor or a constant of a subgraph gets an Identity, so that it is its own."""
        tensor = scope.get(name)
        if tensor is None:
            raise ModelError(f"graph output '{name}' is made by no node: the model is incomplete; export it again")
        if name in scope.local and (graph.parent is None or isinstance(tensor, Variable)):
            return tensor
        bridge = graph.variable(name, tensor.dtype, tensor.shape)
        bridge.type = tensor.type if isinstance(tensor, Variable) else "tensor_type"
        graph.ir.nodes.append(Node("Identity", graph.fresh("Identity"), {}, [tensor], [bridge]))
        return bridge

    def node(self, proto: onnx.NodeProto, scope: _Scope, graph: Graph) -> Node:
        inputs, local = [], scope.local
        for name in proto.input:
            tensor = local.get(name)
            if tensor is None:
                tensor = scope.get(name) if name else Variable.empty()
            if tensor is None:
                raise ModelError(
                    f"node '{proto.name}' ({proto.op_type}) reads '{name}', which nothing makes: export the model again"
                )
            inputs.append(tensor)
        outputs = [scope.local[name] if name else Variable.empty() for name in proto.output]
        attrs = {a.name: self.attribute(a, scope, graph) for a in proto.attribute}
        domain = None if proto.domain in ("", "ai.onnx") else proto.domain
        node = Node(proto.op_type, self.names.fresh(proto.name or proto.op_type), attrs, inputs, outputs, domain)
        if proto.overload or proto.doc_string:
            node.overload, node.doc = proto.overload, proto.doc_string
        if proto.metadata_props:
            node.metadata = {p.key: p.value for p in proto.metadata_props if p.key != ORIGIN}
        if proto.device_configurations:
            node.devices = list(proto.device_configurations)
        return node

    def attribute(self, attr: onnx.AttributeProto, scope: _Scope, graph: Graph) -> Any:
        kind = attr.type
        if kind == INTS:
            return list(attr.ints)
        if kind == INT:
            return attr.i
        if kind == GRAPH:
            return self.graph(attr.g, _Scope(scope), graph)
        if kind == TENSOR:
            constant = self.constant(attr.t)
            constant.name = ""
            return constant
        if kind in (FLOATS, STRINGS):
            return list(helper.get_attribute_value(attr)) or attr  # only the protobuf knows the type of an empty list
        if kind in (FLOAT, STRING):
            return helper.get_attribute_value(attr)
        return attr  # lists of tensors, sparse tensors, types: kept as they are

    def constant(
        self, tensor: TensorProto | onnx.SparseTensorProto, places: Mapping[str, Place] = MappingProxyType({})
    ) -> Constant:
        if isinstance(tensor, onnx.SparseTensorProto):
            return Constant(tensor.values.name, _dense(tensor))
        if tensor.data_location != EXTERNAL:
            return Constant(tensor.name, Stored(tensor, place=places.get(tensor.name)))
        if self.folder is None:
            raise ModelError(f"weights of '{tensor.name}' are in another file: pass the model's path, not a ModelProto")
        return Constant(tensor.name, Stored(tensor, self.folder))


def describe(variable: Variable, info: onnx.ValueInfoProto) -> None:
    """Takes dtype and shape of a tensor type; other kinds (sequence, optional, map) are kept as their protobuf."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        variable.type = info.type if kind else "tensor_type"
        return
    tensor = info.type.tensor_type
    variable.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if tensor.HasField("shape"):
        variable.shape = [dim(d) for d in tensor.shape.dim]


def dim(proto: Any) -> Dim:
    """A number, a symbol, or None: negative numbers and '?' are how some exporters write an unknown dim."""
    if proto.HasField("dim_value"):
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    return str(proto.dim_param) if proto.dim_param not in ("", "?") else None


def _header(model: onnx.ModelProto) -> Header:
    rest = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name in KEPT_ELSEWHERE:
            continue
        if descriptor.is_repeated:
            getattr(rest, descriptor.name).extend(value)
        else:
            setattr(rest, descriptor.name, value)
    return Header(
        ir_version=model.ir_version,
        imports={"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import},
        inputs=list(model.graph.input),
        outputs=list(model.graph.output),
        model=rest,
        annotations=list(model.graph.quantization_annotation),
    )


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
    dense.reshape(-1)[flat] = values
    return dense
