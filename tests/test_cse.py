"""Common subexpressions: what counts as equal, what never does, and where scopes may reuse values."""

from __future__ import annotations

import time

import pytest
from onnx import TensorProto, helper

from optimizer.context import Context
from optimizer.io import load
from passes.cse import Cse
from tests.conftest import make
from tests.passes import model_of, ops, run

MERGED = {
    "a chain of duplicates": (
        """g (float[N] x) => (float[N] y) {
            a = Exp(x)  b = Exp(x)  c = Neg(a)  d = Neg(b)  y = Add(c, d)
        }""",
        ["Exp", "Neg", "Add"],
    ),
    "attributes by value, tensors by content": (
        """g (int64[1] n) => (float[M] y) {
            a = ConstantOfShape<value = float[1] {2}>(n)
            b = ConstantOfShape<value = float[1] {2}>(n)
            y = Add(a, b)
        }""",
        ["ConstantOfShape", "Add"],
    ),
    "all outputs of a split": (
        """g (float[N,4] x) => (float[N,2] y) {
            a, b = Split<axis=1, num_outputs=2>(x)
            c, d = Split<axis=1, num_outputs=2>(x)
            e = Add(a, d)
            y = Mul(e, b)
        }""",
        ["Split", "Add", "Mul"],
    ),
    "two graph outputs stay two": (
        "g (float[N] x) => (float[N] y, float[N] z) { y = Exp(x)  z = Exp(x) }",
        ["Exp", "Identity"],
    ),
    "a branch reuses what was computed before it": (
        """g (bool c, float[N] x) => (float[N] y, float[N] e) {
            e = Exp(x)
            y = If(c) <
                then_branch = t () => (float[N] p) { a = Exp(x)  p = Neg(a) },
                else_branch = f () => (float[N] q) { q = Neg(x) }>
        }""",
        ["Exp", "If", "Neg", "Neg"],
    ),
}
KEPT = {
    "another attribute": """g (float[N,3] x) => (float[N,3] y) {
        a = Softmax<axis=0>(x)  b = Softmax<axis=1>(x)  y = Add(a, b) }""",
    "the sign of zero in an attribute": """g (float[N] x) => (float[N] y) {
        a = LeakyRelu<alpha=0.0>(x)  b = LeakyRelu<alpha=-0.0>(x)  y = Sub(a, b) }""",
    "the order of operands": """g (float[N] x, float[N] z) => (float[N] y) {
        a = Sub(x, z)  b = Sub(z, x)  y = Mul(a, b) }""",
    "an optional input in another place": """g (float[N] x, float c) => (float[N] y) {
        a = Clip(x, c)  b = Clip(x, , c)  y = Add(a, b) }""",
    "another number of outputs": """g (float[1,1,2,N] x) => (float[1,1,2,N] y) {
        a, i = MaxPool<kernel_shape=[1, 1]>(x)  b = MaxPool<kernel_shape=[1, 1]>(x)
        j = Cast<to=1>(i)  c = Add(a, j)  y = Sub(b, c) }""",
    "siblings": """g (bool c, float[N] x) => (float[N] y) {
        y = If(c) <
            then_branch = t () => (float[N] p) { a = Exp(x)  p = Neg(a) },
            else_branch = f () => (float[N] q) { b = Exp(x)  q = Abs(b) }>
    }""",
    "a node after the branch": """g (bool c, float[N] x) => (float[N] y) {
        a = If(c) <
            then_branch = t () => (float[N] p) { p = Exp(x) },
            else_branch = f () => (float[N] q) { q = Neg(x) }>
        b = Exp(x)
        y = Add(a, b)
    }""",
    "nodes with subgraphs": """g (bool c, float[N] x) => (float[N] y) {
        a = If(c) <then_branch = t () => (float[N] p) { p = Exp(x) }, else_branch = f () => (float[N] q) { q = Neg(x) }>
        b = If(c) <then_branch = r () => (float[N] s) { s = Exp(x) }, else_branch = u () => (float[N] v) { v = Neg(x) }>
        y = Add(a, b)
    }""",
}


@pytest.mark.parametrize("name", MERGED)
def test_merges(name: str) -> None:
    text, left = MERGED[name]
    graph = make(text, 18)
    assert run("cse", graph) > 0
    assert ops(graph) == left


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    assert run("cse", KEPT[name]) == 0


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_two_samples_stay_two(op: str, ctx: Context) -> None:
    graph = make(f"g (float[64] x) => (float[64] y) {{ p = Sigmoid(x)  a = {op}(p)  b = {op}(p)  y = Sub(a, b) }}")
    assert Cse().run(graph, ctx) == 0


def test_cost_is_linear(ctx: Context) -> None:
    def seconds(length: int) -> float:
        nodes = []
        for i in range(length):
            nodes += [helper.make_node("Abs", [f"t{i}"], [f"{side}{i}"]) for side in "ab"]
            nodes.append(helper.make_node("Max", [f"a{i}", f"b{i}"], [f"t{i + 1}"]))
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", f"t{length}")]
        graph = load(model_of(helper.make_graph(nodes, "chain", ends[:1], ends[1:])))
        start = time.process_time()
        assert Cse().run(graph, ctx) == length
        return time.process_time() - start

    seconds(100)
    assert seconds(8000) < 60 * max(seconds(400), 0.005)
