"""The cleanup pass: every rule once where it fires and once where it must not, then what the tables cannot show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.context import Context
from optimizer.graph import peek
from optimizer.io import load, to_model
from passes.cleanup import RULES, Cleanup
from tests.conftest import make
from tests.passes import model_of, ops, run


@dataclass(frozen=True)
class Example:
    """`gone`: a graph from which the rule removes what it names, leaving `left`; `kept`: one it must not touch."""

    gone: str
    left: list[str]
    kept: str
    opset: int = 17


def unary(body: str, x: str = "float[N,4] x", y: str = "float[N,4] y", constants: str = "") -> str:
    """A graph that ends in Sin, so that no output name stands in the way."""
    return f"g ({x}) => ({y}) {f'<{constants}>' if constants else ''} {{ {body}  y = Sin(a) }}"


LAST = ["Sin"]
EITHER = """o = If(c) <then_branch = t () => (optional(float[N,4]) p) { p = Optional(x) },
    else_branch = e () => (optional(float[N,4]) q) { q = Optional(x) }>"""
EXAMPLES = {
    "identity": Example(
        unary("b = Exp(x)  a = Identity(b)"),
        ["Exp", "Sin"],
        "g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x)  z = Exp(x) }",
    ),
    "transpose-identity": Example(
        unary("a = Transpose<perm=[1, 0, 2]>(x)", "float[1,1,N] x", "float[1,1,N] y"),
        LAST,
        unary("a = Transpose<perm=[0, 2, 1]>(x)", "float[2,3,3] x", "float[2,3,3] y"),
    ),
    "reshape-same": Example(
        unary("a = Reshape(x, s)", constants="int64[2] s = {0, -1}"),
        LAST,
        unary("a = Reshape(x, s)", "float[2,2,4] x", "float[2,2,4] y", "int64[3] s = {0, -1, 2}").replace(
            "float[2,2,4] y", "float[2,4,2] y"
        ),
    ),
    "flatten-matrix": Example(
        unary("a = Flatten<axis=1>(x)"), LAST, unary("a = Flatten<axis=0>(x)", y="float[1,M] y")
    ),
    "unsqueeze-nothing": Example(
        unary("a = Unsqueeze(x, s)", constants="int64[0] s = {}"),
        LAST,
        unary("a = Unsqueeze(x, s)", y="float[1,N,4] y", constants="int64[1] s = {0}"),
    ),
    "unsqueeze-squeeze": Example(
        unary("b = Squeeze(x, s)  a = Unsqueeze(b, t)", "float[N,1] x", "float[N,1] y",
              "int64[1] s = {1}, int64[1] t = {-1}"),
        LAST,
        unary("b = Squeeze(x, s)  a = Unsqueeze(b, t)", "float[N,1] x", "float[1,N] y",
              "int64[1] s = {1}, int64[1] t = {0}"),
    ),
    "squeeze-nothing": Example(
        unary("a = Squeeze(x)", "float[2,4] x", "float[2,4] y"),
        LAST,
        unary("a = Squeeze(x)", y="float[K] y").replace("float[K] y", "float[] y"),
    ),
    "squeeze-unsqueeze": Example(
        unary("b = Unsqueeze(x, s)  a = Squeeze(b, t)", constants="int64[1] s = {2}, int64[1] t = {-1}"),
        LAST,
        unary("b = Unsqueeze(x, s)  a = Squeeze(b, t)", "float[1,4] x", "float[1,4] y",
              "int64[1] s = {1}, int64[1] t = {0}"),
    ),
    "slice-everything": Example(
        unary("a = Slice(x, s, e, t)",
              constants="int64[2] s = {0, -9}, int64[2] e = {2147483647, 4}, int64[2] t = {0, 1}"),
        LAST,
        unary("a = Slice(x, s, e, t)", y="float[N,3] y",
              constants="int64[1] s = {0}, int64[1] e = {-1}, int64[1] t = {1}"),
    ),
    "pad-nothing": Example(
        unary("a = Pad<mode = \"reflect\">(x, p)", constants="int64[4] p = {0, 0, 0, 0}"),
        LAST,
        unary("a = Pad(x, p)", "float[N,5] x", "float[N,4] y", "int64[4] p = {0, 0, 0, -1}"),
    ),
    "concat-one": Example(unary("a = Concat<axis=0>(x)"), LAST, unary("a = Concat<axis=1>(x, x)", y="float[N,8] y")),
    "concat-empty": Example(
        unary("a = Concat<axis=1>(x, e, x)", "float[2,4] x, float[2,0] e", "float[2,8] y"),
        ["Concat", "Sin"],
        unary("a = Concat<axis=1>(x, e)", "float[2,4] x, float[2,K] e", "float[2,M] y"),
    ),
    "split-one": Example(
        unary("a = Split<axis=1, num_outputs=1>(x)"),
        LAST,
        "g (float[N,4] x) => (float[N,2] y, float[N,2] z) { y, z = Split<axis=1, num_outputs=2>(x) }",
        opset=18,
    ),
    "expand-nothing": Example(
        unary("a = Expand(x, s)", constants="int64[2] s = {1, 4}"),
        LAST,
        unary("a = Expand(x, s)", y="float[1,N,4] y", constants="int64[3] s = {1, 1, 1}"),
    ),
    "gather-everything": Example(
        unary("a = Gather<axis=1>(x, i)", constants="int64[4] i = {0, 1, 2, 3}"),
        LAST,
        unary("a = Gather<axis=1>(x, i)", constants="int64[4] i = {0, 1, 3, 2}"),
    ),
    "scatter-everything": Example(
        unary("a = ScatterND(x, i, u)", "float[2,4] x, float[2,4] u", "float[2,4] y", "int64[2,1] i = {0, 1}"),
        LAST,
        unary("a = ScatterND(x, i, u)", "float[2,4] x, float[2,4] u", "float[2,4] y", "int64[2,1] i = {1, 0}"),
    ),
    "tile-nothing": Example(
        unary("a = Tile(x, s)", constants="int64[2] s = {1, 1}"),
        LAST,
        unary("a = Tile(x, s)", y="float[N,8] y", constants="int64[2] s = {1, 2}"),
    ),
    "resize-nothing": Example(
        unary("a = Resize(x, , s)", "float[1,1,H,W] x", "float[1,1,H,W] y", "float[4] s = {1, 1, 1, 1}"),
        LAST,
        unary("a = Resize<mode = \"nearest\", nearest_mode = \"ceil\", coordinate_transformation_mode = "
              "\"tf_half_pixel_for_nn\">(x, , s)", "float[1,1,5,6] x", "float[1,1,5,6] y", "float[4] s = {1, 1, 1, 1}"),
    ),
    "pool-one": Example(
        unary("a = AveragePool<kernel_shape = [1, 1]>(x)", "float[1,1,H,W] x", "float[1,1,H,W] y"),
        LAST,
        unary("a = AveragePool<kernel_shape = [1, 1], strides = [2, 1]>(x)", "float[1,1,4,4] x", "float[1,1,2,4] y"),
    ),
    "global-pool-one": Example(
        unary("a = GlobalAveragePool(x)", "float[N,3,1,1] x", "float[N,3,1,1] y"),
        LAST,
        unary("a = GlobalAveragePool(x)", "float[N,3,1,W] x", "float[N,3,1,1] y"),
    ),
    "neutral-operand": Example(
        unary("b = Add(z, x)  c = Mul(b, o)  a = Add(c, v)",
              constants="float z = {0}, float[1,4] o = {1, 1, 1, 1}, float[4] v = {-0.0, 0, 0, 0}"),
        LAST,
        unary("a = Mul(x, o)", y="float[1,N,4] y", constants="float[1,1,1] o = {1}"),
    ),
    "neutral-second": Example(
        unary("b = Sub(x, z)  c = Div(b, o)  a = Pow(c, o)", constants="float z = {0}, float o = {1}"),
        LAST,
        unary("b = Sub(z, x)  c = Abs(b)  d = Add(c, o)  a = Div(o, d)", constants="float z = {0}, float o = {1}"),
    ),
    "extreme-bound": Example(
        "g (int32[N] x) => (int32[N] y) <int32 m = {2147483647}> { a = Min(m, x)  y = Abs(a) }",
        ["Abs"],
        "g (int32[N] x) => (int32[N] y) <int32 m = {2147483647}> { a = Max(m, x)  y = Neg(a) }",
    ),
    "cast-same": Example(unary("a = Cast<to = 1>(x)"), LAST, unary("a = Cast<to = 11>(x)", y="double[N,4] y")),
    "cast-like-same": Example(
        unary("a = CastLike(x, z)", "float[N,4] x, float[1] z"),
        LAST,
        unary("a = CastLike(x, z)", "float[N,4] x, double[1] z", "double[N,4] y"),
    ),
    "cast-cast": Example(
        unary("b = Cast<to = 1>(x)  a = Cast<to = 10>(b)", "float16[N] x", "float16[N] y"),
        LAST,
        unary("b = Cast<to = 10>(x)  a = Cast<to = 1>(b)", "float[N] x", "float[N] y"),
    ),
    "undone": Example(
        unary("b = Neg(x)  a = Neg(b)"), LAST, unary("b = Reciprocal(x)  a = Reciprocal(b)")
    ),
    "idempotent": Example(
        unary("b = Relu(x)  c = Ceil(b)  a = Ceil(c)"), ["Relu", "Ceil", "Sin"], unary("b = Exp(x)  a = Exp(b)")
    ),
    "clip-again": Example(
        unary("b = Clip(x, l, h)  a = Clip(b, l, h)", constants="float l = {0}, float h = {6}"),
        ["Clip", "Sin"],
        unary("b = Clip(x, l)  a = Clip(b, , l)", constants="float l = {0.5}"),
    ),
    "where-constant": Example(
        unary("a = Where(c, x, z)", "float[N,4] x, float[N,4] z", constants="bool[4] c = {0, 0, 0, 0}"),
        LAST,
        unary("a = Where(c, x, z)", "float[4] x, float[N,4] z", constants="bool c = {1}"),
    ),
    "where-same": Example(
        unary("a = Where(c, x, x)", "float[N,4] x, bool[N,4] c"),
        LAST,
        unary("a = Where(c, x, x)", "float[N,1] x, bool[N,4] c"),
    ),
    "relu-positive": Example(
        unary("b = Sigmoid(x)  c = Concat<axis=0>(b, k)  d = Transpose(c)  e = Add(d, o)  a = Relu(e)",
              y="float[4,M] y", constants="float[1,4] k = {0, 1, 2, 3}, float o = {0.5}"),
        ["Sigmoid", "Concat", "Transpose", "Add", "Sin"],
        unary("b = Sigmoid(x)  c = Sub(b, o)  a = Relu(c)", constants="float o = {0.5}"),
    ),
    "abs-positive": Example(
        unary("b = Softmax(x)  c = Abs(b)  d = Relu(x)  e = Max(d, o)  f = Abs(e)  a = Add(c, f)",
              constants="float o = {0.5}"),
        ["Softmax", "Relu", "Max", "Add", "Sin"],
        unary("b = Relu(x)  c = Abs(b)  a = Reciprocal(c)"),
    ),
    "clip-within": Example(
        unary("b = HardSigmoid(x)  c = Clip(b, z, o)  d = Relu(c)  a = Clip(d, z)",
              constants="float z = {0}, float o = {1}"),
        ["HardSigmoid", "Sin"],
        unary("b = HardSigmoid(x)  a = Clip(b, z, o)", constants="float z = {0}, float o = {0.75}"),
    ),
    "rounded": Example(
        unary("b = Floor(x)  c = Ceil(b)  d = Cast<to = 1>(i)  e = Round(d)  a = Add(c, e)",
              "float[N,4] x, int64[N,4] i"),
        ["Floor", "Cast", "Add", "Sin"],
        unary("b = Cast<to = 1>(x)  a = Round(b)", "float16[N,4] x"),
    ),
    "reduce-one": Example(
        unary("b = ReduceSum<keepdims = 0>(x, s)  a = ReduceMax<axes = [1], keepdims = 1>(b)",
              "float[N,1,1] x", "float[N,1] y", "int64[1] s = {-1}"),
        ["Squeeze", "Sin"],
        unary("a = ReduceSum<keepdims = 1>(x, s)", "float[N,M] x", "float[N,1] y", "int64[1] s = {1}"),
    ),
    "reduce-one-mapped": Example(
        unary("b = ReduceL1(x, s)  c = ReduceLogSum<noop_with_empty_axes = 1>(b)  "
              "a = ReduceSumSquare<keepdims = 0>(c, s)", "float[N,1] x", "float[N] y", "int64[1] s = {1}"),
        ["Abs", "Log", "Mul", "Squeeze", "Sin"],
        unary("a = ReduceL2(x, s)", "float[N,1] x", "float[N,1] y", "int64[1] s = {1}"),
        opset=18,
    ),
    "quantize-again": Example(
        "g (uint8[N,4] x) => (float[N,4] y) <float s = {0.03}, float t = {0.03}, uint8 z = {7}> {"
        " a = DequantizeLinear(x, s, z)  b = QuantizeLinear(a, t, z)  y = DequantizeLinear(b, s, z) }",
        ["DequantizeLinear"],
        "g (uint8[N,4] x) => (float[N,4] y) <float s = {0.03}, float t = {0.04}, uint8 z = {7}> {"
        " a = DequantizeLinear(x, s, z)  b = QuantizeLinear(a, t, z)  y = DequantizeLinear(b, s, z) }",
    ),
    "optional-has": Example(
        "g (float[N,4] x) => (bool y, bool z) { b = OptionalHasElement(x)  y = Not(b)"
        " a = Optional(x)  c = OptionalHasElement(a)  z = Or(b, c) }",
        ["Not", "Or"],
        f"g (float[N,4] x, bool c) => (bool y) {{ {EITHER} b = OptionalHasElement(o)  y = Not(b) }}",
        opset=18,
    ),
    "optional-get": Example(
        unary("b = OptionalGetElement(x)  c = Optional(b)  a = OptionalGetElement(c)"),
        LAST,
        f"g (float[N,4] x, bool c) => (float[N,4] y) {{ {EITHER} a = OptionalGetElement(o)  y = Sin(a) }}",
        opset=18,
    ),
    "one-operand": Example(unary("a = Mean(x)"), LAST, unary("a = Sum(x, x)")),
    "einsum-nothing": Example(
        unary("a = Einsum<equation = \"ij -> ij\">(x)"),
        LAST,
        unary("a = Einsum<equation = \"ij->ji\">(x)", y="float[4,N] y"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_removes(name: str) -> None:
    graph = make(EXAMPLES[name].gone, EXAMPLES[name].opset)
    assert run("cleanup", graph) > 0
    assert ops(graph) == EXAMPLES[name].left


@pytest.mark.parametrize("name", EXAMPLES)
def test_keeps(name: str) -> None:
    assert run("cleanup", EXAMPLES[name].kept, EXAMPLES[name].opset) == 0


SHOWN = {  # by golden cases, of these names and with "_not"
    "concat-split": "concat_split",
    "repeated-operand": "repeated",
    "sequence-at": "sequences",
    "sequence-length": "sequences",
    "concat-from-sequence": "sequences",
}


def test_every_rule_has_an_example() -> None:
    assert {one.name for one in RULES} == EXAMPLES.keys() | SHOWN.keys()
    folder = Path(__file__).parent / "cases" / "cleanup"
    assert all((folder / f"{case}{end}.txt").is_file() for case in SHOWN.values() for end in ("", "_not"))


MORE_KEPT = {
    "a slice that turns the data round": unary(
        "a = Slice(x, s, e, t, p)",
        constants="int64[1] s = {3}, int64[1] e = {-9}, int64[1] t = {1}, int64[1] p = {-1}",
    ),
    "a slice whose end exporters mistake for the last element": unary(
        "a = Slice(x, s, e)", "float[1] x", "float[0] y", "int64[1] s = {0}, int64[1] e = {-1}"
    ),
    "almost one": unary("a = Mul(x, o)", constants="float o = {1.0000001}"),
    "a neutral constant that callers may override": "g (float[N] x, float o = {1}) => (float[N] y) { y = Mul(x, o) }",
    "one among others": unary("a = Mul(x, o)", constants="float[4] o = {1, 1, 1, 2}"),
    "one per column that enlarges one column": unary(
        "a = Mul(x, o)", "float[N,1] x", constants="float[4] o = {1, 1, 1, 1}"
    ),
    "a widening that rounds int64": unary(
        "b = Cast<to = 11>(x)  c = Cast<to = 7>(b)  a = Cast<to = 1>(c)", "int64[N] x", "float[N] y"
    ),
    "a bool, which is no round trip of an integer": """g (int32[N] x) => (int32[N] y) {
        a = Cast<to = 9>(x)  b = Cast<to = 6>(a)  y = Neg(b) }""",
    "pool of a maximum, which drops NaN": unary(
        "a = MaxPool<kernel_shape = [1]>(x)", "float[1,1,W] x", "float[1,1,W] y"
    ),
    "a Relu of an integer sum, which wraps around": """g (int32[N] x) => (int32[N] y) <int32 o = {1}> {
        a = Relu(x)  b = Add(a, o)  y = Relu(b) }""",
    "an Abs of integers, which keeps the least of them": """g (int32[N] x) => (int32[N] y) {
        a = Abs(x)  y = Relu(a) }""",
    "a Relu of a maximum, which is the lowest number where all are NaN": unary(
        "b = Relu(x)  c = MaxPool<kernel_shape = [2]>(b)  a = Relu(c)", "float[1,1,4] x", "float[1,1,3] y"
    ),
    "a Relu of a quotient by -0": unary("b = Relu(x)  c = Div(o, b)  a = Relu(c)", constants="float o = {1}"),
    "a Relu of what callers may override": """g (float[N] x, float o = {1}) => (float[N] y) {
        a = Sigmoid(x)  b = Add(a, o)  c = Relu(b)  y = Neg(c) }""",
    "a Relu of a float that became an integer, NaN included": """g (float[N] x) => (int32[N] y) {
        a = Exp(x)  b = Cast<to = 6>(a)  y = Relu(b) }""",
    "a Clip without bounds, which stops infinity": unary("a = Clip(x)"),
    "a Clip from below of what may be infinite": unary("b = Exp(x)  a = Clip(b, z)", constants="float z = {0}"),
    "a sum over a dim that may be 0": unary(
        "a = ReduceSum<keepdims = 0>(x, s)", "float[1,N] x", "float y", "int64[2] s = {0, 1}"
    ),
    "a sum over all of an unknown number of elements, as empty axes say": unary(
        "a = ReduceSum(x, s)", y="float[1,1] y", constants="int64[0] s = {}"
    ),
    "codes quantized again by a scale of 0": """g (uint8[N,4] x) => (float[N,4] y) <float s = {0}> {
        a = DequantizeLinear(x, s)  b = QuantizeLinear(a, s)  y = DequantizeLinear(b, s) }""",
    "codes quantized again around another zero": """g (uint8[N,4] x) => (float[N,4] y)
        <float s = {0.5}, uint8 z = {7}> {
        a = DequantizeLinear(x, s)  b = QuantizeLinear(a, s, z)  y = DequantizeLinear(b, s) }""",
    "codes quantized again as another type": """g (int8[N,4] x) => (float[N,4] y) <float s = {0.5}, uint8 z = {0}> {
        a = DequantizeLinear(x, s)  b = QuantizeLinear(a, s, z)  y = DequantizeLinear(b, s) }""",
    "codes quantized again by a scale that is computed": """g (uint8[N,4] x, float s) => (float[N,4] y) {
        a = DequantizeLinear(x, s)  b = QuantizeLinear(a, s)  y = DequantizeLinear(b, s) }""",
    "codes quantized again along another axis": """g (uint8[2,2] x) => (float[2,2] y) <float[2] s = {0.5, 1.5}> {
        a = DequantizeLinear<axis = 0>(x, s)  b = QuantizeLinear<axis = 1>(a, s)
        y = DequantizeLinear<axis = 1>(b, s) }""",
    "a matrix transposed": unary("a = Transpose(x)", y="float[4,N] y"),
    "a reshape with allowzero": unary(
        "a = Reshape<allowzero=1>(x, s)", "float[0,4] x", "float[0,5] y", "int64[2] s = {0, 5}"
    ),
}


@pytest.mark.parametrize("name", MORE_KEPT)
def test_keeps_also(name: str) -> None:
    assert run("cleanup", MORE_KEPT[name]) == 0


def test_a_clip_of_integers_without_bounds_is_nothing() -> None:
    assert run("cleanup", "g (int32[N] x) => (int32[N] y) { a = Clip(x)  y = Neg(a) }") == 1


@pytest.mark.parametrize(("dtype", "mask", "count"), [("int8", -1, 1), ("uint8", 255, 1), ("int8", -2, 0)])
def test_a_bitwise_and_with_all_bits_is_nothing(dtype: str, mask: int, count: int) -> None:
    text = f"g ({dtype}[N] x) => ({dtype}[N] y) <{dtype} m = {{{mask}}}> {{ a = BitwiseAnd(m, x)  y = BitwiseNot(a) }}"
    assert run("cleanup", text, 18) == count


# ------------------------------------------------------------------ Constant nodes, duplicates


def test_constant_nodes_of_every_kind() -> None:
    graph = make("""g (float[N] x) => (float[M] y, int64[K] z, string[2] s) {
        a = Constant<value = float[2] {1, 2}>()
        b = Constant<value_float = 3.0>()
        c = Constant<value_floats = [4.0, 5.0]>()
        i = Constant<value_int = 6>()
        j = Constant<value_ints = [7, 8]>()
        k = Constant<value_ints = [0]>()
        s = Constant<value_strings = ["p", "q"]>()
        d = Add(a, b)  e = Add(c, d)  y = Concat<axis=0>(x, e)
        f = Unsqueeze(i, k)  z = Concat<axis=0>(f, j)
    }""")
    assert run("cleanup", graph) == 7
    assert "Constant" not in ops(graph)
    found = {n: peek(c).tolist() for n, c in graph.constants().items() if n in "abcijk"}
    assert found == {"a": [1, 2], "b": 3, "c": [4, 5], "i": 6, "j": [7, 8], "k": [0]}


def test_sparse_constants_stay() -> None:
    values_ = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [1])
    sparse = helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values_, places, [3]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
    nodes = [sparse, helper.make_node("Add", ["x", "c"], ["y"])]
    assert run("cleanup", model_of(helper.make_graph(nodes, "g", ends[:1], ends[1:]))) == 0


def test_constants_of_branches_become_initializers_there() -> None:
    graph = make(
        """g (bool c, float[N] x) => (float[N] y) {
        y = If(c) <
            then_branch = t () => (float[N] p) { k = Constant<value = float {2}>()  p = Mul(x, k) },
            else_branch = f () => (float q) { q = Constant<value = float[1] {3}>() }>
    }""".replace("(float q)", "(float[1] q)").replace("float[N] y) {", "float[M] y) {")
    )
    assert run("cleanup", graph) == 2
    assert ops(graph) == ["If", "Mul", "Identity"]


def merged(*arrays: np.ndarray, kept: tuple[str, ...] = ()) -> int:
    """How many initializers cleanup leaves of those given; those in `kept` are inputs too."""
    names = [f"w{i}" for i in range(len(arrays))]
    nodes = [helper.make_node("Identity", [n], [f"y{n}"]) for n in names]
    infos = {n: (helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in zip(names, arrays, strict=True)}
    outputs = [helper.make_tensor_value_info(f"y{n}", *infos[n]) for n in names]
    inputs = [helper.make_tensor_value_info(n, *infos[n]) for n in kept]
    tensors = [numpy_helper.from_array(a, n) for n, a in zip(names, arrays, strict=True)]
    graph = load(model_of(helper.make_graph(nodes, "g", inputs, outputs, tensors)))
    run("cleanup", graph, feeds=[{}])
    return len(graph.constants() | graph.overridable)


def test_duplicates_are_equal_bit_by_bit() -> None:
    one = np.array([1.5, np.nan, 0], np.float32)
    other_nan = one.copy()
    other_nan.view(np.uint32)[1] ^= 1
    assert merged(one, one.copy()) == 1
    assert merged(one, other_nan) == 2
    assert merged(np.zeros(3, np.float32), -np.zeros(3, np.float32)) == 2
    assert merged(np.zeros(4, np.float32), np.zeros((2, 2), np.float32)) == 2
    assert merged(np.zeros(4, np.float32), np.zeros(4, np.int32)) == 2
    big = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    assert merged(big, big.copy(), big[::-1].copy()) == 2


def test_duplicate_strings() -> None:
    assert merged(np.array(["a", "b"], object), np.array(["a", "b"], object)) == 1
    assert merged(np.array(["a", "b"], object), np.array(["a", "c"], object)) == 2


def test_overridable_duplicates_stay() -> None:
    ones = np.ones(2, np.float32)
    assert merged(ones, ones.copy(), kept=("w1",)) == 2


def test_an_initializer_that_is_an_output_stays() -> None:
    tensors = [numpy_helper.from_array(np.full(2, 2, np.float32), n) for n in ("w", "y")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "z", "y")]
    nodes = [helper.make_node("Sub", ["x", "w"], ["a"]), helper.make_node("Div", ["a", "y"], ["b"]),
             helper.make_node("Relu", ["b"], ["z"])]  # fmt: skip
    model = model_of(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))
    assert run("cleanup", model) == 0


# ------------------------------------------------------------------ Dropout, branches, dead code


def test_dropout_in_inference() -> None:
    graph = make(unary("a = Dropout(x, r, t)", constants="float r = {0.5}, bool t = {0}"))
    assert run("cleanup", graph) == 1
    assert ops(graph) == LAST


def test_a_mask_in_use_becomes_ones() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, bool[N,4] m) { d, m = Dropout(x)  y = Relu(d) }"
    graph = make(text)
    assert run("cleanup", graph) == 1
    assert sorted(ops(graph)) == ["ConstantOfShape", "Relu", "Shape"]
    graph = make(text.replace("N", "3"))
    run("cleanup", graph)
    assert sorted(ops(graph)) == ["Identity", "Relu"]


def test_a_mask_has_the_shape_that_is_so_not_the_one_that_is_said() -> None:
    graph = make("g (float[N,4] x) => (bool[N,4] m) <float[3,4] a> { a = Relu(x)  d, m = Dropout(a) }")
    assert run("cleanup", graph) > 0
    assert sorted(ops(graph)) == ["ConstantOfShape", "Relu", "Shape"]


@pytest.mark.parametrize("kind", ["floats", "ints", "strings"])
def test_empty_constants(kind: str) -> None:
    graph = make(f"g () => (int64 n) {{ c = Constant<value_{kind}: {kind} = []>()  n = Size(c) }}")
    assert run("cleanup", graph, feeds=[{}]) == 1


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("g (float[N] x, bool t) => (float[N] y) <float r = {0}> { d = Dropout(x, r, t)  y = Relu(d) }", 17),
        ("g (float[N] x) => (float[N] y) <float r = {0}, bool t = {1}> { d = Dropout(x, r, t)  y = Relu(d) }", 17),
        ("g (float[N] x) => (float[N] y, bool[N] m) { y, m = Dropout(x) }", 10),
    ],
)
def test_dropout_that_stays(text: str, opset: int) -> None:
    assert run("cleanup", text, opset) == 0


IF = """g (float[N] x) => (float[N] y) <bool c = {CONDITION}, float two = {2}> {
    a = Exp(x)
    b = If(c) <
        then_branch = t () => (float[N] p) { d = Neg(a)  p = Mul(d, two) },
        else_branch = f () => (float[N] q) { q = Identity(x) }>
    y = Abs(b)
}"""


@pytest.mark.parametrize(("condition", "left"), [("1", ["Exp", "Neg", "Mul", "Abs"]), ("0", ["Abs"])])
def test_a_constant_condition_takes_its_branch(condition: str, left: list[str]) -> None:
    graph = make(IF.replace("CONDITION", condition))
    assert run("cleanup", graph) >= 1
    assert ops(graph) == left


def test_a_branch_gives_an_output_its_name() -> None:
    graph = make("""g (float[N] x) => (float[N] y) <bool c = {1}> {
        y = If(c) <then_branch = t () => (float[N] p) { p = Neg(x) }, else_branch = f () => (float[N] q) { q = Abs(x) }>
    }""")
    run("cleanup", graph)
    assert ops(graph) == ["Neg"]
    assert [t.name for t in graph.outputs] == ["y"]


def test_nested_branches_are_taken_inside_out() -> None:
    graph = make("""g (float[N] x) => (float[N] y) <bool c = {1}, bool d = {0}> {
        y = If(c) <
            then_branch = t () => (float[N] p) {
                a = Neg(x)
                p = If(d) <then_branch = u () => (float[N] r) { r = Exp(a) },
                           else_branch = v () => (float[N] s) { s = Abs(a) }>
            },
            else_branch = f () => (float[N] q) { q = Exp(x) }>
    }""")
    assert run("cleanup", graph) == 2
    assert ops(graph) == ["Neg", "Abs"]


def test_a_condition_that_callers_may_override_stays() -> None:
    text = IF.replace("<bool c = {CONDITION}, float two = {2}>", "<float two = {2}>").replace(
        "(float[N] x)", "(float[N] x, bool c = {1})"
    )
    graph = make(text)
    run("cleanup", graph)
    assert "If" in ops(graph)


def test_unused_results_of_control_flow() -> None:
    graph = make("""g (bool c, int64 n, float[N] x) => (float[N] y, float[M,N] z) {
        y, u = If(c) <
            then_branch = t () => (float[N] p, float[N] p2) { p = Neg(x)  p2 = Exp(x) },
            else_branch = f () => (float[N] q, float[N] q2) { q = Abs(x)  q2 = Sin(x) }>
        v, w, z = Loop(n, c, x) <
            body = b (int64 i, bool go, float[N] s) => (bool on, float[N] r, float[N] e, float[N] h) {
                on = Identity(go)  r = Relu(s)  e = Cos(r)  h = Floor(r) }>
    }""")
    assert run("cleanup", graph) > 0
    assert not {"Exp", "Sin", "Cos"} & set(ops(graph))
    assert {"Neg", "Abs", "Relu", "Floor"} <= set(ops(graph))  # what a loop carries stays, read or not


def test_dead_code_goes_and_inputs_stay() -> None:
    graph = make("g (float[N] x, float[N] unused) => (float[N] y) { y = Neg(x)  d = Exp(x)  e = Abs(d) }")
    assert run("cleanup", graph) == 2
    assert ops(graph) == ["Neg"]
    assert [v.name for v in to_model(graph).graph.input] == ["x", "unused"]


def test_identity_of_a_sequence() -> None:
    graph = make("""g (float[N] x, int64 i) => (float[M] y) {
        s = SequenceConstruct(x, x)  t = Identity(s)  y = SequenceAt(t, i)
    }""")
    assert run("cleanup", graph) == 1
    assert ops(graph) == ["SequenceConstruct", "SequenceAt"]


def test_cost_is_linear(ctx: Context) -> None:
    def seconds(length: int) -> float:
        nodes = [helper.make_node("Mul" if i % 2 else "Identity", [f"t{i}", *["one"] * (i % 2)], [f"t{i + 1}"])
                 for i in range(length)]  # fmt: skip
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", f"t{length}")]
        one = numpy_helper.from_array(np.ones(2, np.float32), "one")
        graph = load(model_of(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [one])))
        start = time.process_time()
        Cleanup().run(graph, ctx)
        assert len(graph.nodes) == 1
        return time.process_time() - start

    seconds(100)
    assert seconds(8000) < 60 * max(seconds(400), 0.01)


def test_old_operator_sets_are_read_as_they_were() -> None:
    pad = helper.make_node("Pad", ["x"], ["a"], pads=[0, 0], mode="constant")
    clip = helper.make_node("Clip", ["a"], ["b"], min=0.0, max=1.0)
    again = helper.make_node("Clip", ["b"], ["c"], min=0.0, max=1.0)
    other = helper.make_node("Clip", ["c"], ["y"], min=0.5, max=2.0)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy"]
    model = model_of(helper.make_graph([pad, clip, again, other], "g", ends[:1], ends[1:]), opset=10)
    graph = load(model)
    assert run("cleanup", graph) == 2
    assert ops(graph) == ["Clip", "Clip"]
