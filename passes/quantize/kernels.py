"""Which operator, in which position, has a fast int8 kernel in ONNX Runtime on the CPU: the one place that knows.

Measured on AVX512-VNNI: a convolution gains only inside a chain that stays in int8, because every Q or DQ walks over
the tensor once more; so whatever stands between convolutions must have an int8 form as well. Some have one by detour:

  Relu, Clip         vanish: quantising to [0, high] clips already (zero point at the lowest code)
  HardSigmoid        a requantisation: clip(a x + b, 0, 1) is Q with scale b/(a z), zero point z, read back as [0, 1]
  scalar Mul, Add    no operator at all: the same stored integers, read with another scale and zero point
  ConvTranspose      s*s plain convolutions, one for each phase of the stride, interleaved by DepthToSpace

Float is faster for the stem (few input channels waste the dot product) and for LayerNormalization, Softmax, linear
Resize, and products of two activations.
"""

from __future__ import annotations

from enum import Enum, auto

import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute, clamp, scalar
from optimizer.qdq import copies

STEM_CHANNELS = 4


class Kind(Enum):
    """How an operator is rendered in int8."""

    WEIGHTED = auto()  # int8 dot products: the reason to be in int8 at all
    UNIT = auto()  # DQ -> operator -> Q with a range of its own
    CLAMP = auto()  # becomes a range; a unit of its own only where it cannot be absorbed
    GATE = auto()  # HardSigmoid, HardSwish
    AFFINE = auto()  # scalar Mul or Add: another view of the same integers
    MOVE = auto()  # copies elements: works on the integers as they are


_KINDS = {
    "Conv": Kind.WEIGHTED,
    "ConvTranspose": Kind.WEIGHTED,
    "MatMul": Kind.WEIGHTED,
    "Gemm": Kind.WEIGHTED,
    "Add": Kind.UNIT,
    "Mul": Kind.UNIT,
    "Sub": Kind.AFFINE,
    "Div": Kind.AFFINE,
    "AveragePool": Kind.UNIT,
    "GlobalAveragePool": Kind.UNIT,
    "Concat": Kind.UNIT,
    "Sigmoid": Kind.UNIT,
    "LeakyRelu": Kind.UNIT,
    "Relu": Kind.CLAMP,
    "Clip": Kind.CLAMP,
    "HardSigmoid": Kind.GATE,
    "HardSwish": Kind.GATE,
    "MaxPool": Kind.MOVE,
    "Reshape": Kind.MOVE,
    "Transpose": Kind.MOVE,
    "Flatten": Kind.MOVE,
    "Squeeze": Kind.MOVE,
    "Unsqueeze": Kind.MOVE,
    "Slice": Kind.MOVE,
    "Split": Kind.MOVE,
    "DepthToSpace": Kind.MOVE,
    "Resize": Kind.MOVE,
}
INTEGER_OPERATORS = frozenset(
    (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "MatMulNBits",
        "QLinearMatMul",
        "QLinearConv",
        "DynamicQuantizeLSTM",
    )
)


def is_quantized(graph: Graph) -> bool:
    """True where somebody quantised this model before: it is left alone."""
    return any(node.op in INTEGER_OPERATORS for node in graph.walk())


def kind(graph: Graph, node: Node, matmul: bool) -> Kind | None:
    """How this node runs in int8, or None for float. `matmul`: MatMul and Gemm count too."""
    found = None if node.domain else _KINDS.get(node.op)
    if found is None or not node.inputs or not node.inputs[0].name or (len(node.outputs) > 1 and node.op != "Split"):
        return None
    if found is Kind.WEIGHTED:
        return found if _weighted(graph, node, matmul) else None
    if node.op in ("Add", "Mul", "Sub", "Div"):
        return _binary(graph, node, found)
    if found is Kind.UNIT and any(graph.is_constant(t) for t in node.inputs if t.name):
        return None
    if node.op == "MaxPool":
        return found if graph.opset >= 12 else None
    if node.op == "Resize":
        return found if copies(graph, node) else None
    if node.op == "Clip":
        return found if bounds(graph, node) is not None else None
    if node.op == "HardSigmoid":
        alpha, beta = attribute(graph, node, "alpha"), attribute(graph, node, "beta")
        return found if alpha > 0 and 0.1 <= beta <= 0.9 else None
    return found


def activations(graph: Graph, node: Node, how: Kind) -> list[int]:
    """Positions of the inputs that are activations: those that must come as integers."""
    if how in (Kind.WEIGHTED, Kind.CLAMP, Kind.GATE, Kind.MOVE):
        return [0]
    return [i for i, t in enumerate(node.inputs) if t.name and not graph.is_constant(t)]


def bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """(low, high) of a Relu or a Clip with constant ends around 0; None for any other."""
    ends = clamp(graph, node)
    return ends if ends is not None and ends[0] <= 0 <= ends[1] else None


