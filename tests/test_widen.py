"""Widening: real and tiny models of half precision compute the same in float32, valid, and say nothing of halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import data, tiny, zoo
from optimizer.api import optimize
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
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
