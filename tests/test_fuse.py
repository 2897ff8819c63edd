"""The pass `fuse` beyond its golden cases: options, coverage of the rules, float types, cost, real models."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from models import zoo
from optimizer import rewrite
from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph, Node
from optimizer.io import load
from optimizer.match import Match, Op, match
from optimizer.pipeline import build, text
from passes.fuse import GEMM, NAMED_ONLY, NAMES, RULES, Fuse
from passes.fuse.packed import scale_packed
from passes.fuse.sink import sink_transposes
from tests.conftest import make, model
from tests.golden import cases
from tests.passes import ops, run

CASES = cases(Path(__file__).parent / "cases" / "fuse")


def fired(graph: Graph, fuse: Fuse | None = None) -> dict[str, int]:
    """Applies the chosen rules and counts how often each fired."""
    fuse = fuse or Fuse()
    return rewrite.apply_rules(graph, fuse.chosen, fast_math=fuse.fast_math)


def test_every_rule_has_a_case_where_it_fires_and_one_where_nothing_does() -> None:
    seen: set[str] = set()
    for case in CASES:
        (fuse,) = build(case.pipeline)
        assert isinstance(fuse, Fuse)
        graph = load(case.model())
        found = fired(graph, fuse)
        if case.path.stem.startswith("sink"):
            found = {"sink": count} if (count := sink_transposes(graph)) else {}
        if case.path.stem.startswith("packed"):
            found = {"packed": count} if (count := scale_packed(graph)) else {}
        assert bool(found) != case.path.stem.endswith("_not"), f"{case.path.name}: {found}"
        seen |= found.keys()
    assert seen == {*NAMES, "packed", "sink"}
    stems = {case.path.stem for case in CASES}
    assert [name for name in NAMES if name.replace("-", "_") + "_not" not in stems] == []


def test_rules_have_names_of_their_own_and_say_from_which_operator_set_on() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {rule.name: rule.since for rule in RULES if rule.since > 1} == {
        "depth-to-space": 11, "hard-swish": 14, "shape-slice": 15, "shape-gather": 15, "concat-shape": 15,
        "layer-norm": 17, "mish": 18, "gelu": 20, "gelu-tanh": 20, "group-norm": 21, "rms-norm": 23, "attention": 23,
        "attention-bias": 23, "attention-mask": 23, "attention-groups": 23, "rotary-embedding": 23, "swish": 24,
    }  # fmt: skip


def test_options_choose_rules_and_round_trip() -> None:
    written = "fuse{rules=conv-bn,conv-mul skip=conv-mul fast_math=true gemm=false}"
    (fuse,) = build(written)
    assert isinstance(fuse, Fuse)
    assert [rule.name for rule in fuse.chosen] == ["conv-bn"]
    assert text(fuse) == written
    assert not NAMED_ONLY & {rule.name for rule in Fuse().chosen}
    assert {rule.name for rule in Fuse().chosen} - {rule.name for rule in Fuse(gemm=False).chosen} == set(GEMM)


def test_an_unknown_rule_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(PipelineError, match="no rule is called 'conv-bnn'; there are conv-bn"):
        build("fuse{skip=conv-bnn}")


def test_models_below_operator_set_7_are_left_alone(ctx: Context) -> None:
    graph = make("g (float[2,4] x) => (float[2,4] y) <float a = {2}> { b = Mul(x, a) y = Mul(b, a) }", opset=6)
    assert Fuse().run(graph, ctx) == 0
    assert ops(graph) == ["Mul", "Mul"]


CONVOLUTIONS = ("conv_bn", "conv_bn_transposed", "conv_mul", "sub_conv")  # ONNX Runtime has none of double precision
PRODUCTS = ("gemm_mul", "gemm_bn", "matmul_mul", "matmul_add_mul", "matmul_move_mul", "scores_move_mul")
SPELT = ("gelu", "gelu_tanh", "layer_norm", "rms_norm", "rotary_embedding")  # operators whose constants are rounded


@pytest.mark.parametrize(
    ("stem", "dtype"), [*product(CONVOLUTIONS + PRODUCTS + SPELT, ["float16"]), *product(PRODUCTS, ["float64"])]
)
def test_rules_fire_in_every_float_type(stem: str, dtype: str) -> None:
    made = next(case for case in CASES if case.path.stem == stem).model()
    for info in (*made.graph.input, *made.graph.output):
        info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for weight in made.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(array.astype(dtype), weight.name))
    assert run("fuse", made) > 0


EXACT_ABOUT_INFINITY = (
    "abs_neg", "add_neg", "add_sub", "div_power_of_two", "leaky_relu", "leaky_where", "log_softmax_parts",
    "max_relu", "min_max", "min_min", "mul_div", "mul_reciprocal", "neg_constant", "neg_neg", "pow_reciprocal",
    "pow_root", "pow_square", "sigmoid", "silu", "softmax", "softsign", "sub_neg", "where_negated",
)  # fmt: skip


@pytest.mark.parametrize("stem", EXACT_ABOUT_INFINITY)
def test_special_values_come_out_as_they_did(stem: str) -> None:
    case = next(case for case in CASES if case.path.stem == stem)
    rng = np.random.default_rng(0)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1, -1, 3e4, -7, 0.1]
    feeds = []
    for feed in case.feeds() * 8:
        floats = {n: rng.choice(special, a.shape).astype(a.dtype) for n, a in feed.items() if a.dtype.kind == "f"}
        feeds.append(feed | floats)
    assert run(case.pipeline, case.model(), feeds=feeds) > 0


@pytest.mark.parametrize(
    ("weight", "factor", "folds"),
    [(3.0, 2.0, True), (3.0, 60000.0, False), (3.0, 3e-5, True), (0.03, 3e-5, False), (3.0, 0.0, True)],
)
def test_half_precision_weights_neither_overflow_nor_vanish(weight: float, factor: float, folds: bool) -> None:
    made = model("g (float16[N,2,4,4] x) => (float16[N,2,2,2] y) { c = Conv(x, w) y = Mul(c, s) }")
    for name, array in (("w", np.full((2, 2, 3, 3), weight)), ("s", np.array(factor))):
        made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), name))
    assert (fired(load(made)) == {"conv-mul": 1}) is folds


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("product", ["Gemm(x, w, c)", "MatMul(x, w)"])
def test_integers_round_and_wrap_so_nothing_folds_into_their_products(op: str, product: str) -> None:
    constants = "<int64[2,2] w = {1099511627777, 5, 7, -2}, int64[2] c = {3, 2}>"
    graph = make(f"g (int64[N,2] x) => (int64[N,2] y) {constants} {{ a = {product} y = {op}(a, c) }}")
    assert fired(graph) == {}


def test_cost_is_linear_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the nodes take four times the attempts to match, a third of them with success."""
    attempts: list[Node] = []

    def counted(pattern: Op, root: Node, graph: Graph, shared: bool) -> Match | None:
        attempts.append(root)
        return match(pattern, root, graph, shared)

    monkeypatch.setattr(rewrite, "match", counted)
    kinds = ("Mul(a{0}, c) a{1} = Mul(b{0}, c)", "Sigmoid(a{0}) a{1} = Add(b{0}, c)", "Clip(a{0}) a{1} = Div(b{0}, c)")
    taken = []
    for pairs in (600, 2400):
        body = " ".join(f"b{i} = {kinds[i % 3].format(i, i + 1)}" for i in range(pairs))
        graph = make(f"g (float[N,4] a0) => (float[N,4] a{pairs}) <float c = {{1.01}}> {{ {body} }}")
        attempts.clear()
        assert fired(graph)["mul-mul"] == pairs // 3
        taken.append(len(attempts))
    assert taken[1] / taken[0] == pytest.approx(4, rel=0.02)


EXPECTED = {
    "efficientnet-lite0": {"conv-bn": 49},
    "pplcnet-orientation": {"conv-bn": 27, "matmul-add": 1},
    "ppocr-cls": {"conv-bn": 35, "hard-swish-clip": 18},
    "ppocr-det": {"conv-bn": 3, "conv-mul": 28, "hard-swish-clip": 24, "mul-add-conv": 10},
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", EXPECTED)
def test_real_models_hold_what_is_known_of_them(name: str, ctx: Context) -> None:
    try:
        graph = load(zoo.path(name))
    except zoo.ZooError as reason:
        pytest.skip(str(reason))
    (cleanup,) = build("cleanup")
    cleanup.run(graph, ctx)
    found = fired(graph)
    assert {rule: found.get(rule) for rule in EXPECTED[name]} == EXPECTED[name]
