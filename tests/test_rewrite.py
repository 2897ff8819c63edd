"""The rule engine refuses what careless rules propose: one test for each global precondition, G1 to G9.

Each rule here is wrong on purpose, or right only sometimes; what the engine leaves must compute what it did before.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from optimizer.errors import BugError
from optimizer.evaluate import Evaluate
from optimizer.graph import Tensor
from optimizer.io import to_model
from optimizer.match import Match
from optimizer.rewrite import Draft, Rule, apply_rules, rule
from optimizer.text import show
from tests.conftest import make


@rule("Neg(Neg(x))")
def drop_pair(m: Match, make: Draft) -> Tensor | None:
    return m["x"]


@rule("Mul(x, c)")
def careless_mul_one(m: Match, make: Draft) -> Tensor | None:
    array = make.array(m["c"])
    return m["x"] if array is not None and (array == 1).all() else None


@rule("Identity(x)")
def drop_identity(m: Match, make: Draft) -> Tensor | None:
    return m["x"]


def refused(one: Rule, text: str, opset: int = 17, *, fast_math: bool = False) -> None:
    graph = make(text, opset)
    before = show(graph)
    assert apply_rules(graph, [one], fast_math=fast_math, infer=True) == {}
    graph.sweep()
    graph.tidy()
    assert len(show(graph).splitlines()) == len(before.splitlines())


def accepted(one: Rule, text: str, opset: int = 17, *, fast_math: bool = False) -> str:
    """The printed graph; outputs and interface must be as before."""
    graph = make(text, opset)
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.standard_normal([3 if isinstance(d, str) else d for d in t.shape]).astype(np.float32)
             for t in graph.inputs}  # fmt: skip
    interface = to_model(graph)
    expected = Evaluate(1)(graph, feeds)
    assert apply_rules(graph, [one], fast_math=fast_math) == {one.name: 1}
    graph.sweep()
    graph.tidy()
    model = to_model(graph)
    onnx.checker.check_model(model, full_check=True)
    assert (list(model.graph.input), list(model.graph.output)) == (
        list(interface.graph.input), list(interface.graph.output))  # fmt: skip
    made = Evaluate(1)(graph, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-5, atol=1e-6)
    return show(graph)


# ------------------------------------------------------------------ G1 to G9


def test_g1_inner_tensors_with_other_readers() -> None:
    accepted(drop_pair, "g (float[4] x) => (float[4] y) { a = Neg(x) b = Neg(a) y = Abs(b) }")
    refused(drop_pair, "g (float[4] x) => (float[4] y, float[4] z) { a = Neg(x) b = Neg(a) y = Abs(b) z = Abs(a) }")
    refused(drop_pair, "g (float[4] x) => (float[4] y, float[4] a) { a = Neg(x) b = Neg(a) y = Abs(b) }")


def test_g2_a_default_is_no_constant() -> None:
    accepted(careless_mul_one, "g (float[1] x) => (float[1] y) <float[1] w = {1}> { a = Mul(x, w) y = Abs(a) }")
    refused(
        careless_mul_one, "g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {1}> { a = Mul(x, w) y = Abs(a) }"
    )


@pytest.mark.parametrize(
    ("shape", "ones", "fires"),
    [
        ("[N,2]", "float[2] w = {1, 1}", True),
        ("[N,2]", "float w = {1}", True),
        ("[N,1]", "float[2] w = {1, 1}", False),  # the product has two columns
        ("[N]", "float[2] w = {1, 1}", False),  # N may be 1
        ("[2]", "float[1,2] w = {1, 1}", False),  # the product has another rank
        ("[N,M]", "float[1,2] w = {1, 1}", False),
        ("[]", "float w = {1}", False),  # [] is an unknown shape in ONNX text
    ],
)
def test_g3_a_broadcast_that_enlarges(shape: str, ones: str, fires: bool) -> None:
    text = f"g (float{shape} x) => (float[A,B] y) <{ones}> {{ a = Mul(x, w) y = Abs(a) }}"
    graph = make(text)
    assert bool(apply_rules(graph, [careless_mul_one])) == fires


def test_g3_a_stale_shape_is_not_believed() -> None:
    text = "g (float[N] x) => (float[N] y) <float[2] w = {1, 1}, float[N] a> { a = Mul(x, w) y = Abs(a) }"
    assert apply_rules(make(text), [careless_mul_one]) == {}


def test_g3_another_type_or_rank() -> None:
    @rule("Cast(x)")
    def drop_cast(m: Match, make: Draft) -> Tensor | None:
        return m["x"]

    @rule("Cast(x)", shape_safe=True)
    def drop_cast_boldly(m: Match, make: Draft) -> Tensor | None:
        return m["x"]

    @rule("Relu(x)")
    def flatten(m: Match, make: Draft) -> Tensor | None:
        return make.node("Reshape", m["x"], make.constant(np.array([-1])))

    for one in (drop_cast, drop_cast_boldly):
        refused(one, "g (float[4] x) => (double[4] y) { a = Cast<to = 11>(x) y = Neg(a) }")
    refused(flatten, "g (float[2,2] x) => (float[2,2] y) { a = Relu(x) y = Neg(a) }")


def test_g3_a_dim_that_contradicts() -> None:
    @rule("Relu(x)")
    def half(m: Match, make: Draft) -> Tensor | None:
        return make.split("Split", m["x"], count=2, attrs={"axis": 0})[0]

    refused(half, "g (float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }")


def test_g3_a_constant_of_another_shape() -> None:
    @rule("Relu(x)")
    def zero(m: Match, make: Draft) -> Tensor | None:
        return make.constant(np.zeros(3, np.float32))

    refused(zero, "g (float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }")


def test_g3_a_constant_of_the_models_own_where_the_shape_is_unknown() -> None:
    @rule("Where(condition, a, b)")
    def other(m: Match, make: Draft) -> Tensor | None:
        return m["b"]

    text = (
        "g (float[] x) => (float[] y) <bool[3] no = {0, 0, 0}, float zero = {0}> { a = Where(no, x, zero) y = Neg(a) }"
    )
    refused(other, text)  # [] is an unknown shape in ONNX text: the result has three elements or more


def test_nodes_that_the_operators_rules_forbid() -> None:
    @rule("Relu(x)")
    def nonsense(m: Match, make: Draft) -> Tensor | None:
        return make.node("MatMul", m["x"], make.constant(np.zeros((3, 4), np.float32)))

    @rule("Relu(x)")
    def unknown(m: Match, make: Draft) -> Tensor | None:
        return make.node("Frobnicate", m["x"])

    refused(nonsense, "g (float[2,5] x) => (float[2,4] y) { a = Relu(x) y = Neg(a) }")
    refused(unknown, "g (float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("g (float[4] x) => (float[4] y) { y = Identity(x) }", "y = Identity(x)"),
        ("g (float[4] x) => (float[4] a, float[4] y) { a = Relu(x) y = Identity(a) }", "y = Identity(a)"),
        ("g (float[4] x) => (float[4] y) { a = Relu(x) y = Identity(a) }", "y = Relu(x)"),
    ],
)
def test_g4_outputs_keep_their_names(text: str, kept: str) -> None:
    graph = make(text)
    interface = to_model(graph).graph
    for _ in range(3):  # an Identity that must stay must not be counted for ever, either
        apply_rules(graph, [drop_identity])
        graph.sweep()
        graph.tidy()
    after = to_model(graph).graph
    assert (list(after.input), list(after.output)) == (list(interface.input), list(interface.output))
    assert kept in show(graph)


def test_g4_a_pair_that_ends_in_an_output() -> None:
    text = accepted(drop_pair, "g (float[4] x) => (float[4] y) { r = Relu(x) a = Neg(r) y = Neg(a) }")
    assert "y = Relu(x)" in text
    text = accepted(drop_pair, "g (float[4] x) => (float[4] y) { a = Neg(x) y = Neg(a) }")
    assert "y = Identity(x)" in text


def test_g5_random_operators() -> None:
    @rule("Sub(r, s)")
    def itself(m: Match, make: Draft) -> Tensor | None:
        same = m["r"].inputs and m["s"].inputs and m["r"].inputs[0].op == m["s"].inputs[0].op
        return make.node("Mul", m["r"], make.constant(np.float32(0))) if same else None

    @rule("Sub(RandomNormalLike(x), RandomNormalLike(x))")
    def difference(m: Match, make: Draft) -> Tensor | None:
        return make.node("Mul", m["x"], make.constant(np.float32(0)))

    text = "g (float[4] x) => (float[4] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    refused(difference, text)
    accepted_by_name_only = apply_rules(make(text), [itself])
    assert accepted_by_name_only == {"itself": 1}  # a rule that looks behind its own pattern is on its own


def test_g6_a_second_output_that_is_read() -> None:
    @rule("MaxPool(x)")
    def forget_indices(m: Match, make: Draft) -> Tensor | None:
        return make.node("Relu", m["x"])

    pool = "MaxPool<kernel_shape = [1, 1]>(x)"
    refused(forget_indices, f"g (float[1,1,2,2] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) {{ y, i = {pool} }}")
    assert apply_rules(make(f"g (float[1,1,2,2] x) => (float[1,1,2,2] y) {{ y, i = {pool} }}"), [forget_indices])


def test_g7_defaults_are_those_of_the_operator_set() -> None:
    seen = {}

    @rule("Softmax(x)")
    def look(m: Match, make: Draft) -> Tensor | None:
        seen[m.graph.opset] = make.attr(m.root, "axis")
        return None

    for opset in (11, 13):
        apply_rules(make("g (float[2,3] x) => (float[2,3] y) { y = Softmax(x) }", opset), [look])
    assert seen == {11: 1, 13: -1}


def test_g7_a_rule_for_newer_operator_sets() -> None:
    @rule("Mul(x, Tanh(Softplus(x)))", since=18)
    def mish(m: Match, make: Draft) -> Tensor | None:
        return make.node("Mish", m["x"])

    text = "g (float[4] x) => (float[4] y) { a = Softplus(x) b = Tanh(a) y = Mul(x, b) }"
    refused(mish, text, 17)
    assert "Mish" in accepted(mish, text, 18)

    @rule("Mul(x, Tanh(Softplus(x)))")
    def careless(m: Match, make: Draft) -> Tensor | None:
        return make.node("Mish", m["x"])

    refused(careless, text, 17)  # the operator does not exist there


def test_g8_fast_math_is_off_unless_asked_for() -> None:
    @rule("Mul(x, 0)", fast_math=True)
    def mul_zero(m: Match, make: Draft) -> Tensor | None:
        return make.constant(np.zeros(4, np.float32))

    text = "g (float[4] x) => (float[4] y) <float c = {0}> { a = Mul(x, c) y = Abs(a) }"
    refused(mul_zero, text)
    accepted(mul_zero, text, fast_math=True)


def test_g9_a_file_that_would_grow() -> None:
    def tile(m: Match, make: Draft) -> Tensor | None:
        array = make.array(m["w"])
        return (
            None
            if array is None or array.ndim > 1
            else make.node("Mul", m["x"], make.constant(np.tile(array, (100, 1))))
        )

    text = "g (float[100,4] x) => (float[100,4] y) <float[4] w = {1, 2, 3, 4}> { y = Mul(x, w) }"
    refused(rule("Mul(x, w)")(tile), text)
    accepted(rule("Mul(x, w)", may_grow=True)(tile), text)


def test_g9_a_weight_that_others_share_does_not_die() -> None:
    @rule("Mul(Add(x, w), c)")
    def distribute(m: Match, make: Draft) -> Tensor | None:
        w, c = make.array(m["w"]), make.array(m["c"])
        if w is None or c is None:
            return None
        return make.node("Add", make.node("Mul", m["x"], m["c"]), make.constant(w * c))

    body = "a = Add(x, w) y = Mul(a, c)"
    lone = make(f"g (float[512] x) => (float[512] y) <float c = {{2}}> {{ w = Constant<value_ints = [0]>() {body} }}")
    big = lone.constant(np.ones(512, np.float32), "big")
    lone.set_input(lone.nodes[1], 1, big)
    shared = lone.copy()
    add = shared.nodes[1]
    other = shared.variable("other", np.float32, [512])
    shared.add("Neg", [add.inputs[1]], [other])
    shared.ir.outputs.append(other)
    shared.names.outputs.add(other.name)
    shared.header.outputs.append(onnx.helper.make_tensor_value_info(other.name, 1, [512]))  # type: ignore[union-attr]
    assert apply_rules(lone, [distribute]) == {"distribute": 1}
    assert apply_rules(shared, [distribute]) == {}


# ------------------------------------------------------------------ the engine itself


def test_rules_work_inside_subgraphs() -> None:
    graph = make("""g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[2] u) { n = Neg(a) p = Neg(n) u = Abs(p) },
            else_branch = e () => (float[2] v) { v = Abs(x) }
        >
    }""")
    assert apply_rules(graph, [drop_pair]) == {"drop-pair": 1}
    graph.sweep()
    onnx.checker.check_model(to_model(graph), full_check=True)
    assert sorted(n.op for n in graph.walk()) == ["Abs", "Abs", "If", "Relu"]


def test_a_rewrite_outside_leaves_readers_inside_in_their_scope() -> None:
    @rule("Relu(x)")
    def relu_to_max(m: Match, make: Draft) -> Tensor | None:
        return make.node("Max", m["x"], make.constant(np.float32(0)))

    @rule("Neg(x)")
    def neg_to_mul(m: Match, make: Draft) -> Tensor | None:
        return make.node("Mul", m["x"], make.constant(np.float32(-1)))

    graph = make("""g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[2] u) { u = Neg(a) },
            else_branch = e () => (float[2] v) { v = Abs(x) }
        >
    }""")
    assert apply_rules(graph, [relu_to_max, neg_to_mul]) == {"relu-to-max": 1, "neg-to-mul": 1}
    graph.sweep()
    graph.tidy()
    onnx.checker.check_model(to_model(graph), full_check=True)
    assert sorted(n.op for n in graph.nodes) == ["If", "Max"]


def test_one_rewrite_enables_the_next() -> None:
    body = " ".join(f"a{n} = Neg({'x' if n == 0 else f'a{n - 1}'})" for n in range(40))
    graph = make(f"g (float[4] x) => (float[4] y) {{ {body} y = Abs(a39) }}")
    assert apply_rules(graph, [drop_pair]) == {"drop-pair": 20}
    graph.sweep()
    assert [n.op for n in graph.nodes] == ["Abs"]


def test_rules_without_end_are_a_bug() -> None:
    @rule("Relu(x)")
    def forth(m: Match, make: Draft) -> Tensor | None:
        return make.node("Max", m["x"], make.constant(np.float32(0)))

    @rule("Max(x, z)")
    def back(m: Match, make: Draft) -> Tensor | None:
        return make.node("Relu", m["x"])

    with pytest.raises(BugError, match="undo each other"):
        apply_rules(make("g (float[4] x) => (float[4] y) { y = Relu(x) }"), [forth, back])


def test_a_refused_proposal_leaves_no_trace() -> None:
    @rule("Relu(x)")
    def big(m: Match, make: Draft) -> Tensor | None:
        return make.node("Add", m["x"], make.constant(np.zeros((100, 4), np.float32)))

    graph = make("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    before = to_model(graph)
    apply_rules(graph, [big], infer=False)
    assert to_model(graph) == before
    assert graph.inputs[0].outputs == graph.nodes
