"""Which widths of a weighted operator pruning can change, and the same operator at others.

Conv, ConvTranspose   groups, input channels of a group, output channels of a group
Gemm, MatMul          inputs and outputs of the weights; all four dims of a product of two activations
GRU, LSTM, RNN        input features and hidden units
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

Shape = tuple[int, ...]
Shapes = tuple[Shape | None, ...]  # None: an optional input that is absent

BLOCK = 16  # channels MLAS computes at once (AVX-512): a width between multiples costs what the next one does
FRACTIONS = {1: (1, 3 / 4, 1 / 2, 1 / 4), 2: (1, 3 / 4, 1 / 2, 1 / 4), 3: (1, 1 / 2, 1 / 4), 4: (1, 1 / 2)}
NARROW = 8  # a width below this, such as an image's colours, is measured as it is and at half


@dataclass(frozen=True)
class Layer:
    """One weighted operator of the standard domain, enough to build a model of it alone.

    `attrs` are sorted and hashable, `shapes` those of its inputs at full width, `constant` says which ones are weights.
    `then` is the activation after it, such as Relu: the runtime computes it in the same kernel, yet not for nothing.
    """

    op: str
    attrs: tuple[tuple[str, Any], ...]  # an attribute may hold anything
    opset: int
    shapes: Shapes
    constant: tuple[bool, ...]
    then: str = ""

    def attr(self, name: str, default: int) -> int:
        return int(dict(self.attrs).get(name, default))

    def shape(self, position: int) -> Shape:
        found = self.shapes[position]
        assert found is not None, f"{self.op} without its input {position}"
        return found

    def at(self, shapes: Shapes, **attrs: int) -> Layer:
        """The same operator for other sizes."""
        return replace(self, shapes=shapes, attrs=tuple(sorted((dict(self.attrs) | attrs).items())))

    @cached_property
    def key(self) -> str:
        return repr((self.op, self.attrs, self.opset, self.shapes, self.constant, self.then))


@dataclass(frozen=True)
class Sizes:
    """What the time depends on: it is measured for `free` widths, and taken to grow in proportion to the `rest`."""

    free: tuple[float, ...]
    rest: float = 1.0


def _conv(layer: Layer) -> Sizes:
    """Groups, input channels of a group, output channels of a group."""
    channels, weights = layer.shape(0)[1], layer.shape(1)
    if layer.op == "Conv":
        return Sizes((channels / weights[1], weights[1], weights[0] * weights[1] / channels))
    groups = layer.attr("group", 1)
    return Sizes((groups, channels / groups, weights[1]))


def _conv_at(layer: Layer, free: Shape) -> Layer:
    groups, inner, outer = free
    x, w = layer.shape(0), layer.shape(1)
    lead = (groups * outer, inner) if layer.op == "Conv" else (groups * inner, outer)
    bias = [None if s is None else (groups * outer,) for s in layer.shapes[2:]]
    return layer.at(((x[0], groups * inner, *x[2:]), (*lead, *w[2:]), *bias), group=groups)


@dataclass(frozen=True)
class _Product:
    """`batch` products of [rows, inner] and [inner, columns]; a side that is not `batched` is the same for all."""

    batch: int
    rows: int
    inner: int
    columns: int
    batched: tuple[bool, bool]

    @property
    def dims(self) -> Shape:
        return self.batch, self.rows, self.inner, self.columns


def _product(layer: Layer) -> _Product:
    """Leading axes of the left side are rows where the right side has none, as in the runtime."""
    a, b = layer.shape(0), layer.shape(1)
    if layer.op == "Gemm":
        a, b = (s[::-1] if layer.attr(f"trans{side}", 0) else s for s, side in ((a, "A"), (b, "B")))
    a, b = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    left, right = a[:-2], b[:-2]
    if math.prod(right) == 1:
        return _Product(1, math.prod(a[:-1]), a[-1], b[-1], (False, False))
    pairs = itertools.zip_longest(reversed(left), reversed(right), fillvalue=1)
    return _Product(math.prod(map(max, pairs)), a[-2], a[-1], b[-1], (math.prod(left) > 1, True))


def _measured(layer: Layer) -> tuple[int, ...]:
    """Which of a product's dims are measured: those of weights, and all where both sides are activations."""
    if layer.constant[1]:
        return (2, 3)
    return (1, 2) if layer.constant[0] else (0, 1, 2, 3)


def _dense(layer: Layer) -> Sizes:
    dims, free = _product(layer).dims, _measured(layer)
    return Sizes(tuple(dims[i] for i in free), math.prod(d for i, d in enumerate(dims) if i not in free))


