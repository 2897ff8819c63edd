"""--target auto: what it picks from a bench's rows, what it ships and records, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import optimizer
from models import fashion
from optimizer import auto, registry
from optimizer.bench import results
from optimizer.cli import main
from optimizer.engine import EngineOptions
from optimizer.errors import GateError, UserError

FOLDER = Path(fashion.__file__).parent
MODEL, DATA = FOLDER / "fashion.onnx", str(FOLDER / "calib" / "*.npz")


def row(name: str, low: float, middle: float, high: float, sqnr: float | None = 30.0, **other: Any) -> dict[str, Any]:
    """A measured row; no `sqnr`: equal to the original."""
    verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference"
    made = results.row(name, name) | {"parity": {"exact": sqnr is None, "sqnr_db": sqnr}}
    made["points"] = [{"ratio": {"low": low, "middle": middle, "high": high, "verdict": verdict}}]
    return made | other


ORIGINAL = results.row("original", "original") | {"points": [{"ratio": None}]}


def test_the_fastest_that_agrees_is_picked() -> None:
    rows = [ORIGINAL, row("slow", 1.1, 1.2, 1.3), row("fast", 2.0, 2.1, 2.2), row("wrong", 4, 5, 6, status="disagrees")]
    assert (results.pick(rows) or {})["name"] == "fast"


def test_of_equally_fast_ones_the_closest_is_picked() -> None:
    rows = [ORIGINAL, row("int8", 1.9, 2.1, 2.2), row("exact", 1.9, 2.0, 2.15, None), row("bf16", 1.9, 2.0, 2.2, 50.0)]
    assert (results.pick(rows) or {})["name"] == "exact"
    rows[2] = row("exact", 1.9, 2.0, 2.05, None)  # surely slower than the fastest
    assert (results.pick(rows) or {})["name"] == "bf16"


def test_nothing_is_picked_that_is_not_surely_faster() -> None:
    unmeasured = results.row("gone", "gone") | {"status": "unavailable"}
    assert results.pick([ORIGINAL, row("same", 0.95, 1.02, 1.1), row("slow", 0.5, 0.6, 0.7), unmeasured]) is None


def test_candidates_are_those_that_run_here() -> None:
    found = auto.candidates()
    assert found[0] == auto.PLAIN and {"ort-int8"} <= set(found)
    assert not {"onnx", "ort-fp16"} & set(found), "nothing here runs them"
    for name in found:
        backend = registry.load_backend(optimizer.targets.targets()[name].backend)
        assert backend.available() is None and backend.runs(EngineOptions())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two targets and little time: what is found is not asserted, only that all hangs together."""
    monkeypatch.setattr(auto, "candidates", lambda: [auto.PLAIN, "ort-int8"])
    monkeypatch.setattr(auto, "SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("few")
def test_what_was_tried_is_in_the_manifest_and_the_shipped_one_in_the_folder(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(MODEL), "-t", "auto", "--data", DATA, "-o", "out", "--threads", "1"]) == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    told = manifest["auto"]
    assert [one["name"] for one in told["tried"]] == ["original", "ort-fp32", "ort-int8"]
    assert told["shipped"] == manifest["target"] and told["shipped"] in ("ort-fp32", "ort-int8")
    assert all(one["point"]["p50_ms"] > 0 for one in told["tried"])
    onnx.checker.check_model("out/model.onnx")
    assert sorted(file.name for file in Path("out").iterdir() if file.is_dir()) == []
    assert told["shipped"] in capfd.readouterr().out


@pytest.mark.usefixtures("few")
def test_strict_writes_nothing_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "pick", lambda rows: None)
    with pytest.raises(GateError, match="nothing is surely faster than the original"):
        optimizer.optimize(MODEL, target="auto", data=DATA, out="out", threads=1, strict=True)
    assert not Path("out").exists()


@pytest.mark.usefixtures("few")
def test_the_float_model_is_shipped_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "pick", lambda rows: None)
    made = optimizer.optimize(MODEL, target="auto", data=DATA, out="out", threads=1)
    assert made.manifest["auto"]["shipped"] == auto.PLAIN == made.manifest["target"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"opset": 20}, "--opset"),
        ({"scheme": "static"}, "--scheme"),
        ({"passes": "fold"}, "--passes"),
        ({"fixed": {"x": 1}}, "--freeze"),
        ({"shapes": {"x": (1,)}}, "--shape"),
    ],
)
def test_options_of_one_target_are_refused(tmp_path: Path, option: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"{said} is for one target"):
        optimizer.optimize(MODEL, target="auto", data=DATA, out=tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()
