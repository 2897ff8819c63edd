"""Pruning in front of a target: where it stands in the plan, that it runs once, what is shipped and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

import optimizer
import passes.prune
from backends.onnx import OnnxBackend
from models import fashion
from optimizer import report
from optimizer.backend import Timing
from optimizer.build import Builder, Watch
from optimizer.choose import pick
from optimizer.cli import main
from optimizer.context import Context
from optimizer.errors import PipelineError, UserError
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.judge import Variant
from optimizer.pipeline import Pass, build
from optimizer.plan import PRUNED, Plan, make_plan, pruning
from optimizer.targets import target
from tests.conftest import make

FASHION = Path(fashion.__file__).parent
DATA = str(FASHION / "calib" / "*.npz")
LOOSE = {"data": DATA, "threads": 1, "min_sqnr": -20.0, "min_agreement": 0.0}
RUN = ["--data", DATA, "--threads", "1"]


@dataclass(frozen=True)
class Halve(Pass):
    """Halves the first weight it finds, as often as it is run; remembers what it was told."""

    name: ClassVar[str] = "halve"
    lossy: ClassVar[bool] = True
    seen: list[bool] = field(default_factory=list)
    fails: bool = False

    def run(self, graph: Graph, ctx: Context) -> int:
        self.seen.append(ctx.verify)
        if self.fails:
            raise PipelineError("'halve' finds nothing")
        node = next(n for n in graph.nodes if n.op == "Mul")
        values = graph.array(node.inputs[1])
        assert values is not None
        graph.set_input(node, 1, graph.constant(values / 2, "half"))
        return 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes((FASHION / "fashion.onnx").read_bytes())
    return tmp_path


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize("given", [0.3, "0.3", "ratio=0.3", "0.30"])
def test_a_ratio_is_the_pass(given: float | str) -> None:
    assert pruning(given) == build("prune{ratio=0.3}")[0]


def test_options_of_the_pass_go_with_the_ratio() -> None:
    expected = build("prune{ratio=0.4 of=params criterion=l1 skip=a,b}")[0]
    assert pruning("ratio=0.4 of=params criterion=l1 skip=a,b") == expected
    assert pruning("0.4 of=params criterion=l1 skip=a,b") == expected
    assert pruning("of=params ratio=0.4 criterion=l1 skip=a,b") == expected


@pytest.mark.parametrize("given", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "0", "30", "ratio=1"])
def test_what_is_no_share_is_refused(given: float | str) -> None:
    with pytest.raises(UserError, match=r"--prune .*above 0 and below 1, such as 0\.3"):
        pruning(given)


@pytest.mark.parametrize("given", ["", "of=params", "much", "ratio=", "0.3 ratio=0.4"])
def test_what_names_no_ratio_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="names no ratio"):
        pruning(given)


def test_pruning_stands_between_the_float_part_and_every_tail() -> None:
    goal = target("ort-int8")
    plan = make_plan(goal, None, None, None, 0.4)
    whole = make_plan(goal, None, None)
    assert plan.text("float") == whole.text("float")
    assert plan.text(PRUNED) == f"{whole.text('float')},prune{{ratio=0.4}}"
    for scheme in whole.tails:
        assert plan.text(scheme) == whole.text(scheme).replace(whole.text("float"), plan.text(PRUNED))


def test_pruned_races_first_and_stands_in_last() -> None:
    plan = make_plan(target("ort-int8"), None, None, None, 0.4)
    assert plan.first(timed=True) == [PRUNED, "hybrid", "static", "dynamic"]
    plan = make_plan(target("trt-int8"), None, None, None, 0.4)
    assert plan.first(timed=True) == [PRUNED, "int8", "fp16"]
    assert plan.first(timed=False) == ["int8"]
    int8, careful = (Variant(name, Graph.__new__(Graph), Path(), Path(), misses="SQNR") for name in ("int8", "careful"))
    assert plan.late([int8]) == ["careful"]
    assert plan.late([int8, careful]) == ["fp16", PRUNED]


def test_pruned_is_the_one_candidate_of_a_portable_file() -> None:
    plan = make_plan(target("onnx"), None, None, None, 0.4)
    assert plan.first(timed=False) == []
    assert plan.late([]) == [PRUNED]


def test_a_scheme_can_be_asked_for() -> None:
    plan = make_plan(target("ort-int8"), None, "hybrid", None, 0.4)
    assert list(plan.tails) == plan.first(timed=True) == ["hybrid"]
    assert "prune{ratio=0.4}" in plan.text("hybrid")
    assert make_plan(target("ort-int8"), None, PRUNED, None, 0.4).forced == PRUNED


@pytest.mark.parametrize(
    ("passes", "scheme", "prune", "said"),
    [
        ("cleanup", None, 0.3, r"--prune and --passes .*prune\{ratio=0\.3\}"),
        (None, "float", 0.3, "--scheme float is not pruned.*--scheme pruned"),
        (None, PRUNED, None, "--scheme pruned .*add --prune"),
        (None, "hybrit", 0.3, "did you mean hybrid.*pruned"),
    ],
)
def test_what_does_not_go_together(passes: str | None, scheme: str | None, prune: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_plan(target("ort-int8"), passes, scheme, None, prune)


def test_in_a_pipeline_of_ones_own_it_ends_the_float_part() -> None:
    plan = make_plan(target("onnx"), "cleanup,prune{ratio=0.4},calibrate,quantize", None)
    assert plan.text("float") == "cleanup"
    assert plan.text("passes") == "cleanup,prune{ratio=0.4},calibrate,quantize"
    assert plan.shared == ()


# ------------------------------------------------------------------ building


@pytest.fixture
def builder(tmp_path: Path) -> Callable[..., Builder]:
    def made(shared: Pass, watch: Watch | None = None, **tails: tuple[Pass, ...]) -> Builder:
        plan = Plan((), tails, shared=(shared,))
        context = Context(target("onnx"), Evaluate(threads=1))
        return Builder(OnnxBackend(), plan, context, tmp_path / "variants", tmp_path / "bug", watch=watch or Watch())

    return made


TEXT = "g (float[N] x) => (float[N] y) <float[1] two = {2}> { y = Mul(x, two) }"


def factor(variant: Variant) -> float:
    (node,) = variant.graph.nodes
    values = variant.graph.array(node.inputs[1])
    assert values is not None
    return float(values[0])


def test_what_all_share_runs_once_and_leaves_the_float_model_alone(builder: Callable[..., Builder]) -> None:
    shared = Halve()
    build_ = builder(shared, pruned=(), again=(Halve(),))
    plain = build_.plain(make(TEXT))
    start = build_.start(plain.graph)
    pruned, again = (build_.candidate(name, start) for name in ("pruned", "again"))
    assert [factor(v) for v in (plain, pruned, again)] == [2, 1, 0.5]
    assert [step.name.partition("{")[0] for step in again.steps] == ["halve", "halve"]
    assert (pruned.usable, pruned.idle) == (True, False)
    assert len(shared.seen) == 1


def test_a_tail_with_nothing_to_do_is_idle_whatever_was_pruned(builder: Callable[..., Builder]) -> None:
    build_ = builder(Halve(), pruned=(), dynamic=build("quantize{scheme=dynamic}"))
    variant = build_.candidate("dynamic", build_.start(build_.plain(make(TEXT)).graph))
    assert variant.idle
    assert variant.failed == "finds nothing to change in this model"


def test_what_all_share_fails_for_all(builder: Callable[..., Builder]) -> None:
    build_ = builder(Halve(fails=True), pruned=())
    with pytest.raises(PipelineError, match="'halve' finds nothing"):
        build_.start(build_.plain(make(TEXT)).graph)


@pytest.mark.parametrize("verify", [False, True])
def test_verify_each_reaches_the_passes(builder: Callable[..., Builder], verify: bool) -> None:
    shared = Halve()
    build_ = builder(shared, Watch(verify_each=verify), pruned=())
    build_.start(build_.plain(make(TEXT)).graph)
    assert shared.seen == [verify]


# ------------------------------------------------------------------ choosing


def variants(**milliseconds: float) -> list[Variant]:
    made = []
    for name, value in milliseconds.items():
        made.append(Variant(name, Graph.__new__(Graph), Path(), Path()))
        made[-1].timing = Timing((value,) * 50)
    return made


def test_the_fastest_is_shipped_and_giving_up_int8_is_said() -> None:
    choice = pick(variants(original=4, float=4, pruned=2, hybrid=1), None, (PRUNED,))
    assert (choice.shipped.scheme, choice.reverted) == ("hybrid", None)
    choice = pick(variants(original=4, float=4, pruned=1, hybrid=2), None, (PRUNED,))
    assert choice.shipped.scheme == PRUNED
    assert choice.reverted is not None
    assert (choice.reverted["from"], choice.reverted["reason"]) == ("hybrid", "slower")
    choice = pick(variants(original=4, float=4, pruned=2), None, (PRUNED,))
    assert (choice.shipped.scheme, choice.reverted) == (PRUNED, None)


# ------------------------------------------------------------------ the whole way


def test_a_portable_model_is_pruned(place: Path) -> None:
    result = optimizer.optimize("net.onnx", target="onnx", out="out", prune=0.3, **LOOSE)  # type: ignore[arg-type]
    rows = {row["scheme"]: row for row in result.manifest["candidates"]}
    assert list(rows) == ["original", "float", PRUNED]
    assert result.shipped == PRUNED
    assert result.reverted is None
    assert result.manifest["output"]["parameters"] < 0.9 * result.manifest["source"]["parameters"]
    assert result.manifest["passes"][-1]["pass"].startswith("prune")
    assert result.manifest["passes"][-1]["rewrites"] > 0
    assert rows["float"]["bytes"] > 0.9 * rows["original"]["bytes"] > rows[PRUNED]["bytes"]
    onnx.checker.check_model(onnx.load(result.model))


def test_the_manifests_pipeline_makes_the_same_model(place: Path) -> None:
    first = optimizer.optimize("net.onnx", target="onnx", out="a", prune="ratio=0.2", **LOOSE)  # type: ignore[arg-type]
    text = first.manifest["pipeline"]
    again = optimizer.optimize("net.onnx", target="onnx", out="b", passes=text, **LOOSE)  # type: ignore[arg-type]
    assert again.shipped == "passes"
    assert again.model.read_bytes() == first.model.read_bytes()


def test_int8_starts_from_the_pruned_model(place: Path) -> None:
    options = {"target": "ort-int8", "scheme": "static", **LOOSE}
    whole = optimizer.optimize("net.onnx", out="whole", **options)  # type: ignore[arg-type]
    result = optimizer.optimize("net.onnx", out="out", prune=0.3, **options)  # type: ignore[arg-type]
    assert result.shipped == "static"
    assert result.model.stat().st_size < 0.9 * whole.model.stat().st_size
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(result.model).graph.node}
    assert result.manifest["statistics"]["tensors"] == whole.manifest["statistics"]["tensors"]


def test_without_a_runtime_int8_comes_first(place: Path) -> None:
    result = optimizer.optimize("net.onnx", target="trt-int8", emit="onnx", out="out", prune=0.3, **LOOSE)  # type: ignore[arg-type]
    assert result.shipped == "int8"
    assert [row["scheme"] for row in result.manifest["candidates"]] == ["original", "float", "int8"]


def test_a_miss_says_what_sets_the_limit(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["net.onnx", "-t", "onnx", "--prune", "0.3", *RUN]
    assert main([*argv, "--min-sqnr", "200"]) == 0
    out, err = capfd.readouterr()
    assert "float is shipped: pruned: output 'scores': SQNR" in err
    assert "(limit 200); the limits are set by --min-sqnr and --min-agreement" in err
    assert "(limit 200)" in out
    Path("task.py").write_text("def size(run, calls=[]):\n    calls.append(1)\n    return -float(len(calls))\n")
    assert main([*argv, "--metric", "task.py:size", "--max-drop", "0.5"]) == 0
    assert "(limit 0.5); the limits are set by --max-drop" in capfd.readouterr().err


def test_the_oracle_runs_when_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--verify-each proves the pruned model equal to the masked one."""
    calls = []
    oracle = passes.prune.verify

    def counted(*args: Any) -> Any:
        calls.append(1)
        return oracle(*args)

    monkeypatch.setattr("passes.prune.verify", counted)
    argv = ["net.onnx", "-t", "onnx", "-q", "--prune", "0.2", *RUN]
    assert main(argv) == 0
    assert calls == []
    assert main([*argv, "--verify-each"]) == 0
    assert calls


