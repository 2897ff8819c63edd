"""Ranges of values that follow from the operators alone: what an Exp makes is not negative, an ArgMax is an index.

A range holds for every value but NaN, in any runtime: an end is claimed only where no rounding can cross it. So the
operators that approximate have the end 0 alone, sums and products of floats keep no more than their sign, and those of
integers, which wrap around, nothing. MaxPool and ReduceMax are left out: of NaN, or of nothing, they make the lowest
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.ops import clamp, scalar
from optimizer.stored import nbytes

Range = tuple[float, float]
Look = Callable[[Tensor], Range]

DEPTH = 8  # nodes to look back
READ = 1 << 16  # bytes: a larger constant is not searched for its smallest value
ANY = (-math.inf, math.inf)
NOT_NEGATIVE = (0.0, math.inf)
FLOATS = ("float16", "bfloat16", "float32", "float64")
POSITIVE = frozenset(
    ["Abs", "Exp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid", "Softmax", "Softplus", "Sqrt"]
)
COPIES = frozenset(
    ["DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
     "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"]
)  # fmt: skip
AVERAGES = frozenset(["AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"])


def span(graph: Graph, tensor: Tensor) -> Range:
    """The least and the largest value that the tensor can have, NaN aside; infinite where nothing is known."""
    return _Search(graph).look(tensor, DEPTH)


def is_float(tensor: Tensor) -> bool:
    """True where the tensor is known to hold floats of a kind that has infinities and rounds to nearest."""
    return tensor.dtype is not None and np.dtype(tensor.dtype).name in FLOATS


def has_sign(graph: Graph, tensor: Tensor) -> bool:
    """False where no value is negative, and no float is -0 either."""
    low, node = span(graph, tensor)[0], tensor.inputs[0] if tensor.inputs else None
    squared = node is not None and not node.domain and node.op in POSITIVE - {"Sqrt"}
    return not (low > 0 or (low == 0 and (squared or _of_dtype(tensor) != ANY)))


@dataclass
class _Search:
    graph: Graph
    found: dict[int, Range] = field(default_factory=dict)

    def look(self, tensor: Tensor, depth: int) -> Range:
        if id(tensor) not in self.found:
            limits, made = _of_dtype(tensor), self._made(tensor, depth)
            self.found[id(tensor)] = (max(limits[0], made[0]), min(limits[1], made[1]))
        return self.found[id(tensor)]

    def _made(self, tensor: Tensor, depth: int) -> Range:
        if isinstance(tensor, Constant):
            return _of_constant(self.graph, tensor)
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.domain or not depth:
            return ANY
        return _of_node(self.graph, node, tensor, lambda t: self.look(t, depth - 1))


def _of_dtype(tensor: Tensor) -> Range:
    kind = None if tensor.dtype is None else np.dtype(tensor.dtype)
    if kind is None or kind.kind not in "iub":
        return ANY
    return (0, 1) if kind.kind == "b" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))


def _of_constant(graph: Graph, tensor: Constant) -> Range:
    array = graph.array(tensor) if nbytes(tensor) <= READ else None
    if array is None or array.dtype.kind not in "iufb" or not array.size or np.isnan(array).any():
        return ANY
    return array.min().item(), array.max().item()


def _of_node(graph: Graph, node: Node, tensor: Tensor, look: Look) -> Range:
    if node.op in ("Relu", "Clip"):
        return _clipped(graph, node, look)
    if node.op in COPIES:
        return look(node.inputs[0])
    if node.op in ("Concat", "Where"):
        return _hull([look(t) for t in node.inputs[node.op == "Where" :]])
    if node.op in ("Max", "Min"):
        ends = [look(t) for t in node.inputs]
        choose = max if node.op == "Max" else min
        return choose(low for low, _ in ends), choose(high for _, high in ends)
    if node.op == "Cast":
        return _cast(node, tensor, look)
    if node.op in ("ArgMax", "ArgMin", "Shape", "Size", "Mod") or (node.op == "TopK" and tensor is node.outputs[1]):
        return _counted(graph, node, tensor)
    return _arithmetic(graph, node, look) if is_float(tensor) else ANY


def _hull(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _clipped(graph: Graph, node: Node, look: Look) -> Range:
    ends = clamp(graph, node)
    if ends is None or any(map(math.isnan, ends)):
        return ANY
    low, high = (min(max(end, ends[0]), ends[1]) for end in look(node.inputs[0]))
    return low, high


def _cast(node: Node, tensor: Tensor, look: Look) -> Range:
    """A wider integer keeps the range and any float the sign; NaN and what does not fit become any integer."""
    x = node.inputs[0]
    low, high = look(x)
    if is_float(tensor):
        return NOT_NEGATIVE if low >= 0 else ANY
    limits = _of_dtype(tensor)
    whole = x.dtype is not None and np.dtype(x.dtype).kind in "iub"
    return (low, high) if whole and limits != ANY and limits[0] <= low and high <= limits[1] else ANY


def _counted(graph: Graph, node: Node, tensor: Tensor) -> Range:
    """Indices along an axis, sizes, and remainders by a positive number."""
    if node.op == "Mod":
        divisor = scalar(graph, node.inputs[1])
        whole = tensor.dtype is not None and np.dtype(tensor.dtype).kind in "iu"
        return (0, divisor - 1) if whole and divisor and divisor > 0 and not node.attrs.get("fmod") else ANY
    if node.op in ("Shape", "Size"):
        return NOT_NEGATIVE
    x, axis = node.inputs[0], node.attrs.get("axis", -1 if node.op == "TopK" else 0)
    size = x.shape[axis] if x.shape is not None and -len(x.shape) <= axis < len(x.shape) else None
    return (0, size - 1) if isinstance(size, int) else NOT_NEGATIVE


def _arithmetic(graph: Graph, node: Node, look: Look) -> Range:
    """Floats: the sign of a result that rounding to nearest keeps."""
    if node.op in POSITIVE or (node.op == "Mul" and node.inputs[0] is node.inputs[1]):
        return NOT_NEGATIVE
    if node.op == "HardSigmoid":
        return 0.0, 1.0
    if node.op == "Pow":
        exponent = scalar(graph, node.inputs[1])
        return NOT_NEGATIVE if exponent is not None and exponent % 2 == 0 else ANY
    if node.op in AVERAGES:
        return NOT_NEGATIVE if look(node.inputs[0])[0] >= 0 else ANY
    if node.op not in ("Add", "Mul", "Div"):
        return ANY
    (a, _), (b, _) = (look(t) for t in node.inputs)
    if a < 0 or b < 0 or (node.op == "Div" and b == 0):  # 1 / -0 is -inf
        return ANY
    return (max(a, b), math.inf) if node.op == "Add" else NOT_NEGATIVE
