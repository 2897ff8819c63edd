"""An abstract interpreter for shape arithmetic: every integer tensor's elements and every tensor's dims as expressions.

Shape yields dims, Gather picks one, Add, Mul, Concat, Where, ... calculate with them (C4). Values are numpy arrays of
`Expr`, so broadcasting is numpy's. An element that no rule explains is an atom of its own: equal to itself only.
Arithmetic on dims is taken to be free of overflow, as they and their products are; elements of other tensors are data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from optimizer import shapes
from optimizer.graph import Constant, Graph, Node, Tensor
from passes.shapes.algebra import Expr, number, symbol
from passes.shapes.dims import result_dims
from passes.shapes.elements import RULES, array_of
from passes.shapes.facts import MOST, Values


def in_order(scope: Graph) -> Iterator[Node]:
    """Every node, those of a subgraph just before the node that holds it: all that is read comes before its reader."""
    for node in list(scope.nodes):
        for body in node.bodies():
            yield from in_order(body)
        yield node


class Interpreter:
    """Facts about the tensors of a graph whose shapes have been inferred; it reads the graph as it is on creation."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self._dims: dict[int, list[Expr] | None] = {}
        self._values: dict[int, Values | None] = {}
        self._alive = list(graph.tensors().values())  # facts go by identity, which must not be given out twice
        for node in in_order(graph):
            self._visit(node)

    def dims(self, tensor: Tensor) -> list[Expr] | None:
        """Every dim, unknown ones as atoms; None where the rank is unknown."""
        if id(tensor) not in self._dims:
            self._alive.append(tensor)
            self._dims[id(tensor)] = self._complete(tensor, None)
        return self._dims[id(tensor)]

    def values(self, tensor: Tensor) -> Values | None:
        """The elements of a small integer or bool tensor, in its shape; None for anything else."""
        if id(tensor) not in self._values:
            self._alive.append(tensor)
            self._values[id(tensor)] = self._literal(tensor)
        return self._values[id(tensor)]

    def vector(self, node: Node, position: int) -> list[Expr] | None:
        """The elements of an integer input, or None where it is absent or unknown."""
        if len(node.inputs) <= position or not node.inputs[position].name:
            return None
        values = self.values(node.inputs[position])
        return None if values is None else list(values.reshape(-1))

    def note(self, tensor: Tensor, values: Values) -> None:
        """Sets the elements of a tensor that no rule of its own describes."""
        self._values[id(tensor)] = values

    def _visit(self, node: Node) -> None:
        first = node.outputs[0] if node.outputs else None
        inferred = all(t.shape is not None and None not in t.shape for t in node.outputs)
        for out, ruled in zip(node.outputs, repeat(None) if inferred else result_dims(node, self), strict=False):
            self._dims[id(out)] = self._complete(out, ruled)
        rule = None if node.domain else RULES.get(node.op)
        if rule is None or first is None or not counts(first):
            return
        made = rule(node, self)
        if made is not None and made.size <= MOST and _sound(made, first, self._dims[id(first)]):
            self._values[id(first)] = made

    def _complete(self, tensor: Tensor, ruled: Sequence[Expr | None] | None) -> list[Expr] | None:
        """Inferred numbers and symbols first, then what the operator's rule says, then atoms."""
        told = list(ruled) if ruled is not None else None
        known = told if tensor.shape is None else list(tensor.shape)
        if known is None:
            return None
        told = told if told is not None and len(told) == len(known) else [None] * len(known)
        return [self._dim(tensor, i, d, r) for i, (d, r) in enumerate(zip(known, told, strict=True))]

    def _dim(self, tensor: Tensor, axis: int, inferred: Any, ruled: Expr | None) -> Expr:
        if isinstance(inferred, int):
            return number(inferred)
        if isinstance(inferred, str):
            return symbol(inferred, natural=True)
        return ruled if ruled is not None else symbol(("dim", tensor.name, axis), natural=True)

    def _literal(self, tensor: Tensor) -> Values | None:
        known = shapes.static(tensor)
        if not counts(tensor) or known is None or math.prod(known) > MOST:
            return None
        if isinstance(tensor, Constant) and (array := self.graph.array(tensor)) is not None:
            return array_of([number(v) for v in array.reshape(-1).tolist()], known)
        count = math.prod(known)
        return array_of([symbol(("element", tensor.name, i), natural=False, data=True) for i in range(count)], known)


def counts(tensor: Tensor) -> bool:
    """True for the types that shape arithmetic uses; smaller integers wrap around too soon."""
    return tensor.dtype is not None and np.dtype(tensor.dtype) in (np.int64, np.int32, np.bool_)


def _sound(made: Values, tensor: Tensor, dims: list[Expr] | None) -> bool:
    """A check on the rules: the shape agrees with what inference found, and numbers fit their type."""
    if dims is not None:
        pairs = zip(made.shape, dims, strict=len(made.shape) == len(dims))
        if len(made.shape) != len(dims) or any(d.value not in (None, n) for n, d in pairs):
            return False
    dtype = np.dtype(tensor.dtype)
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return all(e.value is None or low <= e.value <= high for e in made.reshape(-1))
