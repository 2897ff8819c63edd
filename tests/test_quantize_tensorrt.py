"""int8 for TensorRT: scales, weights, what stays in float and why, and what TensorRT's own parser makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models import zoo
from models.data import calibration
from models.metrics import evaluate
from models.zoo import ZooError
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Graph
from optimizer.instrument import Verify
from optimizer.io import load, save, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.statistics import Histogram, Statistics
from optimizer.targets import SIMPLIFY, target
from passes.quantize.sensitivity import relieve, scores
from passes.quantize.tensorrt.scales import Rest, peak, quantize_weights, representable
from tests.conftest import model

RAISE = f"{SIMPLIFY},opset{{min=19}},widen,cleanup"
CONV = "kernel_shape=[3,3], pads=[1,1,1,1]"


def parsed(text: str, opset: int = 19, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model from text, with normal weights by name."""
    made = model(text, opset)
    for seed, (name, dims) in enumerate(weights.items()):
        values = np.random.default_rng(seed).normal(0, 1 / np.sqrt(np.prod(dims[1:]) or 1), dims)
        made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return made


def feeds_for(made: onnx.ModelProto, count: int = 3) -> list[Feeds]:
    rng, constants = np.random.default_rng(9), {t.name for t in made.graph.initializer}
    shapes = {
        v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim]
        for v in made.graph.input
        if v.name not in constants
    }
    return [{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


def quantized(
    made: onnx.ModelProto | Path, feeds: Sequence[Feeds], options: str = "", before: str = "cleanup"
) -> Graph:
    graph = load(made)
    ctx = Context(target("onnx"), Evaluate(threads=1), list(feeds), statistics=Statistics())
    passes = f"{before},calibrate{{of=all}},quantize{{scheme=tensorrt {options}}}"
    PassManager([Verify()]).run(build(passes), graph, ctx)
    return graph


def sqnr(made: onnx.ModelProto, graph: Graph, feeds: Sequence[Feeds]) -> float:
    with Evaluate(threads=1).open(load(made)) as reference, Evaluate(threads=1).open(graph) as run:
        return min(d.sqnr for d in compare((reference(f), run(f)) for f in feeds).values())


def scales(graph: Graph) -> dict[str, Array]:
    """The scale of every Q and DQ, by the name of what it is of."""
    found = {}
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            value = graph.array(node.inputs[1])
            assert value is not None
            found[node.inputs[0].name] = value
    return found


def in_int8(graph: Graph) -> set[str]:
    """The weighted operators both of whose operands come out of a DQ."""
    return {
        n.name
        for n in graph.nodes
        if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and all(t.inputs and t.inputs[0].op == "DequantizeLinear" for t in n.inputs[:2])
    }


PLAIN = f"""g (float[N,32,6,6] x) => (float[N,32,6,6] y) {{
  [first] a = Conv <{CONV}> (x, wa)
  b = Relu (a)
  [second] y = Conv <{CONV}> (b, wy)
}}"""


@pytest.fixture
def plain() -> onnx.ModelProto:
    return parsed(PLAIN, wa=(32, 32, 3, 3), wy=(32, 32, 3, 3))


# ---------------------------------------------------------------------- scales


@pytest.mark.parametrize("rest", ["fp16", "bf16", "fp32"])
def test_scales_are_the_next_numbers_of_their_type(rest: Rest) -> None:
    wanted = np.exp(np.random.default_rng(0).uniform(-8, 8, 1000))
    made = representable(wanted, rest)
    assert made.dtype == np.float32 and np.all(made >= wanted)
    assert np.all(made <= wanted * (1 + {"fp16": 2**-10, "bf16": 2**-7, "fp32": 2**-23}[rest]))
    if rest == "fp16":
        np.testing.assert_array_equal(made.astype(np.float16).astype(np.float32), made)
    if rest == "bf16":
        assert not np.any(made.view(np.uint32) & 0xFFFF)
    np.testing.assert_array_equal(representable(made, rest), made)


def test_no_scale_is_subnormal() -> None:
    assert representable(np.array([1e-7, 0.0]), "fp16").tolist() == [2.0**-14, 1.0]
    assert representable(np.array([1e-42]), "bf16").tolist() == [2.0**-126]


def test_the_peak_of_least_error_leaves_out_an_outlier() -> None:
    values = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32)
    values[0] = 100
    histogram = Histogram()
    histogram.add(values)
    assert peak(histogram, "minmax") == 100
    least = peak(histogram, "mse")
    assert 3 < least < 80
    error = {
        p: np.mean((np.clip(np.rint(values / p * 127), -127, 127) * p / 127 - values) ** 2) for p in (least, 100.0)
    }
    assert error[least] < error[100.0]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weights_are_symmetric(axis: int | None) -> None:
    values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    codes, steps = quantize_weights(values, axis, "fp16")
    assert codes.dtype == np.int8 and np.abs(codes).max() == 127
    assert steps.shape == (() if axis is None else (values.shape[axis],))
    wide = steps if axis is None else np.expand_dims(steps, 1 - axis)
    assert np.all(np.abs(codes * wide - values) <= wide * 0.501)


@pytest.mark.parametrize("rest", ["fp16", "bf16", "fp32"])
def test_every_scale_suits_the_rest(plain: onnx.ModelProto, rest: Rest) -> None:
    feeds = feeds_for(plain)
    graph = quantized(plain, feeds, f"rest={rest}")
    assert len(scales(graph)) == 6
    for value in scales(graph).values():
        np.testing.assert_array_equal(representable(value, rest), value)
    assert sqnr(plain, graph, feeds) > 30


@pytest.mark.parametrize(
    ("line", "weights", "axis"),
    [
        ("Gemm <transB=1> (x, w)", (24, 32), 0),
        ("Gemm (x, w)", (32, 24), 1),
        ("MatMul (x, w)", (32, 24), 1),
        ("MatMul (x, w)", (1, 32, 24), None),
    ],
)
def test_weights_of_products_have_a_scale_per_column(line: str, weights: tuple[int, ...], axis: int | None) -> None:
    dims = ",".join("ABC"[: len(weights)])
    made = parsed(f"g (float[20,32] x) => (float[{dims}] y) {{ y = {line} }}", w=weights)
    graph, feeds = quantized(made, feeds_for(made)), feeds_for(made)
    node = next(n for n in graph.nodes if n.op == "DequantizeLinear" and n.inputs[0].name == "w_int8")
    assert node.attrs.get("axis") == axis
    assert list(node.inputs[1].shape) == ([] if axis is None else [24])
    assert sqnr(made, graph, feeds) > 30


# ---------------------------------------------------------------------- what stays in float


def test_notes_say_why(plain: onnx.ModelProto) -> None:
    text = f"""g (float[N,32,6,6] x, float[1,64] v, float[5,1,32] s)
    => (float[N,32,6,6] y, float[1,32] z, float[1,1,16] h) {{
      [first] a = Conv <{CONV}> (x, wa)
      [second] y = Conv <{CONV}> (a, wy)
      [vector] z = MatMul (v, wz)
      [memory] r, h = LSTM <hidden_size=16> (s, wl, rl)
    }}"""
    made = parsed(text, wa=(32,) * 2 + (3, 3), wy=(32, 32, 3, 3), wz=(64, 32), wl=(1, 64, 32), rl=(1, 64, 16))
    graph = quantized(made, feeds_for(made), "skip=second")
    assert in_int8(graph) == {"first"}
    assert graph.notes == {
        "second": "skip: asked for",
        "vector": "rule: a product with a vector is bound by memory",
        "memory": "rule: TensorRT has no int8 LSTM",
    }


def test_a_tensor_with_infinity_stays_float(plain: onnx.ModelProto) -> None:
    feeds = feeds_for(plain)
    feeds[0]["x"][0, 0, 0, 0] = np.inf
    graph = quantized(plain, feeds)
    assert in_int8(graph) == set()
    assert graph.notes == {
        "first": "rule: 'x' holds NaN or infinity",
        "second": "rule: 'b' holds NaN or infinity",
    }


def test_what_was_never_observed_stays_float(plain: onnx.ModelProto) -> None:
    graph = load(plain)
    ctx = Context(target("onnx"), Evaluate(threads=1), statistics=Statistics())
    (step,) = PassManager([Verify()]).run(build("quantize{scheme=tensorrt}"), graph, ctx)
    assert step.count == 0 and in_int8(graph) == set()
    assert graph.notes["first"] == "rule: 'x' was never observed"


def test_a_range_beyond_half_stays_float(plain: onnx.ModelProto) -> None:
    feeds = feeds_for(plain)
    for feed in feeds:
        feed["x"] *= np.float32(1e8)
    graph = quantized(plain, feeds)
    assert in_int8(graph) == set() and graph.notes["first"].startswith("rule: fp16 has no scale for 'x'")
    assert in_int8(quantized(plain, feeds, "rest=bf16")) == {"first", "second"}


def test_branches_stay_float() -> None:
    made = parsed(
        """g (float[20,32] x) => (float[20,32] y) <float zero = {0}> {
          m = MatMul (x, w)
          total = ReduceSum <keepdims=0> (m)
          yes = Greater (total, zero)
          y = If (yes) <
            then_branch = t () => (float[20,32] a) { [inner] a = MatMul (m, w) },
            else_branch = e () => (float[20,32] b) { b = Neg (m) }
          >
        }""",
        w=(32, 32),
    )
    graph = quantized(made, feeds_for(made))
    assert len(in_int8(graph)) == 1
    assert graph.notes["inner"] == "rule: inside a subgraph"


def test_floor_is_about_single_tensors(plain: onnx.ModelProto) -> None:
    graph = quantized(plain, feeds_for(plain), "floor=90")
    assert in_int8(graph) == set()
    assert all(note.startswith("accuracy: '") for note in graph.notes.values()) and len(graph.notes) == 2


def test_long_attention_stays_float() -> None:
    def attention(positions: int) -> Graph:
        made = parsed(
            f"g (float[1,{positions},32] q, float[1,32,{positions}] k) => (float[1,A,B] s) {{ s = MatMul (q, k) }}"
        )
        return quantized(made, feeds_for(made, 1))

    assert len(in_int8(attention(512))) == 1
    assert list(attention(513).notes.values()) == ["rule: attention over more than 512 positions"]


def test_sizes_no_shape_tells_are_read_off_what_was_seen() -> None:
    """The batch and the sequence are both unknown; heads of 32 and the sizes of the tensors give the sequence."""
    made = parsed("g (float[B,2,S,32] q, float[B,2,32,S] k) => (float[B,2,S,S] s) { [scores] s = MatMul (q, k) }")

    def note(positions: int) -> str:
        rng = np.random.default_rng(0)
        q = rng.normal(size=(3, 2, positions, 32)).astype(np.float32)
        return quantized(made, [{"q": q, "k": q.transpose(0, 1, 3, 2).copy()}]).notes.get("scores", "")

    assert note(24) == ""
    assert note(8) == "rule: only 8 columns"
    assert note(1) == "rule: a product with a vector is bound by memory"


# ---------------------------------------------------------------------- sensitivity


def sensitive() -> onnx.ModelProto:
    """Channel 0 of `d` is a thousand times larger than the rest, and the last convolution takes it out again."""
    made = parsed(
        f"""g (float[N,32,8,8] x) => (float[N,32,8,8] y) {{
          [one] a = Conv <{CONV}> (x, wa)
          [two] b = Conv <{CONV}> (a, wb)
          c = Tanh (b)
          [three] d = Conv <{CONV}> (c, wd)
          [four] y = Conv <{CONV}> (d, we)
        }}""",
        wa=(32, 32, 3, 3), wb=(32, 32, 3, 3), wd=(32, 32, 3, 3), we=(32, 32, 3, 3),
    )  # fmt: skip
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in made.graph.initializer}
    arrays["wd"][0] *= 1000
    arrays["we"][:, 0] = 0
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return made


