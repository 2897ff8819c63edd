"""Which operators TensorRT runs in int8 with a gain, one by one: the exclusions, each with the reason it is given.

The limits are those that NVIDIA's ModelOpt excludes operators by, which it measured: products with a side below 16
or a single row, convolutions with few channels, attention over more than 512 positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute
from optimizer.qdq import copies
from optimizer.statistics import Histogram
from passes.quantize.kernels import dots

RECURRENT = ("LSTM", "GRU", "RNN")
SMALLEST = 16  # channels, or sides of a product: below, an int8 kernel is no faster
LONGEST = 512  # positions of an attention: above, the fused kernel in half precision is faster
ALIGNED = 8  # channels in the layout of an int8 tensor
FLOAT = np.dtype(np.float32)

UNREAD = ("Shape", "Size")  # read no values


def operands(graph: Graph, node: Node) -> list[int]:
    """Positions of the inputs of a weighted operator that are activations."""
    return [0] if graph.is_constant(node.inputs[1]) else [0, 1]


def usable(statistics: Mapping[str, Histogram], tensor: Tensor) -> bool:
    """True where a scale can be read off what was seen of the tensor."""
    seen = statistics.get(tensor.name)
    return seen is not None and seen.finite and seen.size > 0


def refusal(graph: Graph, node: Node, statistics: Mapping[str, Histogram]) -> str:
    """Why a weighted operator of the outermost scope stays in float; '' where it runs in int8."""
    if len(node.inputs) < 2 or not all(t.name for t in node.inputs[:2]):
        return "an input is missing"
    if graph.is_constant(node.inputs[0]):
        return "the first operand is constant"
    for tensor in (node.inputs[i] for i in operands(graph, node)):
        if not usable(statistics, tensor):
            seen = statistics.get(tensor.name)
            return f"'{tensor.name}' {'holds NaN or infinity' if seen and not seen.finite else 'was never observed'}"
    if graph.is_constant(node.inputs[1]):
        weights = graph.array(node.inputs[1])
        if weights is None or weights.dtype != FLOAT or not np.isfinite(weights).all():
            return "the weights are not finite float32"
        if not weights.size:
            return "the weights are empty"
    elif node.op != "MatMul":
        return "the weights are computed"
    if node.op == "Conv":
        return _conv(graph, node)
    if node.op == "ConvTranspose":
        return _conv_transpose(graph, node)
    return _product(graph, node, statistics)


def work(graph: Graph, node: Node, statistics: Mapping[str, Histogram]) -> float:
    """Multiply-adds of a weighted operator in one batch, on average; 0 where the sizes are not known."""
    made = _elements(node.outputs[0], statistics) or 0.0
    if graph.is_constant(node.inputs[1]):
        return made * dots(graph, node)
    inner = _sizes(graph, node, statistics)[1]
    return made * inner if math.isfinite(inner) else 0.0


def _conv(graph: Graph, node: Node) -> str:
    outputs, inputs, *kernel = node.inputs[1].shape
    if not kernel:
        return "the weights have no kernel"
    if min(outputs, inputs) >= SMALLEST:
        return ""
    if attribute(graph, node, "group") == 1:
        stem = graph.is_input(source(graph, node.inputs[0])) and len(set(kernel)) == 1 and outputs % ALIGNED == 0
        return "" if stem else f"only {min(outputs, inputs)} channels"
    thick = outputs % ALIGNED == 0 and min(kernel) >= 3
    return "" if thick else f"groups of {inputs} channels, {outputs} in all, kernel {'x'.join(map(str, kernel))}"


def _conv_transpose(graph: Graph, node: Node) -> str:
    inputs, outputs = node.inputs[1].shape[:2]
    channels = min(inputs, outputs)
    return "" if channels >= SMALLEST else f"only {channels} channels"


def _product(graph: Graph, node: Node, statistics: Mapping[str, Histogram]) -> str:
    if node.op == "Gemm" and any(
        attribute(graph, node, name) != value for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    ):
        return "a Gemm with alpha, beta or transA"
    rows, inner, columns = _sizes(graph, node, statistics)
    if rows == 1 or columns == 1:
        return "a product with a vector is bound by memory"
    if min(inner, columns) < SMALLEST:
        return f"only {min(inner, columns):.0f} columns"
    if not graph.is_constant(node.inputs[1]) and max(rows, inner, columns) > LONGEST:
        return f"attention over more than {LONGEST} positions"
    return ""


def _sizes(graph: Graph, node: Node, statistics: Mapping[str, Histogram]) -> tuple[float, float, float]:
    """(M, K, N) of a product of M x K by K x N; a size that no shape tells comes from the sizes seen.

    With S elements in the output, A and B in the operands, S/A = N/K and S/B = M/K whatever the batch.
    """
    a, b, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if graph.is_constant(b):
        shape = list(b.shape)
        if len(shape) < 2:
            return math.inf, shape[0], 1
        inner, columns = reversed(shape[-2:]) if attribute(graph, node, "transB") else shape[-2:]
        count = _elements(a, statistics)
        return (count / max(1, inner) if count else math.inf), inner, columns
    if any(t.shape is not None and len(t.shape) == 1 for t in (a, b)):
        return 1, math.inf, math.inf
    rows, inner = (_known(a, -2) or _known(out, -2)), (_known(a, -1) or _known(b, -2))
    columns = _known(b, -1) or _known(out, -1)
    counts = [_elements(t, statistics) for t in (a, b, out)]
    if all(counts):
        left, right, made = (float(c or 0) for c in counts)
        inner = inner or (columns and columns * left / made) or (rows and rows * right / made)
        columns = columns or (inner and inner * made / left)
        rows = rows or (inner and inner * made / right)
    return tuple(size or math.inf for size in (rows, inner, columns))  # type: ignore[return-value]  # three of them


def _known(tensor: Tensor, axis: int) -> float | None:
    if tensor.shape is None or len(tensor.shape) < -axis or not isinstance(tensor.shape[axis], int):
        return None
    return float(tensor.shape[axis])


def _elements(tensor: Tensor, statistics: Mapping[str, Histogram]) -> float | None:
    """Elements of a tensor in one batch, on average."""
    seen = statistics.get(tensor.name)
    return seen.size / seen.batches if seen is not None and seen.size and seen.batches else None


def source(graph: Graph, tensor: Tensor) -> Tensor:
    """The tensor whose elements this one copies."""
    while tensor.inputs and copies(graph, tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    return tensor
