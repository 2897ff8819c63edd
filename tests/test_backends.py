"""Backends keep their promises, the clock is fair, and the choice follows the numbers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from models import tiny
from optimizer import registry
from optimizer.backend import Timing, measure, ratio
from optimizer.choose import faster, pick
from optimizer.compare import compare
from optimizer.engine import Built, EngineOptions
from optimizer.errors import ModelError, UnavailableError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.fidelity import class_scores, make_gate
from optimizer.graph import Graph
from optimizer.io import load, save
from optimizer.judge import Variant
from tests.conftest import make


class Sleeper:
    """A session that takes a known time."""

    def __init__(self, seconds: float):
        self.seconds, self.calls = seconds, 0

    def run(self, feeds: Feeds) -> Feeds:
        self.calls += 1
        time.sleep(self.seconds)
        return feeds


def test_ort_runs_what_the_oracle_runs(tmp_path: Path) -> None:
    model = tiny.ALL["conv_bn_relu"]()
    graph, feeds = load(model), tiny.feeds(model)
    save(graph, tmp_path / "model.onnx")
    backend = registry.load_backend("ort")
    assert backend.available() is None
    built = backend.build(tmp_path / "model.onnx", tmp_path, EngineOptions())
    with backend.open(built, threads=1) as session:
        found = session.run(feeds)
    (difference,) = compare([(Evaluate(1)(graph, feeds), found)]).values()
    assert difference.within_rounding()
    assert difference.max_abs < 1e-4


def test_ort_gives_the_reason_for_a_refusal(tmp_path: Path) -> None:
    save(load(tiny.ALL["custom_domain"]()), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        registry.load_backend("ort").open(Built(tmp_path / "model.onnx")).__enter__()


def test_a_portable_file_has_no_session(tmp_path: Path) -> None:
    backend = registry.load_backend("onnx")
    assert not backend.runs(EngineOptions())
    built = backend.build(tmp_path / "model.onnx", tmp_path, EngineOptions())
    assert built == Built(tmp_path / "model.onnx")
    with pytest.raises(UnavailableError, match="ort-fp32"):
        backend.open(built)


def test_the_clock_runs_sessions_in_turns() -> None:
    slow, fast = Sleeper(0.004), Sleeper(0.001)
    times = measure({"slow": slow, "fast": fast}, [{}], seconds=30, rounds=10)
    assert slow.calls == fast.calls == 32
    assert len(times["slow"].seconds) == len(times["fast"].seconds) == 10
    assert 1.5 < ratio(times["slow"], times["fast"]) < 5


def test_the_clock_stops_but_not_before_five_rounds() -> None:
    times = measure({"a": Sleeper(0.01)}, [{}, {}], seconds=0.0)
    assert len(times["a"].seconds) == 5


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ([1.0] * 8, [0.9] * 8, True),
        ([1.0] * 8, [0.99] * 8, False),  # below the margin
        ([1.0] * 8, [0.5] * 5 + [2.0] * 3, False),  # the median says so, but five of eight rounds are chance
        ([1.0] * 80, [0.5] * 50 + [2.0] * 30, True),  # fifty of eighty are not
    ],
)
def test_faster_means_measurably_so(base: list[float], other: list[float], expected: bool) -> None:
    assert faster(Timing(tuple(base)), Timing(tuple(other))) is expected


def variants(**seconds: float) -> list[Variant]:
    made = [Variant(name, Graph.__new__(Graph), Path(), Path()) for name in seconds]
    for variant, taken in zip(made, seconds.values(), strict=True):
        variant.timing = Timing((taken,) * 8)
    return made


def test_the_fastest_that_passes_is_shipped() -> None:
    found = variants(original=1.0, float=0.9, static=0.5, dynamic=0.6)
    assert pick(found, None).shipped.scheme == "static"
    found[2].misses = "SQNR"
    assert pick(found, None).shipped.scheme == "dynamic"
    assert pick(found, None).reverted is None


@pytest.mark.parametrize(("slow", "shipped"), [(0.9, "float"), (0.95, "float"), (0.5, "static")])
def test_float_is_kept_where_int8_is_not_faster(slow: float, shipped: str) -> None:
    choice = pick(variants(original=1.0, float=0.9, static=slow), None)
    assert choice.shipped.scheme == shipped
    assert (choice.reverted is None) == (shipped == "static")


def test_the_reason_is_told() -> None:
    slower = pick(variants(original=1.0, float=0.5, static=1.0), None).reverted
    assert slower is not None
    assert (slower["reason"], slower["speedup"]) == ("slower", 0.5)
    found = variants(original=1.0, float=0.5, static=0.1)
    found[2].misses = "output 'y': SQNR 3.0 dB (limit 15)"
    reverted = pick(found, None).reverted
    assert reverted is not None
    assert reverted["reason"] == "fidelity"
    assert "SQNR 3.0 dB" in reverted["detail"]


def test_the_original_is_shipped_where_float_is_slower() -> None:
    choice = pick(variants(original=1.0, float=1.2), None)
    assert choice.shipped.scheme == "original"
    assert choice.reverted is not None
    assert choice.reverted["reason"] == "slower"


def test_a_forced_scheme_is_gated_but_not_timed() -> None:
    found = variants(original=1.0, float=0.5, static=2.0)
    assert pick(found, "static").shipped.scheme == "static"
    found[2].failed = "does not load"
    assert pick(found, "static").shipped.scheme == "float"
    assert pick(found, "float").reverted is None


@pytest.mark.parametrize(
    ("sqnr", "agreement", "said"),
    [
        (30.0, 0.5, ""),
        (60.0, 0.5, "SQNR 42.1 dB (limit 60)"),
        (30.0, 1.0, "same top-1 in 1 of 2 rows (limit 100.0%)"),
    ],
)
def test_limits(sqnr: float, agreement: float, said: str) -> None:
    reference = np.array([[1.0, 0.999], [1.0, 0.5]], np.float32)
    value = reference + np.array([[-0.01, 0.01], [0, 0]], np.float32)
    found = compare([({"y": reference}, {"y": value})])
    missed = make_gate(sqnr, agreement, None, 0.01).misses(found, {"y"}, None, None)
    assert said in missed
    assert bool(missed) == bool(said)


@pytest.mark.parametrize(("rows", "flips", "passes"), [(5, 1, True), (5, 2, False), (32, 4, True), (32, 5, False)])
def test_the_default_agreement_allows_for_chance(rows: int, flips: int, passes: bool) -> None:
    reference = np.tile(np.array([1.0, 0.999], np.float32), (rows, 1))
    value = reference.copy()
    value[:flips, 1] = 1.001
    found = compare([({"y": reference}, {"y": value})])
    assert (make_gate(None, None, None, 0.01).misses(found, {"y"}, None, None) == "") is passes
    assert make_gate(None, 0.95, None, 0.01).misses(found, {"y"}, None, None)


def test_a_metric_replaces_the_default_limits() -> None:
    gate = make_gate(None, None, lambda run: 0.5, 0.01)
    noise = compare([({"y": np.ones((1, 2), np.float32)}, {"y": np.zeros((1, 2), np.float32)})])
    assert gate.misses(noise, {"y"}, 0.50, 0.505) == ""
    assert "metric 0.48" in gate.misses(noise, {"y"}, 0.48, 0.5)


def test_broken_outputs_never_pass() -> None:
    gate = make_gate(None, None, lambda run: 0.5, 0.01)
    broken = compare([({"y": np.ones((1, 2), np.float32)}, {"y": np.full((1, 2), np.nan, np.float32)})])
    assert "NaN" in gate.misses(broken, set(), 0.5, 0.5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Softmax(x)", {"y"}),
        ("y = MatMul(x, w)", {"y"}),
        ("m = MatMul(x, w) y = Add(m, b)", {"y"}),
        ("m = MatMul(x, w) y = Identity(m)", {"y"}),
        ("y = Relu(x)", set()),
        ("m = Relu(x) y = Add(m, b)", set()),
    ],
)
def test_what_looks_like_class_scores(body: str, expected: set[str]) -> None:
    text = f"g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] b = {{1,2}}> {{ {body} }}"
    assert class_scores(make(text)) == expected
