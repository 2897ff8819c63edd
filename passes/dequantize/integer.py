"""Integer products of operands quantised at run time, and the operators ONNX Runtime has for them, back in float.

    Cast(sum of (code(x) - zero(x)) (W - zero(W))) * (scale(x) scale(W))  =  x times (W - zero(W)) scale(W)

but for the rounding of x. The scales may come in any order and in several products, among them the one by which a bias
was divided to be added as int32. Whatever is not recognised to the last node stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from optimizer.graph import Array, Graph, Node, Tensor
from passes.dequantize.arithmetic import FLOAT, Product, at, product, values
from passes.dequantize.views import Views

FLOATS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass(frozen=True)
class Sum:
    """What becomes of an integer product: the nodes to its float result, their factor, and the bias added inside."""

    nodes: list[Node]
    factor: Array
    bias: Array | None


def total(views: Views, node: Node) -> bool:
    """MatMulInteger and ConvInteger, with what scales their sums."""
    graph = views.graph
    first, second = _operand(views, node, 0), _operand(views, node, 1)
    if first is None or second is None or (node.op == "ConvInteger" and not isinstance(second[0], np.ndarray)):
        return False
    (x, x_scale), (w, w_scale) = first, second
    found = _follow(graph, node, [s for s in (x_scale, w_scale) if isinstance(s, Tensor)])
    if found is None:
        return False
    known = [s for s in (x_scale, w_scale) if isinstance(s, float)]
    factor = np.asarray(found.factor / math.prod(known), np.float32)
    if isinstance(w, np.ndarray) and (steps := _by_channel(factor, w, node.op)) is not None:
        w, factor = w * steps, np.ones((), np.float32)
    inputs = [graph.constant(t, node.inputs[i].name) if isinstance(t, np.ndarray) else t for i, t in enumerate((x, w))]
    root = found.nodes[-1]
    (made,) = views.add(root, FLOATS[node.op], inputs, dict(node.attrs))
    if not np.all(factor == 1) or factor.ndim:
        (made,) = views.add(root, "Mul", [made, graph.constant(factor, "scale")])
    if found.bias is not None:
        (made,) = views.add(root, "Add", [made, graph.constant(found.bias, "bias")])
    _replace(root, root.outputs[0], made, found.nodes)
    return True


def _operand(views: Views, node: Node, index: int) -> tuple[Tensor | Array, Tensor | float] | None:
    """A factor's float values with the scale that they hold in themselves and the integers do not."""
    codes, zero = node.inputs[index], at(node.inputs, index + 2)
    if views.graph.is_constant(codes):
        array = values(views.graph, codes, None, zero, (0 if node.op == "ConvInteger" else -1) if index else -2)
        return None if array is None else (array, 1.0)
    view = views.of(codes)
    return None if view is None or not views.zero_agrees(view, zero) else (view.values, view.scale)


def _follow(graph: Graph, node: Node, scales: list[Tensor]) -> Sum | None:
    """The way from an integer sum to the product in which every run-time scale of its operands has come in."""
    nodes, added = [node], None
    reader = _reader(graph, node)
    if reader is not None and reader.op == "Add":
        nodes.append(reader)
        added = next(t for t in reader.inputs if t is not node.outputs[0])
        reader = _reader(graph, reader)
    if reader is None or reader.op != "Cast" or reader.attrs.get("to") != TensorProto.FLOAT:
        return None
    nodes.append(reader)
    found = Product(np.ones((), np.float64), ())
    while len(nodes) < 4 or not found.is_over(scales):
        previous, reader = nodes[-1], _reader(graph, nodes[-1])
        if reader is None or reader.op != "Mul":
            return None
        other = next(t for t in reader.inputs if t is not previous.outputs[0])
        part = product(graph, other)
        if part is None or len(found.scales) + len(part.scales) > len(scales):
            return None
        found = Product(np.asarray(found.factor * part.factor), found.scales + part.scales)
        nodes.append(reader)
        if found.is_over(scales):
            break
    bias = None if added is None else _bias(graph, added, found)
    return None if added is not None and bias is None else Sum(nodes, found.factor, bias)


def _reader(graph: Graph, node: Node) -> Node | None:
    """The one node of the same scope that reads a result, once; None where there are others."""
    out = node.outputs[0]
    if len(out.outputs) != 1 or graph.is_output(out):
        return None
    reader: Node = out.outputs[0]
    return reader if reader.scope is node.scope and not reader.domain else None


