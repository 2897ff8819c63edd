"""Constant folding: what is computed ahead of time, what never is, and that the file does not grow."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.context import Context
from optimizer.graph import Graph, peek
from optimizer.io import load, save
from optimizer.stored import nbytes
from passes.fold import Fold
from tests.conftest import make
from tests.passes import model_of, ops, run


def values(graph: Graph, op: str, position: int) -> list[Any]:
    """What the first node of an operator reads there."""
    node = next(n for n in graph.walk() if n.op == op)
    found: list[Any] = peek(node.inputs[position]).tolist()
    return found


def test_a_chain_of_constants_is_one_initializer() -> None:
    graph = make("""g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}, float b = {3}> {
        c = Mul(a, b)  d = Neg(c)  e = Exp(a)  f = Add(d, e)  y = Add(x, f)
    }""")
    assert run("fold", graph) == 4
    assert ops(graph) == ["Add"]
    np.testing.assert_allclose(values(graph, "Add", 1), np.exp([1, 2]) - [3, 6], rtol=1e-6)


def test_integers_stay_integers() -> None:
    """graphsurgeon's own folding makes [0, 0, 0] of this one."""
    graph = make(
        """g (float[K,L,M] x) => (float[A,B,C] y) <int64[3] s = {10, 7, 224}, float half = {0.5}> {
        f = Cast<to=1>(s)  h = Mul(f, half)  i = Cast<to=7>(h)  y = Expand(x, i)
    }""".replace("float[K,L,M] x", "float[1,1,1] x")
    )
    assert run("fold", graph) == 3
    assert values(graph, "Expand", 1) == [5, 3, 112]


SHAPES = [
    ("Shape(x)", [2, 3, 4]),
    ("Shape<start=1>(x)", [3, 4]),
    ("Shape<end=-1>(x)", [2, 3]),
    ("Shape<start=-2, end=-1>(x)", [3]),
    ("Shape<start=2, end=1>(x)", []),
    ("Shape<start=-9, end=9>(x)", [2, 3, 4]),
]


@pytest.mark.parametrize(("call", "dims"), SHAPES)
def test_shape_of_known_dims(call: str, dims: list[int]) -> None:
    graph = make(f"g (float[2,3,4] x, int64[1] i) => (int64[K] y) {{ s = {call}  y = Concat<axis=0>(s, i) }}")
    assert run("fold", graph) == 1
    assert values(graph, "Concat", 0) == dims


def test_shape_of_dims_known_where_asked() -> None:
    graph = make("g (float[N,3,4] x, int64[1] i) => (int64[K] y) { s = Shape<start=1>(x)  y = Concat<axis=0>(s, i) }")
    assert run("fold", graph) == 1
    assert values(graph, "Concat", 0) == [3, 4]


def test_size() -> None:
    graph = make("g (float[2,3] x, int64 i) => (int64 y) { s = Size(x)  y = Add(s, i) }")
    assert run("fold", graph) == 1
    assert values(graph, "Add", 0) == 6


def test_results_in_subgraphs_and_of_captured_constants() -> None:
    graph = make("""g (bool c, float[N] x) => (float[N] y) <float a = {2}, float b = {5}> {
        d = Mul(a, b)
        y = If(c) <
            then_branch = t () => (float[N] p) { e = Sub(d, a)  p = Mul(x, e) },
            else_branch = f () => (float[N] q) { k = Constant<value = float {1}>()  h = Add(k, k)  q = Mul(x, h) }>
    }""")
    assert run("fixpoint(cleanup,fold)", graph) == 4
    assert ops(graph) == ["If", "Mul", "Mul"]
    assert values(graph, "Mul", 1) == 8


def test_a_constant_output_keeps_its_name() -> None:
    graph = make("g (float[N] x) => (float[2] y) <float[2] a = {1, 2}> { y = Neg(a) }")
    assert run("fold", graph) == 1
    assert ops(graph) == ["Identity"]
    assert [t.name for t in graph.outputs] == ["y"]


def test_strings_and_empty_tensors() -> None:
    graph = make("""g (string[1] x) => (string[M] y) <string[2] a = {"p", "q"}, int64[1] i = {1}, int64[0] n = {}> {
        b = Gather(a, i)  m = Neg(n)  c = Gather(a, m)  y = Concat<axis=0>(x, b, c)
    }""")
    assert run("fold", graph, feeds=[{"x": np.array(["o"], object)}]) == 3
    assert ops(graph) == ["Concat"]


