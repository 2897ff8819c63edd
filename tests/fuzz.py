"""Seeded random models, biased towards what passes look for: fusable chains, no-ops, duplicates, shape arithmetic,
constant branches, captures. A model is built move by move; each move picks tensors made before and adds some nodes.

    python -m tests.fuzz 0 2000      tries the models of these seeds under every pass and prints what breaks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.evaluate import Feeds
from optimizer.graph import Array

Shape = tuple[int | str, ...]
FLOAT, DOUBLE, INT, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)
OPSETS = (11, 13, 17, 18, 20)
NEWER = (*OPSETS, 23, 24)  # what only the simplifier meets
AXES_INPUT_SINCE = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13, "Split": 13}  # others: 18


@dataclass(frozen=True)
class Value:
    """A tensor of the model. `exact`: no rounding in it, so that steps and comparisons of it are stable."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    exact: bool = False


@dataclass
class Maker:
    """A model in the making, and the random numbers it is made with."""

    rng: np.random.Generator
    opset: int
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    defaults: list[Value] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def pick(self, rank: int | None = None, dtype: np.dtype[Any] = FLOAT, *, exact: bool = False) -> Value:
        """A tensor made before, a late one more often than an early one."""
        fits = [v for v in self.values if v.dtype == dtype and rank in (None, len(v.shape)) and (v.exact or not exact)]
        return fits[-1 - min(int(self.rng.exponential(2)), len(fits) - 1)]

    def add(self, op: str, inputs: Sequence[Value | str], shape: Shape, dtype: np.dtype[Any] = FLOAT, *,
            exact: bool = False, **attrs: Any) -> Value:  # fmt: skip
        """A node with one output."""
        out = Value(self.name(), dtype, shape, exact)
        names = [v if isinstance(v, str) else v.name for v in inputs]
        self.nodes.append(
            helper.make_node(op, names, [out.name], name=self.name() if self.chance(0.5) else "", **attrs)
        )
        self.values.append(out)
        return out

    def reduce(self, op: str, x: Value, axes: Sequence[int], shape: Shape, **attrs: Any) -> Value:
        """An operator whose `axes` became an input in some operator set."""
        if self.opset >= AXES_INPUT_SINCE.get(op, 18):
            return self.add(op, [x, self.const(np.array(axes))], shape, **attrs)
        return self.add(op, [x], shape, axes=list(axes), **attrs)

    def const(self, values: Array) -> str:
        """An initializer, a Constant node, or now and then one that callers may override."""
        name = self.name()
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if self.chance(0.3):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(tensor)
        if self.chance(0.05) and tensor.dims and tensor.data_type == TensorProto.FLOAT:
            self.defaults.append(Value(name, FLOAT, tuple(tensor.dims)))
        return name

    def number(self, value: float) -> str:
        return self.const(np.array(value, np.float32))

    def normal(self, *shape: int | str, scale: float = 1.0) -> str:
        return self.const((self.rng.standard_normal([int(n) for n in shape]) * scale).astype(np.float32))

    def positive(self, *shape: int | str) -> str:
        return self.const(self.rng.uniform(0.5, 1.5, [int(n) for n in shape]).astype(np.float32))


# ------------------------------------------------------------------ moves


def unary(m: Maker) -> None:
    x = m.pick()
    op = m.choose(["Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Identity", "Identity", "Dropout", "Softplus", "Erf"])
    m.add(op, [x], x.shape, exact=x.exact and op in ("Relu", "Neg", "Abs", "Identity", "Dropout"))


def with_constant(m: Maker) -> None:
    x = m.pick()
    last = x.shape[-1] if x.shape and isinstance(x.shape[-1], int) else 1
    c = m.choose([
        lambda: m.number(m.choose([0.0, 1.0, 2.0, -0.5])),
        lambda: m.normal(last),
        lambda: m.const(np.full(last, m.choose([0.0, 1.0]), np.float32)),
        lambda: m.const(np.ones([1] * len(x.shape), np.float32)),
    ])()  # fmt: skip
    op = m.choose(["Add", "Sub", "Mul", "Max", "Min"])
    swapped = op != "Sub" and m.chance(0.3)
    m.add(op, [c, x] if swapped else [x, c], x.shape)
    if m.chance(0.3):
        m.add("Div", [m.values[-1], m.positive(last)], x.shape)
    if m.chance(0.2) and len(x.shape) < 4:  # a one that is no no-op: the result has a rank more, or rows
        rows = 3 if x.shape and x.shape[0] == 1 else 1
        ones = m.const(
            np.ones([1] * (len(x.shape) + 1) if rows == 1 else [rows] + [1] * (len(x.shape) - 1), np.float32)
        )
        m.add("Mul", [x, ones], (1, *x.shape) if rows == 1 else (rows, *x.shape[1:]))


def binary(m: Maker) -> None:
    x = m.pick()
    y = m.choose([v for v in m.values if v.dtype == FLOAT and v.shape == x.shape])
    z = m.add(m.choose(["Add", "Sub", "Max", "Mul"]), [x, y], x.shape)
    m.add("Tanh", [z], z.shape)  # keeps products of products small


def convolution(m: Maker) -> None:
    x = m.pick(4)
    n, c, h, w = x.shape
    if not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)):
        return
    if m.chance(0.3):
        mode = m.choose(["constant", "constant", "reflect" if min(h, w) > 1 else "edge"])
        pads = m.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        h, w = h + 2, w + 2
        x = m.add("Pad", [x, pads], (n, c, h, w), mode=mode)
    depthwise = m.chance(0.3)
    k = m.choose([1, 2, 3])
    if min(h, w) < k:
        return
    out = c if depthwise else m.choose([2, 3])
    weights = m.normal(out, 1 if depthwise else c, k, k, scale=0.3)
    y = m.add("Conv", [x, weights, *([m.normal(out)] if m.chance(0.5) else [])],
              (n, out, h - k + 1, w - k + 1), group=c if depthwise else 1)  # fmt: skip
    after_convolution(m, y)


