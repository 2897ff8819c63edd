"""Binds inputs of the model to values that never change, so that branches and shapes that hang on them fold away.

A recogniser of speech may take its sample rate as an input and hold one network for each rate; runtimes without control
flow take such a model only once the rate is known. The interface stays as it is: a bound input is still there, and what
is given for it no longer matters. Calibration data that says otherwise is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from optimizer.context import Context
from optimizer.errors import DataError, UserError
from optimizer.graph import Array, Graph, Tensor
from optimizer.pipeline import Pass
from optimizer.shapes import static

TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Fix(Pass):
    """`values` holds "input:value" pairs; an input of more than one element is filled with the value."""

    name: ClassVar[str] = "fix"
    lossy: ClassVar[bool] = True
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks values the grammar cannot."""
        names = [item.rpartition(":")[0] for item in self.values]
        if not all(names):
            raise ValueError(f"values takes input:value, as in sr:16000; got '{','.join(self.values)}'")
        if len(set(names)) < len(names):
            raise ValueError(f"values binds an input twice; got '{','.join(self.values)}'")

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many readings of bound inputs became constant.

        Raises UserError for an input that is not there or cannot take the value, DataError for data that disagrees.
        """
        known = {**graph.overridable, **{t.name: t for t in graph.inputs}}
        bound: dict[str, Array] = {}
        for item in self.values:
            name, _, value = item.rpartition(":")
            if name not in known:
                raise UserError(f"'fix' finds no input '{name}'; the model has: {', '.join(known)}")
            bound[name] = _constant(known[name], value)
        _compare(bound, ctx)
        return sum(_bind(graph, known[name], value) for name, value in bound.items())


def _constant(tensor: Tensor, value: str) -> Array:
    """The input's value, in its own dtype and shape."""
    shape = static(tensor)
    if shape is None:
        raise UserError(
            f"'fix' cannot bind input '{tensor.name}': its shape {tensor.shape} is not known in advance; "
            "only inputs of a fixed shape can be bound"
        )
    dtype = np.dtype(tensor.dtype)
    number = _number(value, dtype)
    if number is None:
        raise UserError(f"'fix' cannot bind input '{tensor.name}': {value} is no value of its type, {dtype}")
    return np.full(shape, number, dtype)


def _number(value: str, dtype: np.dtype[Any]) -> Any:
    """The number a text stands for, or None where the dtype does not hold it."""
    if dtype.kind == "b":
        return TRUTH.get(value.lower())
    try:
        if dtype.kind in "iu":
            number, limits = int(value), np.iinfo(dtype)
            return number if limits.min <= number <= limits.max else None
        return _finite(float(value), dtype)
    except ValueError:
        return None


def _finite(number: float, dtype: np.dtype[Any]) -> float | None:
    """The number, unless the dtype holds no numbers or overflows (an infinity that is asked for stays)."""
    if dtype.kind not in "fV":  # V: bfloat16 and its like
        return None
    with np.errstate(over="ignore"):
        kept = np.isfinite(float(np.asarray(number).astype(dtype)))
    return number if kept or not np.isfinite(number) else None


def _compare(bound: dict[str, Array], ctx: Context) -> None:
    for number, feeds in enumerate(ctx.batches, 1):
        for name, value in bound.items():
            if name in feeds and not np.all(feeds[name] == value.reshape(-1)[:1]):
                raise DataError(
                    f"batch {number} of the data gives input '{name}' another value than 'fix' binds it to "
                    f"({value.reshape(-1)[0]}): leave such data out, or bind the input to what the data says"
                )


def _bind(graph: Graph, tensor: Tensor, value: Array) -> int:
    """Every reader, in every scope, reads the constant; a graph output that is the input itself stays tied to it."""
    readings = [(node, i) for node in dict.fromkeys(tensor.outputs) for i, t in enumerate(node.inputs) if t is tensor]
    if not readings:
        return 0
    constant = graph.constant(value, tensor.name + "_fixed")
    for node, index in readings:
        graph.set_input(node, index, constant)
    return len(readings)
