"""Turns a model that was quantised to integers back into a float one, to be made small again for another runtime.

A runtime has its own form of int8: TensorRT reads QuantizeLinear and DequantizeLinear with zero point 0 and none of the
integer operators that other tools write. What is read here is exact but for the rounding of activations, which goes:

    views     codes are traced back to the floats they were rounded from; Q -> DQ becomes at most a Clip
    integer   DynamicQuantizeLinear, MatMulInteger, ConvInteger and the scales around them; DynamicQuantizeLSTM
    linear    QLinearConv, QLinearMatMul, QGemm, QLinearAdd, ...

Weights become float32 with the values that their codes stand for, so the file grows up to four times. That is right
here and nowhere else: `cast` or `quantize` come after it, and know best what suits the target; for a runtime that reads
the integers, constant folding must never do this by itself. A model whose weights alone are integers (DequantizeLinear
or MatMulNBits on a constant, nothing quantised at run time) is left alone: they are kept small on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute
from optimizer.pipeline import Pass
from optimizer.shapes import infer
from passes.dequantize import integer, linear
from passes.dequantize.arithmetic import at, number, scale_of, values
from passes.dequantize.views import MOVES, Views

MICROSOFT = "com.microsoft"
CENTRED = ("int8", "int4", "float8_e4m3fn")  # codes that TensorRT reads
PAIRS = frozenset(["QuantizeLinear", "DequantizeLinear"])
OPERATORS: dict[tuple[str, str], Callable[[Views, Node], bool]] = {
    ("", "MatMulInteger"): integer.total,
    ("", "ConvInteger"): integer.total,
    (MICROSOFT, "MatMulIntegerToFloat"): integer.fused_product,
    (MICROSOFT, "DynamicQuantizeMatMul"): integer.fused_product,
    (MICROSOFT, "DynamicQuantizeLSTM"): integer.lstm,
    **{("", op): linear.linear for op in linear.STANDARD},
    **{(MICROSOFT, op): linear.linear for op in linear.FOREIGN},
}


@dataclass(frozen=True)
class Dequantize(Pass):
    """Every pattern is rewritten whole or not at all.

    `keep=symmetric` leaves a model alone that is quantised by Q and DQ in int8 with zero point 0 throughout, as
    training for TensorRT leaves it: that runtime reads it as it is.
    """

    name: ClassVar[str] = "dequantize"
    lossy: ClassVar[bool] = True
    prepares: ClassVar[bool] = True
    keep: Literal["none", "symmetric"] = "none"

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many operators became float and how many pairs and stored weights went."""
        if not any(_is_quantized(n) for n in graph.walk()):
            return 0
        infer(graph)
        if self.keep == "symmetric" and _is_symmetric(graph):
            return 0
        views = Views(graph)
        count = sum(_visit(views, node) for node in graph.walk())
        count += _weights(views) if count else 0
        views.drop_unread()
        return count


def _is_quantized(node: Node) -> bool:
    key = (node.domain or "", node.op)
    return key in OPERATORS or node.op in (*PAIRS, "DynamicQuantizeLinear")


def _is_symmetric(graph: Graph) -> bool:
    return all(n.op in PAIRS and not n.domain and _is_centred(graph, n) for n in graph.walk() if _is_quantized(n))


def _is_centred(graph: Graph, node: Node) -> bool:
    """True for a Q or DQ with zero point 0 and codes of a signed type of 8 bits or fewer."""
    zero = at(node.inputs, 2)
    codes = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    array = np.zeros(1) if zero is None else graph.array(zero)
    return str(codes.dtype) in CENTRED and array is not None and not array.astype(np.float32).any()


def _visit(views: Views, node: Node) -> int:
    """One node, in the order in which the model runs; returns whether it went."""
    key = (node.domain or "", node.op)
    if node.order < 0:
        return 0
    if key in OPERATORS:
        return int(OPERATORS[key](views, node))
    if node.op in PAIRS and key[0] in ("", MICROSOFT):
        if node.op == "DequantizeLinear":
            return _dequantize(views, node)
        views.quantize(node)
    elif node.op == "DynamicQuantizeLinear" and not node.domain:
        views.dynamic(node)
    elif node.op in MOVES and not node.domain:
        views.move(node)
    return 0


def _dequantize(views: Views, node: Node) -> int:
    """A DequantizeLinear of codes whose origin is known."""
    found = views.read(node, node.inputs[0], at(node.inputs, 1), at(node.inputs, 2))
    if found is None or node.scope is None:
        return 0
    node.scope.bypass(node, found)
    return 1


def _weights(views: Views) -> int:
    """Stored codes, looked up (Gather) or as they are, in a model whose activations are quantised, or were."""
    graph = views.graph
    count = 0
    for node in graph.walk():
        if node.op != "DequantizeLinear" or node.scope is None or node.attrs.get("block_size"):
            continue
        codes, scale, zero = node.inputs[0], at(node.inputs, 1), at(node.inputs, 2)
        lookup = codes.inputs[0] if codes.inputs else None
        if lookup is not None and (lookup.op != "Gather" or lookup.domain):
            continue
        if lookup is not None and (scale_of(graph, scale) is None or number(graph, zero, 0.0) is None):
            continue
        stored = codes if lookup is None else lookup.inputs[0]
        axis = attribute(graph, node, "axis")
        array = values(graph, stored, scale, zero, 1 if axis is None else axis)
        if array is None:
            continue
        real: Tensor = graph.constant(array, stored.name + "_real")
        if lookup is not None:
            (real,) = views.add(node, "Gather", [real, lookup.inputs[1]], dict(lookup.attrs))
        node.scope.bypass(node, real)
        count += 1
    return count
