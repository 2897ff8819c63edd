"""The bench: ratios with their uncertainty, rows that go wrong while others go on, reports, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import fashion
from optimizer.bench import results, summary
from optimizer.bench.compare import compare
from optimizer.bench.energy import Meter
from optimizer.bench.inputs import batch_axes, batched, settings
from optimizer.bench.page import page
from optimizer.bench.ratios import ratio
from optimizer.bench.rounds import Samples, Setting, Taken
from optimizer.bench.run import Bench, bench
from optimizer.cli import main
from optimizer.data import Input
from optimizer.errors import UserError

FOLDER = Path(fashion.__file__).parent
MODEL, DATA = FOLDER / "fashion.onnx", str(FOLDER / "calib" / "*.npz")
QUICK: dict[str, Any] = {"data": DATA, "threads": 1, "seconds": 0.5, "launches": 2, "profile": False}


def double(name: str) -> str:
    return f"{MODEL}@tests.doubles:{name}"


def rows(found: Bench) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.rows}


# ------------------------------------------------------------------ ratios


def simulated(rng: np.random.Generator, slower: float, launches: int = 5, rounds: int = 20) -> list[list[float]]:
    """Seconds of a backend: a launch has its luck, rounds have their noise, now and then something interrupts."""
    made = []
    for _ in range(launches):
        luck = rng.normal(0, 0.01)
        noise = rng.normal(0, 0.02, rounds) + rng.exponential(0.3, rounds) * (rng.random(rounds) < 0.1)
        made.append(list(slower * np.exp(luck + noise)))
    return made


def test_the_same_speed_is_no_difference_in_nineteen_of_twenty() -> None:
    rng = np.random.default_rng(0)
    found = [ratio(simulated(rng, 1.0), simulated(rng, 1.0), seed=i) for i in range(100)]
    assert sum(one.verdict == "no difference" for one in found) >= 95


def test_five_per_cent_are_found() -> None:
    rng = np.random.default_rng(1)
    found = [ratio(simulated(rng, 1.0), simulated(rng, 1.05), seed=i) for i in range(100)]
    assert sum(one.verdict == "slower" for one in found) >= 80
    assert not any(one.verdict == "faster" for one in found)
    assert np.median([one.middle for one in found]) == pytest.approx(1 / 1.05, abs=0.005)


def test_few_launches_say_less() -> None:
    rng = np.random.default_rng(2)
    base, other = simulated(rng, 1.0, launches=8), simulated(rng, 1.0, launches=8)
    widths = [(r := ratio(base[:n], other[:n])).high - r.low for n in (2, 4, 8)]
    assert widths[0] > widths[1] > widths[2]


def test_a_ratio_lies_in_its_interval_and_needs_rounds() -> None:
    found = ratio([[2.0, 2.0, 2.0]], [[1.0, 1.0, 1.0]])
    assert (found.low, found.middle, found.high) == pytest.approx((2, 2, 2))
    assert found.verdict == "faster"
    with pytest.raises(ValueError, match="at least one round"):
        ratio([[]], [[]])


# ------------------------------------------------------------------ inputs


def test_batches_are_put_together_along_the_unknown_dim() -> None:
    inputs = {
        "x": Input("x", np.dtype(np.float32), ("N", 3)),
        "state": Input("state", np.dtype(np.float32), (2, "N", 4)),
        "rate": Input("rate", np.dtype(np.int64), ()),
    }
    assert batch_axes(inputs) == {"x": 0, "state": 1}
    feeds = [
        {"x": np.full((1, 3), i, np.float32), "state": np.full((2, 1, 4), i, np.float32), "rate": np.array(8)}
        for i in range(3)
    ]
    made = settings(feeds, inputs, [2, 4], [1, 3])
    assert list(made) == [Setting(2, 1), Setting(2, 3), Setting(4, 1), Setting(4, 3)]
    first = made[Setting(4, 1)][0]
    assert {name: array.shape for name, array in first.items()} == {"x": (4, 3), "state": (2, 4, 4), "rate": ()}
    assert first["x"][:, 0].tolist() == [0, 1, 2, 0]
    assert first["state"][0, :, 0].tolist() == [0, 1, 2, 0]


def test_feeds_stay_as_they_come_and_rows_of_one_size_come_together() -> None:
    inputs = {"x": Input("x", np.dtype(np.float32), (None, "T"))}
    feeds = [{"x": np.zeros((2, 5), np.float32)}, {"x": np.ones((1, 7), np.float32)}]
    (setting,) = settings(feeds, inputs, [], [1])
    assert setting == Setting(2, 1)
    assert [f["x"].shape for f in batched(feeds, {"x": 0}, 3)] == [(3, 5), (3, 5)]


def test_a_fixed_batch_is_told() -> None:
    inputs = {"x": Input("x", np.dtype(np.float32), (1, 3))}
    feeds = [{"x": np.zeros((1, 3), np.float32)}]
    assert list(settings(feeds, inputs, [1], [1])) == [Setting(1, 1)]
    with pytest.raises(UserError, match="--batch 8: the model's batch is fixed"):
        settings(feeds, inputs, [8], [1])


# ------------------------------------------------------------------ rows that go wrong


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One bench of everything that can go wrong, beside what goes well."""
    names = ("Crash", "Hang", "Nan", "Refuse", "Absent", "Chatter", "Memory")
    also = {name.lower(): double(name) for name in names} | {"plain": str(MODEL)}
    return bench(
        MODEL,
        targets=["nonsense", "trt-int8"],
        also=also,
        limit=5.0,
        artifacts=tmp_path_factory.mktemp("kept"),
        **QUICK,
    )


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("original", "ok", None),
        ("plain", "ok", None),
        ("chatter", "ok", None),
        ("crash", "crashed", "its process died (SIGSEGV)"),
        ("memory", "crashed", "SIGKILL, as when memory runs out"),
        ("hang", "hung", "no answer within 5 s"),
        ("refuse", "failed", "no kernel for Conv"),
        ("absent", "unavailable", "pip install absent"),
        ("nonsense", "unavailable", "no target is called 'nonsense'"),
    ],
)
def test_one_backend_costs_one_row(mixed: Bench, name: str, status: str, said: str | None) -> None:
    row = rows(mixed)[name]
    assert row["status"] == status, row["reason"]
    assert (row["reason"] or "") == "" if said is None else said in row["reason"]
    assert bool(row["points"]) >= (status == "ok")