def after_convolution(m: Maker, y: Value) -> None:
    channels = y.shape[1]
    for _ in range(int(m.rng.integers(0, 3))):
        kind = m.choose(["BatchNormalization", "Mul", "Add", "Relu", "Clip"])
        if kind == "BatchNormalization":
            y = m.add(kind, [y, m.positive(channels), m.normal(channels), m.normal(channels), m.positive(channels)],
                      y.shape, epsilon=0.1)  # fmt: skip
        elif kind in ("Mul", "Add"):
            y = m.add(kind, [y, m.positive(channels, 1, 1)], y.shape)
        elif kind == "Relu":
            y = m.add(kind, [y], y.shape)
        else:
            y = m.add(kind, [y, m.number(-1.0), m.number(2.0)], y.shape)


def transposed_convolution(m: Maker) -> None:
    x = m.pick(4)
    n, c, h, w = x.shape
    if isinstance(c, int) and isinstance(h, int) and isinstance(w, int) and max(h, w) < 12:
        y = m.add("ConvTranspose", [x, m.normal(c, 2, 2, 2, scale=0.3)], (n, 2, 2 * h, 2 * w), strides=[2, 2])
        after_convolution(m, y)


def matrix(m: Maker) -> None:
    x = m.pick(m.choose([2, 3]))
    d = x.shape[-1]
    if not isinstance(d, int):
        return
    shape = (*x.shape[:-1], 4)
    y = m.add("MatMul", [x, m.normal(d, 4, scale=0.5)], shape)
    if m.chance(0.8):
        bias = m.normal(4)
        y = m.add("Add", [bias, y] if m.chance(0.3) else [y, bias], shape)
    if m.chance(0.3):
        m.add("Mul", [y, m.positive(4)], shape)


def transposes(m: Maker) -> None:
    x = m.pick(m.choose([3, 4]))
    first = m.rng.permutation(len(x.shape))
    second = np.argsort(first) if m.chance(0.5) else m.rng.permutation(len(x.shape))
    y = x
    for perm in (first.tolist(), second.tolist()):
        y = m.add("Transpose", [y], tuple(y.shape[p] for p in perm), exact=x.exact, perm=perm)


def reshapes(m: Maker) -> None:
    """Flattens to the batch and the rest and back, each target written or computed from the shape."""
    x = m.pick(m.choose([3, 4]))
    if not all(isinstance(d, int) for d in x.shape[1:]):
        return
    rest = math.prod(int(d) for d in x.shape[1:])
    flat = m.add("Reshape", [x, _target(m, x, [0], [-1])], (x.shape[0], rest), exact=x.exact)
    if m.chance(0.6):
        tail = [int(d) for d in x.shape[1:]]
        m.add("Reshape", [flat, _target(m, x, [0], tail)], x.shape, exact=x.exact)


def _target(m: Maker, x: Value, kept: list[int], tail: list[int]) -> Value | str:
    if m.chance(0.3):
        return m.const(np.array([0] * len(kept) + tail))
    shape = m.add("Shape", [x], (len(x.shape),), INT, exact=True)
    gathered = m.add("Gather", [shape, m.const(np.array(kept))], (len(kept),), INT, exact=True, axis=0)
    if m.chance(0.3):
        doubled = m.add("Mul", [gathered, m.const(np.array([2]))], (len(kept),), INT, exact=True)
        gathered = m.add("Div", [doubled, m.const(np.array([2]))], (len(kept),), INT, exact=True)
    return m.add("Concat", [gathered, m.const(np.array(tail))], (len(kept) + len(tail),), INT, exact=True, axis=0)


def squeezes(m: Maker) -> None:
    x = m.pick(m.choose([2, 3]))
    axis = int(m.rng.integers(0, len(x.shape) + 1))
    shape = (*x.shape[:axis], 1, *x.shape[axis:])
    y = m.reduce("Unsqueeze", x, [axis], shape, exact=x.exact)
    if m.chance(0.7):
        m.reduce("Squeeze", y, [axis], x.shape, exact=x.exact)


def hard_swish(m: Maker) -> None:
    x = m.pick()
    shifted = m.add("Add", [x, m.number(3.0)], x.shape)
    clipped = m.add("Clip", [shifted, m.number(0.0), m.number(6.0)], x.shape)
    if m.chance(0.5):
        m.add("Div", [m.add("Mul", [x, clipped], x.shape), m.number(6.0)], x.shape)
    else:
        m.add("Mul", [x, m.add("Div", [clipped, m.number(6.0)], x.shape)], x.shape)


def smooth(m: Maker) -> None:
    x = m.pick()
    if m.chance(0.5):
        m.add("Mul", [x, m.add("Sigmoid", [x], x.shape)], x.shape)
        return
    scaled = m.add("Div", [x, m.number(math.sqrt(2))], x.shape)
    one = m.add("Add", [m.add("Erf", [scaled], x.shape), m.number(1.0)], x.shape)
    m.add("Mul", [m.add("Mul", [x, one], x.shape), m.number(0.5)], x.shape)


