"""The trade-off curve: rows that agree with what `optimize` makes, ratios that cannot be had, files and picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import optimizer
from models import fashion
from optimizer.cli import main
from optimizer.curve import Curve, picture, prune_curve
from optimizer.errors import UserError
from optimizer.inspect import inspect
from optimizer.plot import Panel, Series, svg, ticks

FASHION = Path(fashion.__file__).parent
MODEL = str(FASHION / "fashion.onnx")
DATA = str(FASHION / "calib" / "*.npz")
METRIC = str(FASHION / "metric.py") + ":accuracy"
RATIOS = [0.3, 0.1, 0.999]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """Three ratios, the last out of reach, measured for as short as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimizer.judge.ROUNDS", 5)
        out = tmp_path_factory.mktemp("curve") / "fashion.curve"
        return prune_curve(MODEL, ratios=RATIOS, data=DATA, metric=METRIC, out=out, threads=1)


def test_a_row_per_model_in_order(curve: Curve) -> None:
    rows = curve.facts["rows"]
    assert [(row["ratio"], row["model"]) for row in rows] == [
        (0, "original"),
        (0, "float"),
        (0.1, "pruned"),
        (0.3, "pruned"),
        (0.999, "pruned"),
    ]
    assert [row["reason"] is None for row in rows] == [True, True, True, True, False]


def test_what_is_left_is_what_was_asked_for(curve: Curve) -> None:
    original, plain, tenth, third, _ = curve.facts["rows"]
    assert original["macs_left"] == plain["macs_left"] == plain["parameters_left"] == 1
    assert tenth["macs_left"] == pytest.approx(0.9, abs=0.05)
    assert third["macs_left"] == pytest.approx(0.7, abs=0.05)
    for key in ("macs", "parameters", "bytes"):
        assert plain[key] > third[key] > 0


def test_rows_agree_with_the_models_that_optimize_makes(curve: Curve, tmp_path: Path) -> None:
    third = curve.facts["rows"][3]
    made = optimizer.optimize(
        MODEL, target="onnx", prune=0.3, data=DATA, min_sqnr=-99, min_agreement=0, out=tmp_path / "out", threads=1
    )
    facts, source = inspect(made.model), inspect(Path(MODEL))
    assert third["parameters"] == facts["parameters"]
    assert third["nodes"] == facts["nodes"]
    assert third["bytes"] == made.model.stat().st_size
    assert third["macs_left"] == pytest.approx(facts["macs"] / source["macs"], rel=1e-3)
    assert third["pipeline"] == made.manifest["pipeline"]
    error = made.manifest["fidelity"]["outputs"]["scores"]
    assert third["sqnr_db"] == pytest.approx(error["sqnr_db"], abs=0.1)
    assert third["agreement"] == error["agreement"]


def test_errors_and_metrics_are_of_each_model(curve: Curve) -> None:
    original, plain, tenth, third, beyond = curve.facts["rows"]
    assert original["metric"] == plain["metric"] == pytest.approx(0.933)
    assert plain["sqnr_db"] > 90 > tenth["sqnr_db"] > third["sqnr_db"]
    assert 0 < third["metric"] < tenth["metric"] + 0.01 < plain["metric"] + 0.02
    assert beyond["metric"] is beyond["sqnr_db"] is beyond["latency"] is beyond["macs"] is None
    assert "'prune' cannot remove 100%" in beyond["reason"]


def test_all_that_run_are_timed_in_the_same_rounds(curve: Curve) -> None:
    latencies = [row["latency"] for row in curve.facts["rows"][:4]]
    assert [latency["rounds"] for latency in latencies] == [5] * 4
    assert latencies[0]["speedup"] == latencies[1]["speedup_over_float"] == 1
    assert all(latency["median_ms"] > 0 for latency in latencies)
    assert curve.facts["untimed"] is None


def test_the_folder_holds_the_numbers_and_the_picture(curve: Curve) -> None:
    assert sorted(p.name for p in curve.folder.iterdir()) == ["curve.json", "curve.svg", "manifest.json"]
    assert json.loads((curve.folder / "curve.json").read_text()) == curve.facts
    assert curve.facts["format"] == 1
    assert json.loads((curve.folder / "manifest.json").read_text())["curve"] == "curve.json"
    assert (curve.folder / "curve.svg").read_text() == picture(curve.facts, "fashion.onnx")


def test_the_picture_shows_quality_and_speed(curve: Curve) -> None:
    root = ET.fromstring((curve.folder / "curve.svg").read_text())
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Task metric", "Latency", "pruned", "not pruned", "measured", "if time followed MACs"} <= set(texts)
    notes = [node.text or "" for node in root.iter(f"{SVG}title")]
    assert [note.partition(":")[0] for note in notes[1:]] == ["ratio 0.3", "ratio 0.1", "ratio 0"] * 2


def test_without_a_metric_it_shows_the_error(curve: Curve) -> None:
    root = ET.fromstring(picture({**curve.facts, "metric": None, "untimed": "no device"}, "a<b"))
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Output error", "SQNR, dB", "a<b, pruned"} <= set(texts)
    assert "Latency" not in texts
    assert len(list(root.iter(f"{SVG}circle"))) == 2


# ------------------------------------------------------------------ the command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optimizer.judge.ROUNDS", 5)
    return tmp_path