def test_limit_leaves_the_most_sensitive_part_in_float() -> None:
    made = sensitive()
    feeds = feeds_for(made)
    careless, careful = (quantized(made, feeds, f"method=minmax limit={n}") for n in (0, 25))
    assert in_int8(careless) == {"one", "two", "three", "four"} and sqnr(made, careless, feeds) < 15
    assert in_int8(careful) == {"one", "two", "three"} and sqnr(made, careful, feeds) > 25
    assert careful.notes["four"].startswith("accuracy: SQNR ") and careful.notes["four"].endswith(" dB alone")


def test_what_costs_least_is_left_in_float() -> None:
    """Either of two equally noisy parts would do; the cheaper goes."""
    made = sensitive()
    graph, feeds = load(made), feeds_for(made)
    ctx = Context(target("onnx"), Evaluate(threads=1), feeds, statistics=Statistics())

    def draw(units: Sequence[str]) -> Graph:
        twin = graph.copy()
        y = twin.outputs[0]
        noise = np.float32(1 + 0.1 * len(units))
        out = twin.variable("y_noisy", y.dtype, y.shape)
        twin.add("Mul", [y, twin.constant(np.array(noise, np.float32))], [out])
        twin.ir.outputs = [out]
        y.name, out.name = "before", y.name
        return twin

    for cheap in ("one", "two"):
        costs = {"one": 9.0, "two": 9.0, cheap: 1.0}
        relief = relieve(graph, [["one"], ["two"]], draw, ctx, 18.0, cost=costs.__getitem__)
        assert [unit for unit, _ in relief.dropped] == [cheap]
        assert relief.dropped[0][1] == pytest.approx(20, abs=0.1)


