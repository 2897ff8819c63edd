"""Widening: real and tiny models of half precision compute the same in float32, valid, and say nothing of halves."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import data, tiny, zoo
from optimizer.api import optimize
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Graph
from optimizer.instrument import Verify
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.plan import is_lossy
from optimizer.targets import target
from tests.conftest import make
from tests.passes import ops

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widen(graph: Graph, passes: str = "widen") -> int:
    """The count of a checked run of the pass; a second one finds nothing to do."""
    ctx = Context(target("onnx"), Evaluate(threads=1))
    count = PassManager([Verify()]).run(build(passes), graph, ctx)[0].count
    onnx.checker.check_model(to_model(graph), full_check=True)
    assert PassManager([Verify()]).run(build("widen"), graph, ctx)[0].count == 0
    return count


def halves(model: onnx.ModelProto) -> list[str]:
    """What is left in half precision inside: initializers, and values as inference sees them."""
    found = [t.name for t in model.graph.initializer if t.data_type in HALVES]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return found + [v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type in HALVES]


def worst(graph: Graph, widened: Graph, feeds: list[Feeds]) -> float:
    """The lowest SQNR of an output, in dB; types and shapes must be the same."""
    evaluate = Evaluate(threads=2)
    found = compare((evaluate(graph, feed), evaluate(widened, feed)) for feed in feeds)
    assert not any(d.broken for d in found.values())
    return min(d.sqnr for d in found.values())


def test_tiny_half() -> None:
    model = tiny.ALL["half"]()
    graph = load(model)
    assert widen(widened := graph.copy(), "widen,cleanup") == 3  # two weights and the Cast to half precision
    assert ops(widened) == ["Conv", "Relu"]
    assert halves(to_model(widened)) == []
    assert worst(graph, widened, [tiny.feeds(model, seed) for seed in range(3)]) > 50
    assert to_model(graph).SerializeToString() == to_model(load(model)).SerializeToString(), "the copied model changed"


def test_a_copy_of_a_loop_leaves_the_original_alone() -> None:
    text = """g (float16[4] x, bool go) => (float16[4] y) <int64 n = {2}> {
      y = Loop(n, go, x) <body = inside (int64 i, bool a, float16[4] p) => (bool b, float16[4] q)
        { b = Identity(a) q = Add(p, p) }>
    }"""
    graph = make(text)
    before = to_model(graph).SerializeToString()
    assert widen(widened := graph.copy()) == 2
    assert to_model(graph).SerializeToString() == before
    assert worst(graph, widened, [{"x": np.ones(4, np.float16), "go": np.array(True)}]) > 50


def test_bfloat16_becomes_runnable() -> None:
    """ONNX Runtime computes no bfloat16 on a CPU; in float32 the values are those of the rounded weights."""
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, w.shape, w.reshape(-1))
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y) {
      h = Cast<to = 16>(x)  m = MatMul(h, w)  y = Cast<to = 1>(m)
    }""")
    model.graph.initializer.append(weight)
    graph = load(model)
    assert widen(graph) == 2
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    rounded = np.asarray(numpy_helper.to_array(weight), np.float32)
    assert np.allclose(Evaluate(threads=1)(graph, {"x": x})["y"], x @ rounded, rtol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        "a = EyeLike<dtype = 10>(x)",
        "a = RandomNormalLike<dtype = 10>(x)",
        "s = Shape(x)  a = ConstantOfShape<value = float16[1] {15360}>(s)",
        "b = Bernoulli<dtype = 10>(x)  a = Neg(b)",
        "l = SequenceEmpty<dtype = 10>()  h = Cast<to = 10>(x)  m = SequenceInsert(l, h)"
        "  a = ConcatFromSequence<axis = 0>(m)",
    ],
)
def test_every_attribute_that_names_a_type(node: str) -> None:
    graph = make(f"g (float[2,2] x) => (float[2,2] y) {{ {node}  y = Cast<to = 1>(a) }}")
    assert widen(graph) > 0
    assert halves(to_model(graph)) == []


def test_a_type_in_an_attribute_of_its_own_is_left_alone() -> None:
    graph = make("""g (float[2] x) => (float[2] y) {
      h = Cast<to = 10>(x)  o = Optional(h)  a = OptionalGetElement(o)  y = Cast<to = 1>(a)
    }""")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT16, [2])
    node = next(n for n in graph.nodes if n.op == "Optional")
    node.attrs["type"] = helper.make_attribute("type", kind)
    assert widen(graph) == 0


def test_it_counts_as_lossy() -> None:
    assert is_lossy(build("widen"))


def test_a_widened_model_is_not_taken_for_an_int8_one(tmp_path: Path) -> None:
    made = optimize(tiny.ALL["half"](), target="ort-int8", data="random:4", out=tmp_path / "out", threads=1).manifest
    assert made["shipped"] in ("original", "float")
    nothing = [c["scheme"] for c in made["candidates"] if "finds nothing" in (c["reason"] or "")]
    assert nothing == ["hybrid", "static", "dynamic"]


