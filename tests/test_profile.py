"""Where the time goes: work counted from shapes, the roofline's bound, and what a runtime tells of a real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import fashion
from optimizer import roofline
from optimizer.backend import Kernel
from optimizer.cli import main
from optimizer.errors import UnavailableError
from optimizer.inspect import inspect
from optimizer.profile import profile
from optimizer.roofline import Peaks, bound, by_node, by_operator, macs, traffic

FOLDER = Path(fashion.__file__).parent
MODEL, DATA = FOLDER / "fashion.onnx", str(FOLDER / "calib" / "*.npz")
F = "float"


def kernel(
    op: str, inputs: list[tuple[int, ...]], output: tuple[int, ...], kinds: str = F, seconds: float = 1.0
) -> Kernel:
    return Kernel("n", op, seconds, [(kinds, shape) for shape in inputs], [(F, output)])


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (kernel("Conv", [(1, 8, 4, 4), (16, 8, 3, 3)], (1, 16, 4, 4)), 16 * 16 * 8 * 9),
        (kernel("Conv", [(1, 8, 4, 4), (8, 1, 3, 3)], (1, 8, 4, 4)), 16 * 8 * 9),
        (kernel("ConvTranspose", [(1, 8, 4, 4), (8, 16, 2, 2)], (1, 16, 8, 8)), 8 * 16 * 16 * 4),
        (kernel("MatMul", [(2, 5, 32), (32, 48)], (2, 5, 48)), 2 * 5 * 32 * 48),
        (kernel("MatMul", [(2, 4, 5, 16), (2, 4, 16, 5)], (2, 4, 5, 5)), 8 * 5 * 5 * 16),
        (kernel("Gemm", [(7, 32), (48, 32)], (7, 48)), 7 * 32 * 48),
        (kernel("Gemm", [(32, 7), (32, 48)], (7, 48)), 7 * 32 * 48),
        (kernel("QLinearConv", [(1, 8, 4, 4), (), (), (16, 8, 3, 3)], (1, 16, 4, 4), "uint8"), 16 * 16 * 8 * 9),
        (kernel("LSTM", [(5, 2, 12), (1, 40, 12), (1, 40, 10)], (5, 1, 2, 10)), 10 * (480 + 400)),
        (kernel("Relu", [(1, 8)], (1, 8)), None),
        (Kernel("n", "Conv", 1.0), None),
    ],
)
def test_work_is_counted_from_shapes(one: Kernel, expected: int | None) -> None:
    assert macs(one) == expected


def test_traffic_counts_everything_once() -> None:
    one = Kernel("n", "MatMul", 1.0, [("uint8", (4, 8)), ("float", (8, 2))], [("float", (4, 2))])
    assert traffic(one) == 32 + 64 + 32


def test_the_bound_is_by_work_or_by_memory_whichever_is_longer() -> None:
    peaks = Peaks(float32=1e9, int8=4e9, memory=1e9)
    heavy = kernel("MatMul", [(100, 100), (100, 100)], (100, 100))
    assert bound(heavy, peaks) == pytest.approx(1e6 / 1e9)
    assert bound(kernel("MatMulInteger", [(100, 100), (100, 100)], (100, 100), "uint8"), peaks) == pytest.approx(2.5e-4)
    light = kernel("Relu", [(1000, 1000)], (1000, 1000))
    assert bound(light, peaks) == pytest.approx(8e6 / 1e9)


def test_kernels_are_summed_up_the_slowest_first() -> None:
    kernels = [
        kernel("Relu", [(1, 4)], (1, 4), seconds=1.0),
        kernel("Conv", [(1, 1, 2, 2), (1, 1, 1, 1)], (1, 1, 2, 2), seconds=2.0),
    ]
    kernels.append(kernel("Relu", [(1, 4)], (1, 4), seconds=2.0))
    rows = by_operator(kernels)
    assert [(r["op"], r["count"], r["ms"], r["share"]) for r in rows] == [
        ("Relu", 2, 3000, 0.6),
        ("Conv", 1, 2000, 0.4),
    ]
    assert [r["ms"] for r in by_node(kernels)] == [2000, 2000, 1000]


def test_the_machines_best_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIDE", 64)
    monkeypatch.setattr(roofline, "STREAM", 1 << 12)
    first = roofline.peaks(1, tmp_path, lambda *_: None)
    assert min(first.float32, first.int8, first.memory) > 1e6
    assert roofline.peaks(1, tmp_path, lambda *_: None) == first
    (tmp_path / "peaks.json").write_text("{")
    assert roofline.peaks(1, tmp_path, lambda *_: None) != first


def test_a_real_models_work_is_what_inspect_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused by the runtime, weights packed: the work is the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roofline, "SIDE", 64)
    monkeypatch.setattr(roofline, "STREAM", 1 << 12)
    facts = profile(MODEL, data=DATA, threads=1)
    one = inspect(MODEL)
    batch = 4  # of a feed
    assert sum(row["macs"] for row in facts["operators"]) == pytest.approx(batch * one["macs"], rel=1e-6)
    assert facts["operators"][0]["op"] == "Conv"
    assert sum(row["share"] for row in facts["operators"]) == pytest.approx(1, abs=0.01)
    assert facts["bound_ms"] > 0


def test_the_command_prints_operators_and_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["profile", str(MODEL), "--data", DATA, "--threads", "1", "-q"]
    assert main([*argv, "-t", "ort-fp32", "--top", "3"]) == 0
    out = capfd.readouterr().out
    assert "GMAC/s" in out and "left to win" in out and "Conv" in out
    assert main([*argv, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["schema"] == "onnx-optimize/profile"


def test_what_cannot_be_profiled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError, match="a file for any runtime"):
        profile(MODEL, target="onnx", data=DATA, threads=1)
    assert main(["profile", str(MODEL), "-t", "nonsense", "--data", DATA, "-q"]) == 2