def layer_norm(m: Maker) -> None:
    x = m.pick(3)
    d = x.shape[-1]
    if not isinstance(d, int) or d < 2:
        return
    x = m.add(
        "Add", [m.add("Tanh", [x], x.shape), m.normal(d)], x.shape
    )  # never constant: a variance of 0 has no digits
    stat: Shape = (*x.shape[:-1], 1)
    centred = m.add("Sub", [x, m.reduce("ReduceMean", x, [-1], stat)], x.shape)
    square = m.add("Pow", [centred, m.number(2.0)], x.shape)
    variance = m.add("Add", [m.reduce("ReduceMean", square, [-1], stat), m.number(1e-5)], stat)
    y = m.add("Div", [centred, m.add("Sqrt", [variance], stat)], x.shape)
    if m.chance(0.7):
        m.add("Add", [m.add("Mul", [y, m.positive(d)], x.shape), m.normal(d)], x.shape)


def constant_branch(m: Maker) -> None:
    x = m.pick()
    last = x.shape[-1] if x.shape and isinstance(x.shape[-1], int) else 1
    a = m.add("Mul", [m.normal(last), m.normal(last)], (last,))
    b = m.add(m.choose(["Neg", "Tanh", "Sigmoid"]), [a], (last,))
    m.values = [v for v in m.values if v not in (a, b)] if m.chance(0.5) else m.values
    m.add("Add", [x, b], x.shape)


def duplicate(m: Maker) -> None:
    """The same computation twice, on equal constants."""
    x = m.pick()
    values = m.rng.standard_normal(1).astype(np.float32)
    a, b = (m.add("Sigmoid", [m.add("Mul", [x, m.const(values)], x.shape)], x.shape) for _ in range(2))
    m.add("Sub", [a, b], x.shape)


def dead(m: Maker) -> None:
    x = m.pick()
    m.add("Abs", [m.add("Neg", [x], x.shape)], x.shape)
    del m.values[-2:]


def slices(m: Maker) -> None:
    x = m.pick(m.choose([2, 3, 4]))
    axis = int(m.rng.integers(1, len(x.shape)))
    d = x.shape[axis]
    if not isinstance(d, int) or d < 2:
        return
    ends = [(0, np.iinfo(np.int64).max), (0, d), (1, d), (-d, d - 1)]
    start, end = m.choose(ends)
    size = len(range(d)[start : min(end, d)])
    part = [np.array([v]) for v in (start, end, axis, 1)]
    y = m.add("Slice", [x, *map(m.const, part)], (*x.shape[:axis], size, *x.shape[axis + 1 :]), exact=x.exact)
    if m.chance(0.5):
        whole = (*x.shape[:axis], size + d, *x.shape[axis + 1 :])
        m.add("Concat", [y, x], whole, exact=x.exact, axis=axis)
        if m.chance(0.5):
            m.add("Concat", [m.values[-1], y], (*x.shape[:axis], 2 * size + d, *x.shape[axis + 1 :]), axis=axis)


def casts(m: Maker) -> None:
    x = m.pick()
    wide = m.add("Cast", [x], x.shape, np.dtype(np.float64), exact=x.exact, to=TensorProto.DOUBLE)
    m.add("Cast", [wide], x.shape, exact=x.exact, to=TensorProto.FLOAT)
    if m.chance(0.3):
        m.add("Cast", [x], x.shape, exact=x.exact, to=TensorProto.FLOAT)
    if m.chance(0.5):  # a weight that is stored in half precision
        last = x.shape[-1] if x.shape and isinstance(x.shape[-1], int) else 1
        stored = m.const(m.rng.uniform(0.5, 1.5, last).astype(np.float16))
        m.add("Mul", [x, m.add("Cast", [stored], (last,), to=TensorProto.FLOAT)], x.shape)


def reduces(m: Maker) -> None:
    x = m.pick(m.choose([3, 4]))
    axes = [2, 3] if len(x.shape) == 4 else [m.choose([1, 2])]
    op = m.choose(["ReduceMean", "ReduceSum", "ReduceMax"])
    if m.chance(0.5):
        m.reduce(op, x, axes, tuple(1 if i in axes else d for i, d in enumerate(x.shape)))
    else:
        m.reduce(op, x, axes, tuple(d for i, d in enumerate(x.shape) if i not in axes), keepdims=0)


def clips(m: Maker) -> None:
    x = m.pick()
    y = m.add("Clip", [x, m.number(-2.0), m.number(3.0)], x.shape, exact=x.exact)
    m.add(
        "Clip",
        [y, m.number(m.choose([-3.0, 0.0])), *([m.number(1.0)] if m.chance(0.5) else [])],
        x.shape,
        exact=x.exact,
    )


def shapes_into_values(m: Maker) -> None:
    """The size of a dim as a number, and a tensor of ones that long."""
    x = m.pick()
    shape = m.add("Shape", [x], (len(x.shape),), INT, exact=True)
    if not x.shape:
        return
    size = m.add("Gather", [shape, m.const(np.array(int(m.rng.integers(len(x.shape)))))], (), INT, exact=True)
    scalar = m.add("Cast", [size], (), exact=True, to=TensorProto.FLOAT)
    m.add("Add", [x, scalar], x.shape)
    if m.chance(0.5):
        value = numpy_helper.from_array(np.array([0.5], np.float32))
        ones = m.add("ConstantOfShape", [shape], x.shape, exact=True, value=value)
        m.add("Mul", [x, ones], x.shape)


def integers(m: Maker) -> None:
    x = m.pick(1, INT, exact=True)
    c = np.array([m.choose([1, 0, 2, 3, -7])])
    op = m.choose(["Add", "Mul", "Sub"] + ["Div", "Mod"] * bool(c[0]))
    y = m.add(op, [x, m.const(c)], x.shape, INT, exact=True)
    if m.chance(0.3):
        m.add("Cast", [m.add("Cast", [y], y.shape, FLOAT, exact=True, to=TensorProto.FLOAT)], y.shape, INT,
              exact=True, to=TensorProto.INT64)  # fmt: skip


