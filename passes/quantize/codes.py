"""How 8-bit codes stand for numbers: value = scale * (code - zero)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.graph import Graph, Node
from optimizer.ops import attribute

STEP = 1e-10  # the smallest scale
SMALLEST = 256 * STEP  # a tensor whose values are all smaller than this cannot be stored in 256 steps
Codes = np.dtype[np.uint8] | np.dtype[np.int8]


def ends(dtype: Codes) -> tuple[int, int]:
    """The lowest and the highest code."""
    return (0, 255) if dtype == np.uint8 else (-128, 127)


@dataclass(frozen=True)
class Params:
    """value = scale * (code - zero); codes are `dtype`."""

    scale: float
    zero: int
    dtype: Codes

    @property
    def low(self) -> float:
        return self.scale * (ends(self.dtype)[0] - self.zero)

    @property
    def high(self) -> float:
        return self.scale * (ends(self.dtype)[1] - self.zero)

    def before(self, a: float, b: float) -> Params:
        """The same codes read as x, where these parameters read y = a x + b."""
        return Params(self.scale / a, self.zero + round(b / self.scale), self.dtype)


def fit(low: float, high: float, dtype: Codes) -> Params:
    """Asymmetric parameters for [low, high], which must contain 0: exactly 0 has a code, and 0 at an end is an end."""
    first, last = ends(dtype)
    scale = float(np.float32(max((high - low) / (last - first), STEP)))
    return Params(scale, int(np.clip(round(first - low / scale), first, last)), dtype)


def gate(graph: Graph, node: Node, dtype: Codes) -> tuple[Params, Params]:
    """How HardSigmoid (alone, or inside HardSwish) is stored and how it is read: x clipped to the slope, then [0, 1].

    The top code would read as 1 + 1/steps; a scale a quarter step smaller halves the error at both ends.
    """
    alpha, beta = (1 / 6, 0.5) if node.op == "HardSwish" else (attribute(graph, node, n) for n in ("alpha", "beta"))
    first, steps = ends(dtype)[0], int(255 * beta)
    stored = Params(float(np.float32(beta / (alpha * steps))), first + steps, dtype)
    return stored, Params(float(np.float32(beta / (steps + 0.25))), first, dtype)