def test_scores_are_looked_at_before_softmax() -> None:
    text = "g (float[N,32] x) => (float[N,32] p, float[N,32] s) { a = MatMul (x, w) p = Softmax (a) s = Sigmoid (a) }"
    assert scores(load(parsed(text, w=(32, 32)))) == ["a", "s"]


# ---------------------------------------------------------------------- the pass


def test_second_run_does_nothing(plain: onnx.ModelProto) -> None:
    feeds = feeds_for(plain)
    graph = quantized(plain, feeds)
    before = to_model(graph).SerializeToString(deterministic=True)
    ctx = Context(target("onnx"), Evaluate(threads=1), feeds, statistics=Statistics())
    PassManager([Verify()]).run(build("calibrate{of=all},quantize{scheme=tensorrt}"), graph, ctx)
    assert to_model(graph).SerializeToString(deterministic=True) == before


def test_same_inputs_same_bytes(plain: onnx.ModelProto) -> None:
    feeds = feeds_for(plain)
    assert len({to_model(quantized(plain, feeds)).SerializeToString(deterministic=True) for _ in range(3)}) == 1


def test_old_opsets_have_float32_scales() -> None:
    made = parsed(PLAIN, opset=13, wa=(32, 32, 3, 3), wy=(32, 32, 3, 3))
    graph = quantized(made, feeds_for(made))
    assert graph.opset == 13 and len(in_int8(graph)) == 2
    assert all(value.dtype == np.float32 for value in scales(graph).values())


