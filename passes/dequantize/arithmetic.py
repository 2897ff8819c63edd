"""Numbers behind codes: value = (code - zero) * scale, per tensor or along one axis; and products of scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.graph import Array, Graph, Tensor

CODES = tuple(map(np.dtype, (np.int8, np.uint8, np.int16, np.uint16, np.int32)))
FLOAT = np.dtype(np.float32)
LONGEST = 64  # parts of a product of scales that are looked at


@dataclass(frozen=True)
class Product:
    """A product of scales: `factor` times tensors that are known at run time only."""

    factor: Array
    scales: tuple[Tensor, ...]

    def is_over(self, scales: list[Tensor]) -> bool:
        """True where the run-time scales are these, each as often."""
        return sorted(map(id, self.scales)) == sorted(map(id, scales))


def at(inputs: list[Tensor], index: int) -> Tensor | None:
    """An input of a node, or None where it is left out."""
    return inputs[index] if index < len(inputs) and inputs[index].name else None


def number(graph: Graph, tensor: Tensor | None, default: float | None = None) -> float | None:
    """The value of a constant with one element, `default` where the tensor is left out, else None."""
    if tensor is None:
        return default
    array = graph.array(tensor)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def scale_of(graph: Graph, tensor: Tensor | None) -> float | None:
    """A float32 scale that is one positive number for the whole tensor, else None."""
    if tensor is None or tensor.dtype is None or np.dtype(tensor.dtype) != FLOAT:
        return None
    value = number(graph, tensor)
    return value if value is not None and np.isfinite(value) and value > 0 else None


def values(graph: Graph, codes: Tensor, scale: Tensor | None, zero: Tensor | None, axis: int) -> Array | None:
    """What constant codes stand for, in float32; None where that is not known, or scales come by block.

    Without a scale, the codes less their zero point.
    """
    array = graph.array(codes)
    steps = np.ones((), np.float32) if scale is None else graph.array(scale)
    zeros = np.zeros((), np.int32) if zero is None else graph.array(zero)
    if array is None or array.dtype not in CODES or steps is None or steps.dtype != FLOAT or zeros is None:
        return None
    if (zero is not None and zeros.dtype != array.dtype) or not np.isfinite(steps).all():
        return None
    aligned = [_aligned(each, array.shape, axis) for each in (steps, zeros)]
    if aligned[0] is None or aligned[1] is None:
        return None
    return np.asarray((array.astype(np.float64) - aligned[1]) * aligned[0]).astype(np.float32)


def _aligned(params: Array, shape: tuple[int, ...], axis: int) -> Array | None:
    """Parameters so shaped that they broadcast along `axis`, or already shaped that way."""
    if params.size == 1:
        return params.reshape(())
    full = [1] * len(shape)
    if not -len(shape) <= axis < len(shape):
        return None
    full[axis] = shape[axis]
    return params.reshape(full) if params.shape in ((shape[axis],), tuple(full)) else None


def product(graph: Graph, tensor: Tensor) -> Product | None:
    """A tensor as a product of constants and of scales that DynamicQuantizeLinear gives; None for anything else."""
    factor: Any = np.ones((), np.float64)
    scales: list[Tensor] = []
    pending = [tensor]
    for _ in range(LONGEST):
        if not pending:
            return Product(np.asarray(factor), tuple(scales))
        part = pending.pop()
        maker = part.inputs[0] if part.inputs else None
        if (array := graph.array(part)) is not None:
            if array.dtype != FLOAT:
                return None
            factor = factor * array
        elif maker is None or maker.domain:
            return None
        elif maker.op == "Mul":
            pending.extend(maker.inputs)
        elif maker.op == "DynamicQuantizeLinear" and part is maker.outputs[1]:
            scales.append(part)
        else:
            return None
    return None
