"""Graph to protobuf: the header and interface as they were read, nodes in order, initializers where they are read.

A constant that several subgraphs read is written once, in the closest scope around them; one larger than `SMALL`
always in the outermost, where it can be left out or written to a file of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import helper

from optimizer.graph import Constant, Dim, Graph, Node, Tensor
from optimizer.stored import nbytes, tensor, tensor_proto, tensor_type

SMALL = 1024  # bytes: smaller tensors always stay inside the file

SIMPLE: dict[type, tuple[Any, str]] = {int: (onnx.AttributeProto.INT, "i"), float: (onnx.AttributeProto.FLOAT, "f")}

Homes = Mapping[int, list[Constant]]


def to_model(graph: Graph) -> onnx.ModelProto:
    """The graph as one ModelProto, weights inside (at most 2 GiB)."""
    model, constants = frame(graph)
    model.graph.initializer.extend(map(tensor, constants))
    return model


def skeleton(graph: Graph, told: Collection[str] | None = None) -> onnx.ModelProto:
    """The graph as a small ModelProto: initializers above 1 KiB are inputs, after those of the model.

    `told` names the intermediate tensors whose types and shapes are written; None is all of them.
    """
    model, constants = frame(graph, told)
    inputs = {info.name for info in model.graph.input}
    for constant in constants:
        if nbytes(constant) <= SMALL:
            model.graph.initializer.append(tensor(constant))
        elif constant.name not in inputs:
            info = helper.make_tensor_value_info(constant.name, tensor_type(constant), constant.shape)
            model.graph.input.append(info)
    return model


def frame(graph: Graph, told: Collection[str] | None = None) -> tuple[onnx.ModelProto, list[Constant]]:
    """Everything but the initializers of the outermost scope, and those initializers, in order of use."""
    header = graph.header
    assert header is not None
    model = onnx.ModelProto()
    model.CopyFrom(header.model)
    model.ir_version = header.ir_version
    used = {node.domain or "" for node in graph.walk()} | {""}
    for domain, version in header.imports.items():
        if domain in used:
            model.opset_import.add(domain=domain, version=version)
    homes = _homes(graph)
    _Writer(homes, told).scope(graph, model.graph)
    model.graph.input.extend(header.inputs)
    model.graph.output.extend(header.outputs)
    kept = graph.tensors() if header.annotations else {}
    annotations = [a for a in header.annotations if a.tensor_name in kept]
    model.graph.quantization_annotation.extend(annotations)
    named = {entry.value for a in annotations for entry in a.quant_parameter_tensor_names}
    stay = graph.overridable | {n: t for n, t in graph.annotating.items() if n in named}
    initializers = list({t.name: t for t in [*homes[id(graph)], *stay.values()]}.values())
    if not {t.name for t in initializers} <= {v.name for v in header.inputs}:
        model.ir_version = max(4, header.ir_version)  # before 4 every initializer had to be an input
    return model, initializers


def to_node(op: str, inputs: list[str], outputs: list[str], attrs: Mapping[str, Any]) -> onnx.NodeProto:
    """A NodeProto of the standard domain with attributes held as in a `Node`."""
    made = onnx.NodeProto(op_type=op, input=inputs, output=outputs)
    made.attribute.extend(_Writer({}, ()).attribute(key, value) for key, value in attrs.items())
    return made


def _homes(graph: Graph) -> Homes:
    """The constants that each scope (by id) is to hold."""
    place: dict[str, tuple[Constant, Graph]] = {}
    for scope in graph.scopes():
        for constant in _constants(scope):
            home = place[constant.name][1] if constant.name in place else None
            if home is None:
                place[constant.name] = constant, graph if nbytes(constant) > SMALL else scope
            elif home is not scope and home is not graph:
                place[constant.name] = constant, _common(home, scope)
    homes: dict[int, list[Constant]] = {id(scope): [] for scope in graph.scopes()}
    for constant, home in place.values():
        if constant.name not in graph.overridable:
            homes[id(home)].append(constant)
    return homes


def _constants(scope: Graph) -> Iterator[Constant]:
    read = (t for tensors in [*(n.inputs for n in scope.nodes), scope.outputs] for t in tensors)
    return (t for t in read if isinstance(t, Constant) and t.name)


def _common(a: Graph, b: Graph) -> Graph:
    """The innermost scope around both."""
    around = {id(scope) for scope in _around(a)}
    return next(scope for scope in _around(b) if id(scope) in around)


def _around(scope: Graph | None) -> Iterator[Graph]:
    while scope is not None:
        yield scope
        scope = scope.parent


class _Writer:
    """Writes scopes: `homes` says which constants each holds, `told` which tensors get a type and shape (None: all)."""

    def __init__(self, homes: Homes, told: Collection[str] | None):
        self.homes, self.told = homes, told

    def scope(self, graph: Graph, proto: onnx.GraphProto) -> None:
        proto.name, proto.doc_string = graph.ir.name or "graph", graph.ir.doc_string or ""
        for key, value in graph.metadata.items():
            proto.metadata_props.add(key=key, value=value)
        interface = {t.name for t in [*graph.inputs, *graph.outputs]}
        told = self.told
        for node in graph.nodes:
            self.node(node, proto.node)
            for made in node.outputs if told is None or told else ():
                if made.name in interface or (told is not None and made.name not in told):
                    continue
                if (info := _value_info(made)) is not None:
                    proto.value_info.append(info)

    def node(self, node: Node, nodes: Any) -> None:
        """Appends a node to a list of NodeProtos."""
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        made = nodes.add(op_type=node.op, input=inputs, output=outputs, name=node.name, domain=node.domain or "")
        if node.overload:
            made.overload = node.overload
        if node.doc:
            made.doc_string = node.doc
        for key, value in node.attrs.items():
            if (simple := SIMPLE.get(value.__class__)) is not None:
                kind, field = simple
                made.attribute.add(name=key, type=kind, **{field: value})
            else:
                made.attribute.append(self.attribute(key, value))
        for key, value in node.metadata.items():
            made.metadata_props.add(key=key, value=value)
        made.device_configurations.extend(node.devices)

    def attribute(self, key: str, value: Any) -> onnx.AttributeProto:
        if isinstance(value, onnx.AttributeProto):
            return value
        if isinstance(value, Constant):
            return helper.make_attribute(key, tensor(value))
        if isinstance(value, np.ndarray):
            return helper.make_attribute(key, tensor_proto(value, ""))
        if isinstance(value, Graph):
            return helper.make_attribute(key, self.body(value))
        if isinstance(value, list) and all(v.__class__ is int for v in value):  # an empty list, too
            return onnx.AttributeProto(name=key, type=onnx.AttributeProto.INTS, ints=value)
        return helper.make_attribute(key, value)

    def body(self, graph: Graph) -> onnx.GraphProto:
        proto = onnx.GraphProto()
        self.scope(graph, proto)
        for made in graph.inputs:
            info = proto.input.add()
            info.CopyFrom(graph.declared.get(made.name) or _value_info(made) or info)
            info.name = made.name
        for made in graph.outputs:
            info = proto.output.add()
            info.CopyFrom(_result(made, graph.declared.get(made.name)) or info)
            info.name = made.name
        proto.initializer.extend(tensor(c) for c in self.homes[id(graph)])
        return proto


def _result(made: Tensor, declared: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto | None:
    """What a subgraph says of an output: all of its dims, or what the file said, which Scan must know at run time."""
    known = _value_info(made)
    if declared is None or known is None or (made.shape is not None and None not in made.shape):
        return known
    same = declared.type.tensor_type.elem_type == known.type.tensor_type.elem_type
    return declared if same and declared.type.tensor_type.HasField("shape") else known


def _value_info(made: Tensor) -> onnx.ValueInfoProto | None:
    kind = getattr(made, "type", "tensor_type")
    if isinstance(kind, onnx.TypeProto):
        return onnx.ValueInfoProto(name=made.name, type=kind)
    if isinstance(made, Constant) or not made.name or made.dtype is None:
        return None
    described = type_proto(np.dtype(made.dtype), None if made.shape is None else tuple(made.shape))
    return onnx.ValueInfoProto(name=made.name, type=described)


@lru_cache(1 << 10)
def type_proto(dtype: np.dtype[Any], dims: tuple[Dim, ...] | None) -> onnx.TypeProto:
    """The type of a tensor, not to be edited."""
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), dims)
