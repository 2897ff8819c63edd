"""`optimize bisect`: the pass, the rewrite in it and the smallest model, for passes that are wrong in one way each."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models import tiny
from optimizer import registry
from optimizer.bisect import Bisection, bisect
from optimizer.cli import main
from optimizer.cut import Values, cut
from optimizer.errors import ModelError, UserError
from optimizer.evaluate import Evaluate
from optimizer.io import load, to_model
from optimizer.shapes import infer
from tests.conftest import make, model

BROKEN = {"rules": "Rules", "merge": "Merge", "drift": "Drift", "coarse": "Coarse", "fold": "Fold"}
LONG = """g (float[N,3] x) => (float[N,3] y) {
    a = Neg(x) b = Neg(a) c = Abs(b) d = Neg(c) e = Neg(d) f = Sigmoid(e)
    g = Exp(f) h = Mul(g, c) i = Sin(h) j = Neg(i) k = Neg(j) y = Tanh(k) }"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, and the broken passes among the others."""
    monkeypatch.chdir(tmp_path)
    for name, kind in BROKEN.items():
        monkeypatch.setitem(registry.PASSES, f"broken-{name}", f"tests.broken:{kind}")
    registry._table.cache_clear()
    yield tmp_path
    registry._table.cache_clear()


def search(text: str, passes: str, **options: Any) -> Bisection:
    return bisect(model(text), passes=passes, threads=1, **options)


def nodes(found: Bisection) -> list[str]:
    return [node["op"] for node in found.facts["nodes"]]


def again(found: Bisection) -> dict[str, Any]:
    """What the reproducer shows by itself, by the command that is written beside it."""
    assert found.folder is not None
    facts = json.loads((found.folder / "manifest.json").read_text())["bisect"]
    assert facts == found.facts
    small = bisect(
        found.folder / "model.onnx",
        passes=facts["pass"],
        data=str(found.folder / "feeds.npz"),
        min_sqnr=facts["min_sqnr"],
        out="again",
        threads=1,
    )
    assert small.differs
    return small.facts


def ops(found: Bisection) -> list[str]:
    assert found.folder is not None
    return [node.op_type for node in onnx.load(found.folder / "model.onnx").graph.node]


def test_the_rule_and_the_nodes_are_named() -> None:
    found = search(LONG, "cleanup,cse,broken-rules,fold,fuse")
    facts = found.facts
    assert (facts["pass"], facts["rule"], facts["rewrites"]) == ("broken-rules", "wrong", 1)
    assert nodes(found) == ["Mul", "Exp"]
    assert facts["difference"]["output"] == "y" and facts["difference"]["max_abs"] > 0
    assert ops(found) == ["Exp", "Mul"] and facts["reproducer"]["of"] == 6
    assert again(found)["rule"] == "wrong"


def test_the_number_of_the_rewrite() -> None:
    found = search(LONG, "broken-rules")
    assert (found.facts["rule"], found.facts["rewrites"]) == ("wrong", 4)
    assert found.facts["rewrite"] in (1, 2, 3, 4)
    assert ops(found) == ["Exp", "Mul"]


def test_the_inputs_are_recorded_and_one_row_is_enough() -> None:
    found = search(LONG, "broken-rules", data=lambda: [{"x": np.full((5, 3), 2, np.float32)}])
    assert found.folder is not None
    feeds = np.load(found.folder / "feeds.npz")
    assert sorted(feeds) == ["c", "f"]
    assert all(array.shape == (1, 3) for array in feeds.values())
    np.testing.assert_allclose(feeds["f"], 1 / (1 + np.exp(-2)), rtol=1e-6)