def compares(m: Maker) -> None:
    x = m.pick(exact=True)
    positive = m.add("Greater", [x, m.number(0.0)], x.shape, BOOL, exact=True)
    m.add("Where", [positive, x, m.number(-0.0)], x.shape, exact=True)


def branches(m: Maker) -> None:
    """An If on an input or a constant; both branches capture outer tensors, one an outer constant too."""
    x = m.pick()
    cond = m.const(np.array(m.chance(0.5))) if m.chance(0.5) else "flag"
    outer = m.number(0.5)
    info = helper.make_empty_tensor_value_info
    bodies = []
    for op in ("Neg", "Abs"):
        a, b, c = m.name(), m.name(), m.name()
        inner = [helper.make_node("Identity", [x.name], [a]), helper.make_node(op, [a], [b]),
                 helper.make_node("Mul", [b, outer], [c])]  # fmt: skip
        bodies.append(helper.make_graph(inner, op, [], [info(c)]))
    m.add("If", [cond], x.shape, then_branch=bodies[0], else_branch=bodies[1])


def turns(m: Maker) -> None:
    """A Loop of few turns, or of none, or one that may be skipped; a part of its body does not change."""
    x = m.pick()
    trips, cond = int(m.rng.integers(0, 4)), m.choose(["", "flag", m.const(np.array(True))])
    i, g, h, v, w, f, a, b, row, rows = (m.name() for _ in range(10))
    info = helper.make_tensor_value_info
    inner = [helper.make_node("Identity", [g], [h]), helper.make_node("Cast", [i], [f], to=TensorProto.FLOAT),
             helper.make_node("Mul", [x.name, m.number(0.5)], [a]), helper.make_node("Add", [v, a], [b]),
             helper.make_node("Tanh", [b], [w]), helper.make_node("Mul", [w, f], [row])]  # fmt: skip
    ends = [helper.make_empty_tensor_value_info(name) for name in (w, row)]
    taken = [info(i, TensorProto.INT64, []), info(g, TensorProto.BOOL, []), info(v, TensorProto.FLOAT, None)]
    body = helper.make_graph(inner, "body", taken, [info(h, TensorProto.BOOL, []), *ends])
    out = Value(m.name(), FLOAT, x.shape)
    count = m.const(np.array(trips))
    m.nodes.append(helper.make_node("Loop", [count, cond, x.name], [out.name, rows], body=body))
    m.values.append(out)
    if trips and cond != "flag":
        m.values.append(Value(rows, FLOAT, (trips, *x.shape)))


def lists(m: Maker) -> None:
    """A sequence made of tensors or by cutting one up; one of it is taken, or all are joined again."""
    x = m.pick()
    sequence = m.name()
    at = int(m.rng.integers(-2, 2))
    if m.chance(0.5) and len(x.shape) > 1 and x.shape[-1] == 4:
        m.nodes.append(helper.make_node("SplitToSequence", [x.name, m.const(np.array(2))], [sequence], axis=-1))
        part = (*x.shape[:-1], 2)
    else:
        y = m.add("Neg", [x], x.shape, exact=x.exact)
        m.nodes.append(helper.make_node("SequenceConstruct", [x.name, y.name], [sequence]))
        part = x.shape
    if m.chance(0.5):
        m.add("SequenceAt", [sequence, m.const(np.array(at))], part, exact=x.exact)
    else:
        m.add("ConcatFromSequence", [sequence], (*part, 2), exact=x.exact, axis=-1, new_axis=1)


MOVES: tuple[Callable[[Maker], None], ...] = (
    unary, unary, with_constant, with_constant, binary, convolution, convolution, convolution, transposed_convolution,
    matrix, matrix, transposes, reshapes, reshapes, squeezes, hard_swish, smooth, layer_norm, constant_branch,
    duplicate, dead, slices, casts, reduces, clips, shapes_into_values, integers, compares, branches,
    turns, lists,
)  # fmt: skip


# ------------------------------------------------------------------ moves that only the simplifier meets


def expands(m: Maker) -> None:
    """To ones, to the tensor's own shape, and to a row that was cut off by arithmetic before."""
    x = m.pick(m.choose([2, 3, 4]))
    rank = len(x.shape)
    kind = m.choose(["ones", "own", "batch", "tile"])
    if kind == "ones":
        m.add("Expand", [x, m.const(np.ones(int(m.rng.integers(1, rank + 1)), np.int64))], x.shape, exact=x.exact)
    elif kind == "own":
        shape = m.add("Shape", [x], (rank,), INT, exact=True)
        wide = m.add("Expand", [m.choose([x, m.normal(1), m.number(2.0)]), shape], x.shape)
        m.add(m.choose(["Add", "Mul", "Max"]), [x, wide], x.shape)
    elif kind == "batch":
        size = m.add("Gather", [m.add("Shape", [x], (rank,), INT, exact=True), m.const(np.array([0]))], (1,), INT,
                     exact=True)  # fmt: skip
        target = m.add("Concat", [size, m.const(np.array([1] * (rank - 1)))], (rank,), INT, exact=True, axis=0)
        row = m.add("Expand", [m.normal(*[1] * rank), target], (x.shape[0], *[1] * (rank - 1)))
        m.add("Mul", [x, row], x.shape)
    else:
        times = m.choose([1, 2])
        last = x.shape[-1]
        if isinstance(last, int) and last < 12:
            m.add("Tile", [x, m.const(np.array([1] * (rank - 1) + [times]))], (*x.shape[:-1], last * times),
                  exact=x.exact)  # fmt: skip