def test_of_a_weight_that_is_quantized_the_codes_are_kept() -> None:
    graph = make("""g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {1, 1.25, 1.75, -99}, float s = {0.5}, int8 z = {0}> {
        q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }""")
    assert run("fold", graph) == 1
    assert ops(graph) == ["DequantizeLinear", "MatMul"]
    codes = peek(graph.nodes[0].inputs[0])
    assert codes.dtype == np.int8 and codes.tolist() == [[2, 2], [4, -128]]  # halves to even, saturated


# ------------------------------------------------------------------ what is never folded

NEVER = {
    "random numbers": """g (float[N] x) => (float[2] y) {
        r = RandomNormal<shape=[2], seed=1.0>()  z = Sub(r, r)  y = Relu(z) }""",
    "a sample like a constant": """g (float[N] x) => (float[N,2] y) <float[2] a = {1, 2}, float[2] z = {0, 0}> {
        r = RandomUniformLike<seed=1.0>(a)  f = Mul(r, z)  y = Softmax(f) }""".replace("float[N,2] y", "float[2] y"),
    "a quantized weight": """g (float[N,2] x) => (float[N,2] y) <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}> {
        d = DequantizeLinear(w, s)  y = MatMul(x, d) }""",
    "a default that callers may override": """g (float[N] x, float a = {2}) => (float[N] y) {
        b = Neg(a)  y = Mul(x, b) }""",
    "an operator of an unknown domain": """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N] x) => (float[N] y) <float a = {2}> { b = other.Twice(a)  y = Mul(x, b) }""",
    "a bfloat16, which the runtime hands to nobody": """g (float[N] x) => (float[N] y) <bfloat16 a = {2}> {
        b = Neg(a)  c = Cast<to=1>(b)  y = Mul(x, c) }""",
}


@pytest.mark.parametrize("name", [n for n in NEVER if "bfloat16" not in n and "domain" not in n])
def test_never(name: str) -> None:
    assert run("fold", NEVER[name]) == 0


@pytest.mark.parametrize("name", [n for n in NEVER if "bfloat16" in n or "domain" in n])
def test_never_what_the_runtime_cannot_run(name: str, ctx: Context) -> None:
    assert Fold().run(make(NEVER[name]), ctx) == 0


def grown(nodes: list[Any], *weights: np.ndarray) -> tuple[Graph, int]:
    """Folds a model that adds input x to the last node's output and sums up; gives it and its constants' bytes."""
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    last = [helper.make_node("Add", ["x", nodes[-1].output[0]], ["s"]),
            helper.make_node("ReduceSum", ["s"], ["y"], keepdims=0)]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1]), ("y", []))]
    graph = load(model_of(helper.make_graph([*nodes, *last], "g", ends[:1], ends[1:], tensors)))
    feed = {"x": np.ones(1, np.float32)}
    run("fold", graph, feeds=[feed])
    return graph, sum(map(nbytes, graph.constants().values()))


def test_large_results_of_small_constants_are_not_stored() -> None:
    node = helper.make_node("ConstantOfShape", ["w0"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    graph, size = grown([node], np.array([2048, 2048]))
    assert ops(graph) == ["ConstantOfShape", "Add", "ReduceSum"]
    assert size == 16


@pytest.mark.parametrize(
    ("op", "operands"),
    [
        ("Expand", [np.ones((1, 4), np.float32), np.array([300, 4])]),
        ("Tile", [np.ones((1, 4), np.float32), np.array([300, 1])]),
        ("Range", [np.float32(0), np.float32(2000), np.float32(1)]),
    ],
)
def test_what_multiplies_is_guarded(op: str, operands: list[np.ndarray]) -> None:
    names = [f"w{i}" for i in range(len(operands))]
    graph, size = grown([helper.make_node(op, names, ["c"])], *map(np.asarray, operands))
    assert ops(graph)[0] == op
    assert size < 100


def test_many_small_results_are_bounded_together() -> None:
    """Each of 100 results is small; together they may grow the file by 1 KiB or 1 %, however often fold runs."""
    nodes, summands = [], []
    for i in range(100):
        nodes.append(helper.make_node("Expand", [f"w{i}", "w100"], [f"e{i}"]))
        summands.append(f"e{i}")
    nodes.append(helper.make_node("Sum", [*summands, "x"], ["a"]))
    weights = [np.full((1, 4), i, np.float32) for i in range(100)]
    graph, size = grown(nodes, *weights, np.array([16, 4]))
    before = 100 * 16 + 16
    assert before < size <= before + 100 * 60 + 1024  # each folded node's own record pays too
    assert "Expand" in ops(graph)
    left = ops(graph).count("Expand")
    run("fixpoint(fold,cleanup,fold)", graph, feeds=[{"x": np.ones(1, np.float32)}])
    assert ops(graph).count("Expand") == left


def test_a_weight_that_dies_pays_for_its_image() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    transpose = helper.make_node("Transpose", ["w0"], ["t"])
    graph, size = grown([transpose], weight)
    assert ops(graph) == ["Add", "ReduceSum"]
    assert size == weight.nbytes


def test_a_weight_that_lives_pays_for_nothing() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["w0"], ["t"]), helper.make_node("Add", ["t", "x"], ["u"]),
             helper.make_node("Add", ["u", "w0"], ["v"])]  # fmt: skip
    graph, size = grown(nodes, weight)
    assert "Transpose" in ops(graph)
    assert size == weight.nbytes