def test_what_no_rule_did_is_the_passs_own() -> None:
    text = """g (float[N] x) => (float[N] y) { a = Abs(x) b = Sin(a) c = Neg(x) d = Sin(c) e = Add(b, d)
        f = Exp(e) y = Tanh(f) }"""
    found = search(text, "cleanup,broken-merge,fuse")
    assert (found.facts["pass"], found.facts["rule"], found.facts["rewrite"]) == ("broken-merge", None, None)
    assert nodes(found) == ["Add"]  # whose result is the first to differ
    assert ops(found) == ["Sin", "Sin"]
    assert again(found)["pass"] == "broken-merge"


def test_a_part_that_reads_nothing() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}>
        { a = Exp(w) b = Neg(a) c = Add(x, b) y = Tanh(c) }"""
    found = search(text, "broken-fold")
    assert (found.facts["pass"], nodes(found), ops(found)) == ("broken-fold", ["Neg"], ["Exp"])
    assert again(found)["pass"] == "broken-fold"


def test_a_pass_that_fails() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Abs(x) b = Exp(a) c = Tanh(b) y = Neg(c) }"
    found = search(text, "cleanup,fixpoint(broken-rules,cse),fuse")
    assert found.facts["pass"] == "broken-rules"
    assert "the pass fails: RuntimeError: no idea" in found.facts["difference"]["text"]
    assert ops(found) == ["Exp", "Tanh"]
    assert again(found)["pass"] == "broken-rules"


def test_a_model_that_does_not_run() -> None:
    found = search("g (float[N] x) => (float[N] y) { a = Exp(x) y = Sqrt(a) }", "broken-rules")
    assert found.facts["rule"] == "unrunnable"
    assert "the model does not run" in found.facts["difference"]["text"]


def test_a_rewrite_inside_a_branch() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) {
        a = Abs(x)
        b = If (c) <then_branch = t () => (float[N] u) { p = Exp(a) u = Mul(p, a) },
                    else_branch = e () => (float[N] v) { v = Neg(a) }>
        y = Abs(b) }"""
    feeds = [{"x": np.full(2, 2, np.float32), "c": np.array(kind)} for kind in (False, True)]
    found = search(text, "broken-rules", data=lambda: feeds)
    assert (found.facts["rule"], found.facts["feed"], nodes(found)) == ("wrong", 1, ["Mul", "Exp"])
    assert ops(found) == ["If"]
    assert again(found)["rule"] == "wrong"


def test_the_feed_that_shows_it() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Sin(a) }"
    feeds = [{"x": np.full((1, 3), value, np.float32)} for value in (1, 2, -1, -2)]
    found = search(text, "broken-rules", data=lambda: feeds)
    assert (found.facts["feed"], found.facts["rule"]) == (2, "optimist")
    assert not search(text, "broken-rules", data=lambda: feeds[:2]).differs


def test_rounding_that_adds_up_is_told() -> None:
    text = "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { a = Mul(x, w) y = Abs(a) }"
    found = search(text, ",".join(["broken-drift"] * 3))
    assert found.facts["step"] == 2
    assert found.facts["reproducer"]["difference"] is None
    assert "adds up" in (Path("model.bisect") / "report.txt").read_text()


def test_defaults_stay_defaults() -> None:
    text = (
        "g (float[N,2] x, float[2] w) => (float[N,2] y) <float[2] w = {1, 2}> { a = Exp(x) b = Mul(a, w) y = Abs(b) }"
    )
    found = search(text, "broken-rules")
    assert found.folder is not None
    small = load(found.folder / "model.onnx")
    assert list(small.overridable) == ["w"] and [t.name for t in small.inputs] == ["x"]


def test_a_part_keeps_types_and_symbols() -> None:
    graph = make(LONG)
    infer(graph)
    values = Values(graph, {"x": np.ones((2, 3), np.float32)}, Evaluate(1))
    part = cut(values, {n.name for n in graph.nodes if n.op in ("Exp", "Mul")})
    assert part is not None
    onnx.checker.check_model(to_model(part[0]), full_check=True)
    assert [t.name for t in part[0].outputs] == ["h"]
    assert cut(values, set()) is None


