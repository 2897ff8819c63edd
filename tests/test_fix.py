"""Binding inputs: what may be bound to what, what is said where it may not, and that branches really go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import optimizer
from models import zoo
from models.data import calibration
from models.fetch import ZooError
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.errors import DataError, PipelineError, UserError
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.io import load
from optimizer.manager import PassManager
from optimizer.pipeline import build, text
from optimizer.targets import SIMPLIFY
from tests.conftest import make

MODEL = """g (float[N,4] x, int8 rate, float[2,1] gain, bool[1] flag, float[N] free) => (float[N,4] y)
<float[2,4] w = {1,1,1,1,1,1,1,1}>
{ r = Cast<to = 1> (rate) f = Cast<to = 1> (flag) a = Mul (x, r) b = Mul (a, f) c = Mul (w, gain)
  d = ReduceSum (c) e = ReduceSum (free) h = Add (d, e) y = Add (b, h) }"""


def fix(graph: Graph, values: str, ctx: Context) -> int:
    return PassManager().run(build(f"fix{{values={values}}}"), graph, ctx)[0].count


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ("rate:-128", "rate", np.array(-128, np.int8)),
        ("gain:1e-3", "gain", np.full((2, 1), 1e-3, np.float32)),
        ("flag:true", "flag", np.array([True])),
        ("flag:0", "flag", np.array([False])),
    ],
)
def test_value_takes_the_inputs_dtype_and_shape(values: str, name: str, expected: np.ndarray, ctx: Context) -> None:
    graph = make(MODEL)
    assert fix(graph, values, ctx) == 1
    constant = graph.constants()[name + "_fixed"]
    found = graph.array(constant)
    assert found is not None and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert [t.name for t in graph.inputs] == ["x", "rate", "gain", "flag", "free"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("sr:16000", "finds no input 'sr'; the model has: x, rate, gain, flag, free"),
        ("rate:128", "'rate': 128 is no value of its type, int8"),
        ("rate:1.5", "'rate': 1.5 is no value of its type, int8"),
        ("gain:1e39", "'gain': 1e39 is no value of its type, float32"),
        ("flag:2", "'flag': 2 is no value of its type, bool"),
        ("free:1", "'free': its shape .* is not known in advance"),
    ],
)
def test_what_does_not_fit_is_refused(values: str, message: str, ctx: Context) -> None:
    graph = make(MODEL)
    with pytest.raises(UserError, match=message):
        fix(graph, values, ctx)


@pytest.mark.parametrize(
    ("values", "message"), [("rate", "takes input:value"), ("rate:1,rate:2", "binds an input twice")]
)
def test_what_does_not_read_is_refused(values: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build(f"fix{{values={values}}}")


def test_text_form_and_names_with_colons(ctx: Context) -> None:
    written = "fix{values=rate:0:3,x:-1.5}"
    assert text(build(written)) == written
    graph = make('<ir_version: 8, opset_import: ["": 17]> g (float "rate:0") => (float y) { y = Neg ("rate:0") }')
    assert fix(graph, "rate:0:3", ctx) == 1


def test_several_inputs_are_bound_at_once(ctx: Context) -> None:
    graph = make(MODEL)
    assert fix(graph, "rate:2,flag:true", ctx) == 2
    assert fix(graph, "rate:2,flag:true", ctx) == 0


def test_nothing_is_bound_by_default(ctx: Context) -> None:
    assert PassManager().run(build("fix"), make(MODEL), ctx)[0].count == 0


def test_default_that_callers_may_override_is_bound(ctx: Context) -> None:
    graph = make("g (float[2] x, float s) => (float[2] y) <float s = {2}> { y = Mul (x, s) }")
    assert "s" in graph.overridable
    assert fix(graph, "s:4", ctx) == 1
    assert ctx.evaluate(graph, {"x": np.ones(2, np.float32)})["y"].tolist() == [4, 4]


def test_data_that_says_otherwise_is_refused(ctx: Context) -> None:
    batches = [{"rate": np.array(8, np.int8)}, {"rate": np.array(16, np.int8)}]
    with pytest.raises(DataError, match=r"batch 2 .* 'rate' another value than 'fix' binds it to \(8\)"):
        fix(make(MODEL), "rate:8", replace(ctx, batches=batches))
    assert fix(make(MODEL), "rate:8", replace(ctx, batches=batches[:1])) == 1


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["silero-vad", "silero-vad-ifless"])
def test_rate_of_a_voice_detector(name: str, ctx: Context) -> None:
    try:
        graph, feeds = load(zoo.path(name)), [f for f in calibration(name, 40) if f["sr"] == 16000]
    except ZooError as reason:
        pytest.skip(str(reason))
    with ctx.evaluate.open(graph) as run:
        expected = [run(feed) for feed in feeds]
    PassManager().run(build(f"fix{{values=sr:16000}},{SIMPLIFY}"), graph, replace(ctx, batches=feeds))
    assert "sr" in [t.name for t in graph.inputs]
    assert not any(node.op == "If" for node in graph.walk())
    with ctx.evaluate.open(graph) as run:
        outputs = [run(feed) for feed in feeds]
    assert feeds
    assert all(d.within_rounding() for d in compare(zip(expected, outputs, strict=True)).values())


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("rate", "length", "reference"), [(16000, 576, "silero-vad-ifless"), (8000, 288, "silero-vad")]
)
def test_detector_loses_its_branches(rate: int, length: int, reference: str, tmp_path: Path) -> None:
    """Random audio and states, batches of one and of three, against the file that its makers wrote with fewer If.

    That one has other weights for 8 kHz, where the original is the reference.
    """
    try:
        path, own = zoo.path("silero-vad"), load(zoo.path(reference))
    except ZooError as reason:
        pytest.skip(str(reason))
    made = optimizer.optimize(path, target="onnx", out=tmp_path / "out", fixed={"sr": rate}, threads=1)
    graph = load(made.model)
    assert not any(node.op in ("If", "Shape") for node in graph.walk())
    rng, evaluate, sr = np.random.default_rng(0), Evaluate(threads=1), np.array(rate)
    with evaluate.open(graph) as run, evaluate.open(own) as theirs:
        for batch in (1, 3):
            sound = rng.normal(0, 0.3, (batch, length)).astype(np.float32)
            state = rng.normal(0, 1, (2, batch, 128)).astype(np.float32)
            feed = {"input": sound, "state": state, "sr": sr}
            for name, expected in theirs(feed).items():
                np.testing.assert_allclose(run(feed)[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
