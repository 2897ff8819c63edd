"""Shape and type inference on a weightless copy of the graph, so that it costs no memory and trusts no stale note.

Exporters write wrong shapes for outputs and intermediate values (one zoo model declares rank 2 for a rank-3 output),
so only graph inputs, constants and the operators' own rules are believed; what a loop's body declares of its inputs
is not (a carried value may change its shape). Nodes of unknown domains keep the declared shapes: nothing better is
known about them.

Known limit: where a Reshape takes a symbol from another tensor's Shape, onnx's inference gives that symbol to its
result. A size of 0 there copies the source's dim instead, so for an input of size 0 beside one that is not (x of [M, 6]
as the Shape of y of [N, 6], N = 0) the symbol is wrong, and so may be what is concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from optimizer import stored
from optimizer.decode import dim
from optimizer.graph import Constant, Dim, Graph, Node, Tensor
from optimizer.io import SMALL, nbytes, skeleton

# Data propagation takes every vector for a possible shape and keeps some 60 bytes for each element of it.
LONGEST = 1 << 20
CHAIN = 4  # Reshapes of unknown rank behind each other whose ranks are told, each at the cost of another inference


def infer(graph: Graph) -> bool:
    """Sets `dtype` and `shape` of every tensor of the graph, in place; unknown dims are None. True where any changed.

    Symbols invented by the inference are dropped: two of them may look equal without being so. Where nothing was edited
    since the last time nothing is done, and neither where there are but hints and the graph is patient.
    """
    if graph.inferred == graph.edits and (graph.patient or not graph.hints):
        return False
    graph.tidy()  # onnx's inference goes through the nodes once, in the order in which they stand
    nodes = list(graph.walk())
    custom = {name for n in nodes if n.domain for name in (t.name for t in n.outputs)}
    model = skeleton(graph, custom)
    if graph.root.overridable:  # a default is no value: inference would calculate with it
        values = [t for t in model.graph.initializer if t.name not in graph.root.overridable]
        del model.graph.initializer[:]
        model.graph.initializer.extend(values)
    known: set[str] = set()
    for each in (d for v in model.graph.input for d in v.type.tensor_type.shape.dim):
        if isinstance(named := dim(each), str):
            known.add(named)
        elif named is None:  # such as -1 or "?", which exporters write and inference would calculate with
            each.Clear()
    nested = graph.nested
    _forget(model.graph, custom, nested)
    for info in model.graph.input:
        if len(sizes := info.type.tensor_type.shape.dim) == 1 and sizes[0].dim_value > LONGEST:
            sizes[0].Clear()
    if nested:
        small = {n: c for n, c in graph.constants().items() if graph.is_constant(c) and nbytes(c) <= SMALL}
        _repeat(model.graph, small)
    found = _Found(known)
    found.collect(_inferred(model), nested)
    for _ in range(CHAIN):
        if not _tell_ranks(model.graph, graph.nodes, found):
            break
        found.collect(_inferred(model), nested)
    for tensor in (t for n in nodes if not n.domain for body in n.bodies() for t in body.inputs):
        tensor.shape = None
    made = [t for n in nodes for t in n.outputs if t.name]
    graph.inferred, graph.hints = graph.edits, False
    return sum([_describe(tensor, found.kinds.get(tensor.name)) for tensor in made]) > 0


def same_shape(a: Tensor, b: Tensor) -> bool:
    """True where dtype and every dim are known and equal, for all values of the symbols (G3)."""
    if a.dtype is None or b.dtype is None or np.dtype(a.dtype) != np.dtype(b.dtype):
        return False
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(m is not None and m == n for m, n in zip(a.shape, b.shape, strict=True))


def static(tensor: Tensor) -> tuple[int, ...] | None:
    """The shape where every dim is a number, else None."""
    if tensor.shape is None or not all(isinstance(d, int) for d in tensor.shape):
        return None
    return tuple(tensor.shape)


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    return shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph


def _tell_ranks(model: onnx.GraphProto, nodes: Sequence[Node], found: _Found) -> int:
    """Writes down the ranks of Reshapes that are known by the length of their targets alone; returns how many.

    Inference leaves such a result without a rank, and so whatever follows it.
    """
    count = 0
    for node in nodes:
        if node.op != "Reshape" or node.domain or len(node.inputs) < 2:
            continue
        dtype, shape = found.kinds.get(node.outputs[0].name, (None, None))
        length = found.kinds.get(node.inputs[1].name, (None, node.inputs[1].shape))[1]
        if dtype is None or shape is not None or not length or not isinstance(length[0], int) or not length[0]:
            continue
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        model.value_info.append(helper.make_tensor_value_info(node.outputs[0].name, kind, [None] * length[0]))
        count += 1
    return count


def _forget(graph: onnx.GraphProto, keep: set[str], nested: bool) -> None:
    """Drops declared shapes of everything but inputs and outputs of custom operators, in subgraphs if there are any."""
    kept = [v for v in graph.value_info if v.name in keep]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for out in graph.output:
        if out.name not in keep and out.type.HasField("tensor_type"):
            out.type.tensor_type.ClearField("shape")
    for node in graph.node if nested else ():
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                for info in attr.g.input if not node.domain else ():
                    if info.type.HasField("tensor_type"):
                        info.type.tensor_type.ClearField("shape")
                _forget(attr.g, keep, nested)


def _repeat(graph: onnx.GraphProto, small: dict[str, Constant]) -> None:
    """Gives each subgraph the small constants it reads: inference sees types across scopes, but not values."""
    for body in (a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        own = {t.name for t in body.initializer}
        read = dict.fromkeys(name for node in body.node for name in node.input)
        body.initializer.extend(stored.tensor(small[n]) for n in read if n in small and n not in own)
        _repeat(body, small)


Kind = tuple[np.dtype[Any] | None, list[Dim] | None]


class _Found:
    """What inference says of tensors, by name; `known` are the symbols of the model's inputs. Many say the same."""

    def __init__(self, known: set[str]):
        self.known = known
        self.kinds: dict[str, Kind] = {}
        self._read: dict[bytes, Kind] = {}

    def collect(self, graph: onnx.GraphProto, nested: bool) -> None:
        """Takes what a graph says of its tensors, and of those of subgraphs if there are any."""
        for infos in (graph.value_info, graph.output):
            for info in infos:
                key = info.type.SerializeToString()
                if key not in self._read:
                    self._read[key] = self._kind(info.type)
                self.kinds[info.name] = self._read[key]
        for node in graph.node if nested else ():
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.GRAPH:
                    self.collect(attr.g, nested)

    def _kind(self, kind: onnx.TypeProto) -> Kind:
        if not kind.HasField("tensor_type"):
            return None, None
        proto = kind.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.elem_type)) if proto.elem_type else None
        if not proto.HasField("shape"):
            return dtype, None
        dims = (dim(d) for d in proto.shape.dim)
        return dtype, [d if isinstance(d, int) or d in self.known else None for d in dims]


def _describe(tensor: Tensor, kind: Kind | None) -> bool:
    """True where this says something new of the tensor."""
    dtype, shape = kind or (None, None)
    known = tensor.dtype, tensor.shape
    tensor.dtype = tensor.dtype if dtype is None else dtype
    tensor.shape = None if shape is None else list(shape)
    return known != (tensor.dtype, tensor.shape)
