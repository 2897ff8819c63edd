"""Operators with weights as matrix products: which numbers each of their outputs is a product of.

A convolution is a product of patches, one row a position; of these a seeded part is taken. Weights become [groups, K,
M], inputs [groups, rows, K], outputs [groups, rows, M].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import attribute
from passes.prune.atoms import Floats

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Window:
    """How a convolution slides: numbers for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # before the first position
    transposed: bool

    def source(self, axis: int, at: Array, offset: int, size: int) -> tuple[Array, Array]:
        """Input positions that outputs at `at` take at one kernel position, and which of them exist."""
        stride, step = self.strides[axis], offset * self.dilations[axis]
        if self.transposed:
            where, rest = np.divmod(at + self.pads[axis] - step, stride)
            fits = (rest == 0) & (where >= 0) & (where < size)
        else:
            where = at * stride + step - self.pads[axis]
            fits = (where >= 0) & (where < size)
        return np.where(fits, where, 0), fits


@dataclass(frozen=True)
class Operator:
    """A weighted node of a graph, `weights` [groups, K, M] and the bias it has, or could get, a place for.

    `bias` is (node, input position) of the bias; the position may be empty. None: there is no place.
    """

    graph: Graph
    node: Node
    groups: int
    window: Window | None
    bias: tuple[Node, int] | None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def array(self) -> Array:
        values = self.graph.array(self.node.inputs[1])
        assert values is not None
        return values

    def matrix(self) -> Floats:
        """The weights, [groups, K, M]."""
        return np.asarray(self.alpha * self._fold(self.array.astype(np.float64)))

    def addend(self) -> Floats:
        """The bias that is added to the products, [groups, 1, M]; none where another node adds it."""
        node = self.node
        if self.bias is None or self.bias[0] is not node or len(node.inputs) < 3 or not node.inputs[2].name:
            return np.zeros((1, 1, 1))
        values = self.graph.array(node.inputs[2])
        assert values is not None
        if values.size == 1:
            return self.beta * values.astype(np.float64).reshape(1, 1, 1)
        return self.beta * values.astype(np.float64).reshape(self.groups, 1, -1)

    def _fold(self, w: Array) -> Array:
        g = self.groups
        if self.window is None:
            return (w.T if attribute(self.graph, self.node, "transB") else w)[None]
        if self.window.transposed:  # [C, M/g, k...]
            split = w.reshape(g, w.shape[0] // g, w.shape[1], -1)
            return np.ascontiguousarray(split.transpose(0, 1, 3, 2)).reshape(g, -1, w.shape[1])
        return w.reshape(g, w.shape[0] // g, -1).transpose(0, 2, 1)  # [M, C/g, k...]

    def _unfold(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        g = self.groups
        if self.window is None:
            return np.asarray(matrix[0].T if attribute(self.graph, self.node, "transB") else matrix[0])
        if self.window.transposed:
            split = matrix.reshape(g, shape[0] // g, -1, shape[1])
            return np.asarray(split.transpose(0, 1, 3, 2).reshape(shape))
        return np.asarray(matrix.transpose(0, 2, 1).reshape(shape))

    # ---------------------------------------------------------------- data

    def positions(self, y: Array) -> int:
        """How many rows an output has."""
        return int(y.size // y.shape[1 if self.window else -1])

    def outputs(self, y: Array, at: Array) -> Array:
        """The rows of an output, [groups, rows, M]."""
        if self.window is None:
            return y.reshape(-1, y.shape[-1])[at][None]
        n, *places = np.unravel_index(at, (y.shape[0], *y.shape[2:]))
        found = np.moveaxis(y, 1, -1)[(n, *places)]
        return np.asarray(found.reshape(len(at), self.groups, -1).transpose(1, 0, 2))

    def inputs(self, x: Array, shape: tuple[int, ...], at: Array) -> Array:
        """What the rows of an output of this shape are made of, [groups, rows, K]."""
        if self.window is None:
            return x.reshape(-1, x.shape[-1])[at][None]
        window, last = self.window, np.moveaxis(x, 1, -1)
        n, *places = np.unravel_index(at, (shape[0], *shape[2:]))
        patches = np.zeros((len(at), x.shape[1], prod(window.kernel)), x.dtype)
        for number, offsets in enumerate(np.ndindex(*window.kernel)):
            found = [window.source(i, places[i], o, x.shape[2 + i]) for i, o in enumerate(offsets)]
            fits = np.logical_and.reduce([f for _, f in found])
            patches[fits, :, number] = last[(n[fits], *(where[fits] for where, _ in found))]
        return patches.reshape(len(at), self.groups, -1).transpose(1, 0, 2)

    # ---------------------------------------------------------------- editing

    def put(self, matrix: Floats, shift: Floats) -> None:
        """Replaces the weights, and adds [groups, M] to the bias."""
        old, graph, node = self.array, self.graph, self.node
        new = self._unfold(matrix / self.alpha, old.shape).astype(old.dtype)
        graph.set_input(node, 1, graph.constant(np.ascontiguousarray(new), node.inputs[1].name))
        if self.bias is None or not shift.any():
            return
        owner, position = self.bias
        tensor: Tensor | None = owner.inputs[position] if len(owner.inputs) > position else None
        before = graph.array(tensor) if tensor is not None and tensor.name else np.zeros((), old.dtype)
        assert before is not None
        made = (before.astype(np.float64) + (shift / self.beta).reshape(-1)).astype(old.dtype)
        hint = tensor.name if tensor is not None and tensor.name else f"{node.name}_bias"
        graph.set_input(owner, position, graph.constant(made, hint))


def operator(graph: Graph, node: Node, x: Array, y: Array) -> Operator | None:
    """The node as a matrix product, for values of its input and output; None where it is none, or shares weights."""
    if node.domain or node.op not in OPERATORS:
        return None
    w = node.inputs[1]
    values = graph.array(w)
    if values is None or values.dtype.kind != "f" or len(w.outputs) != 1:
        return None
    if node.op == "MatMul":
        return None if values.ndim != 2 or x.ndim < 2 else Operator(graph, node, 1, None, _addend(graph, node))
    if node.op == "Gemm":
        return _gemm(graph, node)
    window = _window(graph, node, x, y, values)
    if window is None or not _free(graph, node, 2):
        return None
    return Operator(graph, node, int(attribute(graph, node, "group")), window, (node, 2))


def _free(graph: Graph, node: Node, position: int) -> bool:
    """True where an optional input is missing, or a constant that nobody else reads."""
    if len(node.inputs) <= position or not node.inputs[position].name:
        return True
    tensor = node.inputs[position]
    return graph.array(tensor) is not None and len(tensor.outputs) == 1


def _gemm(graph: Graph, node: Node) -> Operator | None:
    alpha, beta = (float(attribute(graph, node, name)) for name in ("alpha", "beta"))
    if attribute(graph, node, "transA") or not alpha:
        return None
    place = _free(graph, node, 2) and beta != 0
    if place and len(node.inputs) > 2 and node.inputs[2].name:
        place = prod(node.inputs[2].shape[:-1]) == 1
    return Operator(graph, node, 1, None, (node, 2) if place else None, alpha, beta or 1.0)


def _addend(graph: Graph, node: Node) -> tuple[Node, int] | None:
    """Where a MatMul's bias is: in an Add that alone reads it."""
    made = node.outputs[0]
    reader = made.outputs[0] if len(made.outputs) == 1 else None
    if reader is None or reader.op != "Add" or graph.is_output(made):
        return None
    position = 1 if reader.inputs[0] is made else 0
    tensor = reader.inputs[position]
    values = graph.array(tensor)
    if values is None or len(tensor.outputs) != 1 or values.ndim == 0 or prod(values.shape[:-1]) != 1:
        return None
    return reader, position


def _window(graph: Graph, node: Node, x: Array, y: Array, w: Array) -> Window | None:
    kernel, rank = tuple(w.shape[2:]), w.ndim - 2
    strides = tuple(attribute(graph, node, "strides") or [1] * rank)
    dilations = tuple(attribute(graph, node, "dilations") or [1] * rank)
    pads = tuple(attribute(graph, node, "pads") or [0] * rank)[:rank]
    auto = str(attribute(graph, node, "auto_pad"))
    transposed = node.op == "ConvTranspose"
    if transposed and (auto != "NOTSET" or attribute(graph, node, "output_shape")):
        return None
    if auto == "VALID":
        pads = (0,) * rank
    if auto.startswith("SAME"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        whole = [max(0, (y.shape[2 + i] - 1) * strides[i] + reach[i] - x.shape[2 + i]) for i in range(rank)]
        pads = tuple(n // 2 if auto == "SAME_UPPER" else n - n // 2 for n in whole)
    return Window(kernel, strides, dilations, pads, transposed)
