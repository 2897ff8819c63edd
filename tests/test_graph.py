"""The Graph: every way in which raw graphsurgeon goes wrong (see its module docstring) has a test here."""

from __future__ import annotations

import itertools
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.errors import ModelError
from optimizer.evaluate import Evaluate
from optimizer.graph import Constant, Graph, Node
from optimizer.io import load, to_model
from optimizer.shapes import infer
from optimizer.text import show
from tests.conftest import make

IF = """g (bool c, float[2] x) => (float[2] y) {
    a = Relu(x)
    y = If (c) <
        then_branch = then () => (float[2] t) { t = Neg(a) },
        else_branch = otherwise () => (float[2] e) { e = Add(a, x) }
    >
}"""

NESTED = """g (bool c, float[2] x) => (float[2] y) {
    a = Relu(x)
    y = If (c) <
        then_branch = outer () => (float[2] t) {
            b = Abs(x)
            t = If (c) <
                then_branch = inner () => (float[2] u) { u = Add(a, b) },
                else_branch = inner2 () => (float[2] v) { v = Neg(b) }
            >
        },
        else_branch = otherwise () => (float[2] e) { e = Identity(x) }
    >
}"""


def chain(length: int, *, reverse: bool = False) -> onnx.ModelProto:
    """x -> Relu -> ... -> y, its nodes written last first where `reverse`."""
    names = ["x", *(f"t{n}" for n in range(length - 1)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes[::-1] if reverse else nodes, "chain", info[:1], info[1:])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def node(graph: Graph, op: str) -> Node:
    return next(n for n in graph.walk() if n.op == op)


# ------------------------------------------------------------------ order


@pytest.mark.parametrize("length", [1_500, 20_000])
def test_unsorted_chains_are_sorted_quickly_and_without_recursion(length: int) -> None:
    model = chain(length, reverse=True)
    start = time.perf_counter()
    graph = load(model)
    assert time.perf_counter() - start < 10
    assert [n.outputs[0].name for n in graph.nodes] == [f"t{n}" for n in range(length - 1)] + ["y"]


def test_sorting_is_stable() -> None:
    graph = make("g (float[2] x) => (float[2] a, float[2] b, float[2] d) { b = Neg(x) a = Abs(x) d = Add(a, b) }")
    before = [n.op for n in graph.nodes]
    graph.tidy()
    assert [n.op for n in graph.nodes] == before == ["Neg", "Abs", "Add"]


def test_a_capture_counts_as_an_input_when_sorting() -> None:
    model = to_model(make(NESTED))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [n.op for n in load(model).nodes] == ["Relu", "If"]


def test_a_cycle_is_refused_and_a_node_on_it_named() -> None:
    model = chain(3)
    model.graph.node[1].input[0] = "t1"
    model.graph.node[1].name = "loop"
    with pytest.raises(ModelError, match=r"'loop'.*needs its own result"):
        load(model)


def test_a_new_node_is_printed_where_it_belongs() -> None:
    graph = make("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    last = graph.nodes[1]
    made = graph.variable("b", np.float32, [2])
    graph.add("Abs", [last.inputs[0]], [made], before=last)
    graph.set_input(last, 0, made)
    graph.tidy()
    assert [n.op for n in graph.nodes] == ["Relu", "Abs", "Neg"]


# ------------------------------------------------------------------ identity and cost


def test_nodes_equal_only_themselves() -> None:
    graph = make("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }")
    first, second = graph.nodes
    assert first != second
    assert len({first, second}) == 2


def test_detaching_many_readers_is_fast() -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"t{n}"]) for n in range(4_000)]
    outputs = [helper.make_tensor_value_info(f"t{n}", TensorProto.FLOAT, [2]) for n in range(4_000)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=8)
    graph = load(model)
    start = time.perf_counter()
    for reader in graph.nodes:
        graph.set_input(reader, 0, graph.constant(np.zeros(2, np.float32)))
    assert time.perf_counter() - start < 3
    assert graph.inputs[0].outputs == []


def test_fresh_names_are_unique_and_cheap() -> None:
    graph = load(chain(20_000))
    start = time.perf_counter()
    made = [graph.fresh("t7") for _ in range(10_000)]
    assert time.perf_counter() - start < 1
    assert len(set(made)) == 10_000
    assert not set(made) & set(graph.tensors())


def test_names_made_of_made_names_do_not_grow() -> None:
    graph = load(chain(2))
    name = "x"
    for _ in range(1_000):
        name = graph.fresh(name)
    assert name == "x_1000"


