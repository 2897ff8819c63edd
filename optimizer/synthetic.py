"""Random inputs, for when no data is given: seeded, in range, and of a size that the model runs with.

Integers that index a table (Gather) stay below its length, those compared with constants (Equal) are drawn from these,
all others are 0 or 1, as masks are. Floats are standard normal. Unknown dims: 1 for a batch, for the rest a few usual
sizes are tried in the oracle until the model runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.data import Input
from optimizer.errors import DataError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Graph, Tensor

LENGTHS = (64, 128, 224, 256, 512, 32, 576, 16, 1, 8)
PLANES = (224, 320, 256, 64, 640, 48, 512, 32, 128, 416)
CHANNELS = 3
_MOVES = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Slice", "Expand", "Split"}


@dataclass(frozen=True)
class Random:
    """`count` feeds, each from its own seed; `values` holds the allowed integers of an input, `fixed` the only one."""

    name: str
    count: int
    seed: int
    inputs: tuple[Input, ...]
    sizes: Mapping[str, int]
    values: Mapping[str, Array]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def glance(self, inputs: Mapping[str, Input]) -> None:
        pass

    def read(self, places: Collection[int] | None) -> Iterator[tuple[str, Feeds]]:
        for place in range(self.count) if places is None else places:
            rng = np.random.default_rng([self.seed, place])
            yield f"random feed {place}", {i.name: self._draw(i, rng) for i in self.inputs}

    def _draw(self, want: Input, rng: np.random.Generator) -> Array:
        assert want.dtype is not None and want.shape is not None
        shape = [d if isinstance(d, int) else self.sizes[key(want, axis)] for axis, d in enumerate(want.shape)]
        if want.name in self.fixed:
            return np.full(shape, self.fixed[want.name], want.dtype)
        if want.dtype.kind in "OSU":
            return np.full(shape, "text", object)
        if want.dtype.kind in "iub":
            return rng.choice(self.values[want.name], shape).astype(want.dtype).reshape(shape)
        if want.dtype.kind == "c":
            return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), want.dtype)
        return np.asarray(rng.standard_normal(shape, np.float32), want.dtype)


@dataclass
class _Tries:
    """The sizes to try for every unknown dim, likeliest first."""

    inputs: tuple[Input, ...]
    tried: list[dict[str, int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[dict[str, int]]:
        for length, plane in zip(LENGTHS, PLANES, strict=True):
            for inner in (True, False):
                sizes = self._sizes(length, plane, inner)
                if sizes not in self.tried:
                    self.tried.append(sizes)
                    yield sizes

    def _sizes(self, length: int, plane: int, inner: bool) -> dict[str, int]:
        """`inner`: unknown dims that are not last get a length too (else they are taken for batches)."""
        sizes: dict[str, int] = {}
        for want in self.inputs:
            shape = want.shape or ()
            for axis, dim in enumerate(shape):
                if isinstance(dim, int):
                    continue
                last = axis == len(shape) - 1
                if (axis == 0 and len(shape) > 1) or re.search("batch", str(dim), re.IGNORECASE):
                    size = 1
                elif len(shape) == 4:
                    size = CHANNELS if axis == 1 else plane
                else:
                    size = length if last or inner else 1
                sizes.setdefault(key(want, axis), size)
        return sizes


def usual_sizes(inputs: Mapping[str, Input]) -> dict[str, int]:
    """The likeliest sizes of unknown dims, by `key`; nothing is run."""
    return next(iter(_Tries(tuple(inputs.values()))))


def key(want: Input, axis: int) -> str:
    """The name under which a size is kept: the dim's symbol, or the input and its axis."""
    assert want.shape is not None
    dim = want.shape[axis]
    return dim if isinstance(dim, str) else f"{want.name}[{axis}]"


def source(
    spec: str,
    graph: Graph,
    inputs: Mapping[str, Input],
    evaluate: Evaluate,
    seed: int,
    fixed: Mapping[str, float] | None = None,
) -> Random:
    """Reads `random:N`. Raises DataError where random inputs cannot be made for this model."""
    word, _, number = spec.partition(":")
    if word != "random" or not number.isdigit() or int(number) < 1:
        raise DataError(f"--data '{spec}' is not of the form random:N with N at least 1, e.g. random:16")
    wanted = tuple(i for i in inputs.values() if not i.optional)
    for want in wanted:
        if want.dtype is None or want.shape is None:
            what = "no tensor" if want.dtype is None else "of unknown rank"
            raise DataError(f"input '{want.name}' is {what}: random values cannot be made for it, give --data")
    values = {t.name: _values(graph, t) for t in graph.inputs}
    reason = ""
    with evaluate.open(graph) as run:
        for sizes in _Tries(wanted):
            made = Random(spec, int(number), seed, wanted, sizes, values, fixed or {})
            try:
                run(next(made.read((0,)))[1])
                return made
            except Exception as error:  # onnxruntime raises several bare classes of its own
                reason = reason or str(error).strip().splitlines()[0]
    raise DataError(
        f"the model runs with none of the usual sizes ({reason}): give inputs of the right size with --data"
    )


def _values(graph: Graph, tensor: Tensor) -> Array:
    """The integers that make sense for an input: see the module's docstring."""
    pending, seen = [tensor], {tensor.name}
    rows: list[int] = []
    compared: list[Array] = []
    while pending:
        current = pending.pop()
        for node in current.outputs:
            if node.op == "Gather" and len(node.inputs) == 2 and node.inputs[1] is current:
                rows += _length(node.inputs[0], int(node.attrs.get("axis", 0)))
            if node.op == "Equal":
                other = node.inputs[1] if node.inputs[0] is current else node.inputs[0]
                compared += _compared(graph, other)
            if node.op in _MOVES and node.inputs[0] is current:
                fresh = [t for t in node.outputs if t.name and t.name not in seen]
                seen.update(t.name for t in fresh)
                pending += fresh
    if rows:
        return np.arange(min(rows))
    if compared:
        return np.unique(np.concatenate(compared))
    return np.array([0, 1])


def _length(table: Any, axis: int) -> list[int]:
    size = table.shape[axis] if table.shape is not None and len(table.shape) else None
    return [size] if isinstance(size, int) and size > 0 else []


def _compared(graph: Graph, tensor: Tensor) -> list[Array]:
    """The constants a value is compared with, seen through a Constant node and reshaping."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is not None and maker.op in _MOVES:
        return _compared(graph, maker.inputs[0])
    if maker is not None and maker.op == "Constant" and hasattr(maker.attrs.get("value"), "shape"):
        tensor = maker.attrs["value"]
    array = graph.array(tensor)
    return [array.reshape(-1)] if array is not None and array.dtype.kind in "iu" else []
