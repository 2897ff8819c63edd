"""Calibration: histograms tell the truth about the data, in one pass, in constant memory, and survive a round trip."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.context import Context
from optimizer.errors import DataError, ModelError, PipelineError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.graph import Array, Graph
from optimizer.statistics import BINS, METHODS, Histogram, Statistics
from optimizer.targets import target
from passes.calibrate import Calibrate
from tests.conftest import make

EYE = "{1, 0, 0, 0,  0, 1, 0, 0,  0, 0, 1, 0,  0, 0, 0, 2}"
CHAIN = f"""g (float[N,4,H] x) => (float[N,4,H] y) <float[4,4,1] w = {EYE}, float three = {{3}}> {{
  a = Conv <kernel_shape=[1]> (x, w)
  b = Mul (a, three)
  y = Conv <kernel_shape=[1]> (b, w)
}}"""

POINTWISE = """g (float[N,M] x) => (float[N,M] y) <float three = {3}> {
  a = Mul(x, three)
  y = Relu(a)
}"""


def histogram(*arrays: Array) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add(array)
    return made


def context(*feeds: Feeds) -> Context:
    return Context(target("ort-int8"), Evaluate(threads=1), feeds, statistics=Statistics())


def test_extremes_are_exact_and_quantiles_within_a_bin() -> None:
    values = np.random.default_rng(0).normal(1, 2, 100_000).astype(np.float32)
    h = histogram(*np.split(values, 10))
    assert (h.low, h.high) == (values.min(), values.max())
    assert h.size == 100_000 and h.counts.sum() == 100_000 and h.batches == 10
    low, high = h.range("percentile", 99.0)
    width = 2 * h.limit / BINS
    assert low == pytest.approx(np.quantile(values, 0.005), abs=2 * width)
    assert high == pytest.approx(np.quantile(values, 0.995), abs=2 * width)


def test_doubling_the_range_loses_nothing() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(0, 0.1, 5000).astype(np.float32), rng.normal(0, 900, 5000).astype(np.float32)
    grown, wide = histogram(small, large), histogram(large, small)
    assert grown.limit == wide.limit >= np.abs(large).max()
    assert np.array_equal(grown.counts, wide.counts)


def test_zeros_first_and_empty_arrays() -> None:
    h = histogram(np.zeros(10, np.float32), np.zeros((0, 3), np.float32), np.array([-2.0, 4.0], np.float32))
    assert (h.low, h.high, h.zeros, h.size) == (-2.0, 4.0, 10, 12)
    assert h.range("mse")[1] > 0
    assert histogram(np.zeros(4, np.float32)).range("minmax") == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [0.0, 100.0, -100.0])
def test_every_method_contains_zero_and_stays_inside(method: str, shift: float) -> None:
    values = np.random.default_rng(2).normal(shift, 1, 10_000).astype(np.float32)
    low, high = histogram(values).range(method)
    assert min(0.0, values.min()) <= low <= 0.0 <= high <= max(0.0, values.max())
    assert high - low > 0.5


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_outliers_are_clipped(method: str) -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0, 1, 200_000), [60.0, -60.0]]).astype(np.float32)
    low, high = histogram(values).range(method)
    assert -50 < low < -1.5 and 1.5 < high < 50


def test_mse_has_the_least_error() -> None:
    values = np.random.default_rng(4).laplace(0, 1, 100_000).astype(np.float32)
    h = histogram(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        return float(np.mean((np.clip(np.rint((values - low) / step), 0, 255) * step + low - values) ** 2))

    errors = {m: error(*h.range(m)) for m in METHODS}
    assert errors["mse"] == min(errors.values())
    assert float(h.noise(*h.range("mse"))) == pytest.approx(errors["mse"], rel=0.1)
    signal = float(np.mean(values.astype(np.float64) ** 2))
    assert h.sqnr(*h.range("mse")) == pytest.approx(10 * math.log10(signal / errors["mse"]), abs=0.5)


def test_a_clipped_histogram_is_that_of_clipped_values() -> None:
    values = np.random.default_rng(5).normal(0, 4, 50_000).astype(np.float32)
    clipped = histogram(values).clip(-3.0, math.inf)
    truth = histogram(np.maximum(values, -3.0))
    assert (clipped.low, clipped.high) == (truth.low, truth.high)
    assert clipped.counts.sum() == truth.counts.sum()
    assert clipped.range("mse") == pytest.approx(truth.range("mse"), rel=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    statistics = Statistics()
    statistics.add("mask", np.array([1.0, bad], np.float32))
    with pytest.raises(DataError, match="'mask' holds NaN or infinity"):
        statistics.range("mask")
    with pytest.raises(ModelError, match=r"no range for 'other'.*calibrate"):
        statistics.range("other")


def test_saved_bytes_depend_on_contents_alone(tmp_path: Path) -> None:
    arrays = {n: np.random.default_rng(i).normal(size=100).astype(np.float32) for i, n in enumerate("abc")}
    files = []
    for order in ("abc", "cab"):
        statistics = Statistics("digest", 1)
        for name in order:
            statistics.add(name, arrays[name])
        statistics.save(tmp_path / f"{order}.npz")
        files.append((tmp_path / f"{order}.npz").read_bytes())
    assert files[0] == files[1]
    loaded = Statistics.load(tmp_path / "abc.npz")
    assert (loaded.data, loaded.batches, list(loaded)) == ("digest", 1, ["a", "b", "c"])
    for name in "abc":
        assert all(loaded.range(name, m) == statistics.range(name, m) for m in METHODS)
        assert loaded[name].finite is True


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_other_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "statistics.npz"
    if content is None:
        np.savez(path, counts=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"statistics\.npz' is not a statistics file"):
        Statistics.load(path)


def test_pass_sees_every_tensor_at_every_shape() -> None:
    feeds = [{"x": np.full((n, 4, h), n * h, np.float32)} for n, h in ((1, 3), (2, 5), (1, 1))]
    ctx = context(*feeds)
    graph = make(CHAIN)
    assert Calibrate().run(graph, ctx) == 0
    assert ctx.statistics is not None
    assert set(ctx.statistics) == {"x", "a", "b", "y"}
    assert ctx.statistics.range("b") == (0.0, 60.0)
    assert ctx.statistics["x"].size == 4 * (3 + 10 + 1)
    assert ctx.statistics.batches == 3 and len(ctx.statistics.data) == 64


@pytest.mark.parametrize("opset", [9, 10, 13, 18])
def test_what_the_graph_reduces_counts_as_what_is_fetched_whole(opset: int) -> None:
    """One dynamic dim, from nothing to several times the size of a sample."""
    rng = np.random.default_rng(0)
    feeds = [{"x": np.maximum(rng.normal(size=(3, n)), 0).astype(np.float32)} for n in (400_000, 7, 0, 100_001)]
    ctx, graph = context(*feeds), make(POINTWISE, opset)
    Calibrate().run(graph, ctx)
    assert ctx.statistics is not None and set(ctx.statistics) == {"x", "a", "y"}
    for name, found in ctx.statistics.items():
        expected = histogram(*[ctx.evaluate(graph, feed, [name])[name] for feed in feeds])
        assert np.array_equal(found.counts, expected.counts)
        assert replace(found, counts=expected.counts) == replace(expected, counts=expected.counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 500_000, -1])
def test_a_single_bad_value_in_a_large_tensor_is_noticed(bad: float, place: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, 600_000)).astype(np.float32)
    values.reshape(-1)[place] = bad
    ctx = context({"x": values})
    Calibrate().run(make(POINTWISE), ctx)
    assert ctx.statistics is not None
    with pytest.raises(DataError, match="'a' holds NaN or infinity"):
        ctx.statistics.range("a")


def test_numbers_whose_sum_overflows_are_finite() -> None:
    ctx = context({"x": np.full((2, 600_000), -1e38, np.float32)})
    Calibrate().run(make(POINTWISE), ctx)
    assert ctx.statistics is not None
    assert ctx.statistics.range("a")[0] == pytest.approx(-3e38)


def test_a_sample_weighs_as_much_as_the_whole() -> None:
    large, small = np.full(3_000_000, 2.0, np.float32), np.full(100_000, -1.0, np.float32)
    h = histogram(large, small)
    assert h.counts.sum() == pytest.approx(h.size, rel=1e-4)
    assert h.counts[: BINS // 2].sum() == 100_000


def test_a_batch_of_nothing_has_no_channel_means() -> None:
    numbers = ", ".join(["1"] * 256)
    graph = make(f"g (float[N,16] x) => (float[N,16] y) <float[16,16] w = {{ {numbers} }}> {{ y = Gemm(x, w) }}")
    ctx = context(*({"x": np.full((n, 16), n, np.float32)} for n in (2, 0, 4)))
    Calibrate().run(graph, ctx)
    assert ctx.statistics is not None
    mean = ctx.statistics.mean("x")
    assert mean is not None and mean.tolist() == [3.0] * 16


class Counting(Evaluate):
    """Counts the runs."""

    runs = 0

    @contextmanager
    def open(self, graph: Graph, fetch: Sequence[str] | None = None) -> Iterator[Run]:
        with super().open(graph, fetch) as run:

            def counted(feeds: Feeds) -> Feeds:
                self.runs += 1
                return run(feeds)

            yield counted


def test_the_model_runs_once_a_batch() -> None:
    counting = Counting(threads=1)
    feeds = [{"x": np.ones((1, 4, 300_000 + i), np.float32)} for i in range(3)]
    Calibrate().run(make(CHAIN), replace(context(*feeds), evaluate=counting))
    assert counting.runs == 3


def test_known_statistics_are_not_made_again() -> None:
    ctx = context({"x": np.ones((1, 4, 3), np.float32)})
    Calibrate().run(make(CHAIN), ctx)
    assert ctx.statistics is not None
    before = ctx.statistics.range("a")
    Calibrate().run(make(CHAIN), replace(ctx, batches=({"x": np.full((1, 4, 3), 9, np.float32)},)))
    assert ctx.statistics.range("a") == before


QUANTIZED = """g (float[N] x) => (float[N] y) <float s = {0.1}, uint8 z = {3}> {
  c = Constant<value_float=2.0>()  a = Exp(x)  m = Mul(a, c)  q = QuantizeLinear(m, s, z)
  d = DequantizeLinear(q, s, z)  i = Cast<to=7>(d)  f = Cast<to=1>(i)  y = Erf(f)
}"""


def test_all_means_every_float_that_is_computed_and_every_input() -> None:
    """Of quantized models too; neither constants, nor integers, nor half precision."""
    ctx = context({"x": np.ones(3, np.float32)}, {"x": np.zeros(2, np.float32)})
    Calibrate(of="all").run(make(QUANTIZED), ctx)
    assert ctx.statistics is not None and set(ctx.statistics) == {"x", "a", "m", "d", "f", "y"}
    assert (ctx.statistics["m"].low, ctx.statistics["m"].high) == (2.0, pytest.approx(2 * math.e))
    assert ctx.statistics["x"].size == 5


def test_all_after_int8_calibrates_again_and_int8_after_all_does_not() -> None:
    text = "g (float[N,4,H] x) => (float[N,4,H] y) { a = Relu(x) e = Exp(a) y = Erf(e) }"
    counting = Counting(threads=1)
    ctx = replace(context({"x": np.ones((1, 4, 3), np.float32)}), evaluate=counting)
    for of, runs in (("int8", 1), ("all", 2), ("all", 2), ("int8", 2)):
        Calibrate(of=of).run(make(text), ctx)  # type: ignore[arg-type]
        assert counting.runs == runs
    assert ctx.statistics is not None and set(ctx.statistics) == {"x", "a", "e", "y"}


def test_tensors_of_integers_are_not_missed() -> None:
    text = """g (float[N] x) => (float[N] y, int64[M] k) <int64[1] one = {1}> {
      y = Relu(x)  s = Shape(x)  k = Concat<axis = 0>(s, one)
    }"""
    ctx = context({"x": np.ones(3, np.float32)})
    Calibrate().run(make(text), ctx)
    assert ctx.statistics is not None and set(ctx.statistics) == {"x", "y"}
    Calibrate().run(make(text), replace(ctx, batches=()))  # which would raise if it wanted any data


def test_without_data_it_says_so() -> None:
    with pytest.raises(PipelineError, match="'calibrate' needs data"):
        Calibrate().run(make(CHAIN), context())


PEAK = """
import json, sys, numpy as np, resource
from dataclasses import dataclass
from optimizer.context import Context
from optimizer.evaluate import Evaluate
from optimizer.statistics import Statistics
from optimizer.targets import target
from passes.calibrate import Calibrate
from tests.conftest import make
from tests.test_calibrate import CHAIN, Batches
ctx = Context(target("ort-int8"), Evaluate(threads=1), Batches(int(sys.argv[1])), statistics=Statistics())
Calibrate().run(make(CHAIN), ctx)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([peak, ctx.statistics["y"].size]))
"""


class Batches:
    """Samples made on the way, 256 KiB each, of two alternating lengths."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        for i in range(self.count):
            shape = (1, 4, 16384 if i % 2 else 15000)
            yield {"x": np.random.default_rng(i).normal(size=shape).astype(np.float32)}