ROUNDED = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
VALUES = np.array([1.0001, np.pi, 2049, 65519, 65520, 1e38, 1e-9, 5e-8, -0.1, 3.39e38, np.inf, -7], np.float32)


@pytest.mark.parametrize("code", ROUNDED)
def test_results_are_rounded_for_real(code: int) -> None:
    """In the oracle, against numpy and ml_dtypes: the runtime must not take a Cast and the one back for nothing."""
    graph = make(f"""g (float[N] x) => (float[N] n, float[N] m) {{
      h = Cast<to = {code}>(x)  a = Neg(h)  b = Mul(a, a)  c = Sub(b, h)
      n = Cast<to = 1>(a)  m = Cast<to = 1>(c)
    }}""")
    assert widen_rounding(graph) > 0
    found = Evaluate(threads=1)(graph, {"x": VALUES})
    with np.errstate(all="ignore"):

        def rounded(values: Array) -> Array:
            return values.astype(ROUNDED[code]).astype(np.float32)

        h = rounded(VALUES)
        assert np.array_equal(found["n"], -h)
        assert np.array_equal(found["m"], rounded(rounded(h * h) - h), equal_nan=True)
    assert not np.isfinite(found["m"]).all() and not np.array_equal(h, VALUES)


def test_what_overflows_half_precision_is_infinite_although_the_runtime_hides_it() -> None:
    """ONNX Runtime keeps float32 between operators that it has no half-precision kernels for."""
    graph = make("""g (float[N,4] x) => (float[N,4] y) {
      h = Cast<to = 10>(x)  a = Exp(h)  s = Sqrt(a)  y = Cast<to = 1>(s)
    }""")
    x = {"x": np.full((1, 4), 12, np.float32)}
    evaluate = Evaluate(threads=1)
    assert widen_rounding(rounding := graph.copy()) > 0
    assert np.isinf(evaluate(rounding, x)["y"]).all()
    assert np.allclose(widened_outputs(graph, x)["y"], np.exp(6), rtol=1e-2), "plain widening computes on"


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_scales_and_biases_of_quantized_models_are_widened_exactly(kind: str) -> None:
    code = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[kind]
    scale = np.array([0.1, 0.07, 3e-5, 1.5], np.float32).astype(ROUNDED[code])
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 19]> g (float[4] x) => (float[4] y) {{
      h = Cast<to = {code}>(x)  q = QuantizeLinear<axis = 0>(h, s, z)  d = DequantizeLinear<axis = 0>(q, s, z)
      y = Cast<to = 1>(d)
    }}""")
    model.graph.initializer.append(helper.make_tensor("s", code, [4], scale.astype(np.float32)))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int8), "z"))
    graph = load(model)
    assert widen_rounding(graph) > 0
    x = np.array([3.3, -1, 2e-3, 900], np.float32)
    wide = scale.astype(np.float32)
    codes = np.clip(np.rint(x.astype(ROUNDED[code]).astype(np.float32) / wide), -128, 127)
    expected = (codes * wide).astype(ROUNDED[code]).astype(np.float32)
    assert np.array_equal(Evaluate(threads=1)(graph, {"x": x})["y"], expected)


def test_movement_needs_no_rounding() -> None:
    graph = make("""g (float16[2,4] x) => (float16[8] y) <int64[1] n = {-1}, int64[1] start = {0}, int64[1] end = {4}> {
      t = Transpose(x)  c = Concat<axis = 0>(t, t)  s = Slice(c, start, end)  r = Relu(s)  y = Reshape(r, n)
    }""")
    widen_rounding(graph)
    assert ops(graph) == ["Cast", "Transpose", "Concat", "Slice", "Relu", "Reshape", "Cast"]


def widen_rounding(graph: Graph) -> int:
    ctx = Context(target("onnx"), Evaluate(threads=1))
    count = PassManager([Verify()]).run(build("widen{round=true}"), graph, ctx)[0].count
    onnx.checker.check_model(to_model(graph), full_check=True)
    assert PassManager([Verify()]).run(build("widen{round=true}"), graph, ctx)[0].count == 0
    return count


def widened_outputs(graph: Graph, feed: Feeds) -> Feeds:
    widen(widened := graph.copy())
    return Evaluate(threads=1)(widened, feed)


@pytest.mark.zoo
def test_isnet() -> None:
    try:
        graph = load(zoo.path("isnet-fp16"))
        feeds = data.calibration("isnet-fp16", 1)
    except zoo.ZooError as reason:
        pytest.skip(str(reason))
    assert widen(widened := graph.copy(), "widen,cleanup") > 238
    assert "Cast" not in ops(widened) and halves(to_model(widened)) == []
    assert worst(graph, widened, feeds) > 40