def affine(graph: Graph, node: Node) -> tuple[float, float] | None:
    """(a, b) of y = a x + b, a > 0, for Mul and Add with a scalar constant; None for anything else."""
    if node.domain or node.op not in ("Add", "Mul", "Div", "Sub") or len(node.inputs) != 2:
        return None
    x, c = node.inputs
    if graph.is_constant(x) and node.op in ("Add", "Mul"):
        x, c = c, x
    value = scalar(graph, c)
    if value is None or graph.is_constant(x) or not _keeps_rank(x, c):
        return None
    number = float(value)
    if node.op in ("Add", "Sub"):
        return 1.0, number if node.op == "Add" else -number
    if node.op == "Div":
        number = 1.0 / number if number else 0.0
    return (number, 0.0) if number > 0 and np.isfinite(number) else None


def gated(graph: Graph, tensor: Tensor) -> tuple[float, float]:
    """The interval outside of which the tensor's value does not matter to its readers, because a gate is shut there.

    x * HardSigmoid(x) is 0 below -beta/alpha (-3 in HardSwish), x * Sigmoid(x) is within 0.003 of 0 below -8.
    """
    readers = list({id(n): n for n in tensor.outputs}.values())
    if graph.is_output(tensor) or not readers:
        return -np.inf, np.inf
    if all(n.op == "HardSwish" and not n.domain for n in readers):
        return -3.0, np.inf
    gates = [n for n in readers if n.op in ("HardSigmoid", "Sigmoid") and not n.domain]
    if len(readers) != 2 or len(gates) != 1:
        return -np.inf, np.inf
    (gate,) = gates
    product = next(n for n in readers if n is not gate)
    operands = [t for t in product.inputs if t is not tensor]
    if product.op != "Mul" or len(operands) != 1 or operands[0] is not gate.outputs[0]:
        return -np.inf, np.inf
    if not graph.only_feeds(gate.outputs[0], product):
        return -np.inf, np.inf
    if gate.op == "Sigmoid":
        return -8.0, np.inf
    return -float(attribute(graph, gate, "beta") / attribute(graph, gate, "alpha")), np.inf


def dots(graph: Graph, node: Node) -> int:
    """Multiply-adds per output element of a weighted operator."""
    shape = node.inputs[1].shape
    if node.op == "Conv":
        return int(np.prod(shape[1:]))
    if node.op == "ConvTranspose":
        strides = node.attrs.get("strides") or [1] * (len(shape) - 2)
        return int(shape[0] * np.prod(shape[2:]) // max(1, int(np.prod(strides))))
    return int(shape[0] if not node.attrs.get("transB") else shape[1])


def phases(graph: Graph, node: Node) -> tuple[int, tuple[int, int]] | None:
    """(stride, pad at the start of H and W) of a 2-D ConvTranspose that is exactly `stride` times upsampling, or None.

    That is: one group, no dilation, and kernel = stride + pads in both directions, as in all learnt upsampling.
    """
    shape = node.inputs[1].shape
    if len(shape) != 4 or attribute(graph, node, "group") != 1 or attribute(graph, node, "auto_pad") != "NOTSET":
        return None
    if "output_shape" in node.attrs or any(d != 1 for d in node.attrs.get("dilations", [])):
        return None
    strides, pads = node.attrs.get("strides", [1, 1]), node.attrs.get("pads", [0] * 4)
    extra = node.attrs.get("output_padding", [0, 0])
    exact = all(shape[2 + i] + extra[i] - pads[i] - pads[2 + i] == strides[i] for i in (0, 1))
    if not exact or strides[0] != strides[1] or strides[0] < 2:
        return None
    return int(strides[0]), (int(pads[0]), int(pads[1]))


def _weighted(graph: Graph, node: Node, matmul: bool) -> bool:
    if len(node.inputs) < 2 or graph.is_constant(node.inputs[0]) or not _float_constant(graph, node.inputs[1]):
        return False
    if len(node.inputs) > 2 and node.inputs[2].name and not _float_constant(graph, node.inputs[2]):
        return False
    shape = node.inputs[1].shape
    if node.op == "Conv":
        stem = attribute(graph, node, "group") == 1 and shape[1] < STEM_CHANNELS
        return len(shape) in (3, 4) and not stem
    if node.op == "ConvTranspose":
        return phases(graph, node) is not None
    if not matmul or len(shape) != 2 or min(shape) < 16:
        return False
    return node.op == "MatMul" or all(
        attribute(graph, node, name) == value for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    )


def _binary(graph: Graph, node: Node, found: Kind) -> Kind | None:
    if found is Kind.UNIT and not any(graph.is_constant(t) for t in node.inputs):
        return Kind.UNIT
    return Kind.AFFINE if affine(graph, node) is not None else None


def _float_constant(graph: Graph, tensor: Tensor) -> bool:
    return graph.is_constant(tensor) and np.dtype(tensor.dtype) == np.float32


def _keeps_rank(x: Tensor, c: Tensor) -> bool:
    rank = len(c.shape)
    return rank == 0 or (x.shape is not None and rank <= len(x.shape))