def test_peak_memory_does_not_depend_on_the_number_of_samples() -> None:
    found = []
    for count in (10, 1000):
        command = [sys.executable, "-c", PEAK, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        found.append(json.loads(done.stdout))
    (small, few), (large, many) = found
    assert many > 90 * few
    assert large < 1.05 * small


REDUCED = """
import json, numpy as np, resource
from optimizer.context import Context
from optimizer.evaluate import Evaluate
from optimizer.statistics import Statistics
from optimizer.targets import target
from passes.calibrate import Calibrate
from tests.conftest import make
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nodes = "".join(f"t{n + 1} = Mul(t{n}, c) " for n in range(40))
graph = make(f"g (float[N] t0) => (float[N] y) <float c = {{1.01}}> {{ {nodes} y = Relu(t40) }}")
feed = {"t0": np.random.default_rng(0).normal(size=4 << 20).astype(np.float32)}
ctx = Context(target("ort-int8"), Evaluate(threads=1), (feed,), statistics=Statistics())
ctx.evaluate(graph, feed)
plain = peak()
Calibrate().run(graph, ctx)
print(json.dumps([plain, peak(), len(ctx.statistics)]))
"""


def test_peak_memory_does_not_hold_every_tensor() -> None:
    """Forty tensors of 16 MiB each come as samples of 1 MiB, which the runtime and Python hold at the same time."""
    command = [sys.executable, "-c", REDUCED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    plain, reduced, tensors = json.loads(done.stdout)
    assert tensors == 42
    assert reduced - plain < 200 * 1024


def test_channel_means_survive_saving(tmp_path: Path) -> None:
    statistics = Statistics("digest", 2)
    statistics.add("x", np.ones(3, np.float32))
    for batch in ([1.0, 2.0], [3.0, 6.0]):
        statistics.add_mean("x", np.array(batch))
    statistics.add_mean("y", np.array([5.0]))
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert loaded.mean("z") is None
    for name, mean in (("x", [2.0, 4.0]), ("y", [5.0])):
        found = loaded.mean(name)
        assert found is not None
        assert found.tolist() == mean
