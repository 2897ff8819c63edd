"""Chooses what computes in half precision: the cheapest way to divide the graph, found as a minimal cut.

A Cast costs the bytes it moves, once per tensor and direction however many nodes read it. A node in float32 costs what
half precision would have saved it. Bytes are the unit: a weighted operator saves time with every product, anything
else with every element it writes, and nothing where no weighted operator follows, for such nodes compute what the user
sees. (The cut with the most nodes in float32 among the cheapest is unique, whatever the algorithm.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import networkx as nx

from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.ops import attribute
from passes.cast.types import UNTYPED, Ports, is_float
from passes.cast.values import Values

WEIGHTED = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"])
SUMMING = WEIGHTED | {"Einsum", "Attention", "DeformConv"}
LAUNCH = 1024  # bytes that could be moved while a Cast starts, fused as most of them are
CAST = 6  # bytes per element: four on one side, two on the other
# A GPU multiplies some 64 times in float32 while it moves a byte (an RTX 4090: 41 T/s, 1 TB/s), and hardly waits in
# half precision.
PRODUCTS = 64
PRICELESS = 1 << 62  # more than any Cast
INNER = 64  # products per element of a MatMul of unknown size
FLOATS, HALVES = "float", "half"


def choose(graph: Graph, able: Mapping[int, Ports], values: Values, force: bool = False) -> set[int]:
    """Ids of the nodes to compute in half precision, out of `able`, which maps ids of nodes that may to their ports.

    `force`: all that no tie to a node in float32 forbids.
    """
    net: nx.DiGraph[Any] = nx.DiGraph()
    net.add_nodes_from((FLOATS, HALVES))
    nodes = [node for node in graph.walk() if id(node) in able]
    useful = _useful(graph)
    for node in nodes:
        net.add_node(id(node))
        if node.op != "Cast" and (force or id(node) in useful):
            net.add_edge(id(node), HALVES, capacity=PRICELESS if force else _saved(graph, node, values))
    for node in graph.walk():
        if node.op == "DequantizeLinear" and is_float(node.outputs[0]):
            _tie(net, node, able)
    for tensor in graph.tensors().values():
        if is_float(tensor) and values.array(tensor) is None:
            _connect(net, graph, tensor, able, LAUNCH + CAST * values.size(tensor))
    floats = nx.minimum_cut(net, FLOATS, HALVES)[1][0]
    return {id(node) for node in nodes if id(node) not in floats}


def readings(tensor: Tensor) -> list[tuple[Node, int]]:
    """Who reads the tensor's values, and as which input."""
    readers = [node for node in dict.fromkeys(tensor.outputs) if node.op not in UNTYPED or node.domain]
    return [(node, index) for node in readers for index, read in enumerate(node.inputs) if read is tensor]


def takes(able: Mapping[int, Ports], node: Node, index: int) -> bool:
    """True for an input that becomes half precision with its node."""
    return id(node) in able and index in able[id(node)].inputs


def _connect(net: nx.DiGraph[Any], graph: Graph, tensor: Tensor, able: Mapping[int, Ports], cost: int) -> None:
    """Lets both Casts of a tensor cost what they do: `up` is paid where a float32 reader follows a half, `down` else.

    An edge without capacity cannot be cut: its target is float32 where its source is.
    """
    maker = tensor.inputs[0] if tensor.inputs else None
    made = maker is not None and id(maker) in able and _place(maker, tensor) in able[id(maker)].outputs
    source = id(maker) if made else FLOATS
    readers: list[int | str] = [id(n) if takes(able, n, i) else FLOATS for n, i in readings(tensor)]
    readers += [FLOATS] * graph.is_output(tensor)
    if {source, *readers} == {FLOATS}:
        return
    up, down = ("up", id(tensor)), ("down", id(tensor))
    net.add_edge(source, down, capacity=cost)
    for reader in dict.fromkeys(readers):
        if reader != FLOATS:
            net.add_edge(down, reader)
        net.add_edge(reader, up)
    if made:
        net.add_edge(up, source, capacity=cost)


def _place(node: Node, tensor: Tensor) -> int:
    return [t is tensor for t in node.outputs].index(True)


def _tie(net: nx.DiGraph[Any], node: Node, able: Mapping[int, Ports]) -> None:
    """No Cast between integers and what computes with them: TensorRT would not see that they belong together."""
    own = id(node) if id(node) in able else FLOATS
    for other in [id(n) if takes(able, n, i) else FLOATS for n, i in readings(node.outputs[0])]:
        if other != own:
            net.add_edges_from([(own, other), (other, own)])


def _useful(graph: Graph) -> set[int]:
    """Ids of the weighted nodes, of all in a body, and of what one of these depends on."""
    pending = [node for node in graph.walk() if node.op in SUMMING or node.scope is not graph]
    found = {id(node) for node in pending}
    while pending:
        for maker in (m for t in pending.pop().inputs for m in t.inputs):
            if id(maker) not in found:
                found.add(id(maker))
                pending.append(maker)
    return found


def _saved(graph: Graph, node: Node, values: Values) -> int:
    """Bytes that half precision saves, or the time of them."""
    made = sum(values.size(t) for t in node.outputs if is_float(t))
    if node.op not in SUMMING or node.domain:
        return made
    read = sum(values.size(t) for t in node.inputs if is_float(t))
    return 2 * (made + read) + _products(graph, node, values) // PRODUCTS


def _products(graph: Graph, node: Node, values: Values) -> int:
    """Multiplications of a weighted node, from the sizes of its tensors."""
    made, shapes = values.size(node.outputs[0]), [t.shape for t in node.inputs]
    if node.op in ("Conv", "DeformConv"):
        return made * _product(shapes[1], 1)
    if node.op == "ConvTranspose":
        return values.size(node.inputs[0]) * _product(shapes[1], 1)
    if node.op == "Gemm":
        axis = 1 if attribute(graph, node, "transB") else 0
        return made * _dim(shapes[1], axis)
    if node.op in ("LSTM", "GRU", "RNN"):
        steps = values.size(node.inputs[0]) // max(1, _dim(shapes[1], -1))
        return steps * sum(values.size(t) for t in node.inputs[1:3] if isinstance(t, Constant))
    return made * (_dim(shapes[0], -1) if node.op == "MatMul" else INNER)


def _product(shape: object, start: int) -> int:
    dims = list(shape)[start:] if isinstance(shape, list | tuple) else []
    return math.prod(d for d in dims if isinstance(d, int)) if dims else INNER


def _dim(shape: object, axis: int) -> int:
    dims = shape if isinstance(shape, list | tuple) else ()
    found = dims[axis] if dims and -len(dims) <= axis < len(dims) else None
    return found if isinstance(found, int) else INNER
