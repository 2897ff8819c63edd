"""What is known of a float32 tensor without running the model again: contents, range on calibration data, size.

Ranges come from statistics; for tensors made since, by what made them: integers times their scale, copies, squashing
functions. Constant nodes count as the constants they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from optimizer.graph import Array, Constant, Graph, Node, Tensor, peek
from optimizer.shapes import static
from optimizer.statistics import Histogram
from passes.cast.types import is_float
from passes.widen import MOVES

Range = tuple[float, float]
DEFAULT = 4096  # elements of a tensor of which nothing is known
SQUASHED: Mapping[str, Range] = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
}


class Values:
    """Looks every tensor up once, in execution order."""

    def __init__(self, graph: Graph, statistics: Mapping[str, Histogram], batches: int):
        self._graph, self._statistics, self._batches = graph, statistics, max(1, batches)
        self._ranges: dict[int, Range] = {}
        self._sizes: dict[int, int] = {}
        for tensor in [*graph.inputs, *graph.overridable.values()]:
            self._note(tensor, None)
        for node in graph.walk():
            for tensor in node.outputs:
                self._note(tensor, node)

    def array(self, tensor: Tensor) -> Array | None:
        """The contents of an initializer that nobody overrides, or of a Constant node."""
        if tensor.inputs and tensor.inputs[0].op == "Constant" and not tensor.inputs[0].domain:
            return _held(tensor.inputs[0])
        return self._graph.array(tensor)

    def range(self, tensor: Tensor) -> Range | None:
        """(lowest, highest) value, infinite where it was not finite; None where nobody knows."""
        array = self.array(tensor)
        if array is not None:
            return (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        return self._ranges.get(id(tensor))

    def size(self, tensor: Tensor) -> int:
        """Elements, per batch of the calibration data where the shape is not fixed."""
        array = self.array(tensor)
        return self._sizes.get(id(tensor), DEFAULT) if array is None else int(array.size)

    def _note(self, tensor: Tensor, maker: Node | None) -> None:
        if not is_float(tensor):
            return
        seen, shape = self._statistics.get(tensor.name), static(tensor)
        if shape is not None:
            self._sizes[id(tensor)] = math.prod(shape)
        elif seen is not None:
            self._sizes[id(tensor)] = -(-seen.size // self._batches)
        elif maker is not None:
            known = [self._sizes[id(t)] for t in maker.inputs if id(t) in self._sizes]
            self._sizes[id(tensor)] = max(known, default=DEFAULT)
        if seen is not None and (seen.size or not seen.finite):
            self._ranges[id(tensor)] = (seen.low, seen.high) if seen.finite else (-math.inf, math.inf)
        elif maker is not None and (found := self._derived(maker)) is not None:
            self._ranges[id(tensor)] = found

    def _derived(self, maker: Node) -> Range | None:
        if maker.domain:
            return None
        if maker.op == "DequantizeLinear":
            return self._dequantized(maker)
        if maker.op not in MOVES:
            return SQUASHED.get(maker.op)
        ranges = [self.range(t) for t in maker.inputs if is_float(t)]
        known = [r for r in ranges if r is not None]
        return (min(r[0] for r in known), max(r[1] for r in known)) if known and len(known) == len(ranges) else None

    def _dequantized(self, node: Node) -> Range | None:
        """All codes of the type, times the largest scale."""
        kind, scale = np.dtype(node.inputs[0].dtype), self.array(node.inputs[1])
        zero = self.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else np.zeros(1)
        if scale is None or zero is None or kind.kind not in "iu" or kind.itemsize > 1 or not scale.size:
            return None
        ends, largest = np.iinfo(kind), float(np.abs(scale).max())
        return (
            (float(ends.min) - float(zero.max())) * largest,
            (float(ends.max) - float(zero.min())) * largest,
        )


def _held(node: Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, Constant):
        return peek(value)
    for name in ("value_float", "value_floats"):
        if name in node.attrs:
            return np.array(node.attrs[name], np.float32)
    return None
