"""The way of the data: what an artifact holds, when the original is kept, that nothing depends on chance."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import optimizer
from models import tiny
from optimizer.compare import compare
from optimizer.errors import BugError, GateError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.io import load
from tests.conftest import model as parse


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny.ALL["conv_bn_relu"](), "net.onnx")
    Path("calib").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        np.savez(f"calib/{number}.npz", image=rng.standard_normal((2, 3, 16, 16)).astype(np.float32))
    return tmp_path


def same(a: onnx.ModelProto | Path, b: onnx.ModelProto | Path, feeds: Feeds) -> bool:
    evaluate = Evaluate(1)
    pairs = [(evaluate(load(a), feeds), evaluate(load(b), feeds))]
    return all(d.within_rounding() for d in compare(pairs).values())


@pytest.mark.parametrize("name", sorted(set(tiny.ALL) - tiny.UNRUNNABLE - {"random_ops", "sequence_ops"}))
def test_simplify_keeps_interface_outputs_and_argument(name: str) -> None:
    model = tiny.ALL[name]()
    before = model.SerializeToString()
    found = optimizer.simplify(model)
    assert model.SerializeToString() == before
    assert found.graph.input == model.graph.input
    assert found.graph.output == model.graph.output
    assert same(model, found, tiny.feeds(model))


def test_simplify_takes_a_path(place: Path) -> None:
    found = optimizer.simplify("net.onnx")
    assert found.SerializeToString() == optimizer.simplify(onnx.load("net.onnx")).SerializeToString()
    assert "BatchNormalization" not in {n.op_type for n in found.graph.node}


GELU = """g (float[N,4] x) => (float[N,4] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
    a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half) }"""


def test_the_operator_set_is_raised_before_all_else(place: Path) -> None:
    """The manifest shows it: the pass comes first, the model has changed its set, and newer operators are in it."""
    onnx.save(parse(GELU, 13), "gelu.onnx")
    manifest = optimizer.optimize("gelu.onnx", target="onnx", out="out", opset=20, threads=1).manifest
    assert manifest["pipeline"].startswith("opset{min=20 strict=true},fixpoint(")
    assert {key: manifest["passes"][0][key] for key in ("pass", "rewrites")} == {
        "pass": "opset{min=20 strict=true}", "rewrites": 7,
    }  # fmt: skip
    assert (manifest["source"]["opset"], manifest["output"]["opset"], manifest["output"]["nodes"]) == (13, 20, 1)
    assert [n.op_type for n in optimizer.simplify("gelu.onnx", opset=20).graph.node] == ["Gelu"]


def test_a_portable_file_has_standard_operators_alone(place: Path) -> None:
    """A product, its bias, GELU and a normalised sum: a runtime's own operators would fit each of them."""
    body = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4] b, float root = {1.4142135}, float one = {1},
        float half = {0.5}> { m = MatMul(x, w)  n = Add(m, b)  a = Div(n, root)  e = Erf(a)  c = Add(e, one)
        d = Mul(n, c)  f = Mul(d, half)  g = Add(f, x)  y = LayerNormalization(g, b, b) }"""
    model = parse(body.replace("w,", "w = {" + ", ".join("1" * 16) + "},").replace("b,", "b = {1, 2, 3, 4},", 1), 17)
    onnx.save(model, "block.onnx")
    made = onnx.load(optimizer.optimize("block.onnx", target="onnx", out="out", threads=1).model)
    assert {node.domain for node in made.graph.node} == {""}
    assert [one.domain for one in made.opset_import] == [""]


def test_a_portable_artifact(place: Path) -> None:
    result = optimizer.optimize("net.onnx", target="onnx", out="out", data="calib/*.npz", threads=1)
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert sorted(p.name for p in Path("out").iterdir()) == ["manifest.json", "model.onnx"]
    assert manifest == result.manifest
    assert manifest["schema"] == 1
    assert manifest["shipped"] == result.shipped == "float"
    assert manifest["reverted"] is result.reverted is None
    assert manifest["output"]["sha256"] == hashlib.sha256(result.model.read_bytes()).hexdigest()
    assert manifest["source"]["sha256"] == hashlib.sha256(Path("net.onnx").read_bytes()).hexdigest()
    assert manifest["output"]["nodes"] < manifest["source"]["nodes"]
    assert manifest["data"]["calibration"] == 6
    assert manifest["data"]["held_out"] == 2
    assert manifest["checked"]["outputs"]
    assert same(Path("net.onnx"), result.model, tiny.feeds(onnx.load("net.onnx")))


def test_the_pipeline_in_the_manifest_makes_the_same_model(place: Path) -> None:
    first = optimizer.optimize("net.onnx", target="onnx", out="first", threads=1)
    again = optimizer.optimize("net.onnx", target="onnx", out="again", threads=1, passes=first.manifest["pipeline"])
    assert first.model.read_bytes() == again.model.read_bytes()


def test_int8_with_everything_beside_it(place: Path) -> None:
    result = optimizer.optimize(
        "net.onnx", target="ort-int8", out="out", data="calib/*.npz", scheme="static", min_sqnr=1, min_agreement=0,
        threads=1,
    )  # fmt: skip
    assert result.shipped == "static"
    assert sorted(p.name for p in Path("out").iterdir()) == ["manifest.json", "model.onnx", "statistics.npz"]
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(result.model).graph.node}
    assert [c["scheme"] for c in result.manifest["candidates"]] == ["original", "float", "static"]
    assert set(result.manifest["measured"]["latency"]) == {"original", "float", "static"}
    assert result.manifest["statistics"]["tensors"] > 0
    assert result.manifest["fidelity"]["outputs"]["scores"]["sqnr_db"] > 1


def test_statistics_are_reused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"target": "ort-int8", "scheme": "static", "min_sqnr": 1, "min_agreement": 0, "threads": 1}
    first = optimizer.optimize("net.onnx", out="first", data="calib/*.npz", **options)  # type: ignore[arg-type]
    kept = Path("first/statistics.npz")
    again = optimizer.optimize("net.onnx", out="again", data="random:4", statistics=kept, **options)  # type: ignore[arg-type]
    assert again.model.read_bytes() == first.model.read_bytes()
    assert Path("again/statistics.npz").read_bytes() == kept.read_bytes()


def test_a_miss_keeps_float_and_says_why(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = optimizer.optimize(
        "net.onnx", target="ort-int8", out="out", data="calib/*.npz", scheme="static", min_sqnr=200, threads=1
    )
    assert result.shipped == "float"
    assert result.reverted is not None
    assert result.reverted["reason"] == "fidelity"
    assert "(limit 200)" in result.reverted["detail"]
    assert "(limit 200)" in caplog.text


def test_a_candidate_that_cannot_be_built_is_a_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, graph: Graph, ctx: object) -> int:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("passes.quantize.Quantize.run", fail)
    result = optimizer.optimize("net.onnx", target="ort-int8", out="out", data="calib/*.npz", threads=1)
    assert result.shipped in ("float", "original")
    rows = {row["scheme"]: row for row in result.manifest["candidates"]}
    assert not rows["static"]["usable"]
    assert "no such luck" in rows["static"]["reason"]
    assert Path("out.bug/reproduce.json").is_file()


def test_a_candidate_that_does_not_load_is_a_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(self: object, graph: Graph, ctx: object) -> int:
        node = graph.nodes[-1]
        between = graph.variable("between", node.outputs[0].dtype, node.outputs[0].shape)
        out, node.outputs[0] = node.outputs[0], between
        graph.add("Strange", [between], [out], domain="nobody.knows")
        return 1

    monkeypatch.setattr("passes.quantize.Quantize.run", strange)
    result = optimizer.optimize("net.onnx", target="ort-int8", out="out", data="calib/*.npz", threads=1)
    assert result.shipped in ("float", "original")
    assert "Strange" in result.manifest["candidates"][2]["reason"]
    assert result.reverted is not None


def test_strict_writes_nothing(place: Path) -> None:
    with pytest.raises(GateError, match="limit 200"):
        optimizer.optimize(
            "net.onnx", target="ort-int8", out="out", data="calib/*.npz", scheme="static", min_sqnr=200, strict=True,
            threads=1,
        )  # fmt: skip
    assert sorted(p.name for p in place.iterdir()) == ["calib", "net.onnx"]


def test_a_metric_decides(place: Path) -> None:
    def labels(run: object) -> float:
        assert callable(run)
        scores = run({"image": np.ones((2, 3, 16, 16), np.float32)})["scores"]
        return 1.0 if scores.shape == (2, 10) else 0.0

    result = optimizer.optimize(
        "net.onnx", target="ort-int8", out="out", data="calib/*.npz", scheme="static", metric=labels, threads=1
    )
    assert result.shipped == "static"
    assert result.manifest["gate"] == {
        "min_sqnr_db": None,
        "min_agreement": None,
        "metric": {"name": "labels", "max_drop": 0.01},
    }
    assert {c["fidelity"]["metric"] for c in result.manifest["candidates"]} == {1.0}


def test_a_model_proto_goes_through(place: Path) -> None:
    result = optimizer.optimize(tiny.ALL["mlp"](), target="ort-fp32", threads=1)
    assert result.folder == Path("model.ort-fp32")
    assert result.manifest["source"]["file"] is None
    assert result.model.is_file()


def test_external_weights_stay_external(place: Path) -> None:
    source = tiny.external_data(place / "big")
    result = optimizer.optimize(source, target="onnx", out="out", threads=1)
    assert sorted(p.name for p in Path("out").iterdir()) == ["manifest.json", "model.onnx", "model.onnx.data"]
    assert [f["file"] for f in result.manifest["output"]["data"]] == ["model.onnx.data"]
    assert same(source, result.model, tiny.feeds(onnx.load(source)))


def test_unknown_operators_are_kept_and_said_to_be_unchecked(place: Path) -> None:
    result = optimizer.optimize(tiny.ALL["custom_domain"](), target="onnx", out="out", threads=1)
    assert not result.manifest["checked"]["outputs"]
    assert result.manifest["checked"]["reason"]
    assert [n.domain for n in onnx.load(result.model).graph.node if n.domain]


def test_random_models_are_not_compared(place: Path) -> None:
    result = optimizer.optimize(tiny.ALL["random_ops"](), target="onnx", out="out", threads=1)
    assert result.manifest["checked"] == {"outputs": False, "reason": "the model's outputs change from run to run"}


def test_a_wrong_pass_is_named_and_reproduced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wreck(self: object, graph: Graph, ctx: object) -> int:
        node = next(n for n in graph.nodes if n.op == "Relu")
        graph.bypass(node, node.inputs[0])
        return 1

    monkeypatch.setattr("passes.cse.Cse.run", wreck)
    with pytest.raises(BugError, match=r"pass 'cse' changed output 'scores' beyond rounding.*out.bug"):
        optimizer.optimize("net.onnx", target="onnx", out="out", data="calib/*.npz", passes="cleanup,cse", threads=1)
    assert not Path("out").exists()
    assert Path("out.bug/before.onnx").is_file()
    assert "--passes 'cse'" in json.loads(Path("out.bug/reproduce.json").read_text())["command"]


@pytest.mark.parametrize("target", ["onnx", "ort-int8"])
def test_bytes_do_not_depend_on_chance(place: Path, target: str) -> None:
    digests = set()
    for seed in ("0", "1", "2"):
        scheme = ["--scheme", "static", "--min-sqnr", "1", "--min-agreement", "0"] if target != "onnx" else []
        argv = ["net.onnx", "--target", target, "-o", seed, "--threads", "1", "-q", *scheme]
        run = [sys.executable, "-c", "import sys; from optimizer.cli import main; sys.exit(main())", *argv]
        subprocess.run(run, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        digests.add(hashlib.sha256(Path(seed, "model.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["shipped", "source", "output", "pipeline", "passes", "data", "checked", "candidates"])
def test_what_is_not_measured_repeats(place: Path, name: str) -> None:
    first, again = (
        optimizer.optimize("net.onnx", target="onnx", out=out, data="calib/*.npz", threads=1).manifest
        for out in ("first", "again")
    )
    assert first[name] == again[name]


@pytest.mark.slow
def test_three_gigabytes_need_little_memory(tmp_path: Path) -> None:
    source = tiny.big_external(tmp_path, gigabytes=3.0)
    program = (
        "import resource, sys\n"
        "from optimizer.cli import main\n"
        "import optimizer.api, onnxruntime\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    argv = [str(source), "--target", "onnx", "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run([sys.executable, "-c", program, *argv], check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 400e6
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "memory" in manifest["checked"]["reason"]
    assert manifest["output"]["data"][0]["bytes"] >= 3 * 2**30 * 0.99
