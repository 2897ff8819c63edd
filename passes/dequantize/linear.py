"""Operators that take and give codes with constant scales (QLinearConv, QGemm, ...): the same operator in float.

An operand is three inputs in a row: codes, scale, zero point; the result's scale and zero point are two. What follows
sees the result as it does that of a QuantizeLinear: cut to what the codes hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.graph import Node, Tensor
from optimizer.ops import attribute
from passes.dequantize.arithmetic import at, number, scale_of, values
from passes.dequantize.views import Views

SOFTMAX_BY_AXIS = 13  # the operator set from which on Softmax works along one axis


@dataclass(frozen=True)
class Form:
    """The float operator, where operands and result stand, where a bias in int32 and inputs that are no codes do."""

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int = 0
    plain: tuple[int, ...] = ()


UNARY = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")
STANDARD = {
    "QLinearConv": Form("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": Form("MatMul", (0, 3), 6),
}
FOREIGN = {"QLinear" + op: Form(op, (0,), 3) for op in UNARY} | {
    "QGemm": Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": Form("Add", (0, 3), 6),
    "QLinearMul": Form("Mul", (0, 3), 6),
    "QLinearWhere": Form("Where", (1, 4), 7, plain=(0,)),
    "QLinearConcat": Form("Concat", (), 0),
}


WEIGHTED, WEIGHTS = ("QLinearConv", "QLinearMatMul", "QGemm"), 3  # the operand whose scales may come by channel


def linear(views: Views, node: Node) -> bool:
    """One operator of the tables above."""
    form = (FOREIGN if node.domain else STANDARD)[node.op]
    graph, scope = views.graph, node.scope
    assert scope is not None
    attrs = _attributes(views, node)
    operands = range(2, len(node.inputs), 3) if node.op == "QLinearConcat" else form.operands
    inputs: list[Tensor | None] = [node.inputs[i] for i in form.plain]
    inputs += [_operand(views, node, index) for index in operands]
    scale, zero = at(node.inputs, form.result), at(node.inputs, form.result + 1)
    rounded = scale is not None or node.op != "QGemm"
    if attrs is None or any(t is None for t in inputs):
        return False
    if rounded and (scale_of(graph, scale) is None or number(graph, zero) is None):
        return False
    if form.bias and at(node.inputs, form.bias) is not None:
        bias = _bias(views, node, form.bias)
        if bias is None:
            return False
        inputs.append(bias)
    (made,) = views.add(node, form.op, inputs, attrs)
    old = node.outputs[0]
    if rounded:
        assert zero is not None
        (codes,) = views.add(node, "QuantizeLinear", [made, scale, zero])
        codes.dtype, made = zero.dtype, codes
        assert codes.inputs
        views.quantize(codes.inputs[0])
    scope.remove(node)
    scope.replace(old, made)
    return True


def _operand(views: Views, node: Node, index: int) -> Tensor | None:
    """The float values of an operand: constant, those behind its codes, or else the codes dequantised."""
    graph, codes = views.graph, node.inputs[index]
    scale, zero = at(node.inputs, index + 1), at(node.inputs, index + 2)
    one = scale_of(graph, scale) is not None and number(graph, zero, 0.0) is not None
    if graph.is_constant(codes) and (one or (node.op in WEIGHTED and index == WEIGHTS)):
        array = values(graph, codes, scale, zero, _axis(node, len(codes.shape)))
        return None if array is None or scale is None else graph.constant(array, codes.name)
    if not one or (known := views.read(node, codes, scale, zero)) is not None:
        return known if one else None
    return views.add(node, "DequantizeLinear", [codes, scale, zero])[0]


def _axis(node: Node, rank: int) -> int:
    """Along which axis the scales of constant codes run, where there are several."""
    if node.op == "QLinearConv" or (node.op == "QGemm" and node.attrs.get("transB")):
        return 0
    return rank - 1


def _bias(views: Views, node: Node, index: int) -> Tensor | None:
    """int32 in steps of scale(x) scale(w), per channel."""
    graph = views.graph
    codes, scale, steps = graph.array(node.inputs[index]), number(graph, node.inputs[1]), graph.array(node.inputs[4])
    if codes is None or codes.dtype != np.int32 or scale is None or steps is None or steps.ndim > 1:
        return None
    return graph.constant((codes * (steps.astype(np.float64) * scale)).astype(np.float32), node.inputs[index].name)


def _attributes(views: Views, node: Node) -> dict[str, Any] | None:
    """The float operator's attributes, or None where it has no like."""
    attrs = dict(node.attrs)
    if attrs.pop("channels_last", 0) or (node.op == "QGemm" and attrs.get("alpha", 1.0) != 1):
        return None
    if node.op == "QLinearSoftmax":
        by_axis = attrs.pop("opset", 0) >= SOFTMAX_BY_AXIS
        attrs["axis"] = attribute(views.graph, node, "axis") if "axis" in attrs else -1
        return attrs if by_axis == (views.graph.opset >= SOFTMAX_BY_AXIS) else None
    return attrs
