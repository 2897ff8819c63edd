"""Raising the operator set: same function, same interface, or nothing at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper, version_converter

from optimizer.context import Context
from optimizer.errors import ModelError, PipelineError
from optimizer.graph import Graph, peek
from optimizer.io import load, to_model
from optimizer.pipeline import build
from passes.opset import Opset
from tests.conftest import make, model
from tests.passes import ops, run

CHANGED = {
    "axes": (
        "g (float[N,3] x) => (float[A] y) { a = Unsqueeze<axes=[0]>(x)  b = ReduceSum<axes=[2], keepdims=0>(a)"
        "  y = Squeeze<axes=[0]>(b) }",
        11,
    ),
    "softmax over all that follows": ("g (float[N,3,4] x) => (float[N,3,4] y) { y = Softmax(x) }", 11),
    "log-softmax over the last axis": ("g (float[N,3,4] x) => (float[N,3,4] y) { y = LogSoftmax<axis=2>(x) }", 12),
    "split": ("g (float[N,6] x) => (float[N,4] y) { a, y = Split<axis=1, split=[2, 4]>(x) }", 11),
    "pad, clip, slice": (
        "g (float[N,6] x) => (float[A,B] y) { a = Pad<pads=[0, 1, 0, 1], value=2.0>(x)"
        "  b = Clip<min=-0.5, max=0.5>(a)  y = Slice<axes=[1], starts=[1], ends=[5]>(b) }",
        9,
    ),
    "batch normalization": (
        "g (float[N,2,3] x) => (float[N,2,3] y) <float[2] s = {1, 2}, float[2] b = {3, 4}> {"
        " y = BatchNormalization(x, s, b, b, s) }",
        8,
    ),
    "asymmetric resize": (
        "g (float[1,1,5,4] x) => (float[1,1,10,8] y) <float[4] s = {1, 1, 2, 2}> {"
        " y = Resize<mode = \"linear\">(x, s) }",
        10,
    ),
    "asymmetric upsample": (
        "g (float[1,1,5,4] x) => (float[1,1,10,8] y) <float[4] s = {1, 1, 2, 2}> {"
        " y = Upsample<mode = \"linear\">(x, s) }",
        9,
    ),
    "a branch": (
        """g (bool c, float[1,N] x) => (float[A] y) {
            y = If(c) <then_branch = t () => (float[K] p) { p = Squeeze<axes=[0]>(x) },
                       else_branch = f () => (float[L] q) { a = Neg(x)  q = Squeeze<axes=[0]>(a) }>
        }""",
        11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("version", [13, 17])
def test_same_function(name: str, version: int) -> None:
    text, opset = CHANGED[name]
    graph = make(text, opset)
    interface = [v.SerializeToString() for v in [*to_model(graph).graph.input, *to_model(graph).graph.output]]
    assert run(f"opset{{min={version}}}", graph) == version - opset
    assert graph.opset == version
    after = to_model(graph)
    assert [v.SerializeToString() for v in [*after.graph.input, *after.graph.output]] == interface


def test_the_converter_alone_is_wrong_about_resize(ctx: Context) -> None:
    """The reason for our own step: where this fails one day, the step can go."""
    text, opset = CHANGED["asymmetric resize"]
    plain = load(version_converter.convert_version(model(text, opset), 13))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 1, 5, 4)).astype(np.float32)}
    difference = ctx.evaluate(plain, feed)["y"] - ctx.evaluate(make(text, opset), feed)["y"]
    assert np.abs(difference).max() > 0.1


def test_new_enough_is_left_alone() -> None:
    assert run("opset", "g (float[N] x) => (float[N] y) { y = Relu(x) }", 13) == 0


def test_metadata_names_and_weights_survive(ctx: Context) -> None:
    made = model(
        """g (float[N,300] x, float[300] bias) => (float[N,300] y) {
        a = MatMul(x, w)  b = Add(a, bias)  c = Unsqueeze<axes=[0]>(b)  y = Squeeze<axes=[0]>(c) }""",
        11,
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (300, 300)), ("bias", (300,))):
        made.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    made.graph.node[0].name, made.graph.node[0].doc_string = "first", "a note"
    made.graph.node[0].metadata_props.add(key="layer", value="1")
    made.metadata_props.add(key="author", value="somebody")
    made.producer_name = "test"
    graph = load(made)
    assert run("opset", graph) == 2
    after = to_model(graph)
    assert {p.key: p.value for p in after.metadata_props} == {"author": "somebody"}
    assert after.producer_name == "test" and list(graph.overridable) == ["bias"]
    first = after.graph.node[0]
    assert (first.name, first.doc_string, first.metadata_props[0].value) == ("first", "a note", "1")
    assert list(first.input) == ["x", "w"]
    assert np.array_equal(peek(graph.constants()["w"]), peek(load(made).constants()["w"]))


def test_the_first_batch_is_the_judge(ctx: Context) -> None:
    """Random integers are 0 or 1 here and fail to index; the batch at hand does not."""
    graph = make("""g (int64[1] i, float[9] v) => (float[A] y) <int64[1] shift = {7}> {
        d = Sub(shift, i)  e = Sub(d, shift)  f = Add(e, e)  p = Gather(v, f)  h = Unsqueeze<axes=[0]>(p)
        k = Neg(f)  j = Sub(k, shift)  l = Sub(j, shift)  q = Gather(v, l)  s = Squeeze<axes=[0]>(h)
        y = Add(s, q) }""", 11)  # fmt: skip
    feed = {"i": np.array([4]), "v": np.arange(9, dtype=np.float32)}
    assert Opset().run(graph, ctx) == 0
    assert Opset().run(graph, replace(ctx, batches=[feed])) == 2


def refused(graph: Graph, ctx: Context) -> bool:
    before = to_model(graph).SerializeToString(deterministic=True)
    count = Opset().run(graph, ctx)
    return count == 0 and to_model(graph).SerializeToString(deterministic=True) == before


def test_refuses_what_it_cannot_check(ctx: Context) -> None:
    """An operator of an unknown domain: nothing can run it, so nothing shows that the result is the same."""
    graph = make("""<ir_version: 7, opset_import: ["" : 11, "other" : 1]>
        g (float[N] x) => (float[N] y) { a = other.Twice(x)  y = Relu(a) }""")
    assert refused(graph, ctx)


def test_refuses_another_function(ctx: Context) -> None:
    """The runtime's random numbers depend on a node's place, and Softmax becomes several nodes before this one."""
    graph = make(
        "g (float[2,3,4] x) => (float[2,3,4] y) { s = Softmax(x)  a = RandomNormalLike(s)  y = Add(a, s) }", 11
    )
    assert refused(graph, ctx)


def test_refuses_what_the_converter_cannot_do(ctx: Context) -> None:
    ends = [helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xy"]
    node = helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], spatial=0)
    weights = helper.make_tensor("s", 1, [3], [1.0, 2.0, 3.0])
    made = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    model_ = helper.make_model(made, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    assert refused(load(model_), ctx)


@pytest.mark.parametrize(
    ("body", "opset", "version", "said"),
    [
        ("y = Relu(x)", 17, 13, "of operator set 17 and cannot be lowered to 13: ask for 17 up"),
        ("s = Softmax(x)  a = RandomNormalLike(s)  y = Add(a, s)", 11, 13, "raised to 13 it computes something else"),
        ("s = Softmax(x)  y = other.Twice(s)", 11, 13, "cannot be raised from operator set 11 to 13: .*other"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(
    body: str, opset: int, version: int, said: str, ctx: Context
) -> None:
    header = f'<ir_version: 7, opset_import: ["" : {opset}, "other" : 1]>'
    graph = make(f"{header} g (float[2,3,4] x) => (float[2,3,4] y) {{ {body} }}")
    before = to_model(graph).SerializeToString(deterministic=True)
    with pytest.raises(ModelError, match=said):
        Opset(min=version, strict=True).run(graph, ctx)
    assert to_model(graph).SerializeToString(deterministic=True) == before


def test_what_was_asked_for_is_there() -> None:
    assert run("opset{min=17 strict=true}", "g (float[N] x) => (float[N] y) { y = Relu(x) }", 17) == 0
    assert run("opset{min=20 strict=true}", "g (float[N] x) => (float[N] y) { y = Relu(x) }", 17) == 3


def test_weights_in_constant_nodes_become_initializers() -> None:
    graph = make("""g (float[N,2] x) => (float[N,2] y) {
        w = Constant<value = float[2,2] {1, 2, 3, 4}>()  a = MatMul(x, w)
        b = Unsqueeze<axes=[0]>(a)  y = Squeeze<axes=[0]>(b) }""", 12)  # fmt: skip
    assert run("opset", graph) == 1
    assert ops(graph) == ["MatMul", "Unsqueeze", "Squeeze"]
    assert "w" in graph.constants()


@pytest.mark.parametrize("version", [3, 999])
def test_versions_that_make_no_sense(version: int) -> None:
    with pytest.raises(PipelineError, match="min must be between"):
        build(f"opset{{min={version}}}")