def _bias(graph: Graph, tensor: Tensor, scale: Product) -> Array | None:
    """The float bias behind int32 codes Reshape(Cast(Floor(bias / scale))), in the shape in which it is added."""
    shape = None
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and node.op == "Reshape" and not node.domain:
        if (shape := graph.array(node.inputs[1])) is None or not shape.all():  # 0 stands for a dim of the bias
            return None
        node = _maker(node)
    ops: list[Node] = []
    while node is not None and not node.domain and len(ops) < 3:
        ops.append(node)
        node = _maker(node)
    if len(ops) < 3 or ops[0].op != "Cast" or ops[0].attrs.get("to") != TensorProto.INT32:
        return None
    if ops[1].op not in ("Floor", "Round") or ops[2].op != "Div":
        return None
    bias, step = graph.array(ops[2].inputs[0]), product(graph, ops[2].inputs[1])
    if bias is None or bias.dtype != FLOAT or step is None or not step.is_over(list(scale.scales)):
        return None
    if step.factor.size != 1 or scale.factor.size != 1 or not np.allclose(step.factor, scale.factor, 1e-6, 0):
        return None
    return bias if shape is None else bias.reshape(shape)


def _maker(node: Node) -> Node | None:
    made: list[Node] = node.inputs[0].inputs if node.inputs else []
    return made[0] if made else None


def _by_channel(factor: Array, weights: Array, op: str) -> Array | None:
    """A factor of the result as one of the weights, where it is one number or one for each output channel."""
    if op == "MatMulInteger":
        fits = weights.ndim >= 2 and factor.ndim <= 1 and factor.size in (1, weights.shape[-1])
        return factor.reshape(-1) if fits else None
    full = (1,) * (weights.ndim - factor.ndim) + factor.shape
    if len(full) != weights.ndim or any(d != 1 for i, d in enumerate(full) if i != 1):
        return None
    return factor.reshape(-1, *[1] * (weights.ndim - 1)) if factor.size in (1, weights.shape[0]) else None


def _replace(root: Node, old: Tensor, new: Tensor, nodes: list[Node]) -> None:
    scope = root.scope
    assert scope is not None
    new.shape = old.shape
    for node in reversed(nodes):
        scope.remove(node)
    scope.replace(old, new)


# ---------------------------------------------------------------------- operators of ONNX Runtime


def fused_product(views: Views, node: Node) -> bool:
    """MatMulIntegerToFloat (codes in) and DynamicQuantizeMatMul (floats in), with constant weights."""
    graph, inputs = views.graph, node.inputs
    codes, weights = inputs[:2]
    if node.op == "MatMulIntegerToFloat":
        x = views.read(node, codes, at(inputs, 2), at(inputs, 4))
        scale, zero, bias = at(inputs, 3), at(inputs, 5), at(inputs, 6)
    else:
        x, scale, zero, bias = codes, at(inputs, 2), at(inputs, 3), at(inputs, 4)
    w = values(graph, weights, scale, zero, -1)
    if x is None or w is None or scale is None:
        return False
    (made,) = views.add(node, "MatMul", [x, graph.constant(w, weights.name)])
    if bias is not None:
        (made,) = views.add(node, "Add", [made, bias])
    _replace(node, node.outputs[0], made, [node])
    return True


def lstm(views: Views, node: Node) -> bool:
    """DynamicQuantizeLSTM: weights are [directions, inputs, 4 hidden], transposed as LSTM has them."""
    graph, scope = views.graph, node.scope
    assert scope is not None
    weights = [_recurrent(graph, node.inputs, index) for index in (0, 1)]
    if weights[0] is None or weights[1] is None:
        return False
    inputs: list[Tensor | None] = [at(node.inputs, i) for i in range(8)]
    inputs[1:3] = [graph.constant(w, node.inputs[i].name) for i, w in enumerate(weights, 1) if w is not None]
    while inputs[-1] is None:
        inputs.pop()
    outputs = list(node.outputs)
    made: list[Tensor] = [scope.variable(t.name, FLOAT, t.shape) if t.name else t for t in outputs]
    scope.add("LSTM", inputs, made, dict(node.attrs), name=node.name, before=node)
    scope.remove(node)
    for old, new in zip(outputs, made, strict=True):
        if old.name:
            scope.replace(old, new)
    return True


def _recurrent(graph: Graph, inputs: list[Tensor], which: int) -> Array | None:
    """W (0) or R (1) of a quantised LSTM, with scales by direction or by direction and column."""
    codes = graph.array(inputs[1 + which])
    scale, zero = (graph.array(t) if (t := at(inputs, 8 + 2 * which + i)) is not None else None for i in (0, 1))
    if codes is None or codes.ndim != 3 or scale is None or zero is None:
        return None
    if any(p.shape not in ((codes.shape[0],), (codes.shape[0], codes.shape[2])) for p in (scale, zero)):
        return None
    steps, start = (p.reshape(codes.shape[0], 1, -1) for p in (scale, zero))
    found = (codes.astype(np.int32) - start.astype(np.int32)).astype(np.float32) * steps
    return np.ascontiguousarray(found.transpose(0, 2, 1)) if found.dtype == FLOAT else None