def test_an_engine_without_a_gpu_is_a_row(mixed: Bench) -> None:
    row = rows(mixed)["trt-int8"]
    if row["status"] == "ok":
        pytest.skip("there is a GPU")
    assert row["status"] == "unavailable"
    assert "GPU" in row["reason"] or "pip install" in row["reason"]


def test_numbers_that_are_not_finite_are_counted_and_marked(mixed: Bench) -> None:
    row = rows(mixed)["nan"]
    assert row["status"] == "disagrees"
    assert row["parity"]["not_finite"] == 3 * mixed.facts["data"]["feeds"]
    assert row["points"], "it is marked, not hidden"
    assert f"disagrees, {row['parity']['not_finite']} NaN or infinite" == summary.status(row)


def test_what_was_measured_is_whole(mixed: Bench) -> None:
    for name in ("original", "plain", "chatter"):
        row = rows(mixed)[name]
        (point,) = row["points"]
        assert point["min_ms"] <= point["p50_ms"] <= point["p90_ms"] <= point["p99_ms"]
        assert len(point["rounds"]) == 2 and min(point["rounds"]) >= 5
        assert point["quantiles_ms"] == sorted(point["quantiles_ms"])
        assert row["load_seconds"] > 0 and row["first_seconds"] > 0
        assert row["peak_bytes"] > row["idle_bytes"] > 1e7
        assert row["parity"]["agreement"] == 1.0
    assert rows(mixed)["original"]["points"][0]["ratio"] is None
    assert mixed.facts["settings"]["baseline"] == "original"
    json.dumps(mixed.facts, allow_nan=False)


def test_a_slower_backend_is_found_slower_and_the_front_leaves_it_out(tmp_path: Path) -> None:
    found = bench(MODEL, also={"slow": double("Slow")}, artifacts=tmp_path, **(QUICK | {"launches": 4, "seconds": 2.0}))
    point = rows(found)["slow"]["points"][0]
    assert point["ratio"]["verdict"] == "slower"
    assert point["ratio"]["middle"] == pytest.approx(0.25, abs=0.15)
    assert rows(found)["original"]["front"] and not rows(found)["slow"]["front"]
    assert "Nothing that agrees with the original is surely faster" in summary.headline(found.facts)


def test_several_callers_and_batches_are_settings_of_their_own(tmp_path: Path) -> None:
    found = bench(MODEL, also={"plain": str(MODEL)}, batches=[1, 3], callers=[1, 2], artifacts=tmp_path, **QUICK)
    points = rows(found)["plain"]["points"]
    assert [(p["batch"], p["concurrency"]) for p in points] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert all(p["throughput"] > 0 and p["ratio"] for p in points)


def test_a_metric_is_measured_in_the_backends_own_process(tmp_path: Path) -> None:
    metric = f"{FOLDER / 'metric.py'}:accuracy"
    found = bench(MODEL, also={"nan": double("Nan"), "plain": str(MODEL)}, metric=metric, artifacts=tmp_path, **QUICK)
    assert rows(found)["plain"]["metric"] == rows(found)["original"]["metric"] > 0.9
    assert rows(found)["nan"]["status"] == "disagrees"
    assert "metric" in rows(found)["nan"]["reason"] or "NaN" in rows(found)["nan"]["reason"]