def splits(m: Maker) -> None:
    """Parts of an axis by Split or by Slices, put together again in their order or in another."""
    x = m.pick(m.choose([2, 3, 4]))
    axis = int(m.rng.integers(1, len(x.shape)))
    d = x.shape[axis]
    if not isinstance(d, int) or d < 2:
        return
    cut = int(m.rng.integers(1, d))
    sizes = [cut, d - cut]
    parts = [Value(m.name(), FLOAT, (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.exact) for size in sizes]
    if m.chance(0.5):
        given = [m.const(np.array(sizes))] if m.opset >= 13 else []
        attrs: dict[str, Any] = {"axis": axis} if given else {"axis": axis, "split": sizes}
        m.nodes.append(helper.make_node("Split", [x.name, *given], [v.name for v in parts], **attrs))
    else:
        for part, (start, end) in zip(parts, ((0, cut), (cut, m.choose([d, 2**31 - 1]))), strict=True):
            lists = [m.const(np.array([v])) for v in (start, end, axis)]
            m.nodes.append(helper.make_node("Slice", [x.name, *lists], [part.name]))
    m.values += parts
    if m.chance(0.7):
        m.add("Concat", parts if m.chance(0.6) else parts[::-1], x.shape, exact=x.exact, axis=axis)


def gathers(m: Maker) -> None:
    x = m.pick(m.choose([2, 3]))
    axis = int(m.rng.integers(1, len(x.shape)))
    d = x.shape[axis]
    if not isinstance(d, int):
        return
    kind = m.choose(["scalar", "all", "run", "any"])
    if kind == "scalar":
        where = m.const(np.array(int(m.rng.integers(-d, d))))
        m.add("Gather", [x, where], (*x.shape[:axis], *x.shape[axis + 1 :]), exact=x.exact, axis=axis)
        return
    start, end = sorted(m.rng.integers(0, d + 1, 2).tolist())
    places = {"all": np.arange(d), "run": np.arange(start, end), "any": m.rng.integers(-d, d, 3)}[kind]
    shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
    if len(places):
        m.add("Gather", [x, m.const(places)], shape, exact=x.exact, axis=axis)


def pools(m: Maker) -> None:
    x = m.pick(4)
    n, c, h, w = x.shape
    if not (isinstance(h, int) and isinstance(w, int) and min(h, w) > 1):
        return
    if m.chance(0.3):
        y = m.add("GlobalAveragePool", [x], (n, c, 1, 1))
        m.add("Flatten", [y], (n, c)) if isinstance(n, int) or m.chance(0.5) else m.reduce("Squeeze", y, [2, 3], (n, c))
        return
    op, k = m.choose(["MaxPool", "AveragePool"]), m.choose([1, 2])
    if m.chance(0.5):
        x = m.add("Relu", [x], x.shape) if m.chance(0.5) else x
        value = m.number(m.choose([0.0, -math.inf])) if m.chance(0.7) else None
        pads = [m.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), *([value] if value else [])]
        h, w = h + 2, w + 2
        x = m.add("Pad", [x, *pads], (n, c, h, w))
    attrs: dict[str, Any] = {"count_include_pad": 1} if op == "AveragePool" and m.chance(0.5) else {}
    m.add(op, [x], (n, c, h - k + 1, w - k + 1), kernel_shape=[k, k], **attrs)


def powers(m: Maker) -> None:
    x = m.pick()
    kind = m.choose(["square", "same", "root", "inverse", "ratio"])
    if kind in ("square", "same"):
        m.add("Pow", [x, m.number(2.0 if kind == "square" else 1.0)], x.shape)
        m.add("Tanh", [m.values[-1]], x.shape)
        return
    positive = m.add("Add", [m.add("Abs", [x], x.shape), m.number(1.0)], x.shape)
    if kind == "root":
        m.add("Div", [x, m.add("Sqrt", [positive], x.shape)], x.shape)
    elif kind == "inverse":
        m.add("Mul", [m.add("Div", [m.number(1.0), positive], x.shape), x], x.shape)
    else:
        m.add("Mul", [x, m.add("Reciprocal", [positive], x.shape)], x.shape)


def attention(m: Maker) -> None:
    """Two heads of two over a sequence of fours, as exporters spell it."""
    x = m.pick(3)
    if x.shape[-1] != 4 or not all(isinstance(d, str) for d in x.shape[:2]):
        return
    n, t = x.shape[:2]
    q, k, v = _packed_heads(m, x) if m.chance(0.5) else _heads(m, x)
    if m.chance(0.3):
        q = m.add(m.choose(["Mul", "Div"]), [q, m.number(0.5)], q.shape)
    scores = m.add("MatMul", [q, k], (n, 2, t, t))
    scores = m.add(m.choose(["Mul", "Div"]), [scores, m.number(0.5)], scores.shape)
    y = m.add("MatMul", [m.add("Softmax", [scores], scores.shape, axis=-1), v], (n, 2, t, 2))
    y = m.add("Transpose", [y], (n, t, 2, 2), perm=[0, 2, 1, 3])
    m.add("Reshape", [y, _target(m, y, [0, 1], [4])], (n, t, 4))


def _heads(m: Maker, x: Value) -> list[Value]:
    """Queries, keys (turned) and values, each by a product of its own."""
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        y = m.add("Add", [m.add("MatMul", [x, m.normal(4, 4, scale=0.5)], x.shape), m.normal(4)], x.shape)
        y = m.add("Reshape", [y, _target(m, y, [0, 1], [2, 2])], (*x.shape[:2], 2, 2))
        heads.append(m.add("Transpose", [y], tuple(y.shape[p] for p in perm), perm=perm))
    return heads


