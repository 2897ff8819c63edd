"""The pattern matcher: what fits, and what the matcher refuses so that no rule can forget it (G1, G5, G6)."""

from __future__ import annotations

import pytest

from optimizer.graph import Graph
from optimizer.match import Match, match
from tests.conftest import make


def find(pattern: str, text: str, opset: int = 17) -> Match | None:
    """The match whose root is the last node of the graph."""
    graph = make(text, opset)
    return match(pattern, graph.nodes[-1], graph)


def one(body: str, constants: str = "") -> str:
    return f"g (float[4] x, float[4] z) => (float[4] y) {constants} {{ {body} }}"


def test_names_are_bound() -> None:
    m = find("Add(Relu(x), z)", one("a = Relu(x) y = Add(a, z)"))
    assert m is not None
    assert (m["x"].name, m["z"].name) == ("x", "z")
    assert [n.op for n in m.nodes] == ["Add", "Relu"]
    assert m.root.op == "Add"
    assert m.node("Relu|Abs").op == "Relu"


def test_commuting_operators_fit_in_both_orders() -> None:
    assert find("Add(Relu(x), z)", one("a = Relu(x) y = Add(z, a)"))
    assert find("Sub(Relu(x), z)", one("a = Relu(x) y = Sub(z, a)")) is None


def test_one_name_is_one_tensor() -> None:
    assert find("Mul(x, Sigmoid(x))", one("a = Sigmoid(x) y = Mul(a, x)"))
    assert find("Mul(x, Sigmoid(x))", one("a = Sigmoid(x) y = Mul(a, z)")) is None


@pytest.mark.parametrize(
    ("wanted", "value", "fits"),
    [("2.0", "2", True), ("2.0", "2.0000002", False), ("0.1", "0.1000001", True), ("0.1", "0.1001", False)],
)
def test_numbers(wanted: str, value: str, fits: bool) -> None:
    """What every float type holds is exact: Pow(x, 2.0000002) of a negative x is NaN, a square is not."""
    assert (find(f"Mul(x, {wanted})", one("y = Mul(x, c)", f"<float c = {{{value}}}>")) is not None) == fits


def test_zero_is_exact() -> None:
    assert find("Add(x, 0)", one("y = Add(x, c)", "<float c = {0}>"))
    assert find("Add(x, 0)", one("y = Add(x, c)", "<float c = {1e-30}>")) is None


def test_a_number_is_one_element_and_a_true_constant() -> None:
    assert find("Mul(x, 2.0)", one("y = Mul(x, c)", "<float[4] c = {2, 2, 2, 2}>")) is None
    overridable = "g (float[4] x, float c) => (float[4] y) <float c = {2}> { y = Mul(x, c) }"
    assert find("Mul(x, 2.0)", overridable) is None


def test_optional_inputs() -> None:
    bounded = find("Clip(x, lo?, hi?)", one("y = Clip(x, , c)", "<float c = {2}>"))
    assert bounded is not None
    assert bounded.get("lo") is None
    assert bounded["hi"].name == "c"
    assert find("Clip(x, lo?, hi?)", one("y = Clip(x)")) is not None
    assert find("Clip(x, lo)", one("y = Clip(x)")) is None
    assert find("Clip(x)", one("y = Clip(x, c)", "<float c = {2}>")) is None


def test_the_rest_of_the_inputs() -> None:
    m = find("Concat(*xs)", "g (float[2] a, float[2] b) => (float[N] y) { y = Concat<axis = 0>(a, b, a) }")
    assert m is not None
    assert [t.name for t in m.lists["xs"]] == ["a", "b", "a"]


def test_labels_name_the_output_of_an_inner_node() -> None:
    text = one("d = Sub(x, z) s = Sigmoid(d) y = Mul(d, s)")
    m = find("Mul(d=Sub(x, z), Sigmoid(d))", text)
    assert m is not None
    assert m["d"].inputs[0].op == "Sub"
    assert find("Mul(d=Sub(x, z), Sigmoid(d))", one("d = Sub(x, z) e = Sub(x, z) s = Sigmoid(e) y = Mul(d, s)")) is None


def test_one_of_several_operators() -> None:
    assert find("Relu(Add|Sub(x, z))", one("a = Sub(x, z) y = Relu(a)"))
    assert find("Relu(Add|Sub(x, z))", one("a = Mul(x, z) y = Relu(a)")) is None


# ------------------------------------------------------------------ refused by the matcher itself


def test_g1_an_inner_tensor_that_another_node_reads() -> None:
    text = "g (float[4] x) => (float[4] y, float[4] w) { a = Relu(x) w = Abs(a) y = Neg(a) }"
    assert find("Neg(Relu(x))", text) is None


def test_g1_an_inner_tensor_that_is_a_graph_output() -> None:
    assert find("Neg(Relu(x))", "g (float[4] x) => (float[4] y, float[4] a) { a = Relu(x) y = Neg(a) }") is None


def test_g1_an_inner_tensor_that_a_subgraph_captures() -> None:
    graph = make("""g (bool c, float[2] x) => (float[2] y, float[2] z) {
        a = Relu(x)
        z = If (c) <
            then_branch = t () => (float[2] u) { u = Abs(a) },
            else_branch = e () => (float[2] v) { v = Abs(x) }
        >
        y = Neg(a)
    }""")
    assert match("Neg(Relu(x))", graph.nodes[-1], graph) is None


def test_g1_the_reader_may_read_twice() -> None:
    assert find("Add(r=Relu(x), r)", one("a = Relu(x) y = Add(a, a)"))


@pytest.mark.parametrize(
    "inner", ["RandomNormalLike(x)", "Bernoulli(x)", "Dropout(x, r, t)"], ids=lambda text: text.partition("(")[0]
)
def test_g5_impure_nodes(inner: str) -> None:
    text = one(f"a = {inner} y = Neg(a)", "<float r = {0.5}, bool t = {1}>")
    op, _, args = inner.partition("(")
    assert find(f"Neg({op}({args})", text) is None


def test_g5_batch_normalization_in_training() -> None:
    graph = make("""g (float[1,2] x) => (float[1,2] y) <float[2] s = {1, 1}> {
        a, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s)
        y = Neg(a)
    }""")
    assert match("Neg(BatchNormalization(x, g, b, m, v))", graph.nodes[-1], graph) is None


def test_g6_a_second_output_that_is_read() -> None:
    text = (
        "g (float[4] x) => (float[N] y, int64[N] i) { k = Constant<value_ints = [2]>() v, i = TopK(x, k) y = Neg(v) }"
    )
    assert find("Neg(TopK(x, k))", text) is None


def test_operators_of_other_domains() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    assert find("Neg(Relu(x))", header + one("a = com.microsoft.Relu(x) y = Neg(a)")) is None


def test_nodes_of_different_scopes() -> None:
    graph = make("""g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[2] u) { u = Neg(a) },
            else_branch = e () => (float[2] v) { v = Abs(x) }
        >
    }""")
    inner = next(n for n in graph.walk() if n.op == "Neg")
    assert isinstance(inner.scope, Graph)
    assert match("Neg(Relu(x))", inner, inner.scope) is None
