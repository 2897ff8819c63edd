"""Dynamic int8: activations are quantised at run time, per tensor, by DynamicQuantizeLinear; no calibration is needed.

    y = Cast(MatMulInteger(q(x), W)) * (scale(x) * scales(W)) [+ bias]        standard operators; ONNX Runtime fuses it

W is int8, symmetric, one scale per column. An LSTM has no standard int8 form: for ONNX Runtime it becomes that
runtime's DynamicQuantizeLSTM (domain com.microsoft), whose recurrent product is the costly part of a recogniser.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute
from passes.quantize.weights import quantize_weights

SMALLEST = 16  # rows and columns of a weight: below, quantising the activation costs more than it saves
FLOAT = np.dtype(np.float32)


def render(graph: Graph, bits: int, skip: Collection[str], lstm: bool) -> int:
    """Rewrites MatMul and Gemm with constant weights, in every scope, and LSTM if asked. Returns how many."""
    writer = _Writer(graph, bits)
    count = 0
    for node in list(graph.walk()):
        if node.domain or node.name in skip or any(t.name in skip for t in node.outputs):
            continue
        if node.op in ("MatMul", "Gemm"):
            count += writer.product(node)
        elif node.op == "LSTM" and lstm:
            count += writer.lstm(node)
    return count


class _Writer:
    """Remembers which activations and weights are quantised already, by scope and name."""

    def __init__(self, graph: Graph, bits: int):
        self.graph, self.bits = graph, bits
        self.activations: dict[tuple[int, str], list[Tensor]] = {}
        self.weights: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    def product(self, node: Node) -> bool:
        """One MatMul or Gemm; False where it has no int8 form."""
        scope = node.scope
        x, w = node.inputs[:2]
        if scope is None or self.graph.is_constant(x) or not _is_matrix(self.graph, w) or min(w.shape) < SMALLEST:
            return False
        if (x.dtype is not None and np.dtype(x.dtype) != FLOAT) or not _is_finite(self.graph, w):
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        if node.op == "Gemm" and not _plain(self.graph, node, bias):
            return False
        codes, zero, scale = self._activation(scope, node, x)
        weight, scales = self._weight(w, bool(node.attrs.get("transB", 0)))
        out = node.outputs[0]
        scope.remove(node)
        total = self._add(scope, "MatMulInteger", [codes, weight, zero], node)
        real = self._add(scope, "Cast", [total], node, {"to": 1})
        step = self._add(scope, "Mul", [scale, scales], node)
        result = self._add(scope, "Mul", [real, step], node)
        result = result if bias is None else self._add(scope, "Add", [result, bias], node)
        result.shape = out.shape
        scope.replace(out, result)
        return True

    def lstm(self, node: Node) -> bool:
        """One LSTM with constant float weights, in sequence-major layout."""
        graph, scope = self.graph, node.scope
        arrays = [graph.array(t) for t in node.inputs[1:3]]
        if scope is None or attribute(graph, node, "layout") or any(a is None or a.dtype != FLOAT for a in arrays):
            return False
        if not all(_is_finite(graph, t) for t in node.inputs[1:3]):
            return False
        inputs: list[Tensor | None] = [t if t.name else None for t in node.inputs]
        inputs += [None] * (8 - len(inputs))
        for index, array in enumerate(arrays, 1):
            assert array is not None
            pairs = [quantize_weights(w.T, 1, self.bits) for w in array]  # one per direction: [input, 4 * hidden]
            hint = node.inputs[index].name
            inputs[index] = graph.constant(np.stack([c for c, _ in pairs]), hint + "_int8")
            scales = np.stack([s for _, s in pairs])
            inputs.append(graph.constant(scales, hint + "_scale"))
            inputs.append(graph.constant(np.zeros(scales.shape, np.int8), hint + "_zero_point"))
        outputs, attrs, name = list(node.outputs), dict(node.attrs), node.name
        made: list[Tensor] = [scope.variable(t.name, FLOAT, t.shape) if t.name else t for t in outputs]
        attrs.pop("layout", None)
        scope.add("DynamicQuantizeLSTM", inputs, made, attrs, "com.microsoft", name, before=node)
        for old, new in zip(outputs, made, strict=True):
            if old.name:
                scope.replace(old, new)
        scope.remove(node)
        return True

    def _activation(self, scope: Graph, node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = (id(scope), x.name)
        if key not in self.activations:
            made: list[Tensor] = [scope.variable(f"{x.name}_int8", np.uint8)]
            made += [scope.variable(f"{x.name}_scale", FLOAT), scope.variable(f"{x.name}_zero_point", np.uint8)]
            scope.add("DynamicQuantizeLinear", [x], made, before=node)
            self.activations[key] = made
        codes, scale, zero = self.activations[key]
        return codes, zero, scale

    def _weight(self, tensor: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        key = (tensor.name, transposed)
        if key not in self.weights:
            values = self.graph.array(tensor)
            assert values is not None
            codes, scales = quantize_weights(values.T if transposed else values, 1, self.bits)
            hint = tensor.name
            self.weights[key] = (
                self.graph.constant(np.ascontiguousarray(codes), hint + "_int8"),
                self.graph.constant(scales, hint + "_scale"),
            )
        return self.weights[key]

    def _add(
        self, scope: Graph, op: str, inputs: list[Tensor], node: Node, attrs: dict[str, int] | None = None
    ) -> Tensor:
        out = scope.variable(f"{node.name or op}_{op.lower()}", np.int32 if op == "MatMulInteger" else FLOAT)
        scope.add(op, inputs, [out], attrs)
        return out


def _is_matrix(graph: Graph, tensor: Tensor) -> bool:
    return graph.is_constant(tensor) and len(tensor.shape) == 2 and np.dtype(tensor.dtype) == FLOAT


def _is_finite(graph: Graph, tensor: Tensor) -> bool:
    values = graph.array(tensor)
    return values is not None and bool(np.isfinite(values).all())


def _plain(graph: Graph, node: Node, bias: Tensor | None) -> bool:
    """True for a Gemm that is a product plus its bias: no scaling, no transposed activation."""
    unscaled = attribute(graph, node, "alpha") == 1 and (bias is None or attribute(graph, node, "beta") == 1)
    return unscaled and not attribute(graph, node, "transA")
