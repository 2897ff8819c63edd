"""Building engines under the way of the data: what the compiler refuses is rendered again, what is missing is said.

The compiler is a stand-in here, so that it can refuse what it is told to; real engines are built in test_trt.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import optimizer
from optimizer.cli import main
from optimizer.engine import BuildError, Built, EngineOptions
from optimizer.errors import GateError, UnavailableError, UserError
from optimizer.graph import Graph
from optimizer.io import load
from optimizer.judge import Variant
from optimizer.plan import make_plan
from optimizer.precision import DATA, promised
from optimizer.shapes import infer
from optimizer.targets import target
from tests.conftest import model

TEXT = """
agraph (float[1,32,8,8] x) => (float[1,32,8,8] y)
{
    [first] a = Conv<pads=[1,1,1,1]>(x, v)
    b = Relu(a)
    [second] c = Conv<pads=[1,1,1,1]>(b, w)
    y = Relu(c)
}
"""

Refuse = Callable[[dict[str, str]], tuple[str, ...]]


@dataclass
class Compiler:
    """Copies the model for an engine; `refuses` gets operators' precision and names those it does not build."""

    refuses: Refuse = lambda precision: ()
    missing: str | None = None
    types: Callable[[str], str] = lambda precision: precision
    built: list[dict[str, str]] = field(default_factory=list)
    compiles: bool = True

    def runs(self, options: EngineOptions) -> bool:
        return False

    def available(self) -> str | None:
        return self.missing

    def recipe(self) -> dict[str, Any]:
        return {}

    def lower(self, graph: Graph) -> None:
        graph.name_nodes()

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        graph = load(model)
        infer(graph)
        precision = {n.name: promised(n) for n in graph.walk() if n.op in DATA}
        self.built.append(precision)
        if refused := self.refuses(precision):
            raise BuildError(f"no implementation for {', '.join(refused)}", refused)
        (folder / "model.engine").write_bytes(b"engine")
        facts = {"file": "model.engine", "bytes": 6, "library": "stand-in", "version": "1", "gpus": list(options.gpus)}
        typed = {name: self.types(kind) for name, kind in precision.items()}
        return Built(folder / "model.engine", {**facts, "profiles": {}, "seconds": 0.1}, typed)

    def command(self, model: Path, options: EngineOptions) -> str:
        return f"compile {model}"

    def open(self, built: Built, threads: int = 0) -> Any:
        raise AssertionError("nothing runs here")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    net = model(TEXT, 17)
    for seed, name in enumerate("vw"):
        weight = np.random.default_rng(seed).normal(0, 0.1, (32, 32, 3, 3)).astype(np.float32)
        net.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(net, "net.onnx")
    return tmp_path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Compiler], Compiler]:
    def install(compiler: Compiler) -> Compiler:
        monkeypatch.setattr("optimizer.registry.load_backend", lambda name: compiler)
        return compiler

    return install


Use = Callable[[Compiler], Compiler]


def feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 32, 8, 8)).astype(np.float32)} for _ in range(4)]


def test_an_engine_comes_with_its_precision(place: Path, use: Use) -> None:
    use(Compiler())
    result = optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), min_sqnr=1, min_agreement=0, threads=1)
    assert result.shipped == "int8"
    assert result.engine == result.folder / "model.engine"
    assert result.engine.read_bytes() == b"engine"
    assert result.manifest["precision"]["source"] == "engine"
    assert result.manifest["precision"]["kept"] == 1
    assert result.manifest["measured"]["build"] == 0.1
    assert "seconds" not in result.manifest["engine"]


def test_what_the_compiler_refuses_in_int8_is_rendered_in_float(place: Path, use: Use) -> None:
    bad: list[str] = []

    def refuse(precision: dict[str, str]) -> tuple[str, ...]:
        bad[:] = bad or [next(name for name, kind in precision.items() if kind == "int8")]
        return tuple(name for name in bad if precision[name] == "int8")

    compiler = use(Compiler(refuse))
    result = optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), min_sqnr=1, min_agreement=0, threads=1)
    assert result.shipped == "int8"
    assert result.manifest["dropped"] == bad
    assert compiler.built[0][bad[0]] == "int8"
    assert compiler.built[1][bad[0]] != "int8"
    (row,) = [r for r in result.manifest["precision"]["others"] if r["node"] == bad[0]]
    assert row["reason"].startswith("build: ")