def _packed_heads(m: Maker, x: Value) -> list[Value]:
    """Queries, keys (turned) and values by one product, taken apart by Gathers or by a Split."""
    n, t = x.shape[:2]
    y = m.add("MatMul", [x, m.normal(4, 12, scale=0.5)], (n, t, 12))
    y = m.add("Add", [y, m.normal(12)], y.shape) if m.chance(0.7) else y
    y = m.add("Reshape", [y, _target(m, y, [0, 1], [3, 2, 2])], (n, t, 3, 2, 2))
    y = m.add("Transpose", [y], (3, n, 2, t, 2), perm=[2, 0, 3, 1, 4])
    if m.chance(0.5):
        parts = [m.add("Gather", [y, m.const(np.array(i))], (n, 2, t, 2), axis=0) for i in (0, 1, m.choose([2, -1, 1]))]
    else:
        rows = [Value(m.name(), FLOAT, (1, n, 2, t, 2)) for _ in range(3)]
        sizes = [m.const(np.ones(3, np.int64))] if m.opset >= 13 else []
        m.nodes.append(helper.make_node("Split", [y.name, *sizes], [v.name for v in rows], axis=0))
        m.values += rows
        parts = [m.reduce("Squeeze", row, [0], (n, 2, t, 2)) for row in rows]
    parts[1] = m.add("Transpose", [parts[1]], (n, 2, 2, t), perm=[0, 1, 3, 2])
    return parts


def lines(m: Maker) -> None:
    """A convolution over one axis, spelt as one over two, with bias and scale behind the Squeeze."""
    x = m.pick(3)
    n, c, w = x.shape
    if not isinstance(c, int) or not isinstance(w, int) or w < 2:
        return
    y = m.reduce("Unsqueeze", x, [2], (n, c, 1, w))
    y = m.add("Conv", [y, m.normal(3, c, 1, 2, scale=0.3)], (n, 3, 1, w - 1))
    y = m.reduce("Squeeze", y, [2], (n, 3, w - 1))
    for op in ("Add", "Mul", "Sub", "Div"):
        if m.chance(0.4):
            y = m.add(
                op, [y, m.choose([m.positive(3, 1), m.positive(1, 3, 1), m.number(0.5), m.positive(w - 1)])], y.shape
            )


def regroups(m: Maker) -> None:
    """Dims of one that come, go and change places; a reduction whose dims a Reshape puts back; a fill and a number."""
    x = m.pick(m.choose([2, 3]))
    rank = len(x.shape)
    kind = m.choose(["ones", "reduced", "fill"])
    if kind == "ones":
        at, to = (int(m.rng.integers(0, rank + 1)) for _ in range(2))
        y = m.reduce("Unsqueeze", x, [at], (*x.shape[:at], 1, *x.shape[at:]), exact=x.exact)
        if m.chance(0.5):
            perm = np.insert(np.delete(np.arange(rank + 1), at), to, at).tolist()
            y = m.add("Transpose", [y], tuple(y.shape[p] for p in perm), exact=x.exact, perm=perm)
            at = to
        if m.chance(0.6):
            y = m.reduce("Squeeze", y, [at], x.shape, exact=x.exact)
        if m.chance(0.4):
            m.reduce("Unsqueeze", y, [0], (1, *y.shape), exact=x.exact)
    elif kind == "reduced":
        axis = int(m.rng.integers(1, rank))
        y = m.reduce(
            m.choose(["ReduceMax", "ReduceSum"]), x, [axis], (*x.shape[:axis], *x.shape[axis + 1 :]), keepdims=0
        )
        kept = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        if all(isinstance(d, int) for d in kept[1:]):
            m.add("Sub", [x, m.add("Reshape", [y, m.const(np.array([m.choose([0, -1]), *kept[1:]]))], kept)], x.shape)
    else:
        shape = m.add("Shape", [m.add("Tanh", [x], x.shape)], (rank,), INT, exact=True)
        fill = m.add("ConstantOfShape", [shape], x.shape, exact=True)
        m.add("Add", [x, m.add(m.choose(["Add", "Mul", "Sub"]), [fill, m.number(2.0)], x.shape)], x.shape)


def matrices(m: Maker) -> None:
    """Products in a row, side by side, through Gemm or Einsum."""
    x = m.pick(2)
    d = x.shape[-1]
    if not isinstance(d, int) or d > 8:
        return
    kind = m.choose(["row", "side", "gemm", "einsum"])
    if kind == "row":
        y = m.add("MatMul", [x, m.normal(d, 3, scale=0.5)], (x.shape[0], 3))
        m.add("MatMul", [y, m.normal(3, 4, scale=0.5)], (x.shape[0], 4))
    elif kind == "side":
        a, b = (m.add("MatMul", [x, m.normal(d, 4, scale=0.5)], (x.shape[0], 4)) for _ in range(2))
        m.add("Concat", [a, b], (x.shape[0], 8), axis=1) if m.chance(0.5) else m.add("Sub", [a, b], a.shape)
    elif kind == "gemm":
        bias = m.choose([m.normal(4), m.normal(1, 4), m.number(0.5), m.const(np.zeros(4, np.float32))])
        y = m.add("Gemm", [x, m.normal(4, d, scale=0.5), bias], (x.shape[0], 4), transB=1,
                  alpha=m.choose([1.0, 0.5]), beta=m.choose([1.0, 2.0]))  # fmt: skip
        m.add(m.choose(["Mul", "Add"]), [y, m.choose([m.normal(4), m.number(1.0)])], y.shape)
    elif m.opset >= 12:
        m.add("Einsum", [x, m.normal(d, 4, scale=0.5)], (x.shape[0], 4), equation="nd,dk->nk")