def test_artifacts_are_built_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "optimizer.bench"):
        bench(MODEL, targets=["ort-fp32"], artifacts=tmp_path, **QUICK)
        made = (tmp_path / "ort-fp32" / "manifest.json").stat().st_mtime_ns
        bench(MODEL, targets=["ort-fp32", "ort-fp32"], artifacts=tmp_path, **QUICK)
    assert (tmp_path / "ort-fp32" / "manifest.json").stat().st_mtime_ns == made
    assert caplog.messages.count("building ort-fp32") == 1
    with caplog.at_level("INFO", "optimizer.bench"):
        bench(MODEL, targets=["ort-fp32"], artifacts=tmp_path, **(QUICK | {"seed": 1}))
    assert caplog.messages.count("building ort-fp32") == 2, "other settings, another artifact"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": []}, "--targets names none"),
        ({"also": {"x": "gone.onnx"}}, "there is no file 'gone.onnx'"),
        ({"also": {"x": f"{MODEL}@cloud"}}, "the backends are .*openvino.*ort"),
        ({"targets": ["ort-fp32"], "baseline": "best"}, "--baseline best is no row: there are original, ort-fp32"),
        ({"targets": ["ort-fp32"], "seconds": 0}, "--seconds and --timeout are above 0"),
        ({"targets": ["ort-fp32"], "launches": 0}, "--launches 0"),
        ({"targets": ["ort-fp32"], "batches": [0]}, "numbers of 1 and more"),
        ({"targets": ["ort-fp32"], "data": "gone/*.npz"}, "matches no file"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        bench(MODEL, artifacts=tmp_path / "kept", **(QUICK | options))
    assert not (tmp_path / "kept").exists()


# ------------------------------------------------------------------ the command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the doubles are
    return tmp_path


ARGUMENTS = ["bench", str(MODEL), "--data", DATA, "--threads", "1", "--seconds", "0.5", "--launches", "2"]


def test_reports_are_written(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = [*ARGUMENTS, "-t", "ort-fp32,nonsense", "--html", "report.html", "--markdown", "report.md", "-q"]
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    text = Path("report.html").read_text()
    assert text.startswith("<!doctype html>") and text.count("<svg") >= 4
    assert "http://" not in text and "https://" not in text and "src=" not in text
    assert "| ort-fp32 | ok |" in Path("report.md").read_text()
    assert sorted(p.name for p in place.iterdir()) == ["fashion.bench", "report.html", "report.md"]


def test_json_is_all_there_is_on_stdout(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--also", "talks=" + double("Chatter"), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["schema"], facts["format"]) == (results.SCHEMA, results.FORMAT)
    assert [row["name"] for row in facts["rows"]] == ["original", "talks"]
    assert facts["rows"][0]["operators"][0]["op"] == "Conv"


def test_nothing_that_runs_is_exit_code_three(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "-t", "nonsense", "-q"]) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-t", "ort-fp32", "--batch", "many"], "--batch many: give whole numbers, such as 1,8,32"),
        (["-t", "ort-fp32", "--also", "model.onnx"], "is not NAME=FILE"),
        (["-t", "ort-fp32", "--html", "gone/report.html"], "cannot write 'gone/report.html'"),
    ],
)
def test_wrong_words_are_one_line(place: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    assert main([*ARGUMENTS, *more]) == 2
    out, err = capfd.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1
    assert list(place.iterdir()) == []


def test_a_missing_model_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-t", "ort-fp32"]) == 2
    assert "the model is missing" in capfd.readouterr().err


def test_an_interruption_keeps_what_was_measured(place: Path) -> None:
    """Ctrl-C reaches the whole group, as from a terminal."""
    argv = [*ARGUMENTS[:-4], "--seconds", "60", "--launches", "1", "--also", f"plain={MODEL}", "--json"]
    code = (  # what is started in the background of a shell ignores the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from optimizer.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv, "-v"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(15)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    facts = json.loads(out)
    assert facts["interrupted"]
    assert all(row["points"] for row in facts["rows"]), "rounds that were done are kept"


# ------------------------------------------------------------------ comparing


def result(**speeds: tuple[float, float, float]) -> dict[str, Any]:
    """A result with one point a row; the baseline takes 10 ms."""
    made = [results.row("original", "original")] + [results.row(name, name) for name in speeds]
    for row in made:
        samples = Samples([[[0.01] * 3] * 5] * 2, [[0.03] * 5] * 2)
        row["points"] = [results.point(Setting(), samples, None)]
        if row["name"] in speeds:
            low, middle, high = speeds[row["name"]]
            row["points"][0] |= {
                "p50_ms": 10 / middle,
                "ratio": {"low": low, "middle": middle, "high": high, "verdict": "faster"},
            }
    machine = {"cpu": "cpu", "cores": 2, "gpus": []}
    return {
        "schema": results.SCHEMA, "format": results.FORMAT, "rows": made, "machine": machine,
        "settings": {"threads": 0}, "model": {"sha256": "0"},
    }  # fmt: skip


def test_regressions_are_by_ratio_and_beyond_the_noise() -> None:
    old = result(a=(1.9, 2.0, 2.1), b=(1.9, 2.0, 2.1), c=(1.9, 2.0, 2.1), d=(1.9, 2.0, 2.1), e=(1.9, 2.0, 2.1))
    new = result(a=(1.4, 1.5, 1.6), b=(1.8, 1.9, 2.0), c=(1.88, 1.93, 1.95), d=(2.4, 2.5, 2.6))
    found = compare(old, new, 0.05)
    assert found["regressions"] == ["a"], "b overlaps, c is within five per cent, d is faster"
    assert found["missing"] == ["e"]
    assert {c["name"]: c["slower"] for c in found["changes"]}["a"] == pytest.approx(1 / 3, abs=1e-3)
    assert compare(old, new, 0.5)["regressions"] == []


def test_what_does_not_run_any_more_is_a_regression() -> None:
    old, new = result(a=(1.9, 2.0, 2.1)), result(a=(1.9, 2.0, 2.1))
    new["rows"][1]["points"] = []
    results.end(new["rows"][1], results.CRASHED, "its process died (SIGSEGV)")
    assert compare(old, new, 0.05)["regressions"] == ["a"]


def test_compare_exits_with_four(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text(json.dumps(result(a=(1.9, 2.0, 2.1))))
    Path("new.json").write_text(json.dumps(result(a=(1.4, 1.5, 1.6))))
    assert main(["bench", "--compare", "old.json", "new.json"]) == 4
    assert "REGRESSION" in capfd.readouterr().out
    assert main(["bench", "--compare", "old.json", "new.json", "--max-regression", "0.5"]) == 0
    assert main(["bench", "--compare", "old.json", "old.json", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.partition("\n{")[2].join(["{", ""]) or "{}")["regressions"] == []


@pytest.mark.parametrize(("text", "said"), [("{", "is no JSON"), ("{}", "is no result of"), (None, "cannot read")])
def test_what_is_no_result_is_refused(place: Path, capfd: pytest.CaptureFixture[str], text: str, said: str) -> None:
    Path("old.json").write_text(json.dumps(result()))
    if text is not None:
        Path("new.json").write_text(text)
    assert main(["bench", "--compare", "old.json", "new.json"]) == 2
    assert said in capfd.readouterr().err


# ------------------------------------------------------------------ energy


def test_energy_is_counted_over_the_counters_end(tmp_path: Path) -> None:
    zone, part = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"
    for folder in (zone, part):
        folder.mkdir()
        (folder / "max_energy_range_uj").write_text("1000000\n")
        (folder / "energy_uj").write_text("900000\n")
    with Meter(tmp_path) as meter:
        assert meter.joules() == 0
        (zone / "energy_uj").write_text("100000\n")
        assert meter.joules() == pytest.approx(0.2)
        (zone / "energy_uj").write_text("300000\n")
        assert meter.joules() == pytest.approx(0.4)
    with Meter(tmp_path / "none") as meter:
        assert meter.joules() is None


# ------------------------------------------------------------------ words


def test_a_page_escapes_what_it_is_given() -> None:
    taken = Taken({Setting(): Samples([[[0.01] * 3] * 5] * 2, [[0.03] * 5] * 2)})
    row = results.row("<b>&", "x")
    results.measured(row, taken, None)
    facts: dict[str, Any] = {
        "model": {"file": "<script>.onnx", "sha256": "0", "nodes": 1, "parameters": 1},
        "rows": [row], "interrupted": True, "command": "optimize bench '<x>'", "time": "now", "versions": {},
        "data": {"source": "<random>", "synthetic": True, "feeds": 1},
        "gate": {"metric": None}, "settings": {"baseline": "<b>&", "threads": 0, "launches": 2, "seconds": 1.0},
        "machine": {
            "cpu": "<cpu>", "arch": "x", "cores": 1, "flags": [], "gpus": [], "memory_bytes": 1, "system": "s",
            "virtual": False,
        },
    }  # fmt: skip
    text = page(facts)
    for wrong in ("<script>.onnx", "<b>&", "<random>", "<cpu>", "'<x>'"):
        assert wrong not in text
    assert "RANDOM" in text and "interrupted" in text