def test_a_table_on_stdout_and_again_over_itself(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["prune-curve", MODEL, "--ratios", "0.2,0.999", "--data", "random:4", "--threads", "1"]
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert "fashion.curve/curve.svg" in out
    for word in ("original", "float", "0.2", "MACs", "latency", "1.00x", "SQNR", "cannot remove 100%"):
        assert word in out
    assert "RANDOM inputs (random:4)" in err
    assert main([*argv, "-q"]) == 0
    assert sorted(p.name for p in place.iterdir()) == ["fashion.curve"]


def test_what_cannot_run_here_is_not_timed(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["prune-curve", MODEL, "--ratios", "0.2", "--data", DATA, "--threads", "1", "-t", "onnx"]
    assert main(argv) == 0
    out = capfd.readouterr().out
    assert "latency was not measured: target 'onnx' does not run here: --target ort-fp32" in out
    assert "speed" not in out
    assert main([*argv, "--json", "-o", "other"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["folder"] == "other"
    assert all(row["latency"] is None for row in found["curve"]["rows"])
    assert found["curve"]["rows"][0]["exact"]


def test_options_reach_the_pass(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["prune-curve", MODEL, "--ratios", "0.2", "--data", DATA, "--threads", "1", "-t", "onnx", "--json"]
    assert main([*argv, "--prune-options", "criterion=l1 of=params", "--no-recover"]) == 0
    facts = json.loads(capfd.readouterr().out)["curve"]
    assert facts["options"] == "criterion=l1 of=params recover=false"
    assert facts["rows"][-1]["pipeline"].endswith("prune{ratio=0.2 of=params criterion=l1 recover=false}")
    assert facts["rows"][-1]["parameters_left"] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], ["--ratios is missing", "0.1,0.2,0.3"]),
        (["--ratios", "0,2"], ["--ratios 0,2: ", "below 1"]),
        (["--ratios", "a"], ["--ratios a: ", "0.1,0.2,0.3"]),
        (["--ratios", ","], ["--ratios names none"]),
        (["--ratios", "0.99,0.999"], ["'prune' cannot remove 99%"]),
        (["--ratios", "0.3", "--prune-options", "of=time"], ["cannot take of=time", "latency"]),
        (["--ratios", "0.3", "--prune-options", "ratio=0.4"], ["--ratios gives those"]),
        (["--ratios", "0.3", "-t", "ort"], ["no target is called 'ort'"]),
        (["--ratios", "0.3", "--metric", "gone.py:f"], ["no file 'gone.py'"]),
        (["--ratios", "0.3", "--seed", "-1"], ["--seed -1", "0 or more"]),
        (["--ratios", "0.3", "-o", "mine"], ["'mine' holds files", "-o"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    place: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: list[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    assert main(["prune-curve", MODEL, "--data", DATA, "--threads", "1", *more]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len([line for line in err.splitlines() if not line.startswith("  ")]) == 1, err
    assert all(part in err for part in said), err
    assert sorted(p.name for p in place.iterdir()) == ["mine"]


def test_no_ratio_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="--ratios names none"):
        prune_curve(MODEL, ratios=[])


# ------------------------------------------------------------------ the plot


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([3.0, 17.0], [0, 5, 10, 15, 20]),
        ([-1.0, 1.0], [-1, -0.5, 0, 0.5, 1]),
        ([0.932, 0.934], [0.932, 0.9325, 0.933, 0.9335, 0.934]),
        ([0.0, float("nan"), 1e6], [0, 2e5, 4e5, 6e5, 8e5, 1e6]),
    ],
)
def test_ticks_are_round_and_around_all_values(values: list[float], expected: list[float]) -> None:
    assert ticks(values) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0], [float("inf")], [1e-12, 2e-12], [1e9]])
def test_ticks_of_few_values_still_span_something(values: list[float]) -> None:
    found = ticks(values)
    finite = [v for v in values if v < float("inf")]
    assert 2 <= len(found) <= 12
    assert found[0] < found[-1]
    assert all(found[0] <= v <= found[-1] for v in finite)


def plot(points: list[tuple[float, float]], **more: Any) -> ET.Element:
    series = Series("s", points, **more)
    return ET.fromstring(svg([Panel("panel", "across", "up", [series])], "title", "what is seen"))


def test_points_lie_where_the_axes_say() -> None:
    root = plot([(10, 1), (0, 0), (5, 1)], notes=["last", "first", "middle"])
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    assert [node.text for node in root.iter(f"{SVG}title")][1:] == ["first", "middle", "last"]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y1 == y2  # up is a smaller y
    labels = {t.text: (float(t.get("x", "")), float(t.get("y", ""))) for t in root.iter(f"{SVG}text")}
    assert labels["10"][0] == x2
    assert labels["across"][1] > labels["10"][1] > y0


def test_a_guide_has_no_marks_and_what_is_not_finite_is_left_out() -> None:
    root = plot([(0, 0), (1, 1)], guide=True)
    assert not list(root.iter(f"{SVG}circle"))
    assert {p.get("class") for p in root.iter(f"{SVG}polyline")} == {"guide a"}
    assert len(list(plot([(0, 0), (1, float("inf")), (2, 1)]).iter(f"{SVG}circle"))) == 2
    assert not list(plot([]).iter(f"{SVG}circle"))


def test_it_says_what_it_shows_and_follows_the_theme() -> None:
    text = svg([Panel("p", "x", "y", [Series("a & b", [(0, 0), (1, 1)])])], "<t>", "d")
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    named = [node.get("id") for node in root if node.tag in (f"{SVG}title", f"{SVG}desc")]
    assert root.get("aria-labelledby", "").split() == named
    assert "prefers-color-scheme:dark" in text
    assert "a &amp; b" in text
    assert text == svg([Panel("p", "x", "y", [Series("a & b", [(0, 0), (1, 1)])])], "<t>", "d")
