"""The weights that can be made sparse, as matrices: what each output of an operator sums over is one row.

A convolution in g groups is g matrices [outputs, inputs x kernel], a product is one [outputs, inputs]. Weights that
several operators read are one layer; they must all read them in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from optimizer.graph import Array, Graph, Node, Tensor
from optimizer.ops import attribute
from optimizer.qdq import array, readers, weighted
from optimizer.sparsity import constant, input_axis
from passes.sparsify.views import View, view

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Layout:
    """How weights lie: `group` matrices, and the axes of outputs and inputs of one (`inputs` 1: outputs come first)."""

    op: str
    group: int
    inputs: int


@dataclass(frozen=True, eq=False)
class Layer:
    """Constant weights and the operators that read them. `views` says which inputs each of them sums over, if known."""

    tensor: Tensor
    shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    layout: Layout
    views: tuple[View | None, ...]

    @property
    def name(self) -> str:
        return self.nodes[0].name

    @property
    def channels(self) -> int:
        """Input channels of one group."""
        channels = self.shape[self.layout.inputs]
        return channels // self.layout.group if self.layout.op == "ConvTranspose" else channels

    @property
    def columns(self) -> int:
        """Weights per output."""
        return self.channels * math.prod(self.shape[2:])

    def matrices(self, weights: Array) -> Array:
        """[group, outputs, columns]; the kernel's places are the faster part of a column."""
        group = self.layout.group
        if self.layout.inputs == 1:
            return weights.reshape(group, self.shape[0] // group, self.columns)
        inner = weights.reshape(group, self.shape[0] // group, self.shape[1], -1)
        return inner.swapaxes(1, 2).reshape(group, self.shape[1], self.columns)

    def restored(self, matrices: Array) -> Array:
        """The weights that `matrices` was made from, in memory of their own."""
        if self.layout.inputs == 1:
            return np.ascontiguousarray(matrices.reshape(self.shape))
        inner = matrices.reshape(self.layout.group, self.shape[1], self.channels, -1).swapaxes(1, 2)
        return np.ascontiguousarray(inner).reshape(self.shape)


def layers(graph: Graph) -> Iterator[Layer]:
    """Every float32 constant that Conv, ConvTranspose, Gemm and MatMul alone read as their weights, in order."""
    seen: set[int] = set()
    for node in graph.walk():
        if not weighted(node) or id(node.inputs[1]) in seen:
            continue
        seen.add(id(node.inputs[1]))
        if (layer := _layer(graph, node)) is not None:
            yield layer


def named(layer: Layer, names: Collection[str]) -> bool:
    """True where one of the names is an operator's, its output's or the weights' own."""
    own = [layer.tensor.name, *(n.name for n in layer.nodes), *(t.name for n in layer.nodes for t in n.outputs)]
    return any(name in names for name in own)


def _layer(graph: Graph, node: Node) -> Layer | None:
    tensor, held = node.inputs[1], constant(graph, node)
    made = tensor.inputs[0].op if tensor.inputs else "Constant"
    if held is None or made != "Constant" or held.dtype != FLOAT or 0 in held.shape or graph.is_output(tensor):
        return None
    shape, nodes = tuple(held.shape), readers(tensor)
    layout = _layout(graph, node, shape)
    if layout is None or not all(_reads(graph, n, tensor) and _layout(graph, n, shape) == layout for n in nodes):
        return None
    values = array(graph, tensor)
    if values is None or not np.isfinite(values).all():
        return None
    return Layer(tensor, shape, tuple(nodes), layout, tuple(view(graph, n, shape) for n in nodes))


def _reads(graph: Graph, node: Node, tensor: Tensor) -> bool:
    """True where a weighted operator reads the tensor as its weights and as nothing else."""
    return weighted(node) and [place for place, t in enumerate(node.inputs) if t is tensor] == [1]


def _layout(graph: Graph, node: Node, shape: tuple[int, ...]) -> Layout | None:
    if node.op in ("Conv", "ConvTranspose"):
        if len(shape) < 3:
            return None
        return Layout(node.op, int(attribute(graph, node, "group") or 1), input_axis(graph, node, len(shape)))
    return Layout("MatMul", 1, input_axis(graph, node, 2)) if len(shape) == 2 else None
