"""Sparse weights: which become zero, that the others make up for them, what stays dense, what the manifest says."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import optimizer
from models import data, metrics, tiny, zoo
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Graph
from optimizer.instrument import Verify
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.qdq import WEIGHTED
from optimizer.sparsity import sparsity
from optimizer.targets import target
from passes.sparsify import collect, moments
from passes.sparsify.choose import lowest, scores, two_of_four
from passes.sparsify.correct import RIDGE, corrected
from passes.sparsify.layers import layers
from passes.sparsify.moments import Moments
from tests.conftest import make

RNG = np.random.default_rng


def run(pipeline: str, graph: Graph, batches: list[Feeds] | None = None, **more: Any) -> int:
    """The checked count of a pipeline; a second run must find nothing to do."""
    ctx = Context(target("onnx"), Evaluate(threads=1), batches or (), **more)
    count = sum(step.count for step in PassManager([Verify()]).run(build(pipeline), graph, ctx))
    assert sum(step.count for step in PassManager([Verify()]).run(build(pipeline), graph, ctx)) == 0
    return count


def sqnr(before: Graph, after: Graph, feeds: list[Feeds]) -> float:
    """The lowest of all outputs, in dB."""
    evaluate = Evaluate(threads=1)
    return min(d.sqnr for d in compare((evaluate(before, f), evaluate(after, f)) for f in feeds).values())


def weights(graph: Graph) -> dict[str, Array]:
    """The weights of each weighted operator, by its name."""
    arrays = {n.name: graph.array(n.inputs[1]) for n in graph.walk() if n.op in WEIGHTED}
    return {name: array for name, array in arrays.items() if array is not None}


def one(op: str, shape: list[int], weight: list[int], **attrs: Any) -> tuple[Graph, Array]:
    """A graph of one operator with normal weights, and the weights."""
    w = RNG(0).standard_normal(weight).astype(np.float32)
    result: list[int | None] = [None] * len(shape)
    infos = [helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info("y", 1, result)]
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)
    made = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(w, "w")])
    return load(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)), w


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("ratio", ["0", "1", "-0.5", "1.5", "nan"])
def test_a_ratio_is_a_share(ratio: str) -> None:
    with pytest.raises(PipelineError, match=r"'sparsify': ratio is the share of weights to zero, between 0 and 1"):
        build(f"sparsify{{ratio={ratio}}}")


def test_the_pattern_is_the_ratio() -> None:
    with pytest.raises(PipelineError, match="leave ratio out"):
        build("sparsify{pattern=2:4 ratio=0.3}")
    with pytest.raises(PipelineError, match="one of none, 2:4"):
        build("sparsify{pattern=1:4}")


def test_activation_needs_data() -> None:
    graph, _ = one("MatMul", [2, 8], [8, 4])
    with pytest.raises(PipelineError, match=r"needs data: give some with --data"):
        run("sparsify{criterion=activation}", graph)


# ------------------------------------------------------------------ what the outputs sum over

WINDOWS = [
    ("MatMul", [2, 5, 8], [8, 6], {}),
    ("MatMul", [8], [8, 6], {}),
    ("Gemm", [5, 8], [8, 6], {}),
    ("Gemm", [8, 5], [6, 8], {"transA": 1, "transB": 1}),
    ("Conv", [2, 4, 11], [6, 4, 3], {"strides": [2]}),
    ("Conv", [2, 4, 9, 7], [6, 4, 3, 2], {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ("Conv", [2, 4, 9, 7], [6, 2, 3, 2], {"group": 2}),
    ("Conv", [1, 4, 5, 6, 4], [8, 1, 3, 2, 1], {"group": 4, "strides": [2, 1, 2]}),
    *[
        ("Conv", [2, 4, 10, 7], [6, 2, 3, 2], {"group": 2, "auto_pad": pad, "strides": [stride, stride]})
        for pad, stride in itertools.product(["SAME_UPPER", "SAME_LOWER", "VALID"], [1, 2, 3])
    ],
    ("ConvTranspose", [2, 4, 5], [4, 3, 2], {"strides": [2]}),
    ("ConvTranspose", [2, 4, 9, 7], [4, 3, 3, 2], {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ("ConvTranspose", [2, 4, 5, 7], [4, 3, 3, 3], {"strides": [2, 3], "output_padding": [1, 2], "group": 2}),
]


@pytest.mark.parametrize(("op", "shape", "weight", "attrs"), WINDOWS)
def test_rows_times_matrices_are_the_outputs(op: str, shape: list[int], weight: list[int], attrs: Any) -> None:
    graph, w = one(op, shape, weight, **attrs)
    x = RNG(1).standard_normal(shape).astype(np.float32)
    y = Evaluate(threads=1)(graph, {"x": x})["y"]
    (layer,) = layers(graph)
    (view,) = layer.views
    assert view is not None and np.array_equal(layer.restored(layer.matrices(w)), w)
    found = np.einsum("ngk,gok->ngo", rows := view.rows(x, 10**6, RNG(0)), layer.matrices(w))
    expected = np.moveaxis(y, 1 if "Conv" in op else -1, -1).reshape(len(rows), -1)
    assert np.allclose(found.reshape(len(rows), -1), expected, atol=1e-5)


def test_few_rows_are_drawn_without_repetition() -> None:
    graph, _ = one("Conv", [2, 1, 6, 6], [1, 1, 1, 1])
    (view,) = next(layers(graph)).views
    assert view is not None
    values = view.rows(np.arange(72, dtype=np.float32).reshape(2, 1, 6, 6), 20, RNG(3)).reshape(-1)
    assert len(set(values.tolist())) == 20 and values.max() > 36


# ------------------------------------------------------------------ which weights


def test_two_of_four_are_the_two_largest_in_every_four() -> None:
    matrices = RNG(0).standard_normal((2, 3, 8 * 6)).astype(np.float32)  # 8 channels, 6 places of a kernel
    zeroed = two_of_four(scores(matrices, None, None), 8).reshape(2, 3, 2, 4, 6)
    values = np.abs(matrices).reshape(2, 3, 2, 4, 6)
    for at in itertools.product(range(2), range(3), range(2), range(6)):
        four, gone = values[(*at[:3], slice(None), at[3])], zeroed[(*at[:3], slice(None), at[3])]
        assert gone.sum() == 2 and four[gone].max() < four[~gone].min()


def test_the_share_is_exact_among_equals_and_zeros_go_first() -> None:
    matrices = np.ones((1, 4, 5), np.float32)
    matrices[0, 2] = 0
    zeroed = lowest(scores(matrices, np.full((1, 5), 9.0), None), 0.45)
    assert zeroed.sum() == 9 and zeroed[0, 2].all() and zeroed[0, 0, :4].all()


def test_the_same_random_weights_every_time() -> None:
    found = []
    for seed in (1, 1, 2):
        graph, w = one("Conv", [1, 8, 4, 4], [8, 8, 3, 3])
        assert run("sparsify{criterion=random}", graph, seed=seed) == 1
        found.append(weights(graph)["Conv"] == 0)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert np.abs(w)[found[0]].max() > 1, "small weights alone are not random"


@pytest.mark.parametrize("pipeline", ["sparsify", "sparsify{ratio=0.7}", "sparsify{pattern=2:4}"])
@pytest.mark.parametrize("with_data", [False, True])
def test_every_layer_loses_the_same_share(pipeline: str, with_data: bool) -> None:
    graph = load(tiny.ALL["attention"]())
    original = graph.copy()
    before = {name: w.copy() for name, w in weights(original).items()}
    feeds = [tiny.feeds(tiny.ALL["attention"](), seed) for seed in range(4)]
    assert run(pipeline, graph, feeds if with_data else None) == len(before) > 1
    share = 0.7 if "0.7" in pipeline else 0.5
    for name, w in weights(graph).items():
        assert np.count_nonzero(w == 0) == round(share * w.size), name
        assert with_data or np.isin(w, [*before[name].reshape(-1), 0]).all(), "the rest stays without data"
    assert all(np.array_equal(w, before[name]) for name, w in weights(original).items()), "the copied model changed"
    assert {row["pattern"] for row in sparsity(graph)} == ({"2:4"} if "2:4" in pipeline else {None})


def test_skip_takes_operators_weights_and_results() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, u) b = MatMul(a, v) c = MatMul(b, w) y = MatMul(c, z) }"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    arrays = [RNG(n).standard_normal((4, 4)).astype(np.float32) for n in range(4)]
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for a, name in zip(arrays, "uvwz", strict=True))
    graph = load(model)
    first = graph.nodes[0].name
    assert run(f"sparsify{{skip={first},v,c}}", graph) == 1
    assert [n.inputs[1].name in "uvwz" for n in graph.nodes] == [True, True, True, False]


# ------------------------------------------------------------------ recovery


def correlated(rows: int, columns: int, seed: int) -> Array:
    rng = RNG(seed)
    mixed = rng.standard_normal((rows, columns // 2)) @ rng.standard_normal((columns // 2, columns))
    return np.asarray(mixed + 0.3 * rng.standard_normal((rows, columns)), np.float32)[:, None]


def seen(x: Array) -> Moments:
    """As four batches would be: the last judges."""
    found = Moments.empty(1, x.shape[2], True)
    for number, rows in enumerate(np.array_split(x, 4)):
        found.add(rows, number, 4)
    return found


def test_correction_is_the_least_squares_solution_for_each_output() -> None:
    x = correlated(2000, 24, 0)
    w = RNG(1).standard_normal((1, 7, 24)).astype(np.float32)
    kept = ~lowest(scores(w, None, None), 0.5)
    found = corrected(w, kept, judged := seen(x))
    h = judged.products[0] + RIDGE * np.trace(judged.products[0]) / 24 * np.eye(24)
    for v, o, s in zip(found[0], w[0], kept[0], strict=True):
        expected = np.zeros(24)
        expected[s] = np.linalg.solve(h[np.ix_(s, s)], h[s] @ o)
        assert np.allclose(v, expected, atol=1e-3)
    assert (((found - w) @ x[:, 0].T) ** 2).sum() < 0.5 * ((np.where(kept, 0, w) @ x[:, 0].T) ** 2).sum()


def test_groups_are_corrected_by_their_own_inputs() -> None:
    parts = [correlated(800, 8, seed) for seed in range(2)]
    w = RNG(1).standard_normal((2, 3, 8)).astype(np.float32)
    kept = ~lowest(scores(w, None, None), 0.5)
    both = Moments.empty(2, 8, True)
    for number in range(4):
        both.add(np.concatenate([np.array_split(x, 4)[number] for x in parts], axis=1), number, 4)
    alone = [corrected(w[i : i + 1], kept[i : i + 1], seen(x)) for i, x in enumerate(parts)]
    assert np.allclose(corrected(w, kept, both), np.concatenate(alone), atol=1e-4)


def test_an_output_that_held_out_data_speaks_against_stays_plain() -> None:
    """Two inputs go together in the first batches, and opposite ways in the one that judges."""
    rows = RNG(0).standard_normal((400, 1, 1)).astype(np.float32)
    x = np.concatenate([rows, rows], axis=2)
    x[300:, :, 1] *= -1
    w = np.array([[[1, 2]]], np.float32)
    kept = np.array([[[False, True]]])
    assert np.array_equal(corrected(w, kept, seen(x)), [[[0, 2]]])
    x[300:, :, 1] *= -1
    assert np.allclose(corrected(w, kept, seen(x)), [[[0, 3]]], atol=0.02)


def test_shared_weights_are_corrected_for_all_their_readers() -> None:
    text = "g (float[N,8] x) => (float[N,4] y, float[N,4] z) { y = MatMul(x, w) n = Mul(x, s) z = MatMul(n, w) }"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    model.graph.initializer.append(numpy_helper.from_array(RNG(0).standard_normal((8, 4)).astype(np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 1, 1, 1, 3, 1, 1, 1], np.float32), "s"))
    feeds = [{"x": x[:, 0]} for x in np.array_split(correlated(800, 8, 5), 8)]
    original = load(model)
    plain, found = original.copy(), original.copy()
    assert run("sparsify{recover=false}", plain, feeds) == run("sparsify", found, feeds) == 1
    assert len(weights(found)) == 2 and len({n.inputs[1].name for n in found.nodes if n.op == "MatMul"}) == 1
    assert sqnr(original, found, feeds) > sqnr(original, plain, feeds) + 2


def test_the_trained_model_keeps_its_accuracy() -> None:
    original = load(zoo.path("fashion"))
    run("fixpoint(cleanup,fold,fuse)", original)
    feeds = data.calibration("fashion", 32)
    scored = {}
    for options in ("recover=false", "", "criterion=activation"):
        graph = original.copy()
        assert run(f"sparsify{{pattern=2:4 {options}}}", graph, feeds) == 9, "all but the stem, of a grey picture"
        assert len(sparsity(graph)) == 9 and {row["pattern"] for row in sparsity(graph)} == {"2:4"}
        with Evaluate(threads=1).open(graph) as call:
            scored[options] = metrics.evaluate("fashion", call, limit=200).value
    assert scored["recover=false"] < 0.9 < min(scored[""], scored["criterion=activation"]), scored


def test_a_sparse_model_is_smaller_only_when_compressed() -> None:
    original = load(zoo.path("fashion"))
    graph = original.copy()
    run("sparsify{ratio=0.7}", graph)
    before, after = (to_model(g).SerializeToString() for g in (original, graph))
    assert abs(len(after) - len(before)) < 200
    assert len(gzip.compress(after)) < 0.5 * len(gzip.compress(before))


# ------------------------------------------------------------------ bounds and borders


def chain(depth: int) -> Graph:
    text = " ".join(f"t{n + 1} = MatMul(t{n}, w{n})" for n in range(depth))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] t0) => (float[N,8] t{depth}) {{ {text} }}'
    )
    arrays = [RNG(n).standard_normal((8, 8)).astype(np.float32) for n in range(depth)]
    model.graph.initializer.extend(numpy_helper.from_array(a, f"w{n}") for n, a in enumerate(arrays))
    return load(model)


FEEDS = [{"t0": x[:, 0]} for x in np.array_split(correlated(400, 8, 1), 4)]


@pytest.mark.parametrize(("layers_", "memory", "rounds"), [(8, 1 << 29, 1), (2, 1 << 29, 3), (8, 1, 5)])
def test_layers_are_seen_in_rounds(layers_: int, memory: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "LAYERS", layers_)
    monkeypatch.setattr(collect, "MEMORY", memory)
    told: list[tuple[int, int]] = []
    graph = chain(5)
    original = graph.copy()
    ctx = Context(
        target("onnx"), Evaluate(threads=1), FEEDS, progress=lambda what, done, total: told.append((done, total))
    )
    assert PassManager([Verify()]).run(build("sparsify{ratio=0.25}"), graph, ctx)[0].count == 5
    assert told == [(done + 1, rounds * 4) for done in range(rounds * 4)]
    plain = original.copy()
    run("sparsify{ratio=0.25 recover=false}", plain)
    assert sqnr(original, graph, FEEDS) > sqnr(original, plain, FEEDS)


def test_layers_too_wide_are_chosen_by_their_inputs_but_not_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "LARGEST", 100)
    wide, plain = chain(1), chain(1)
    assert run("sparsify{criterion=activation}", wide, FEEDS) == 1
    assert run("sparsify{criterion=activation recover=false}", plain, FEEDS) == 1
    assert np.array_equal(weights(wide)["MatMul"], weights(plain)["MatMul"])


BRANCH = """g (float[N,4] x, bool flag) => (float[N,4] y) <float[4,4] w = {W}> {
  y = If(flag) <
    then_branch = yes () => (float[N,4] p) { p = MatMul(x, w) },
    else_branch = no () => (float[N,4] q) { q = Neg(x) }
  >
}""".replace("W", ", ".join(map(str, range(1, 17))))


def test_layers_in_branches_are_zeroed_but_their_inputs_not_seen() -> None:
    feeds: list[Feeds] = [{"x": np.ones((2, 4), np.float32), "flag": np.array(True)}]
    graph, other = make(BRANCH), make(BRANCH)
    assert run("sparsify", graph, feeds) == 1
    assert np.array_equal(weights(graph)["MatMul"].reshape(-1), [0] * 8 + list(range(9, 17)))
    assert run("sparsify{criterion=activation}", other, feeds) == 0


@pytest.mark.parametrize("value", [0, np.inf, np.nan])
def test_inputs_that_say_nothing_change_nothing(value: float) -> None:
    feeds = [{"t0": np.full((2, 8), value, np.float32)}]
    found, plain = chain(1), chain(1)
    assert run("sparsify", found, feeds) == run("sparsify", plain) == 1
    assert np.array_equal(weights(found)["MatMul"], weights(plain)["MatMul"])
    assert run("sparsify{criterion=activation}", chain(1), feeds) == 0


def test_weights_that_are_not_finite_are_left_alone() -> None:
    model = to_model(chain(1))
    w = numpy_helper.to_array(model.graph.initializer[0]).copy()
    w[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w0"))
    assert run("sparsify", load(model)) == 0


# ------------------------------------------------------------------ what is said of it


def int8(codes: Array, zero: int, text: str) -> Graph:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    model.graph.initializer.append(numpy_helper.from_array(codes.astype(np.int8), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero, np.int8), "z"))
    return load(model)


LINEAR = "g (float[N,4] x) => (float[N,4] y) { d = DequantizeLinear(w, s, z) y = MatMul(x, d) }"
INTEGER = "g (int8[N,4] x) => (int32[N,4] y) { y = MatMulInteger(x, w, z, z) }"


@pytest.mark.parametrize(("op", "text"), [("MatMul", LINEAR), ("MatMulInteger", INTEGER)])
def test_sparsity_of_integer_codes(op: str, text: str) -> None:
    codes = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [0, 0, 0, 0], [5, 4, 0, 0]])
    row = {"node": op, "op": op, "shape": [4, 4], "zeros": 0.5, "pattern": "2:4"}
    assert sparsity(int8(codes, 0, text)) == [row]
    assert sparsity(int8(codes, 1, text)) == [], "a code of 0 is no zero then"


def test_sparsity_lists_from_a_third_on_and_knows_the_pattern() -> None:
    graph = chain(3)
    for node, share in zip(graph.nodes, (0.3, 0.35, 0.5), strict=True):
        w = RNG(0).standard_normal((8, 8)).astype(np.float32)
        w.reshape(-1)[: round(64 * share)] = 0
        graph.set_input(node, 1, graph.constant(w, "w"))
    rows = sparsity(graph)
    assert [row["node"] for row in rows] == [node.name for node in graph.nodes[1:]]
    assert [row["zeros"] for row in rows] == [0.3438, 0.5] and [row["pattern"] for row in rows] == [None, None]
    w[:] = 1
    w[[0, 3, 5, 6]] = 0
    graph.set_input(graph.nodes[2], 1, graph.constant(w.copy(), "w"))
    assert sparsity(graph)[-1]["pattern"] == "2:4"
    graph.set_input(graph.nodes[2], 1, graph.constant(w.T.copy(), "w"))
    assert sparsity(graph)[-1] == {"node": "MatMul_2", "op": "MatMul", "shape": [8, 8], "zeros": 0.5, "pattern": None}


def test_the_manifest_lists_what_is_sparse(tmp_path: Path) -> None:
    onnx.save(tiny.ALL["conv_bn_relu"](), tmp_path / "net.onnx")
    made = {}
    for passes in ("cleanup,fuse", "cleanup,fuse,fixpoint(sparsify{ratio=0.4})"):
        result = optimizer.optimize(
            tmp_path / "net.onnx",
            target="onnx",
            data="random:4",
            out=tmp_path / "out",
            passes=passes,
            threads=1,
            min_sqnr=0,
        )
        made[passes] = json.loads((tmp_path / "out/manifest.json").read_text())
        assert made[passes] == result.manifest
    without, with_ = made.values()
    assert "sparsity" not in without
    assert with_["shipped"] == "passes"
    assert [row["op"] for row in with_["sparsity"]] == ["Conv", "Conv", "Conv", "Gemm"]
    assert all(row["zeros"] == pytest.approx(0.4, abs=0.01) for row in with_["sparsity"])
    assert {row["pattern"] for row in with_["sparsity"]} == {None}