# ---------------------------------------------------------------------- TensorRT and the zoo


def network(path: Path) -> list[Any]:
    """The layers that TensorRT for RTX makes of a file, strongly typed."""
    trt: Any = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    made = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(made, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in map(made.get_input, range(made.num_inputs)):
        shape = [2 if size < 0 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(made, config) is not None
    makers: dict[str, str] = {}
    for layer in map(made.get_layer, range(made.num_layers)):
        makers.update((layer.get_output(i).name, layer.type.name) for i in range(layer.num_outputs))
    weighted = ("CONVOLUTION", "DECONVOLUTION")
    layers = [layer for layer in map(made.get_layer, range(made.num_layers)) if layer.type.name in weighted]
    return [[makers.get(layer.get_input(i).name) for i in range(2)] for layer in layers]


@pytest.mark.parametrize("case", ["conv_bn_silu", "residual", "squeeze_excite", "transpose_residual", "concat"])
def test_tensorrt_sees_int8_convolutions(case: str, tmp_path: Path) -> None:
    from tests.golden import read

    golden = read(Path(__file__).parent / "cases" / "quantize" / f"trt_{case}.txt")
    graph = load(golden.model())
    ctx = Context(golden.target, Evaluate(threads=1), golden.feeds(), statistics=Statistics())
    PassManager().run(build(golden.pipeline.replace("scheme=tensorrt", "scheme=tensorrt rest=fp32")), graph, ctx)
    save(graph, tmp_path / "model.onnx")
    found = network(tmp_path / "model.onnx")
    assert len(found) >= 2 and all(inputs == ["DEQUANTIZE", "DEQUANTIZE"] for inputs in found)


def test_fashion_keeps_its_accuracy() -> None:
    path = zoo.path("fashion")
    graph = quantized(path, calibration("fashion", 24), before=RAISE)
    assert len(in_int8(graph)) == 9
    with Evaluate(threads=1).open(load(path)) as reference, Evaluate(threads=1).open(graph) as run:
        assert evaluate("fashion", run).value > evaluate("fashion", reference).value - 0.01


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "options", "dropped"), [("ppocr-rec", "", 0), ("minilm-l3", "", 0), ("pplcnet-orientation", "limit=20", 4)]
)
def test_zoo_keeps_its_accuracy(name: str, options: str, dropped: int) -> None:
    try:
        path = zoo.path(name)
        graph = quantized(path, calibration(name, 24), options, before=RAISE)
    except ZooError as reason:
        pytest.skip(str(reason))
    assert sum(note.startswith("accuracy") for note in graph.notes.values()) <= dropped
    with Evaluate(threads=1).open(load(path)) as reference, Evaluate(threads=1).open(graph) as run:
        assert evaluate(name, run).value > evaluate(name, reference).value - 0.01
