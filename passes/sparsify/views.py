"""What the outputs of an operator sum over: sampled rows of its input, such that output = row @ weights.

For a convolution a row is the patch under the kernel at one output position, unfolded; only the sampled positions are
gathered, so the cost is bounded whatever the size of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from optimizer.graph import Array, Graph, Node
from optimizer.ops import attribute


class View(Protocol):
    """A way to see an input as rows; equal views of one tensor give the same rows."""

    def rows(self, x: Array, most: int, rng: np.random.Generator) -> Array:
        """At most so many rows, drawn without repetition: [rows, group, columns]."""


@dataclass(frozen=True)
class Vectors(View):
    """The input of a product: its last axis (`transposed`: its first) is summed over."""

    transposed: bool = False

    def rows(self, x: Array, most: int, rng: np.random.Generator) -> Array:
        x = x.T if self.transposed else x
        flat = x.reshape(-1, x.shape[-1])
        return flat[_drawn(len(flat), most, rng)][:, None]


@dataclass(frozen=True)
class Patches(View):
    """The input of a convolution over any number of spatial axes; `same`: SAME_UPPER or SAME_LOWER instead of `pads`.

    `transposed`: of a ConvTranspose, an output sees those inputs that its stride leads to.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    same: str = ""
    transposed: bool = False
    more: tuple[int, ...] = ()  # output_padding

    def rows(self, x: Array, most: int, rng: np.random.Generator) -> Array:
        sizes = x.shape[2:]
        outputs = [self._outputs(axis, size) for axis, size in enumerate(sizes)]
        drawn = _drawn(len(x) * max(0, math.prod(outputs)), most, rng)
        image, *place = np.unravel_index(drawn, (len(x), *outputs))
        flat, inside = np.zeros((len(drawn), 1), np.int64), np.ones((len(drawn), 1), bool)
        for axis, size in enumerate(sizes):
            index, valid = self._inputs(axis, size, place[axis])
            flat = (flat[:, :, None] * size + index[:, None]).reshape(len(drawn), -1)
            inside = (inside[:, :, None] & valid[:, None]).reshape(len(drawn), -1)
        seen = x.reshape(*x.shape[:2], -1)[image[:, None], :, flat]  # [rows, kernel, channels]
        patches = np.where(inside[:, :, None], seen, 0).swapaxes(1, 2)
        return patches.reshape(len(drawn), self.group, -1)

    def _outputs(self, axis: int, size: int) -> int:
        """The number of output positions along a spatial axis."""
        stride, reach = self.strides[axis], self._reach(axis)
        if self.same:
            return -(-size // stride)
        pads = self.pads[axis] + self.pads[axis + len(self.kernel)]
        if self.transposed:
            return stride * (size - 1) + self.more[axis] + reach - pads
        return (size + pads - reach) // stride + 1

    def _inputs(self, axis: int, size: int, place: Array) -> tuple[Array, Array]:
        """What the kernel reads at output positions [rows]: (indices, which are inside), both [rows, kernel]."""
        stride, taps = self.strides[axis], np.arange(self.kernel[axis]) * self.dilations[axis]
        if self.transposed:
            above = place[:, None] + self.pads[axis] - taps
            index, met = above // stride, above % stride == 0
        else:
            index, met = place[:, None] * stride - self._before(axis, size) + taps, True
        valid = (index >= 0) & (index < size) & met
        return np.where(valid, index, 0), valid

    def _before(self, axis: int, size: int) -> int:
        """Padding before the first element."""
        if not self.same:
            return self.pads[axis]
        whole = max(0, (self._outputs(axis, size) - 1) * self.strides[axis] + self._reach(axis) - size)
        return (whole + (self.same == "SAME_LOWER")) // 2

    def _reach(self, axis: int) -> int:
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1


def view(graph: Graph, node: Node, shape: Sequence[int]) -> View | None:
    """How the rows of a weighted operator with weights of this shape are found; None where it is not known how."""
    if node.op in ("Gemm", "MatMul"):
        return Vectors(bool(node.op == "Gemm" and attribute(graph, node, "transA")))
    kernel, transposed = tuple(shape[2:]), node.op == "ConvTranspose"
    rank, same = len(kernel), str(attribute(graph, node, "auto_pad") or "NOTSET")
    same = "" if same in ("NOTSET", "VALID") else same
    if transposed and (same or node.attrs.get("output_shape")):
        return None

    def numbers(name: str, default: int, length: int = rank) -> tuple[int, ...]:
        return tuple(attribute(graph, node, name) or [default] * length)

    valid = attribute(graph, node, "auto_pad") == "VALID"
    pads = (0,) * (2 * rank) if valid else numbers("pads", 0, 2 * rank)
    more = numbers("output_padding", 0) if transposed else ()
    group = int(attribute(graph, node, "group") or 1)
    return Patches(kernel, numbers("strides", 1), numbers("dilations", 1), pads, group, same, transposed, more)


def _drawn(total: int, most: int, rng: np.random.Generator) -> Array:
    if total <= most:
        return np.arange(total)
    return np.sort(rng.choice(total, most, replace=False, shuffle=False))