def loops(m: Maker) -> None:
    """A loop of a known number of turns whose body reads an outer tensor; a sequence made and taken apart."""
    x = m.pick()
    if m.chance(0.5):
        a, b = (m.add(op, [x], x.shape) for op in ("Neg", "Abs"))
        row = m.name()
        m.nodes.append(helper.make_node("SequenceConstruct", [a.name, b.name], [row]))
        m.add("SequenceAt", [row, m.const(np.array(m.choose([0, 1, -1])))], x.shape)
        return
    info = helper.make_tensor_value_info
    names = [m.name() for _ in range(6)]
    turn, cond, state, again, half, new = names
    body = helper.make_graph(
        [helper.make_node("Identity", [cond], [again]), helper.make_node("Tanh", [state], [half]),
         helper.make_node("Add", [half, x.name], [new])],
        "body",
        [info(turn, TensorProto.INT64, []), info(cond, TensorProto.BOOL, []), _info(Value(state, FLOAT, x.shape))],
        [info(again, TensorProto.BOOL, []), _info(Value(new, FLOAT, x.shape))],
    )  # fmt: skip
    turns = m.const(np.array(m.choose([0, 1, 3])))
    m.add("Loop", [turns, m.const(np.array(True)), x], x.shape, body=body)


def masks(m: Maker) -> None:
    """Choices that are known before the input is: constant conditions, and comparisons of dims."""
    x = m.pick(m.choose([2, 3]))
    if m.chance(0.5):
        width = [x.shape[-1]] if isinstance(x.shape[-1], int) else []
        condition = m.const(np.full(width, m.chance(0.5)))
        m.add("Where", [condition, x, m.choose([m.number(0.0), x])], x.shape)
        return
    shape = m.add("Shape", [x], (len(x.shape),), INT, exact=True)
    size = m.add("Gather", [shape, m.const(np.array(0))], (), INT, exact=True)
    same = m.add(m.choose(["Equal", "Less", "Greater"]), [size, m.const(np.array(m.choose([-1, 0, 2])))], (), BOOL,
                 exact=True)  # fmt: skip
    m.add("Where", [same, x, m.add("Neg", [x], x.shape)], x.shape)


