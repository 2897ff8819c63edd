"""Writes a plan into the graph: Q and DQ of activations, int8 initializers with a DQ for weights.

One Q a tensor, one DQ a reader: TensorRT fuses a DQ into the operator that reads it, and so would copy one that several
read; written apart, what the file shows is what fuses. Weights have a scale per output channel, but for ConvTranspose
and constants of rank 3 and more, which TensorRT takes per tensor only (the former without failing, that is). A bias
stays a float input of its operator: it is added to the int32 sums before they become anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import attribute
from passes.quantize.tensorrt.placement import Plan
from passes.quantize.tensorrt.scales import Rest, quantize_weights
from passes.quantize.weights import rounding_shift

FLOAT = np.dtype(np.float32)
Mean = Callable[[str], Array | None]


def render(graph: Graph, plan: Plan, rest: Rest, mean: Mean = lambda name: None, bits: int = 8) -> int:
    """Rewrites the outermost scope as planned. Returns how many operators read int8.

    `mean` gives the channel means [C] of a tensor, with which biases make up for the rounding of weights, which have
    `bits` bits.
    """
    if not plan.heads:
        return 0
    writer = _Writer(graph, plan, rest, bits)
    for node in plan.heads:
        if graph.is_constant(node.inputs[1]):
            writer.weights(node, mean(node.inputs[0].name))
    for node, index in plan.edges:
        graph.set_input(node, index, writer.activation(node, node.inputs[index]))
    return len({id(node) for node, _ in plan.edges})


class _Writer:
    """Remembers the Q of each tensor, the DQ of each reader, and the constants that serve many."""

    def __init__(self, graph: Graph, plan: Plan, rest: Rest, bits: int):
        self.graph, self.plan, self.rest, self.bits = graph, plan, rest, bits
        self.codes: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self.views: dict[tuple[int, int], Tensor] = {}
        self.zeros: dict[tuple[tuple[int, ...], np.dtype[Any]], Tensor] = {}
        self.scalars: dict[tuple[float, np.dtype[Any]], list[Tensor]] = {}
        self.known: dict[tuple[str, int | None], list[Tensor]] = {}

    def activation(self, node: Node, tensor: Tensor) -> Tensor:
        """What the node is to read for the tensor."""
        graph = self.graph
        if id(tensor) not in self.codes:
            dtype = np.dtype(np.uint8 if tensor.name in self.plan.unsigned else np.int8)
            params = self._scalar(self.plan.scales[tensor.name], dtype)
            made: Tensor = graph.variable(tensor.name + "_int8", dtype, tensor.shape)
            first = min(tensor.outputs, key=lambda n: n.order)
            graph.add("QuantizeLinear", [tensor, *params], [made], before=first)
            self.codes[id(tensor)] = made, params
        key = id(tensor), id(node)
        if key not in self.views:
            codes, params = self.codes[id(tensor)]
            self.views[key] = graph.variable(tensor.name + "_dq", FLOAT, tensor.shape)
            graph.add("DequantizeLinear", [codes, *params], [self.views[key]], before=node)
        return self.views[key]

    def weights(self, node: Node, mean: Array | None) -> None:
        """Puts int8 codes and a DQ in the place of the weights, and lowers the bias by what rounding adds."""
        graph, tensor = self.graph, node.inputs[1]
        values = graph.array(tensor)
        assert values is not None
        axis = _axis(graph, node)
        key = tensor.name, axis
        if key not in self.known:
            codes, scales = quantize_weights(values, axis, self.rest, self.bits)
            made = [graph.constant(codes, tensor.name + "_int8"), graph.constant(scales, tensor.name + "_scale")]
            self.known[key] = [*made, self._zero(scales.shape, np.dtype(np.int8))]
        view = graph.variable(tensor.name + "_dq", FLOAT, list(values.shape))
        attrs = {} if axis is None else {"axis": axis}
        graph.add("DequantizeLinear", self.known[key], [view], attrs, before=node)
        graph.set_input(node, 1, view)
        if mean is not None and node.op != "MatMul":
            self._correct(node, values, self.known[key], axis, mean)

    def _correct(self, node: Node, values: Array, known: list[Tensor], axis: int | None, mean: Array) -> None:
        graph, groups = self.graph, int(attribute(self.graph, node, "group") or 1)
        codes, scales = graph.array(known[0]), graph.array(known[1])
        channels = 1 if node.op == "ConvTranspose" else axis
        assert codes is not None and scales is not None and channels is not None
        old = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        bias = np.float32(0) if old is None else graph.array(old)
        if (node.op == "ConvTranspose" and groups > 1) or bias is None:
            return
        wide = np.broadcast_to(scales, values.shape[channels])
        shift = rounding_shift(values, codes, wide, channels, mean, groups)
        if node.op == "ConvTranspose":  # an output sees one tap of every stride
            shift = shift / np.prod(node.attrs.get("strides") or 1)
        if bias.shape in ((), shift.shape):
            graph.set_input(node, 2, graph.constant((bias - shift).astype(np.float32), node.outputs[0].name + "_bias"))

    def _scalar(self, scale: float, dtype: np.dtype[Any]) -> list[Tensor]:
        """Scale and zero point as initializers, one pair for each value."""
        if (scale, dtype) not in self.scalars:
            step = self.graph.constant(np.array(scale, np.float32), "scale")
            self.scalars[scale, dtype] = [step, self._zero((), dtype)]
        return self.scalars[scale, dtype]

    def _zero(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        if (shape, dtype) not in self.zeros:
            self.zeros[shape, dtype] = self.graph.constant(np.zeros(shape, dtype), "zero_point")
        return self.zeros[shape, dtype]


def _axis(graph: Graph, node: Node) -> int | None:
    """The axis of the weights' output channels; None for one scale."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose" or len(node.inputs[1].shape) != 2:
        return None
    return 0 if attribute(graph, node, "transB") else 1
