"""Rules of `fuse` against brute force: random constants around weights, and index arithmetic against numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.graph import Array, Dim
from passes.fuse.arrays import per_channel
from passes.fuse.reshape import written
from passes.fuse.slices import composed
from passes.fuse.squeeze import shifted, unshifted
from tests.passes import run

Shape = tuple[int, ...]
AFFINE = ("Mul", "Add", "Sub", "Div")


class Chain:
    """A model with one path from x to y, to which nodes with constants are added."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.last = "x"

    def constant(self, values: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, np.float32)
        return name

    def add(self, op: str, *constants: Array, swap: bool = False, **attrs: Any) -> None:  # values of any attribute type
        inputs = [self.last, *map(self.constant, constants)]
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs[::-1] if swap else inputs, [self.last], **attrs))

    def affine(self, channels: int, shapes: Sequence[Shape]) -> None:
        """One of the operators that may fold, with a constant of a random one of the shapes."""
        op = str(self.rng.choice([*AFFINE, "BatchNormalization"]))
        if op == "BatchNormalization":
            self.add(op, *(self.rng.uniform(0.5, 1.5, channels) for _ in range(4)))
            return
        values = self.rng.uniform(0.5, 2, shapes[int(self.rng.integers(len(shapes)))])
        self.add(op, values * self.rng.choice([-1, 1]), swap=op != "Div" and bool(self.rng.random() < 0.5))

    def model(self, shape: Sequence[int]) -> onnx.ModelProto | None:
        """The model, or None where the constants drawn do not broadcast."""
        self.add("Identity")
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(self.last, onnx.TensorProto.FLOAT, None)
        weights = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", [x], [y], weights)
        made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        try:
            return onnx.shape_inference.infer_shapes(made, strict_mode=True)
        except onnx.shape_inference.InferenceError:
            return None