def test_what_it_refuses_in_any_precision_falls_back(place: Path, use: Use) -> None:
    use(Compiler(lambda precision: tuple(precision) if "int8" in precision.values() else ()))
    result = optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), min_sqnr=1, min_agreement=0, threads=1)
    assert result.shipped == "fp16"
    assert result.reverted is not None
    assert result.reverted["from"] == "int8"
    assert "no implementation" in result.reverted["detail"]
    reasons = {row["reason"] for row in result.manifest["precision"]["others"]}
    assert reasons == {f"reverted: {result.reverted['detail']}"}


def test_a_refused_model_is_an_error_and_leaves_nothing(place: Path, use: Use) -> None:
    use(Compiler(lambda precision: tuple(precision)))
    with pytest.raises(BuildError, match="no implementation"):
        optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), threads=1)
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_a_silent_float_build_fails(place: Path, use: Use) -> None:
    use(Compiler(types=lambda kind: "fp32"))
    with pytest.raises(GateError, match=r"typed only 0\.0% of the work as the model says"):
        optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), min_sqnr=1, min_agreement=0, threads=1)
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_without_a_compiler_the_model_is_written_and_the_way_on_is_said(place: Path, use: Use) -> None:
    use(Compiler(missing="it is not installed: pip install it"))
    with pytest.raises(UnavailableError, match=r"model\.onnx' is written, .*pip install it.*compile model.onnx"):
        optimizer.optimize("net.onnx", target="trt-int8", data=feeds(), out="out", min_sqnr=1, min_agreement=0)
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["engine"] is None
    assert "pip install it" in manifest["engine_missing"]
    assert manifest["precision"]["source"] == "model"
    assert "QuantizeLinear" in {n.op_type for n in onnx.load("out/model.onnx").graph.node}


def test_who_asks_for_the_model_alone_gets_it(place: Path, use: Use) -> None:
    compiler = use(Compiler(missing="it is not installed"))
    command = ["net.onnx", "-t", "trt-fp16", "--emit", "onnx", "--data", "random:4", "-o", "out", "-q"]
    assert main(command) == 0
    assert compiler.built == []
    assert main([*command[:3], *command[5:]]) == 3


def test_nothing_in_int8_is_said_and_a_silent_float_model_fails(
    place: Path, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    """Where every candidate finds nothing to do, their reasons still tell what was left out on purpose."""
    use(Compiler())
    options = {"target": "trt-int8", "data": feeds(), "min_sqnr": 1, "min_agreement": 0, "threads": 1}
    result = optimizer.optimize("net.onnx", passes="quantize{scheme=tensorrt skip=first,second}", **options)  # type: ignore[arg-type]
    assert result.shipped == "float"
    assert {row["reason"] for row in result.manifest["precision"]["others"]} == {"skip: asked for"}
    assert "nothing runs in int8; of the heaviest operator: skip: asked for" in caplog.text
    with pytest.raises(GateError, match=r"only 0\.0% of the work that could be int8 is"):
        optimizer.optimize("net.onnx", passes="cleanup", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["--gpu=sm_89", "--shape=x=1x3:1x3:1x3", "--emit=onnx", "--refit"])
def test_engine_options_are_for_engines(place: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["net.onnx", "--target", "onnx", option]) == 2
    assert "builds no engine" in capsys.readouterr().err


def test_a_share_is_a_share(place: Path) -> None:
    with pytest.raises(UserError, match="--min-int8 90"):
        optimizer.optimize("net.onnx", target="trt-int8", min_int8=90)


def test_what_stands_in_is_built_for_what_is_no_use_and_rivals_last() -> None:
    plan = make_plan(target("trt-int8"), None, None)
    int8, careful = (Variant(name, Graph.__new__(Graph), Path(), Path()) for name in ("int8", "careful"))
    assert plan.first(timed=False) == ["int8"]
    assert plan.first(timed=True) == ["int8", "fp16"]
    assert plan.late([int8]) == []
    int8.misses = "SQNR"
    assert plan.late([int8]) == ["careful"]
    careful.failed = "it is the same model as int8"
    assert plan.late([int8, careful]) == ["fp16"]
    int8.idle = True
    assert plan.late([int8]) == ["fp16"]


def test_a_stand_in_that_is_the_same_model_passes_on() -> None:
    plan = make_plan(target("ort-int8"), None, None)
    built = {name: Variant(name, Graph.__new__(Graph), Path(), Path()) for name in ("hybrid", "dynamic", "guarded")}
    built["hybrid"].misses, built["guarded"].failed = "SQNR", "it is the same model as hybrid"
    assert plan.late(list(built.values())) == ["careful"]