@pytest.fixture
def relu(place: Path) -> Path:
    """A model without a channel of its own."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), "relu.onnx"
    )
    np.savez("x.npz", x=np.ones((1, 3), np.float32))
    return place


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["relu.onnx", "-t", "onnx", "--prune", "0.3"], ["'prune' finds nothing that it may remove"]),
        (["relu.onnx", "-t", "ort-fp32", "--prune", "0.3"], ["'prune' finds nothing that it may remove"]),
        (["net.onnx", "-t", "onnx", "--prune", "1"], ["--prune 1: ", "below 1", "0.3"]),
        (["net.onnx", "-t", "onnx", "--prune", "much"], ["--prune 'much' names no ratio"]),
        (["net.onnx", "-t", "onnx", "--prune", "0.3 off=macs"], ["'prune' has no option 'off'"]),
        (["net.onnx", "-t", "onnx", "--prune", "0.3 of=time"], ["cannot take of=time", "latency"]),
        (["net.onnx", "-t", "onnx", "--prune", "0.3", "--passes", "cse"], ["--prune and --passes", "prune{ratio=0.3}"]),
        (["net.onnx", "-t", "onnx", "--prune", "0.3", "--statistics", "x.npz"], ["--statistics and --prune"]),
        (["net.onnx", "-t", "onnx", "--prune", "0.999", "--data", DATA], ["'prune' cannot remove 100%", "at most"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    relu: Path, argv: list[str], said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(str(p) for p in relu.rglob("*"))
    assert main([*argv, "--threads", "1"]) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("  ")]
    assert out == ""
    assert len(lines) == 1, err
    assert all(part in err for part in said), err
    assert sorted(str(p) for p in relu.rglob("*")) == before


# ------------------------------------------------------------------ explain


def test_the_report_shows_the_heaviest_groups_and_what_holds_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    groups = [
        {"name": f"g{n}", "units": n, "unit": "head", "layers": ["q", "k"], "macs_share": n / 100, "exact": n % 2 == 0}
        for n in range(1, 35)
    ]
    groups.append(
        {"name": "odd", "units": 8, "unit": "channel", "layers": list("abcdef"), "macs_share": None, "exact": True}
    )
    frozen = [{"reason": "it is sliced", "axes": 7, "examples": ["s", "t", "u", "v"]}]
    report.show(report.pruning({"groups": groups, "frozen": frozen}))
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "35 groups" in out and "5 more, which --json lists" in out
    assert ["g34", "34", "heads", "34.0%", "exact", "q,", "k"] in lines
    assert ["g33", "33", "heads", "33.0%", "approximate", "q,", "k"] in lines
    assert not any(line[:1] == ["g1"] for line in lines)
    assert ["it", "is", "sliced", "7", "s,", "t,", "u", "and", "1", "more"] in lines
    report.show(report.pruning({"groups": [groups[0], groups[-1]], "frozen": []}))
    out = capfd.readouterr().out
    assert "1 head " in out and "a, b, c, d and 2 more" in out and "kept because" not in out


def test_explain_says_what_can_be_pruned_and_what_not(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "net.onnx", "--pruning", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["groups"]
    for group in found["groups"]:
        assert {"name", "units", "unit", "layers", "macs_share", "exact"} <= set(group)
        assert group["units"] > 1
        assert group["layers"]
    assert any("output 'scores'" in row["reason"] for row in found["frozen"])
    assert main(["explain", "net.onnx", "--pruning"]) == 0
    out = capfd.readouterr().out
    assert f"{len(found['groups'])} groups" in out
    assert all(group["name"] in out for group in found["groups"])
    assert "kept because" in out