def test_two_images_of_one_weight_are_not_stored() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["w0"], ["t"]), helper.make_node("Abs", ["w0"], ["u"]),
             helper.make_node("Sub", ["x", "t"], ["a"]), helper.make_node("Sub", ["a", "u"], ["v"])]  # fmt: skip
    _, size = grown(nodes, weight)
    assert size == weight.nbytes


def test_half_precision_weights_stay_half() -> None:
    weight = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float16)
    graph, size = grown([helper.make_node("Cast", ["w0"], ["c"], to=TensorProto.FLOAT)], weight)
    assert ops(graph) == ["Cast", "Add", "ReduceSum"]
    assert size == weight.nbytes


def test_the_file_never_grows(tmp_path: Any) -> None:
    graph = make("""g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}, int64[2] s = {3, 2}> {
        b = Expand(a, s)  c = ReduceSum(b)  d = Mul(a, c)  y = Add(x, d)
    }""")
    before = save(graph, tmp_path / "before.onnx")[0].stat().st_size
    assert run("fold", graph) == 3
    assert save(graph, tmp_path / "after.onnx")[0].stat().st_size <= before


# ------------------------------------------------------------------ how it runs


def test_one_run_for_all_scopes(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    kept = type(ctx.evaluate).open

    def count(self: Any, *args: Any) -> Any:
        opened.append(1)
        return kept(self, *args)

    monkeypatch.setattr(type(ctx.evaluate), "open", count)
    lines = "  ".join(f"a{i + 1} = Neg(a{i})  b{i} = Exp(a{i})" for i in range(50))
    total = "  ".join(f"x{i + 1} = Add(x{i}, b{i})" for i in range(50))
    graph = make(f"g (float[N] x0) => (float[N] x50) <float a0 = {{1}}> {{ {lines}  {total} }}")
    assert Fold().run(graph, ctx) == 100
    assert len(opened) == 1


def test_one_bad_node_does_not_stop_the_rest() -> None:
    """Gather beyond the end fails when it is run; in a branch that is never taken it must not matter."""
    graph = make("""g (bool c, float[N] x) => (float[N] y) <float a = {2}, float[2] v = {1, 2}, int64 i = {7}> {
        y = If(c) <
            then_branch = t () => (float[N] p) { e = Neg(a)  p = Mul(x, e) },
            else_branch = f () => (float[N] q) { b = Gather(v, i)  h = Neg(b)  q = Mul(x, h) }>
    }""")
    feeds = [{"c": np.array(True), "x": np.ones(3, np.float32)}]
    assert run("fold", graph, feeds=feeds) == 1
    assert sorted(ops(graph)) == ["Gather", "If", "Mul", "Mul", "Neg"]


def test_cost_is_linear(ctx: Context) -> None:
    def seconds(length: int) -> float:
        nodes = [helper.make_node("Add", [f"t{i}", "t0"], [f"t{i + 1}"]) for i in range(length)]
        nodes.append(helper.make_node("Add", ["x", f"t{length}"], ["y"]))
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
        one = numpy_helper.from_array(np.ones(2, np.float32), "t0")
        graph = load(model_of(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [one])))
        start = time.process_time()
        assert Fold().run(graph, ctx) == length
        return time.process_time() - start

    seconds(100)
    small, large = (min(seconds(length) for _ in range(3)) for length in (400, 8000))  # of three: machines have moods
    assert large < 60 * max(small, 0.02)
