"""What the rules of shape arithmetic may ask about tensors, and the limits they share."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.graph import Graph, Node, Tensor
from passes.shapes.algebra import Expr

Values = NDArray[np.object_]  # of Expr
Dims = list[Expr | None]
MOST = 64  # elements: larger integer tensors hold data, not shapes


class Facts(Protocol):
    graph: Graph

    def dims(self, tensor: Tensor) -> list[Expr] | None:
        """Every dim, unknown ones as atoms; None where the rank is unknown."""

    def values(self, tensor: Tensor) -> Values | None:
        """The elements of a small integer or bool tensor, in its shape; None for anything else."""

    def vector(self, node: Node, position: int) -> list[Expr] | None:
        """The elements of an integer input, or None where it is absent or unknown."""

    def note(self, tensor: Tensor, values: Values) -> None:
        """Sets the elements of a tensor that no rule of its own describes."""