def _dense_at(layer: Layer, free: Shape) -> Layer:
    full = _product(layer)
    dims = list(full.dims)
    for place, size in zip(_measured(layer), free, strict=True):
        dims[place] = size
    batch, rows, inner, columns = dims
    if layer.op == "MatMul":
        left, right = ((batch,) if batched else () for batched in full.batched)
        return layer.at(((*left, rows, inner), (*right, inner, columns)))
    a = (inner, rows) if layer.attr("transA", 0) else (rows, inner)
    b = (columns, inner) if layer.attr("transB", 0) else (inner, columns)
    return layer.at((a, b, *(_addend(s, full, rows, columns) for s in layer.shapes[2:])))


def _addend(shape: Shape | None, full: _Product, rows: int, columns: int) -> Shape | None:
    """Gemm's third input: what is broadcast stays so."""
    if not shape:
        return shape
    last = columns if shape[-1] == full.columns else 1
    return (last,) if len(shape) == 1 else (rows if shape[-2] == full.rows else 1, last)


def _recurrent(layer: Layer) -> Sizes:
    """Input features and hidden units."""
    return Sizes((layer.shape(1)[-1], layer.shape(2)[-1]))


def _recurrent_at(layer: Layer, free: Shape) -> Layer:
    features, hidden = free
    gates = layer.shape(2)[1] // layer.shape(2)[2]
    # X, W, R, B, sequence_lens, initial_h, initial_c, P: each its last axis, and W and R the one before
    last = (features, features, hidden, 2 * gates * hidden, None, hidden, hidden, 3 * hidden)
    shapes: list[Shape | None] = []
    for place, (shape, size) in enumerate(zip(layer.shapes, last, strict=False)):
        middle = (gates * hidden,) if place in (1, 2) else None
        if shape is None or size is None:
            shapes.append(shape)
        else:
            shapes.append((*shape[:-2], *middle, size) if middle else (*shape[:-1], size))
    return layer.at(tuple(shapes), hidden_size=hidden)


@dataclass(frozen=True)
class Form:
    """How an operator's sizes are read off its shapes, and how it is built at others."""

    sizes: Callable[[Layer], Sizes]
    at: Callable[[Layer, Shape], Layer]


FORMS = (
    dict.fromkeys(("Conv", "ConvTranspose"), Form(_conv, _conv_at))
    | dict.fromkeys(("Gemm", "MatMul"), Form(_dense, _dense_at))
    | dict.fromkeys(("GRU", "LSTM", "RNN"), Form(_recurrent, _recurrent_at))
)


def axes(layer: Layer, multiple: int) -> tuple[Shape, ...]:
    """The widths to measure, ascending, for each that is free; groups off the blocks have kernels of their own."""
    full = [int(size) for size in FORMS[layer.op].sizes(layer).free]
    count = max(1, sum(size > 1 for size in full))
    grouped = layer.op in ("Conv", "ConvTranspose") and full[0] > 1 and max(full[1:]) > 1
    step = max(1, multiple) if grouped else math.lcm(max(1, multiple), BLOCK)
    found = [_ladder(size, step, FRACTIONS[count]) for size in full]
    if grouped and layer.op == "ConvTranspose":  # its shapes do not say that there are fewer groups
        found[0] = (full[0],)
    return tuple(found)


def narrower(layer: Layer, grid: Sequence[Shape]) -> list[Layer]:
    """The same operator at each point of a grid of widths, the last of them the fastest."""
    return [FORMS[layer.op].at(layer, free) for free in itertools.product(*grid)]


def _ladder(size: int, step: int, fractions: Sequence[float]) -> Shape:
    """Fractions of a size in multiples of the step, which is halved for a size that has no two of it."""
    if size < NARROW:
        return (size,) if size == 1 else (math.ceil(size / 2), size)
    while step > 1 and size < 2 * step:
        step //= 2
    below = {max(step, round(size * part / step) * step) for part in fractions}
    return (*sorted(width for width in below if width < size), size)


def sizes(layer: Layer, shapes: Shapes) -> Sizes:
    """What the layer's time depends on where its inputs have these shapes.

    A transposed convolution's do not say how many groups there are: depthwise, as many as channels; else as before.
    """
    narrow = replace(layer, shapes=shapes)
    if layer.op == "ConvTranspose" and layer.attr("group", 1) == layer.shape(0)[1]:
        narrow = narrow.at(shapes, group=narrow.shape(0)[1])
    return FORMS[layer.op].sizes(narrow)
