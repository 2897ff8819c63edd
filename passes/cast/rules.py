"""What must stay in float32, and why: every rule that is not a matter of cost.

range       A value beyond half the type's largest (calibration data is not all data), an unknown one, or a largest that
            has lost digits already: what makes the tensor and what reads it. bfloat16 reaches as far as float32.
constants   One that is too large, infinite, or loses more than 1% to rounding (an epsilon of 1e-12 is 0 in float16);
            a whole number that is none afterwards. What a mask of -3e38 is added to stays with it, up to and with the
            Softmax: the calibration data may hold no sample that is masked. Ends of a Clip move to the type's own.
precision   Operators whose result is less precise than their operands: long sums, sums of squares, logarithms, roots,
            with what a root is taken of and the difference from a mean, which cancels. Norms that say `stash_type=1`
            compute their statistics in float32 by definition (ONNX), as TensorRT does; the others promise nothing.
logits      Softmax turns the absolute error of its input into a relative one of its output: up to 1/8 between
            neighbouring numbers passes (6%); else the product that makes them stays in float32 as well.
places      What becomes an index, a size, a coordinate or a double in the end: an image is more than 2,048 wide.
divisors    One that may be too small for the type would divide by zero.
scales      of Q/DQ must be the same number in half precision, else the integers mean something else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import attribute, is_pure
from passes.cast.cut import SUMMING
from passes.cast.types import FLOAT, Half, Ports, is_float, ports
from passes.cast.values import Values
from passes.widen import MOVES, is_half

ROOM = 0.5  # of the type's range may be used on the calibration data
NOISE = 40.0  # dB that a constant must keep; rounding alone leaves 55 in bfloat16, 73 in float16
ADDENDS = 256  # a sum of more is long
STEP = 3  # bits: neighbouring inputs of Softmax differ by 2**-STEP at most
SENSITIVE = (
    {"CumSum", "LpPool", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"}
    | {"LRN", "LpNormalization", "MeanVarianceNormalization", "ReduceL2", "ReduceSumSquare", "GlobalLpPool"}
    | {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
    | {"Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Sin", "Cos", "Tan", "DFT", "STFT", "Det"}
    | {"DeformConv", "GridSample", "RoiAlign"}
)
SPREADS = MOVES | {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Where", "Max", "Min", "Sum", "Pad", "Cast", "Relu"}
VARIANCE = {"Abs", "Add", "Clip", "Div", "Max", "Mul", "Neg", "Pow", "ReduceMean", "ReduceSum", "Sub"}
SCALES = MOVES | {"Add", "Sub", "Mul", "Div", "Where"}  # between the product of queries and keys, and Softmax
PLACES: dict[str, tuple[int, ...]] = {
    "GridSample": (1,),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "OneHot": (0, 1),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "RoiAlign": (1,),
    "Upsample": (1,),
}


@dataclass
class Rules:
    """Applies the rules to one graph. `keep`: names of nodes, of their results or of operators that stay by request."""

    graph: Graph
    half: Half
    values: Values
    keep: Collection[str] = ()

    def apply(self) -> tuple[dict[int, Ports], dict[int, str]]:
        """By a node's id, for nodes that touch float32: what would become half, or why nothing may."""
        able: dict[int, Ports] = {}
        why: dict[int, str] = {}
        self.wild = self._wild()
        placed, logits, rooted = self._places(), self._logits(), self._rooted()
        for node in self.graph.walk():
            if not any(map(is_float, (*node.inputs, *node.outputs))):
                continue
            found = ports(self.graph, node, self.half)
            if found is None:
                why[id(node)] = f"{node.op} of operator set {self.graph.opset} has no {self.half.name} form"
            elif id(node) in placed:
                why[id(node)] = "its result becomes an index, a size or a place"
            elif id(node) in logits:
                why[id(node)] = "a Softmax reads its result, whose values are too large to tell them apart"
            elif id(node) in rooted:
                why[id(node)] = "a root is taken of its result"
            elif reason := self._reason(node, found):
                why[id(node)] = reason
            else:
                able[id(node)] = found
        return able, why

    def _reason(self, node: Node, found: Ports) -> str:
        if not {node.name, node.op, *(t.name for t in node.outputs)}.isdisjoint(self.keep):
            return "it was asked to stay"
        if not is_pure(node):
            return "its results are not always the same"
        if (node.op in SENSITIVE and not self._harmless(node)) or _centres(node):
            return f"{node.op} loses precision"
        if node.op == "CastLike" or (node.op == "Cast" and not self._whole(node)):
            return f"{node.op} makes whole numbers too large for {self.half.name}"
        if node.op in ("QuantizeLinear", "DequantizeLinear") and not self._exact(node.inputs[1]):
            return f"its scale is no number of {self.half.name}"
        tensors = [node.inputs[i] for i in found.inputs] + [node.outputs[i] for i in found.outputs]
        constants = (self._constant(node, index) for index in found.inputs)
        reasons = itertools.chain(constants, map(self._outside, tensors), [self._divisor(node)])
        return next(filter(None, reasons), "")

    # ---------------------------------------------------------------- ranges

    def _outside(self, tensor: Tensor) -> str:
        """Why a computed tensor cannot be held in half precision; empty where it can."""
        if id(tensor) in self.wild:
            return f"'{tensor.name}' depends on a constant too large for {self.half.name}"
        if not self.half.narrow or self.values.array(tensor) is not None:
            return ""
        ends = self.values.range(tensor)
        if ends is None:
            return f"no range is known for '{tensor.name}'"
        peak = max(-ends[0], ends[1])
        if not math.isfinite(peak):
            return f"'{tensor.name}' holds NaN or infinity on the calibration data"
        if peak > ROOM * self.half.limit:
            return f"'{tensor.name}' reaches {peak:.3g} on the calibration data, {self.half.name} {self.half.limit:.3g}"
        if 0 < peak < self.half.normal:
            return f"'{tensor.name}' stays below {peak:.1g}, too small for {self.half.name}"
        return ""

    def _wild(self) -> set[int]:
        """Ids of tensors that a constant beyond the type's range may take beyond it, whatever the calibration saw."""
        wild: set[int] = set()
        for node in self.graph.walk():
            if node.op not in SPREADS or node.domain:
                continue
            for tensor in filter(is_float, node.inputs):
                array = self.values.array(tensor)
                if id(tensor) in wild or (array is not None and array.size and not self._fits(array)):
                    wild.update(id(t) for t in node.outputs if is_float(t))
        return wild

    def _fits(self, array: Array) -> bool:
        return bool(np.abs(array).max() <= self.half.limit)

    # ---------------------------------------------------------------- constants

    def _constant(self, node: Node, index: int) -> str:
        tensor = node.inputs[index]
        array = self.values.array(tensor)
        if array is None or not array.size or (node.op == "Clip" and index > 0):
            return ""
        if not self._fits(array):
            return f"constant '{tensor.name}' is too large for {self.half.name}"
        rounded = array.astype(self.half.dtype).astype(FLOAT)
        error, lost = rounded - array, (rounded == 0) & (array != 0)
        if node.op == "Div" and index == 1 and lost.any():
            return f"divisor '{tensor.name}' is 0 in {self.half.name}"
        whole = bool((array == np.rint(array)).all())
        signal, noise = (float(np.square(a, dtype=np.float64).sum()) for a in (array, error))
        if noise and (whole or signal < noise * 10 ** (NOISE / 10)):
            return f"constant '{tensor.name}' loses precision in {self.half.name}"
        return ""

    def _exact(self, tensor: Tensor) -> bool:
        array = self.values.array(tensor)
        if array is None or not array.size or not self._fits(array):
            return False
        return bool((array > 0).all() and (array.astype(self.half.dtype).astype(FLOAT) == array).all())

    def _divisor(self, node: Node) -> str:
        if node.op != "Div" or not self.half.narrow or self.values.array(node.inputs[1]) is not None:
            return ""
        ends = self.values.range(node.inputs[1])
        if ends is None or (ends[0] < self.half.normal and ends[1] > -self.half.normal):
            return f"divisor '{node.inputs[1].name}' may be too small for {self.half.name}"
        return ""

    # ---------------------------------------------------------------- precision

    def _harmless(self, node: Node) -> bool:
        """True where a sensitive operator is safe in the form at hand."""
        if node.op in ("LayerNormalization", "GroupNormalization", "RMSNormalization"):
            return bool(attribute(self.graph, node, "stash_type") == 1)
        if node.op == "ReduceSum":
            most = self.values.size(node.inputs[0]) / max(1, self.values.size(node.outputs[0]))
            return most <= ADDENDS and not _squares(node.inputs[0])
        if node.op == "ReduceMean":
            centred = any(_centres(n) for n in node.outputs[0].outputs)
            return not centred and not _squares(node.inputs[0])
        if node.op == "Pow":
            exponent = self.values.array(node.inputs[1])
            summed = any(n.op.startswith("Reduce") for n in node.outputs[0].outputs)
            return not summed and exponent is not None and exponent.size == 1 and exponent.item() in (1, 2, 3)
        return False

    def _rooted(self) -> set[int]:
        """Ids of what roots are taken of: sums of squares, and the differences from a mean that are squared."""
        roots = [n for n in self.graph.walk() if n.op in ("Sqrt", "Reciprocal", "Log") and not n.domain]
        found = list(_behind([n.inputs[0] for n in roots], lambda n: n.op in VARIANCE, _is_square))
        squared = [m for n in found if _is_square(n) for m in n.inputs[0].inputs if m.op == "Sub"]
        return {id(n) for n in (*found, *squared)}

    def _logits(self) -> set[int]:
        """Ids of what makes inputs of Softmax that half precision cannot tell apart, back to the product, and of it."""
        found: set[int] = set()
        for node in self.graph.walk():
            if node.domain or node.op not in ("Softmax", "LogSoftmax") or not is_float(node.inputs[0]):
                continue
            ends = self.values.range(node.inputs[0])
            # Softmax sees differences from the largest: how low a mask makes the others does not matter.
            if ends is not None and abs(ends[1]) >= 2.0 ** (self.half.digits - STEP):
                makers = list(_behind([node.inputs[0]], lambda n: n.op in SCALES))
                found.update(map(id, [node, *makers]))
                found.update(id(m) for n in [node, *makers] for m in n.inputs[0].inputs if m.op in SUMMING)
        return found

    # ---------------------------------------------------------------- places

    def _whole(self, node: Node) -> bool:
        """False for a Cast from integers, some of which may be none in half precision."""
        kind = node.inputs[0].dtype
        if kind is None or np.dtype(kind).kind not in "iu" or np.dtype(kind).itemsize == 1:
            return True
        ends = self.values.range(node.outputs[0])
        return ends is not None and max(-ends[0], ends[1]) <= 2**self.half.digits

    def _places(self) -> set[int]:
        """Ids of nodes whose results become an index, a size or a coordinate, back to the last weighted operator."""
        ends: list[Tensor] = []
        found: set[int] = set()
        for node in self.graph.walk():
            if node.domain:
                continue
            if node.op == "Cast" and is_float(node.inputs[0]) and not is_half(node.outputs[0]):
                ends.append(node.inputs[0])
                found.add(id(node))
            ends += [t for i, t in enumerate(node.inputs) if i in PLACES.get(node.op, ()) and is_float(t)]
        found.update(map(id, _behind(ends, lambda n: n.op not in SUMMING)))
        return found


def _source(tensor: Tensor) -> Tensor:
    """The tensor that this one is a Cast of."""
    while tensor.inputs and tensor.inputs[0].op == "Cast":
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _centres(node: Node) -> bool:
    """True for x - mean(x), the beginning of a variance."""
    if node.op != "Sub" or node.domain:
        return False
    x, mean = node.inputs
    return any(m.op == "ReduceMean" and _source(m.inputs[0]) is _source(x) for m in mean.inputs)


def _is_square(node: Node) -> bool:
    return node.op == "Pow" or (node.op == "Mul" and node.inputs[0] is node.inputs[1])


def _squares(tensor: Tensor) -> bool:
    return any(map(_is_square, tensor.inputs))


def _behind(
    tensors: Iterable[Tensor], through: Callable[[Node], bool], last: Callable[[Node], bool] = lambda node: False
) -> Iterator[Node]:
    """The nodes that the float32 tensors are computed by, as far as `through` lets it go, and `last` not beyond."""
    pending, seen = list(tensors), set[int]()
    while pending:
        for maker in pending.pop().inputs:
            if id(maker) not in seen and through(maker) and not any(maker.bodies()):
                seen.add(id(maker))
                pending += [] if last(maker) else filter(is_float, maker.inputs)
                yield maker