def quarters(m: Maker) -> None:
    """An image's quarters as channels, cut in one step or in two, in one order or another; then a convolution."""
    x = m.pick(4)
    n, c, h, w = x.shape
    if not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)) or h % 2 or w % 2 or c > 4:
        return
    end, two = (m.const(np.array(v)) for v in ([2**31 - 1], [2]))
    parts = []
    for row in (0, 1):
        half = m.add("Slice", [x, m.const(np.array([row])), end, m.const(np.array([2])), two], (n, c, h // 2, w))
        for column in (0, 1):
            start, axis = m.const(np.array([column])), m.const(np.array([3]))
            parts.append(m.add("Slice", [half, start, end, axis, two], (n, c, h // 2, w // 2)))
    order = m.choose([[0, 1, 2, 3], [0, 2, 1, 3], m.rng.permutation(4).tolist()])
    y = m.add("Concat", [parts[i] for i in order], (n, 4 * c, h // 2, w // 2), axis=1)
    m.add("Conv", [y, m.normal(3, 4 * c, 1, 1, scale=0.3)], (n, 3, h // 2, w // 2))


def blocks(m: Maker) -> None:
    """Blocks of channels become pixels, by either order of the channels."""
    x = m.pick(4)
    n, c, h, w = x.shape
    if not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)) or c % 4 or max(h, w) > 12:
        return
    depth = [2, 2, c // 4]
    target, perm = ([*depth, h, w], [0, 3, 4, 1, 5, 2]) if m.chance(0.5) else ([*depth[::-1], h, w], [0, 1, 4, 2, 5, 3])
    y = m.add("Reshape", [x, m.const(np.array([-1, *target]))], (n, *target))
    y = m.add("Transpose", [y], tuple(y.shape[p] for p in perm), perm=perm)
    m.add("Reshape", [y, m.const(np.array([-1, c // 4, 2 * h, 2 * w]))], (n, c // 4, 2 * h, 2 * w))


def parts_of_shape(m: Maker) -> None:
    """One dim out of a Shape that begins in the middle or counts from the end."""
    x = m.pick(m.choose([2, 3, 4]))
    if m.opset < 15:
        return
    start = int(m.rng.integers(-len(x.shape) - 1, len(x.shape)))
    left = len(x.shape[start:]) if start >= -len(x.shape) else len(x.shape)
    part = m.add("Shape", [x], (left,), INT, exact=True, start=start)
    at = int(m.rng.integers(-left, left))
    size = m.add("Gather", [part, m.const(np.array([at]))], (1,), INT, exact=True)
    m.add("Mul", [size, m.const(np.array([2]))], (1,), INT, exact=True)


def doubles(m: Maker) -> None:
    """Bounds in float64, which few kernels of older operator sets take."""
    x = m.pick()
    low, high = (m.const(np.array(v)) for v in (-0.1, 0.7))
    y = m.add("Cast", [x], x.shape, DOUBLE, to=TensorProto.DOUBLE)
    y = m.add("Max", [y, low], x.shape, DOUBLE)
    m.add("Cast", [m.add("Min", [y, high], x.shape, DOUBLE)], x.shape, to=TensorProto.FLOAT)


def targets(m: Maker) -> None:
    """The largest element and the size of what is expanded to a default that callers may override."""
    x = m.pick(m.choose([2, 3]))
    name = m.name()
    m.initializers.append(numpy_helper.from_array(np.ones(len(x.shape), np.int64), name))
    m.defaults.append(Value(name, INT, (len(x.shape),)))
    m.add("Expand", [x, name], x.shape)
    y = m.values.pop()
    m.add("ReduceMax", [y], (), keepdims=0)
    m.add("Cast", [m.add("Size", [y], (), INT, exact=True)], (), exact=True, to=TensorProto.FLOAT)


def scans(m: Maker) -> None:
    """Sums from row to row, and each row scaled by something that does not change."""
    x = m.pick(2)
    if x.shape[-1] != 4 or not isinstance(x.shape[0], str):
        return
    state, row, total, scale, out = (m.name() for _ in range(5))
    inner = [helper.make_node("Add", [state, row], [total]), helper.make_node("Tanh", [m.normal(4)], [scale]),
             helper.make_node("Mul", [row, scale], [out])]  # fmt: skip
    infos = [_info(Value(name, FLOAT, (4,))) for name in (state, row, total, out)]
    body = helper.make_graph(inner, "body", infos[:2], infos[2:])
    ends = [Value(m.name(), FLOAT, (4,)), Value(m.name(), FLOAT, x.shape)]
    names = [v.name for v in ends]
    m.nodes.append(helper.make_node("Scan", [m.normal(4), x.name], names, num_scan_inputs=1, body=body))
    m.values += ends


MORE = (*MOVES, expands, splits, gathers, pools, powers, attention, attention, matrices, loops, masks, quarters, lines,
        regroups, regroups, blocks, parts_of_shape, doubles, targets, scans)  # fmt: skip


# ------------------------------------------------------------------ models and inputs


def random_model(seed: int, moves: Sequence[Callable[[Maker], None]] = MOVES) -> onnx.ModelProto:
    """The model of a seed: 6 to 21 moves on an image, a sequence, a row of integers and a flag."""
    rng = np.random.default_rng(seed)
    opsets = OPSETS if moves is MOVES else NEWER
    m = Maker(rng, opsets[seed % len(opsets)])
    m.inputs = [
        Value("ids", INT, ("N",), True),
        Value("flag", BOOL, (), True),
        Value("tokens", FLOAT, ("N", m.choose(["T", 3]), 4), True),
        Value("rows", FLOAT, ("N", 4), True),
        Value("image", FLOAT, (m.choose(["N", 1]), 2, 6, m.choose([5, 6])), True),
    ]
    m.values = list(m.inputs)
    for _ in range(int(rng.integers(6, 22))):
        m.choose(moves)(m)
    made = [v for v in m.values if v not in m.inputs] or [m.add("Identity", [m.inputs[3]], m.inputs[3].shape)]
    outputs = {v.name: v for v in [made[-1], *(m.choose(made) for _ in range(int(rng.integers(0, 3))))]}
    graph = helper.make_graph(m.nodes, "fuzz", [_info(v) for v in [*m.inputs, *m.defaults]],
                              [_info(v) for v in outputs.values()], m.initializers)  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", m.opset)])


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def random_feeds(model: onnx.ModelProto, seed: int, *, infinite: bool = False) -> list[Feeds]:
    """Three feeds with other dims and other special values: zeros of both signs, large and, if wanted, NaN and inf."""
    special = [0.0, -0.0, -1.0, 300.0, -300.0, 1e-30, *([np.nan, np.inf, -np.inf] if infinite else [])]
    rng = np.random.default_rng(seed)
    return [_feed(model, rng, binding, special) for binding in BINDINGS]


def special_feeds(model: onnx.ModelProto, seed: int) -> dict[str, Feeds]:
    """Feeds by what is special about them: each kind of value under each binding of the dims, 1 and 0 among them."""
    rng = np.random.default_rng(seed)
    return {
        f"{kind} {' '.join(f'{symbol}={size}' for symbol, size in binding.items())}": _feed(model, rng, binding, values)
        for binding in (*BINDINGS, *EMPTY)
        for kind, values in KINDS.items()
    }


BINDINGS = ({"N": 2, "T": 3}, {"N": 1, "T": 1}, {"N": 3, "T": 5})
EMPTY = ({"N": 0, "T": 3}, {"N": 2, "T": 0})
KINDS = {
    "normal": [],
    "negative": [-1.0, -2.5, -1e-3],
    "zero": [0.0, -0.0],
    "tiny": [1e-30, -1e-42, 0.0],
    "large": [300.0, -300.0, 6e4],
    "huge": [1e12, -1e18, 2e9],
    "largest": [1e30, -3e38],
    "infinite": [np.inf, -np.inf, 0.0],
    "nan": [np.nan, np.inf, -0.0],
}


def _feed(
    model: onnx.ModelProto, rng: np.random.Generator, binding: Mapping[str, int], special: Sequence[float]
) -> Feeds:
    """Normal numbers, every tenth of them one of the special ones, as in integers are those of a size that is
    special there; a coin for a flag. A default is taken or not by another coin; one of integers are sizes.
    """
    whole = [int(v) for v in special if 1e9 <= abs(v) < 2.0**63]
    given = {t.name for t in model.graph.initializer}
    feed: Feeds = {}
    for info in model.graph.input:
        if info.name in given and rng.random() < 0.5:
            continue
        kind = info.type.tensor_type
        shape = [binding[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT:
            values = np.asarray(rng.standard_normal(shape))
            spots = rng.random(shape) < 0.1
            feed[info.name] = np.where(spots, rng.choice(special or [1.0], shape), values).astype(np.float32)
        elif info.name in given:
            feed[info.name] = rng.integers(1, 3, shape)
        elif kind.elem_type == TensorProto.BOOL:
            feed[info.name] = np.array(rng.random(shape) < 0.5)
        else:
            small = rng.integers(-5, 6, shape)
            feed[info.name] = np.where(rng.random(shape) < 0.1, rng.choice(whole, shape), small) if whole else small
    return feed


def main() -> None:
    import sys

    from tests.test_fuzz import failures_of

    first, last = map(int, sys.argv[1:3])
    for seed in range(first, last):
        for why in failures_of(seed) or ():
            print(why, flush=True)


if __name__ == "__main__":
    main()