def convolution(rng: np.random.Generator) -> onnx.ModelProto | None:
    """Constants before and after a Conv or ConvTranspose with random rank, groups, kernel, pads and dilations."""
    chain, op, group = Chain(rng), str(rng.choice(["Conv", "ConvTranspose"])), int(rng.choice([1, 2, 4]))
    c, m, k = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 3)), int(rng.integers(1, 4))
    spatial = (1,) * int(rng.integers(1, 3))

    def constants(n: int) -> None:
        for _ in range(rng.integers(0, 3)):
            shapes = [(), (1,), (1, 1, *spatial), (n, *spatial), (1, n, *spatial), (n,), (n, 1, *spatial)]
            chain.affine(n, shapes)

    constants(c)
    w = rng.standard_normal((m, c // group) if op == "Conv" else (c, m // group))
    w = w[(..., *[None] * len(spatial))] * rng.standard_normal((k,) * len(spatial))
    pads = rng.integers(0, 2, 2 * len(spatial)) * rng.integers(0, 2)
    bias = [rng.standard_normal(m)] * int(rng.integers(0, 2))
    chain.add(op, w, *bias, group=group, pads=pads.tolist(), dilations=[int(rng.integers(1, 3))] * len(spatial))
    constants(m)
    return chain.model([2, c, *[8] * len(spatial)])


def product(rng: np.random.Generator) -> onnx.ModelProto | None:
    """Constants and batch normalisation after a MatMul or Gemm, at ranks 1 to 3, often with as many rows as columns."""
    chain, n, rank = Chain(rng), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    if rank == 2 and rng.random() < 0.7:
        turned = int(rng.integers(0, 2))
        w, biases = rng.standard_normal((n, 6) if turned else (6, n)), [(n,), (1,), (), (1, n), (4, 1)]
        bias = [rng.standard_normal(biases[rng.integers(len(biases))])] * int(rng.integers(0, 2))
        chain.add("Gemm", w, *bias, alpha=0.5, beta=2.0, transB=turned)
    else:
        chain.add("MatMul", rng.standard_normal((6, n)))
    for _ in range(rng.integers(1, 4)):
        chain.affine(n, [(n,), (1,), (), (1, n), (n, 1), (4, 1), (1, 1, n)])
    return chain.model([4, 4, 6][3 - rank :])


def row(rng: np.random.Generator) -> onnx.ModelProto | None:
    """Two convolutions, one of which mostly has a single element; channels and pads that do and do not suit."""
    chain, n = Chain(rng), int(rng.integers(1, 3))
    ops = [("Conv", "Conv"), ("Conv", "ConvTranspose"), ("ConvTranspose", "Conv")][int(rng.integers(3))]
    channels, single = rng.integers(1, 7, 3).tolist(), int(rng.integers(3))
    for i, (op, (c, m)) in enumerate(zip(ops, pairwise(channels), strict=True)):
        kernel = [1] * n if i == single else rng.integers(1, 4, n).tolist()
        w = rng.standard_normal((m, c, *kernel) if op == "Conv" else (c, m, *kernel))
        bias = [rng.standard_normal(m)] * int(rng.integers(0, 2))
        pads = (rng.integers(0, 3, 2 * n) * (rng.random() < 0.3)).tolist()
        strides = [1 + int(rng.random() < 0.1)] * n
        chain.add(op, w, *bias, pads=pads, strides=strides, dilations=[int(rng.integers(1, 3))] * n)
    return chain.model([2, channels[0], *[13] * n])


def branches(rng: np.random.Generator) -> onnx.ModelProto | None:
    """A convolution added to another one of the same tensor, to its normalisation, or to the tensor itself."""
    chain, n, group = Chain(rng), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    c, kind = group * int(rng.integers(1, 3)), int(rng.integers(3))
    m = c if rng.random() < 0.8 else group
    strides, d = [int(rng.integers(1, 3)) if kind == 0 else 1] * n, [int(rng.integers(1, 3))] * n
    ends = []
    kernel = rng.choice([1, 3, 5], n).tolist()
    for size in (kernel, [int(rng.choice([1, k])) for k in kernel])[: 2 - (kind > 0)]:
        chain.last = "x"
        pads = [e * (k - 1) // 2 for e, k in zip(d, size, strict=True)] * 2
        pads[0] += int(rng.random() < 0.1)
        bias = [rng.standard_normal(m)] * int(rng.integers(0, 2))
        w = rng.standard_normal((m, c // group, *size))
        chain.add("Conv", w, *bias, group=group, pads=pads, strides=strides, dilations=d)
        ends.append(chain.last)
    chain.last = "x"
    if kind == 1:
        chain.add("BatchNormalization", *(rng.uniform(0.5, 1.5, c) for _ in range(4)))
    ends = [*ends, chain.last][:2]
    chain.last = f"t{len(chain.nodes)}"
    chain.nodes.append(helper.make_node("Add", ends[:: 1 - 2 * int(rng.integers(2))], [chain.last]))
    return chain.model([2, c, *[9] * n])


def products(rng: np.random.Generator) -> onnx.ModelProto | None:
    """Products in a row, with biases between, of sizes that do and do not suit."""
    chain, sizes, rank = Chain(rng), rng.integers(1, 7, 4).tolist(), int(rng.integers(1, 4))
    for k, n in pairwise(sizes):
        if rank == 2 and rng.random() < 0.5:
            turned = int(rng.integers(0, 2))
            bias = [rng.standard_normal([(n,), (1, n), (1,), (5, 1)][int(rng.integers(4))])] * int(rng.integers(0, 2))
            w = rng.standard_normal((n, k) if turned else (k, n))
            chain.add("Gemm", w, *bias, alpha=0.5, beta=2.0, transB=turned)
        else:
            chain.add("MatMul", rng.standard_normal((k, n)))
            if rng.random() < 0.5:
                chain.add("Add", rng.standard_normal([(n,), (1,), ()][int(rng.integers(3))]))
    return chain.model([2, 5, sizes[0]][3 - rank :])


@pytest.mark.parametrize("draw", [convolution, product, row, branches, products])
def test_constants_around_a_weight_fold_only_where_outputs_stay(
    draw: Callable[[np.random.Generator], onnx.ModelProto | None],
) -> None:
    models = [draw(np.random.default_rng(seed)) for seed in range(120)]
    counts = [run("fuse{fast_math=true}", made) for made in models if made is not None]
    assert len(counts) > 60
    assert sum(count > 0 for count in counts) > len(counts) / 8


UNARY = (
    "Abs",
    "Exp",
    "HardSigmoid",
    "Neg",
    "Neg",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softsign",
    "Sqrt",
    "Tanh",
)
VALUES = ("0", "1", "2", "0.5", "-1", "6", "3", "-0.5", "4")


def algebra(rng: np.random.Generator, count: int) -> str:
    """A model of `count` steps of elementwise algebra, half of them with constants that rules look for."""
    names, body, constants = ["x", "z"], [], []

    def constant(*shapes: str) -> str:
        shape = str(rng.choice(shapes))
        values = [str(rng.choice(VALUES))] * 4 if rng.random() < 0.7 else rng.choice(VALUES, 4).tolist()
        constants.append(f"float{shape} c{len(constants)} = {{{', '.join(values[: 4 if shape == '[4]' else 1])}}}")
        return f"c{len(constants) - 1}"

    for i in range(count):
        a, b = rng.choice(names[-4:], 2)
        c = constant("", "[1]", "[4]", "[1,1]")
        forms = (
            f"{rng.choice(UNARY)}({a})",
            f"{rng.choice(['Add', 'Sub', 'Mul', 'Div', 'Min', 'Max', 'Pow'])}({a}, {c})",
            f"{rng.choice(['Add', 'Sub', 'Mul', 'Div', 'Min', 'Max'])}({c}, {a})",
            f"{rng.choice(['Add', 'Sub', 'Mul', 'Div', 'Max'])}({a}, {b})",
            f"Clip({a}, {constant('')}, {constant('')})",
            f"Where({rng.choice(['g', 'n'])}{i}, {a}, {b})",
        )
        body += [f"g{i} = Greater({a}, {c})", f"n{i} = Not(g{i})"]
        body.append(f"t{i} = {rng.choice(forms, p=[0.35, 0.25, 0.15, 0.1, 0.07, 0.08])}")
        names.append(f"t{i}")
    outputs = f"float[N,4] t{count - 1}, float[N,4] t{int(rng.integers(count - 1))}"
    return f"g (float[N,4] x, float[N,4] z) => ({outputs}) <{', '.join(constants)}> {{ {'  '.join(body)} }}"


def test_elementwise_algebra_gives_the_same_for_special_values_too() -> None:
    counts = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        text = algebra(rng, int(rng.integers(4, 14)))
        draws = [rng.uniform(0.2, 2, (2, 5, 4)), rng.choice([np.nan, np.inf, -np.inf, 0, 1, -1, 3, 0.1, -7], (2, 5, 4))]
        feeds = [dict(zip("xz", draw.astype(np.float32), strict=True)) for draw in draws]
        counts.append(run("fixpoint(cleanup,fuse)", text, feeds=feeds))
    assert sum(count > 0 for count in counts) > 20


def test_slices_compose_as_python_slices_do() -> None:
    rng = np.random.default_rng(0)
    certain = 0
    for _ in range(3000):
        n = int(rng.integers(0, 9))
        a, b, d, e = map(int, rng.integers(-10, 11, 4))
        c, f = map(int, rng.choice([-3, -2, -1, 1, 2, 3], 2))
        expected = list(range(n))[a:b:c][d:e:f]
        known = composed((a, b, c), (d, e, f), n)
        assert known is not None
        assert list(range(n))[slice(*known)] == expected
        if (unknown := composed((a, b, c), (d, e, f), None)) is not None:
            certain += 1
            assert list(range(n))[slice(*unknown)] == expected
    assert certain > 50


def test_axes_are_renumbered_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        rank = int(rng.integers(1, 5))
        x = np.zeros(tuple(range(2, 2 + rank)))
        inner = sorted(rng.choice(rank + 2, 2, replace=False).tolist())
        outer = sorted(rng.choice(rank + 4, 2, replace=False).tolist())
        both = np.expand_dims(np.expand_dims(x, tuple(inner)), tuple(outer))
        merged = [*outer, *shifted(inner, outer)]
        assert np.expand_dims(x, tuple(merged)).shape == both.shape
        assert unshifted(shifted(inner, outer), outer) == inner


@pytest.mark.parametrize(
    ("source", "result", "expected"),
    [
        (["N", 4, 6], ["N", 24], [0, 24]),
        (["N", 4, 6], [None, 24], [-1, 24]),
        (["N", "S", 8], ["N", "S", 2, 4], [0, 0, 2, 4]),
        (["N", "S", 8], ["S", "N", 8], None),  # neither symbol at its place
        (["N", "S", 8], ["N", None], None),  # a -1 beside a 0: not computable where N = 0
        ([6, "N"], [0, "N"], None),  # an empty dim
        (None, [2, 3], None),
    ],
)
def test_shapes_are_written_only_where_certain(
    source: list[Dim] | None, result: list[Dim], expected: list[int] | None
) -> None:
    assert written(source, result) == expected


@pytest.mark.parametrize(
    "shape", [(), (1,), (4,), (4, 1), (4, 1, 1), (1, 4, 1, 1), (4, 1, 1, 1), (1, 1, 1, 1, 1), (5, 1, 1)]
)
def test_a_constant_is_per_channel_where_numpy_broadcasting_says_so(shape: Shape) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    found = per_channel(values, 4, 1, 4)
    x = np.ones((2, 4, 3, 5))
    try:
        y = x * values
    except ValueError:
        y = None
    if y is None or y.shape != x.shape or np.ptp(y, axis=(0, 2, 3)).any():
        assert found is None
    else:
        assert found is not None
        np.testing.assert_array_equal(found, y[0, :, 0, 0])
