"""Saved benches reported again: one model as before, several side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from optimizer.bench import results
from optimizer.bench.overview import MEAN, overview
from optimizer.cli import main
from tests.benches import facts


def nothing_faster() -> dict[str, Any]:
    made = facts("slow.onnx")
    for row in made["rows"]:
        if row["name"] == "ort-int8":
            results.end(row, results.DISAGREES, "SQNR 3 dB")
    return made


def test_a_row_a_model_and_what_auto_would_ship() -> None:
    found = overview([facts("fast.onnx"), nothing_faster()])
    assert [column.key for column in found.columns] == [
        "model", "p50", "ort-int8", "openvino-fp32", "trt-int8", "other", "best", "speed", "before", "after",
    ]  # fmt: skip
    fast, slow, mean = ({key: cell.text for key, cell in row.items() if cell} for row in found.rows)
    assert [fast[key] for key in ("ort-int8", "trt-int8", "other", "best", "speed", "after")] == [
        "2.50x", "unavailable", "crashed", "ort-int8", "2.50x", "0.890",
    ]  # fmt: skip
    assert "best" not in slow
    assert [slow[key] for key in ("ort-int8", "speed", "after")] == ["2.50x disagrees", "1.00x", "0.900"]
    assert mean == {"model": MEAN, "speed": f"{math.sqrt(2.5):.2f}x"}
    assert "1 of 2 models are served faster" in found.headline and "1.58 times" in found.headline


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(facts("fast.onnx")))
    Path("b.json").write_text(json.dumps(nothing_faster()))


@pytest.mark.usefixtures("saved")
def test_several_become_one_page_and_one_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--show", "a.json", "b.json", "--html", "all.html", "--markdown", "all.md"]) == 0
    out = capfd.readouterr().out
    assert "fast" in out and "slow" in out and "2.50x disagrees" in out
    assert Path("all.html").read_text().count("<details>") == 2
    lines = Path("all.md").read_text().splitlines()
    assert lines[2].startswith("| model | original ms | ort-int8 |") and len(lines) == 7


@pytest.mark.usefixtures("saved")
def test_one_is_reported_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--show", "a.json", "--html", "one.html", "--markdown", "one.md"]) == 0
    assert "ort-int8 is 2.50 times as fast as original" in capfd.readouterr().out
    assert "<details>" not in Path("one.html").read_text()
    assert Path("one.md").read_text().startswith("### fast.onnx")


@pytest.mark.usefixtures("saved")
def test_what_is_no_result_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--show", "gone.json"]) == 2
    assert "--show: cannot read 'gone.json'" in capfd.readouterr().err