def test_replacing_many_tensors_is_linear() -> None:
    graph = load(chain(20_000))
    start = time.perf_counter()
    for one in graph.nodes[:-1]:
        graph.bypass(one, one.inputs[0])
    assert time.perf_counter() - start < 5
    assert [n.op for n in graph.nodes] == ["Relu"]


def test_names_are_unique_over_all_scopes() -> None:
    twice = IF.replace("(float[2] e) { e = Add(a, x) }", "(float[2] t) { t = Add(a, x) }")
    graph = make(twice)
    names = [t.name for n in graph.walk() for t in n.outputs]
    assert len(set(names)) == len(names) == 4


# ------------------------------------------------------------------ reading


def test_only_feeds_knows_graph_outputs() -> None:
    graph = make("g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    relu, neg, absolute = graph.nodes
    assert not graph.only_feeds(relu.outputs[0], neg)
    assert graph.only_feeds(neg.outputs[0], absolute)
    assert not graph.only_feeds(neg.outputs[0], relu)


def test_only_feeds_knows_captures() -> None:
    graph = make(
        IF.replace("(float[2] y) {", "(float[2] y, float[2] z) {").replace("a = Relu(x)", "a = Relu(x) z = Neg(a)")
    )
    relu = node(graph, "Relu")
    assert not graph.only_feeds(relu.outputs[0], relu.outputs[0].outputs[0])
    readers = {reader.op for reader in relu.outputs[0].outputs}
    assert readers == {"Neg", "Add"}


def test_only_feeds_knows_outputs_of_subgraphs() -> None:
    graph = make(IF)
    assert graph.is_output(node(graph, "Neg").outputs[0])


def test_an_overridable_initializer_is_no_constant() -> None:
    graph = make("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    w = node(graph, "Add").inputs[1]
    assert isinstance(w, Constant)
    assert not graph.is_constant(w)
    assert graph.array(w) is None
    assert graph.is_input(w)


def test_arrays_are_read_only() -> None:
    graph = make("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    array = graph.array(node(graph, "Add").inputs[1])
    assert array is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5


def test_walk_sees_every_scope() -> None:
    assert sorted(n.op for n in make(NESTED).walk()) == ["Abs", "Add", "Identity", "If", "If", "Neg", "Relu"]


# ------------------------------------------------------------------ editing


def test_sweep_removes_what_nobody_reads_in_every_scope() -> None:
    dead = NESTED.replace("b = Abs(x)", "b = Abs(x) d = Exp(b) f = Log(d)").replace(
        "a = Relu(x)", "a = Relu(x) h = Sin(a)"
    )
    graph = make(dead)
    assert graph.sweep() == 3
    assert show(graph) == show(make(NESTED))


def test_sweep_keeps_what_only_a_subgraph_reads() -> None:
    graph = make(NESTED)
    assert graph.sweep() == 0


def test_sweep_frees_what_a_removed_subgraph_captured() -> None:
    graph = make(IF.replace("(float[2] y) {", "(float[2] z) {").replace("a = Relu(x)", "a = Relu(x) z = Abs(x)"))
    assert graph.sweep() == 2  # If and the Relu that only its branches read
    assert [n.op for n in graph.nodes] == ["Abs"]


def test_sweep_keeps_unused_inputs() -> None:
    graph = make("g (float[2] x, float[2] unused) => (float[2] y) { y = Relu(x) }")
    graph.sweep()
    assert [v.name for v in to_model(graph).graph.input] == ["x", "unused"]


def test_replace_keeps_an_output_and_its_name() -> None:
    graph = make("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }")
    relu, identity = graph.nodes
    graph.bypass(identity, relu.outputs[0])
    graph.sweep()
    assert show(graph).splitlines()[2:] == ["y = Relu(x)", "output y: float32[2]"]


@pytest.mark.parametrize(
    ("text", "bypassed"),
    [
        ("g (float[2] x) => (float[2] y) { a = Neg(x) y = Identity(a) }", "Neg"),  # a reads an input
        ("g (float[2] x) => (float[2] y) { y = Identity(x) }", "Identity"),  # an output that would be an input
        ("g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Identity(a) }", "Identity"),  # two outputs
    ],
)
def test_replace_never_changes_the_interface(text: str, bypassed: str) -> None:
    graph = make(text)
    before = to_model(graph)
    one = node(graph, bypassed)
    graph.bypass(one, one.inputs[0])
    graph.sweep()
    graph.tidy()
    after = to_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_replace_reaches_captures_and_outputs_of_subgraphs() -> None:
    graph = make(IF)
    feeds = {"c": np.array(True), "x": np.array([1, -2], np.float32)}
    relu = node(graph, "Relu")
    graph.bypass(relu, relu.inputs[0])
    negated = node(graph, "Neg")
    graph.bypass(negated, graph.inputs[1])  # the branch's output becomes an outer tensor: it needs an Identity
    graph.sweep()
    graph.tidy()
    onnx.checker.check_model(to_model(graph))
    assert Evaluate(1)(graph, feeds)["y"].tolist() == [1, -2]
    assert Evaluate(1)(graph, feeds | {"c": np.array(False)})["y"].tolist() == [2, -4]


LOOP = """g (float[2] x) => (float[2] y, float[2] z) <int64 n = {3}, bool go = {1}> {
    y, z = Loop (n, go, x, x) <body = b (int64 i, bool c, float[2] v, float[2] u) => (bool c, float[2] w, float[2] w) {
        s = Add(v, u)
        w = Identity(s)
    }>
}"""


def test_replace_knows_that_an_output_may_be_listed_twice() -> None:
    graph = make(LOOP)
    feeds = {"x": np.ones(2, np.float32)}
    before = to_model(graph)
    body = next(iter(node(graph, "Loop").bodies()))
    body.bypass(body.nodes[1], body.nodes[0].outputs[0])
    assert [n.op for n in body.nodes] == ["Add"]
    assert [t.name for t in body.outputs] == ["c", "w", "w"]
    onnx.checker.check_model(to_model(graph))
    assert Evaluate(1)(graph, feeds)["z"].tolist() == Evaluate(1)(load(before), feeds)["z"].tolist() == [8, 8]


def test_removed_subgraphs_release_their_captures() -> None:
    graph = make(IF)
    graph.remove(node(graph, "If"))
    assert node(graph, "Relu").outputs[0].outputs == []


def test_set_input_drops_trailing_gaps_only() -> None:
    graph = make("g (float[4] x, float lo, float hi) => (float[4] y) { y = Clip(x, lo, hi) }")
    clip = graph.nodes[0]
    graph.set_input(clip, 1, None)
    assert [t.name for t in clip.inputs] == ["x", "", "hi"]
    graph.set_input(clip, 2, None)
    assert [t.name for t in clip.inputs] == ["x"]


def test_long_vectors_cost_inference_nothing() -> None:
    graph = make("g (float[1] x) => (float[N] y) { a = Add(x, x) y = Neg(a) }")
    graph.set_input(graph.nodes[0], 1, graph.constant(np.zeros(1 << 26, np.float32)))
    start = time.perf_counter()
    infer(graph)
    assert time.perf_counter() - start < 1
    assert graph.outputs[0].dtype == np.float32


# ------------------------------------------------------------------ copies


def test_a_copy_is_independent() -> None:
    graph = make(NESTED)
    before = show(graph)
    twin = graph.copy()
    for one in [n for n in twin.walk() if n.op in ("Relu", "Abs")]:
        assert one.scope is not None
        one.scope.bypass(one, one.inputs[0])
    twin.inputs[1].shape[0] = 7
    twin.header.imports[""] = 18  # type: ignore[union-attr]  # the outermost scope has one
    twin.fresh("x")
    assert show(graph) == before
    assert graph.opset == 17
    assert graph.fresh("x") == "x_1"


def test_a_copy_shares_weights() -> None:
    graph = make("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    assert graph.copy().constants()["w"]._values is graph.constants()["w"]._values


def test_a_copy_keeps_overridable_initializers() -> None:
    graph = make("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    twin = graph.copy()
    assert to_model(twin) == to_model(graph)
    assert twin.overridable["w"] is twin.constants()["w"]


def test_a_node_that_is_added_with_a_subgraph_has_its_scope_gone_through() -> None:
    (branch,) = make("""g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Neg(x) }, else_branch = e () => (float[2] b) { b = Abs(x) }>
    }""").nodes
    graph = make("g (bool c, float[2] x) => (float[2] y) { y = Relu(x) }")
    assert len(list(graph.scopes())) == 1
    graph.add("If", [graph.inputs[0]], [graph.variable("z")], dict(branch.attrs))
    assert len(list(graph.scopes())) == 3