# ------------------------------------------------------------------ lossy passes


LOSSY = "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { a = Neg(x) b = Mul(a, w) c = Exp(b) y = Tanh(c) }"


def test_lossy_passes_need_a_limit() -> None:
    with pytest.raises(UserError, match="--min-sqnr 15"):
        search(LOSSY, "broken-coarse")
    assert not search(LOSSY, "broken-coarse", min_sqnr=0.0).differs
    found = search(LOSSY, "cleanup,broken-coarse{by=0.001},cse,broken-coarse{by=1},broken-coarse", min_sqnr=30.0)
    assert (found.facts["pass"], found.facts["step"]) == ("broken-coarse{by=1.0}", 4)
    assert "Mul" in ops(found)
    assert "--min-sqnr 30" in found.facts["command"]


def test_a_lossy_pass_is_calibrated_on_what_is_recorded() -> None:
    found = bisect(tiny.ALL["conv_bn_relu"](), target="ort-int8", scheme="static", min_sqnr=60.0, threads=1)
    assert found.facts["pass"] == "quantize{scheme=static}"
    assert "--passes 'calibrate,quantize{scheme=static}'" in found.facts["command"]
    assert found.folder is not None
    argv = shlex.split(found.facts["command"])[1:]
    os.chdir(found.folder)
    assert main([*argv, "--threads", "1"]) == 4


# ------------------------------------------------------------------ the command


@pytest.fixture
def net(place: Path) -> Path:
    onnx.save(model(LONG), "net.onnx")
    return place


def test_the_command_finds(net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "net.onnx", "--passes", "cleanup,broken-rules", "--threads", "1"]) == 4
    out = capfd.readouterr().out
    for word in ("broken-rules, step 2", "the rule wrong", "Mul (Mul)", "output 'y'", "net.bisect/model.onnx"):
        assert word in out, out
    assert sorted(p.name for p in Path("net.bisect").iterdir()) == [
        "feeds.npz", "manifest.json", "model.onnx", "report.txt"]  # fmt: skip
    assert main(["bisect", "net.onnx", "--passes", "broken-rules", "--threads", "1", "--json"]) == 4
    found = json.loads(capfd.readouterr().out)
    documented = (Path(__file__).parents[1] / "docs" / "explain.md").read_text()
    fields = [*found, *found["reproducer"], *found["difference"]]
    assert [key for key in fields if f"`{key}`" not in documented] == []


def test_the_command_finds_nothing(net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "net.onnx", "--threads", "1"]) == 0
    assert "nothing differs on 16 feeds" in capfd.readouterr().out
    assert sorted(p.name for p in net.iterdir()) == ["net.onnx"]
    assert main(["bisect", "net.onnx", "--threads", "1", "--json", "--data", "random:2"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["differs"], found["feeds"], found["folder"]) == (False, 2, None)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--passes", "fuze"], ["no pass is called 'fuze'"]),
        (["--target", "onxx"], ["no target is called 'onxx'"]),
        (["--target", "ort-int8", "--scheme", "static"], ["--min-sqnr 15"]),
        (["--data", "nowhere/*.npz"], ["nowhere"]),
        (["--min-sqnr", "nan"], ["--min-sqnr nan", "15"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["-o", "taken"], ["'taken' holds files", "-o"]),
    ],
)
def test_wrong_input(net: Path, capfd: pytest.CaptureFixture[str], argv: list[str], said: list[str]) -> None:
    Path("taken").mkdir()
    Path("taken/mine").touch()
    assert main(["bisect", "net.onnx", "--threads", "1", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == "" and len([line for line in err.splitlines() if not line.startswith("  ")]) == 1
    assert all(part in err for part in said), err
    assert not Path("net.bisect").exists()


def test_outputs_that_change_by_themselves_are_refused() -> None:
    with pytest.raises(ModelError, match="change from run to run"):
        bisect(tiny.ALL["random_ops"](), threads=1)
