"""Mixed precision: what stays in float32 and why, few Casts, models that any runtime takes, values that hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from models import data, zoo
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.evaluate import Evaluate, Feeds, session
from optimizer.graph import Graph
from optimizer.instrument import Verify
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.plan import is_lossy
from optimizer.shapes import infer
from optimizer.statistics import Statistics
from optimizer.targets import SIMPLIFY, target
from tests.conftest import make, model

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
CONV = "pads=[1,1,1,1]"
SHAPE = (2, 32, 8, 8)


def net(nodes: str, opset: int = 17, extra: str = "", **weights: tuple[int, ...]) -> Graph:
    """A graph from x to y, both float32 [N,32,8,8], with normal weights of the shapes given, scaled to keep values."""
    made = model(f"g (float[N,32,8,8] x) => (float[N,32,8,8] y) {extra} {{ {nodes} }}", opset)
    for seed, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(seed).normal(0, 1 / np.sqrt(np.prod(shape[1:]) or 1), shape)
        made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return load(made)


def feeds(count: int = 2, shape: tuple[int, ...] = SHAPE, scale: float = 1.0) -> list[Feeds]:
    rng = np.random.default_rng(7)
    return [{"x": (scale * rng.normal(size=shape)).astype(np.float32)} for _ in range(count)]


def context(batches: list[Feeds]) -> Context:
    return Context(target("onnx"), Evaluate(threads=1), batches, statistics=Statistics())


def cast(graph: Graph, options: str = "", batches: list[Feeds] | None = None) -> int:
    """Casts in place, checked: valid with types inferred strictly, and nothing left to do; returns the count."""
    ctx = context(feeds() if batches is None else batches)
    count = PassManager([Verify()]).run(build(f"calibrate{{of=all}},cast{options}"), graph, ctx)[-1].count
    valid(graph)
    assert PassManager([Verify()]).run(build(f"cast{options}"), graph, ctx)[-1].count == 0
    return count


def valid(graph: Graph) -> onnx.ModelProto:
    made = to_model(graph)
    onnx.checker.check_model(made, full_check=True)
    onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    return made


def halves(graph: Graph) -> list[str]:
    """Operators whose results are in half precision, but Casts."""
    infer(graph)
    made = [n for n in graph.walk() if any(t.dtype is not None and t.dtype.itemsize == 2 for t in n.outputs)]
    return [n.op for n in made if n.op != "Cast"]


def casts(graph: Graph) -> int:
    return Counter(n.op for n in graph.walk())["Cast"]


def worst(graph: Graph, changed: Graph, batches: list[Feeds]) -> float:
    """The lowest SQNR of an output, in dB, every half-precision result rounded."""
    simulated = changed.copy()
    PassManager([Verify()]).run(build("widen{round=true}"), simulated, context([]))
    evaluate = Evaluate(threads=1)
    with evaluate.open(graph) as reference, evaluate.open(simulated) as run:
        found = compare((reference(feed), run(feed)) for feed in batches)
    assert not any(d.broken for d in found.values()), found
    return min(d.sqnr for d in found.values())


TWO = f"a = Conv<{CONV}>(x, w) r = Relu(a) y = Conv<{CONV}>(r, v)"
WEIGHTS = {"w": (32, 32, 3, 3), "v": (32, 32, 3, 3)}


def test_convolutions_compute_in_half_precision() -> None:
    graph = net(TWO, **WEIGHTS)
    changed = graph.copy()
    assert cast(changed) == 3
    assert halves(changed) == ["Conv", "Relu", "Conv"] and casts(changed) == 2
    assert {t.data_type for t in to_model(changed).graph.initializer} == {TensorProto.FLOAT16}
    assert 50 < worst(graph, changed, feeds()) < 90, "values are rounded, but not by much"
    session(to_model(changed).SerializeToString(), threads=1).run(None, feeds()[0])


def test_equal_models_become_equal_files() -> None:
    files = []
    for _ in range(2):
        graph = net(TWO, **WEIGHTS)
        cast(graph)
        files.append(to_model(graph).SerializeToString(deterministic=True))
    assert files[0] == files[1]


def test_it_counts_as_lossy() -> None:
    assert is_lossy(build("cast"))


def test_float16_needs_ranges_and_bfloat16_does_not() -> None:
    graph = net(TWO, opset=22, **WEIGHTS)
    with pytest.raises(PipelineError, match=r"'cast' needs the range .* put 'calibrate\{of=all\}' before"):
        PassManager().run(build("cast"), graph, context([]))
    assert PassManager([Verify()]).run(build("cast{to=bf16}"), graph, context([]))[0].count == 3
    assert {t.data_type for t in valid(graph).graph.initializer} == {TensorProto.BFLOAT16}
    assert worst(net(TWO, opset=22, **WEIGHTS), graph, feeds()) > 35


def test_a_model_without_float32_needs_no_ranges() -> None:
    graph = make("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }")
    assert PassManager([Verify()]).run(build("cast"), graph, context([]))[0].count == 0


def test_an_older_operator_set_has_no_bfloat16_convolution() -> None:
    graph = net(TWO, opset=17, **WEIGHTS)
    assert PassManager([Verify()]).run(build("cast{to=bf16}"), graph, context([]))[0].count == 0
    graph.name_nodes()
    PassManager().run(build("cast{to=bf16}"), graph, context([]))
    assert set(graph.notes.values()) == {"no bf16: Conv of operator set 17 has no bf16 form"}


def test_bodies_are_cast_where_no_range_is_needed() -> None:
    text = f"""c = Cast<to=9>(flag)
      b = If(c) <
        then_branch = yes () => (float[N,32,8,8] p) {{ p1 = Conv<{CONV}>(x, w) p2 = Relu(p1) p = Conv<{CONV}>(p2, v) }},
        else_branch = no () => (float[N,32,8,8] q) {{ q1 = Conv<{CONV}>(x, w) q2 = Relu(q1) q = Conv<{CONV}>(q2, v) }}
      >
      y = Conv<{CONV}>(b, w)"""
    graph = net(text, opset=22, extra="<float flag = {1}>", **WEIGHTS)
    changed = graph.copy()
    PassManager([Verify()]).run(build("cast{to=bf16}"), changed, context([]))
    valid(changed)
    assert halves(changed).count("Conv") == 5
    assert worst(graph, changed, feeds()) > 30


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = Conv<pads=[1,1,1,1]>(big, w)", "'big' reaches"),
        ("y = Conv<pads=[1,1,1,1]>(nan, w)", "'nan' holds NaN or infinity"),
        ("y = Conv<pads=[1,1,1,1]>(tiny, w)", "'tiny' stays below"),
        ("y = Conv<pads=[1,1,1,1]>(x, large)", "constant 'large' is too large for fp16"),
        ("y = Conv<pads=[1,1,1,1]>(x, lost)", "constant 'lost' loses precision in fp16"),
        ("y = Conv<pads=[1,1,1,1]>(x, w)", "it was asked to stay"),
    ],
)
def test_the_reason_for_float32_is_noted(node: str, reason: str) -> None:
    graph = net(
        f"a = Conv<{CONV}>(x, w) big = Mul(a, most) nan = Div(a, none) tiny = Mul(a, least) {node}",
        extra="<float most = {60000}, float none = {0}, float least = {1e-6}>",
        **WEIGHTS,
        large=(32, 32, 3, 3),
        lost=(32, 32, 3, 3),
    )
    last = graph.nodes[-1]
    for name, scale in (("large", 1e7), ("lost", 1e-8)):
        if last.inputs[1].name == name and (values := graph.array(last.inputs[1])) is not None:
            graph.set_input(last, 1, graph.constant(values * np.float32(scale), name))
            last.inputs[1].name = name
    last.name = "last"
    options = "{keep=last}" if "asked" in reason else ""
    PassManager().run(build(f"calibrate{{of=all}},cast{options}"), graph, context(feeds()))
    assert reason in graph.notes["last"]


def test_a_divisor_that_may_be_tiny_keeps_its_division() -> None:
    """The smallest float16 is 6e-8; on the calibration data the divisor goes from 1e-9 to 1."""
    text = f"a = Conv<{CONV}>(x, w) s = Sigmoid(a) p = Mul(s, s) d = Div(%s, %s) y = Conv<{CONV}>(d, v)"
    safe = net(text.replace("p = Mul(s, s)", "p = Add(s, one)") % ("a", "p"), extra="<float one = {1}>", **WEIGHTS)
    tiny = net(text % ("s", "p"), **WEIGHTS)
    cast(safe)
    cast(tiny, batches=feeds(scale=10))
    assert "Div" in halves(safe) and "Div" not in halves(tiny)


def test_integers_stay_what_they_are() -> None:
    """Scales that are numbers of float16 follow, and no Cast comes between a DequantizeLinear and its reader."""
    codes = numpy_helper.from_array(
        np.random.default_rng(0).integers(-127, 128, (32, 32, 3, 3)).astype(np.int8), "codes"
    )
    made = model(
        f"""<ir_version: 10, opset_import: ["" : 19]> g (float[N,32,8,8] x) => (float[N,32,8,8] y)
        <float s = {{0.0625}}, float t = {{0.001953125}}, int8 z = {{0}}> {{
          k = DequantizeLinear(codes, t)
          a = Conv<{CONV}>(x, k)
          r = Tanh(a)
          q = QuantizeLinear(r, s, z)
          d = DequantizeLinear(q, s, z)
          b = Conv<{CONV}>(d, k)
          u = Tanh(b)
          y = Conv<{CONV}>(u, k)
        }}"""
    )
    made.graph.initializer.append(codes)
    graph = load(made)
    changed = graph.copy()
    assert cast(changed) == 8
    assert worst(graph, changed, feeds()) > 25
    shared = {t.name: t for t in to_model(changed).graph.initializer}
    assert sorted(t.data_type for t in shared.values()) == [
        TensorProto.INT8, TensorProto.INT8, TensorProto.FLOAT16, TensorProto.FLOAT16,
    ]  # fmt: skip

    odd = load(made)
    for node in odd.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1].name == "s":
            odd.set_input(node, 1, odd.constant(np.array(0.1, np.float32), "odd"))
    cast(odd)
    readers = [n for n in odd.walk() if n.inputs and n.inputs[0].inputs and n.inputs[0].inputs[0].op.startswith("Deq")]
    assert readers and all(n.op == "Conv" for n in readers)
    assert "QuantizeLinear" not in halves(odd)


def test_quantized_values_beyond_the_range_stay_in_float32() -> None:
    """The range of a DequantizeLinear is known without statistics: its codes times its scale."""
    graph = net(
        f"a = Conv<{CONV}>(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Conv<{CONV}>(d, v)",
        opset=19,
        extra="<float s = {512}, int8 z = {0}>",
        **WEIGHTS,
    )
    seen = Statistics(batches=2)
    for name in ("x", "a", "y"):
        seen.add(name, np.array([-1, 1], np.float32))
    PassManager([Verify()]).run(build("cast{force=true}"), graph, replace(context([]), statistics=seen))
    assert halves(graph) == ["Conv"]


def test_half_precision_in_the_model_is_respected() -> None:
    text = """g (float16[N,256] x) => (float16[N,256] y) {
      a = MatMul(x, w)  f = Cast<to=1>(a)  m = MatMul(f, v)  e = Exp(m)  h = Cast<to=10>(e)  y = MatMul(h, w)
    }"""
    made = model(text)
    rng = np.random.default_rng(0)
    for name, dtype in (("w", np.float16), ("v", np.float32)):
        values = rng.normal(0, 1 / 32, (256, 256)).astype(dtype)
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    graph = load(made)
    x = [{"x": rng.normal(size=(4, 256)).astype(np.float16)}]
    changed = graph.copy()
    assert cast(changed, batches=x) == 1
    assert [n.op for n in changed.nodes] == ["MatMul", "MatMul", "Cast", "Exp", "Cast", "MatMul"]
    assert worst(graph, changed, x) > 45


MODELS = {"pplcnet-orientation": (2, 60), "ppocr-rec": (20, 45), "minilm-l3": (9, 45), "magika": (8, 50)}


@pytest.mark.zoo
@pytest.mark.parametrize("name", MODELS)
def test_real_models(name: str) -> None:
    """Few Casts, every weighted operator in half precision, and no value lost on what it was calibrated with."""
    try:
        graph, batches = load(zoo.path(name)), data.calibration(name, 2)
    except zoo.ZooError as reason:
        pytest.skip(str(reason))
    PassManager().run(build(f"{SIMPLIFY},opset{{min=13}},cleanup"), graph, context(batches))
    changed = graph.copy()
    assert cast(changed, batches=batches) > 30
    most, least = MODELS[name]
    assert casts(changed) <= most
    weighted = [n for n in changed.walk() if n.op in ("Conv", "MatMul", "Gemm")]
    infer(changed)
    assert all(t.dtype == np.float16 for n in weighted for t in n.outputs)
    session(to_model(changed).SerializeToString(), threads=1)
    assert worst(graph, changed, batches) > least


@pytest.mark.zoo
def test_a_real_model_that_is_in_half_precision_already() -> None:
    try:
        graph, batches = load(zoo.path("isnet-fp16")), data.calibration("isnet-fp16", 1)
    except zoo.ZooError as reason:
        pytest.skip(str(reason))
    PassManager().run(build(f"{SIMPLIFY},opset{{min=13}},cleanup"), graph, context(batches))
    before = casts(graph)
    cast(changed := graph.copy(), batches=batches)
    assert casts(changed) < before
