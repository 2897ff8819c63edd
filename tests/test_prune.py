"""The pass `prune`: what it removes, how much, from where, and what it refuses; on the fashion model and small ones.

Every prune here runs under the oracle (verify=True): the pruned model must equal the masked original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import optimizer
from models import zoo
from models.data import calibration
from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.instrument import _interface
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.portable import explain
from optimizer.statistics import Statistics
from optimizer.targets import target
from passes.prune import Prune, multiple
from passes.prune.cost import Cost, multiplications, parameters
from passes.prune.coupling import couple
from passes.prune.masked import masked, verify
from passes.prune.shrink import Kept, shrink
from tests.fuzz import random_feeds, random_model
from tests.test_prune_relations import Net, some
from tests.test_prune_relations import groups as atoms_of

FASHION = zoo.path("fashion")
EVALUATE = Evaluate(threads=1)
CRITERIA = ("l2", "l1", "fpgm", "activation", "reconstruction", "random")
SCOPES = ("global", "layer", "isomorphic")
WITHIN = 0.05  # of the ratio that was asked for
FUZZED = 40


@pytest.fixture(scope="module")
def fused() -> Graph:
    """The fashion model after the float passes."""
    goal = target("onnx")
    graph = load(FASHION)
    PassManager().run(build(goal.prepare), graph, Context(goal, EVALUATE))
    return graph


@pytest.fixture(scope="module")
def feeds() -> list[Feeds]:
    return calibration("fashion", 8)


def context(batches: Sequence[Feeds] = (), name: str = "onnx") -> Context:
    return Context(target(name), EVALUATE, batches, verify=True)


def convs(*widths: int, opset: int = 17) -> Graph:
    """3x3 convolutions of these widths in a row, between a convolution of the image and one to the output."""
    net = Net(opset)
    y = net.input("N", 3, 12, 12)
    for a, b in zip((3, *widths), (*widths, 4), strict=True):
        y = net("Relu", net.conv(y, a, b, 3, pads=[1] * 4))
    return load(net.model(y))


def pruned(graph: Graph, ctx: Context, **options: Any) -> Graph:
    """A pruned copy."""
    graph = graph.copy()
    assert Prune(**options).run(graph, ctx) > 0
    onnx.checker.check_model(to_model(graph), full_check=True)
    return graph


def total(graph: Graph, of: str) -> float:
    coupling = couple(graph.copy())
    return Cost(parameters(coupling) if of == "params" else multiplications(coupling, context())).whole


def kept(graph: Graph) -> dict[tuple[str, ...], tuple[int, int]]:
    """(units before, units after) of each group that lost some, by its layers."""
    return {tuple(g["layers"]): (g["units"], g["kept"]) for g in graph.reports["pruning"]["groups"]}


# ------------------------------------------------------------------ what goes


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_reaches_the_ratio(fused: Graph, feeds: list[Feeds], criterion: str, of: str) -> None:
    found = pruned(fused, context(feeds), criterion=criterion, of=of, recover=False)
    assert 1 - total(found, of) / total(fused, of) == pytest.approx(0.3, rel=WITHIN)
    report = found.reports["pruning"]
    assert report["ratio"] == pytest.approx(1 - total(found, of) / total(fused, of), abs=1e-5)
    assert (report["of"], report["criterion"], report["approximate"]) == (of, criterion, [])
    assert _interface(found) == _interface(fused)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_reaches_the_ratio(fused: Graph, scope: str, ratio: float) -> None:
    found = pruned(fused, context(), scope=scope, ratio=ratio, criterion="l2")
    assert 1 - total(found, "macs") / total(fused, "macs") == pytest.approx(ratio, rel=WITHIN)


def test_criteria_differ(fused: Graph, feeds: list[Feeds]) -> None:
    made = {c: to_model(pruned(fused, context(feeds), criterion=c, recover=False)) for c in CRITERIA}
    assert len({model.SerializeToString() for model in made.values()}) == len(CRITERIA)


def test_scales_of_normalisations_rank_channels(fused: Graph) -> None:
    """Channels whose scale is tiny go."""
    net = Net()
    x = net.conv(net.input("N", 3, 8, 8), 3, 32, 3)
    scale = np.where(np.arange(32) % 4 == 0, 1e-3, 1.0).astype(np.float32)
    x = net("BatchNormalization", x, net.const(scale), net.w(32), net.w(32), net.positive(32))
    graph = load(net.model(net.conv(net("Relu", x), 32, 4, 3)))
    found = pruned(graph, context(), criterion="bn", ratio=0.25, recover=False)
    norm = next(node for node in found.nodes if node.op == "BatchNormalization")
    assert np.array_equal(found.array(norm.inputs[1]), np.ones(24, np.float32))  # type: ignore[arg-type]
    whole = load(FASHION)
    found = pruned(whole, context(), criterion="bn", recover=False)
    assert 1 - total(found, "macs") / total(whole, "macs") == pytest.approx(0.3, rel=WITHIN)
    with pytest.raises(PipelineError, match=r"bn finds no BatchNormalization: 'fuse' folds them"):
        Prune(criterion="bn").run(fused.copy(), context())


def test_latency_is_what_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = pruned(convs(32, 32), context(), of="latency", ratio=0.4, criterion="l2", round=4)
    assert found.reports["pruning"]["of"] == "latency"
    assert found.reports["pruning"]["ratio"] == pytest.approx(0.4, rel=2 * WITHIN)
    assert kept(found)


def test_layers_lose_the_same_share_where_that_is_asked(fused: Graph) -> None:
    """One ranking takes most from the layer with the smallest numbers; a share of each layer does not."""
    for graph in (fused, convs(64, 32, 64)):
        found = pruned(graph, context(), scope="layer", ratio=0.4, criterion="l2")
        lost = [1 - after / before for before, after in kept(found).values()]
        assert len(lost) == len(atoms_of(couple(graph.copy())))
        assert max(lost) - min(lost) <= 8 / 32


def test_groups_with_the_same_operators_lose_together() -> None:
    """A wide layer after a narrow one, both between convolutions: one ranking of both."""
    graph = convs(32, 32, 32, 32)
    found = pruned(graph, context(), scope="isomorphic", ratio=0.5, criterion="random")
    assert 1 - total(found, "macs") / total(graph, "macs") == pytest.approx(0.5, rel=WITHIN)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("grain", [1, 4, 16])
def test_widths_are_multiples(grain: int, scope: str) -> None:
    found = pruned(convs(64, 48), context(), round=grain, scope=scope, ratio=0.5, criterion="l2")
    assert all(after % grain == 0 and after >= grain for _, after in kept(found).values())
    widths = [node.inputs[1].shape for node in found.nodes if node.op == "Conv"]
    assert all(a[0] == b[1] for a, b in pairwise(widths))


@pytest.mark.parametrize("most", [0.25, 0.5])
def test_no_group_loses_more_than_allowed(fused: Graph, most: float) -> None:
    found = pruned(fused, context(), max=most, ratio=0.9 * most, criterion="l2", round=1)
    assert all(after >= (1 - most) * before for before, after in kept(found).values())


def test_one_unit_is_left_of_everything() -> None:
    found = pruned(convs(4, 4), context(), max=0.99, ratio=0.75, criterion="l2", round=1)
    assert min(after for _, after in kept(found).values()) >= 1
    with pytest.raises(PipelineError, match="at most"):
        Prune(ratio=0.99, max=0.99, round=1, criterion="l2").run(convs(4, 4), context())


def test_skipped_layers_keep_their_channels(fused: Graph) -> None:
    name = "block1.conv1.norm_1"
    assert any(name in layers for layers in kept(pruned(fused, context(), scope="layer", ratio=0.5)))
    found = pruned(fused, context(), scope="layer", ratio=0.5, skip=(name,))
    before, after = (next(n.inputs[1].shape for n in g.nodes if n.name == name) for g in (fused, found))
    assert before == after


@pytest.mark.parametrize("criterion", ["random", "reconstruction"])
def test_the_same_model_twice(fused: Graph, feeds: list[Feeds], criterion: str) -> None:
    ctx = context(feeds[:4])
    once, again = (to_model(pruned(fused, ctx, criterion=criterion)).SerializeToString() for _ in range(2))
    assert once == again
    if criterion == "random":
        other = pruned(fused, replace(ctx, seed=1), criterion=criterion)
        assert to_model(other).SerializeToString() != once


def test_ranges_that_were_measured_before_are_forgotten(fused: Graph) -> None:
    statistics = Statistics()
    statistics.add("image", np.ones((1, 28, 28), np.float32))
    assert statistics
    pruned(fused, replace(context(), statistics=statistics), criterion="l2")
    assert not statistics


def test_weights_of_the_original_stay(fused: Graph, feeds: list[Feeds]) -> None:
    before = to_model(fused.copy()).SerializeToString()
    pruned(fused, context(feeds[:4]))
    assert to_model(fused.copy()).SerializeToString() == before


@pytest.mark.parametrize(
    ("name", "expected"), [("onnx", 8), ("ort-fp32", 8), ("ort-int8", 16), ("trt-fp16", 8), ("trt-int8", 32)]
)
def test_widths_suit_the_target(name: str, expected: int) -> None:
    assert multiple(target(name)) == expected
    found = pruned(convs(128, 128, 128, 128), context(name=name), ratio=0.5, criterion="l2")
    assert kept(found)
    assert all(after % expected == 0 for _, after in kept(found).values())


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("ratio", ["0", "1", "-1", "nan", "1.5"])
def test_a_ratio_is_a_share(ratio: str) -> None:
    with pytest.raises(PipelineError) as caught:
        build(f"prune{{ratio={ratio}}}")
    assert "give a number between 0 and 1" in str(caught.value).splitlines()[0]


@pytest.mark.parametrize("options", ["max=0", "max=1", "max=nan", "round=-1", "steps=-2", "of=bytes", "criterion=best"])
def test_other_options_are_checked_too(options: str) -> None:
    with pytest.raises(PipelineError, match=options.split("=")[0]):
        build(f"prune{{{options}}}")


def test_nothing_to_prune_says_what_froze_it(graph: Callable[..., Graph]) -> None:
    net = Net()
    one = load(net.model(net.dense(net.input("N", 8), 8, 8)))
    with pytest.raises(PipelineError, match=r"nothing that it may remove: it is the model's (in|out)put '\w+'"):
        Prune(criterion="l2").run(one, context())
    bare = graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    with pytest.raises(PipelineError, match="no operator with weights"):
        Prune(criterion="l2").run(bare, context())


def test_integer_operators_are_named(graph: Callable[..., Graph]) -> None:
    whole = graph(
        "g (float[N,4] x, int8[4,8] w) => (float[N,8] y) "
        "{ c, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(c, w, z) f = Cast<to=1>(p) y = Mul(f, s) }"
    )
    with pytest.raises(PipelineError, match=r"integer operators \(MatMulInteger\): put 'dequantize' before"):
        Prune(criterion="l2").run(whole, context())


@pytest.mark.parametrize("criterion", ["activation", "reconstruction"])
def test_criteria_by_data_need_data(fused: Graph, criterion: str) -> None:
    before = to_model(fused.copy()).SerializeToString()
    graph = fused.copy()
    with pytest.raises(PipelineError, match=f"by {criterion} needs data: give some with --data"):
        Prune(criterion=criterion).run(graph, context())  # type: ignore[arg-type]
    assert to_model(graph).SerializeToString() == before


def test_a_ratio_beyond_the_limit_says_how_far_it_goes(fused: Graph) -> None:
    with pytest.raises(PipelineError, match=r"cannot remove 90% of macs, (1|2|3)\d% at most: .*larger max"):
        Prune(ratio=0.9, max=0.2, criterion="l2").run(fused.copy(), context())


# ------------------------------------------------------------------ statistics over channels


def normalised(beside: bool) -> Graph:
    """A LayerNormalization of features that are made inside; `beside`: and a hidden layer that it has no part in."""
    net = Net()
    x = net.dense(net.input("N", 8), 8, 32)
    x = net("LayerNormalization", x, net.positive(32), net.w(32), axis=-1)
    if beside:
        x = net("Add", x, net.dense(net("Relu", net.dense(x, 32, 64)), 64, 32))
    return load(net.model(net.dense(x, 32, 4)))


def test_statistics_are_left_alone_unless_allowed() -> None:
    with pytest.raises(PipelineError, match=r"LayerNormalization '.*' takes a statistic over it \(approximate=true"):
        Prune(criterion="l2").run(normalised(beside=False), context())
    found = pruned(normalised(beside=True), context(), criterion="l2")
    assert found.reports["pruning"]["approximate"] == []
    assert [before for before, _ in kept(found).values()] == [64]


def test_what_is_approximate_is_listed() -> None:
    graph = normalised(beside=False)
    found = pruned(graph, context(), criterion="l2", approximate=True)
    assert len(found.reports["pruning"]["approximate"]) == 1
    assert found.reports["pruning"]["approximate"][0].startswith("LayerNormalization ")
    assert [before for before, _ in kept(found).values()] == [32]


# ------------------------------------------------------------------ explain


def test_explain_names_the_groups_of_fashion() -> None:
    told = explain(FASHION)
    assert sorted(g["units"] for g in told["groups"]) == [32, 32, 64, 64, 64, 64]
    assert told["units"] == 320
    assert all(g["unit"] == "channel" and g["exact"] for g in told["groups"])
    shares = [g["macs_share"] for g in told["groups"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < shares[0] < 1
    assert [row["reason"] for row in told["frozen"]] == ["it is the model's output 'scores'"]
    assert told["frozen"][0]["examples"] == ["head"]


def test_explain_tells_heads_from_dimensions_and_channels() -> None:
    net = Net()
    x = net.input("N", "T", 16)

    def heads(y: str) -> str:
        split = net("Reshape", net.dense(y, 16, 24), net.ints(0, 0, 4, 6))
        return net("Transpose", split, perm=[0, 2, 1, 3])

    q, k, v = heads(x), heads(x), heads(x)
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net("Add", x, net.dense(net("Reshape", mixed, net.ints(0, 0, 24)), 24, 16))
    y = net("Add", y, net.dense(net("Relu", net.dense(y, 16, 40)), 40, 16))
    told = explain(net.model(net("LayerNormalization", y, net.positive(16), net.w(16), axis=-1)))
    found = sorted((g["unit"], g["units"]) for g in told["groups"])
    assert found == [("channel", 40), ("dimension", 6), ("dimension", 6), ("head", 4)]
    assert told["frozen"][0]["reason"] == "it is the model's input 'x0'"


# ------------------------------------------------------------------ random models


def halved(seed: int) -> int | None:
    """How many groups of a random model were cut by about a half, exactly; None where there is nothing to try."""
    model = random_model(seed)
    feeds = random_feeds(model, seed)
    graph = load(model)
    coupling = couple(graph)
    try:
        with EVALUATE.open(graph.copy()) as run:
            run(feeds[0])
    except Exception:  # the runtime itself fails on it, in one of several ways
        return None
    rng = np.random.default_rng(seed)
    keep = {atom: some(rng, atom) for atom in atoms_of(coupling) if atom.size > 1}
    if not keep:
        return None
    old, small = Kept(coupling, keep), graph.copy()
    shrink(small, old)
    onnx.checker.check_model(to_model(small))
    assert _interface(small) == _interface(graph)
    assert _interface(masked(graph, old)) == _interface(graph)
    verify(graph, small, old, EVALUATE, feeds)
    return len(keep)


def test_random_models_are_cut_exactly() -> None:
    found = [count for seed in range(FUZZED) if (count := halved(seed)) is not None]
    assert sum(found) >= FUZZED / 4


# ------------------------------------------------------------------ the whole way


def test_the_manifest_says_what_was_pruned(tmp_path: Path, feeds: list[Feeds]) -> None:
    loose: dict[str, Any] = {"data": feeds, "threads": 1, "min_sqnr": -20.0, "min_agreement": 0.0, "prune": 0.3}
    plain = optimizer.optimize(FASHION, target="onnx", out=tmp_path / "plain", verify_each=True, **loose)
    assert plain.shipped == "pruned"
    assert plain.manifest["pruning"]["ratio"] == pytest.approx(0.3, rel=WITHIN)
    assert plain.manifest["pruning"]["criterion"] == "reconstruction"
    assert plain.manifest["pruning"]["recovered"]
    small = optimizer.optimize(FASHION, target="ort-int8", scheme="static", out=tmp_path / "int8", **loose)
    assert small.shipped == "static"
    assert small.manifest["pruning"]["groups"]
    assert all(g["kept"] % 16 == 0 for g in small.manifest["pruning"]["groups"])
