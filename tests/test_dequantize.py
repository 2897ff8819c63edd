"""Back to float: whoever quantised the model, no integer operator is left and it is closer to the float original."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import zoo
from models.data import calibration
from models.fetch import ZooError
from models.metrics import evaluate, open_ort
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Graph
from optimizer.instrument import Verify
from optimizer.io import load, save
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.statistics import Statistics
from optimizer.targets import SIMPLIFY, target
from tests.conftest import model
from tests.fuzz import random_feeds, random_model

INTEGER = ("Quant", "QLinear", "Integer", "QGemm")


def run(pipeline: str, graph: Graph, feeds: Sequence[Feeds] = ()) -> int:
    """Runs the passes for ORT's int8 target, each one checked. Returns what the last one did."""
    ctx = Context(target("ort-int8"), Evaluate(threads=1), list(feeds), statistics=Statistics())
    return PassManager([Verify()]).run(build(pipeline), graph, ctx)[-1].count


def outputs(graph: Graph, feeds: Sequence[Feeds]) -> list[Feeds]:
    with Evaluate(threads=1).open(graph) as once:
        return [once(feed) for feed in feeds]


def sqnr(expected: Sequence[Feeds], found: Sequence[Feeds]) -> float:
    """The worst output's signal-to-noise ratio, in dB."""
    return min(d.sqnr for d in compare(zip(expected, found, strict=True)).values())


def integers(graph: Graph) -> list[str]:
    return [n.op for n in graph.walk() if any(part in n.op for part in INTEGER)]


def comes_back(graph: Graph, feeds: Sequence[Feeds], reference: Sequence[Feeds]) -> tuple[float, float]:
    """Dequantises and returns the SQNR, against the float original, before and after."""
    assert integers(graph)
    before = sqnr(reference, outputs(graph, feeds))
    assert run(f"{SIMPLIFY},dequantize", graph, feeds) > 0
    assert integers(graph) == []
    assert run("dequantize", graph) == 0
    return before, sqnr(reference, outputs(graph, feeds))


# ---------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def fashion() -> tuple[Graph, list[Feeds], list[Feeds]]:
    """The network trained here, in float: its graph, feeds, outputs."""
    graph, feeds = load(zoo.path("fashion")), calibration("fashion", 8)
    run(SIMPLIFY, graph)
    return graph, feeds, outputs(graph, feeds)


@pytest.mark.parametrize("scheme", ["static", "hybrid"])
def test_own_int8_comes_back(fashion: tuple[Graph, list[Feeds], list[Feeds]], scheme: str) -> None:
    original, feeds, reference = fashion
    graph = original.copy()
    run(f"calibrate,quantize{{scheme={scheme}}}", graph, feeds)
    before, after = comes_back(graph, feeds, reference)
    assert after > max(before, 40)


RECURRENT = """g (float[T,1,24] x) => (float[T,1,32] y) {
  a = MatMul (x, w) b = Tanh (a) c, h = LSTM<hidden_size = 32, direction = "bidirectional"> (b, r, s)
  t = Transpose<perm = [0,2,1,3]> (c) u = Reshape (t, dims) y = MatMul (u, v) }"""


@pytest.mark.parametrize("scheme", ["dynamic", "hybrid"])
def test_own_int8_of_a_recurrent_network_comes_back(scheme: str) -> None:
    proto, rng = model(RECURRENT), np.random.default_rng(0)
    shapes = {"w": (24, 16), "r": (2, 128, 16), "s": (2, 128, 32), "v": (64, 32)}
    arrays = {n: (rng.standard_normal(d) / np.sqrt(d[-1])).astype(np.float32) for n, d in shapes.items()}
    for name, array in (arrays | {"dims": np.array([0, 1, 64])}).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    graph, feeds = load(proto), [{"x": rng.standard_normal((t, 1, 24)).astype(np.float32)} for t in (3, 9)]
    reference = outputs(graph, feeds)
    run(f"calibrate,quantize{{scheme={scheme} bits=7}}", graph, feeds)
    before, after = comes_back(graph, feeds, reference)
    assert after > max(before, 33)


class Reader:
    """Calibration feeds as ONNX Runtime's quantiser takes them."""

    def __init__(self, feeds: Sequence[Feeds]):
        self.feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("form", ["QOperator", "QDQ", "dynamic"])
def test_what_onnxruntime_quantises_comes_back(
    fashion: tuple[Graph, list[Feeds], list[Feeds]], form: str, weights: str, tmp_path: Path
) -> None:
    from onnxruntime import quantization as ort

    original, feeds, reference = fashion
    path, made = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    save(original.copy(), path)
    kind, by_channel = ort.QuantType[weights], weights == "QInt8"
    logging.disable(logging.WARNING)  # it advises on preprocessing
    try:
        if form == "dynamic":
            ort.quantize_dynamic(path, made, weight_type=kind, per_channel=by_channel)
        else:
            ort.quantize_static(
                path, made, Reader(feeds), quant_format=ort.QuantFormat[form], weight_type=kind,
                activation_type=ort.QuantType.QUInt8, per_channel=by_channel,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    before, after = comes_back(load(made), feeds, reference)
    assert after >= before
    assert after > 35


def test_pairs_all_over_random_models_go() -> None:
    """Pairs whose ends are wider than what they see are nothing but rounding: without them, outputs are the float's."""
    tried = 0
    for seed in range(30):
        graph, feeds = load(random_model(seed)), random_feeds(random_model(seed), seed)
        run(SIMPLIFY, graph)
        reference = outputs(graph, feeds)
        count = insert_pairs(graph, feeds, np.random.default_rng(seed))
        if not count:
            continue
        tried += 1
        assert run("dequantize", graph) == count
        assert integers(graph) == []
        for name, difference in compare(zip(reference, outputs(graph, feeds), strict=True)).items():
            assert difference.within_rounding(), f"seed {seed}, {name}: {difference}"
    assert tried > 20


def insert_pairs(graph: Graph, feeds: Sequence[Feeds], rng: np.random.Generator) -> int:
    """Puts Q and DQ behind most float results of the outermost scope, as an operator would read them; counts the DQ."""
    if graph.opset < 13:
        return 0
    made = [t for n in graph.nodes for t in n.outputs if t.name and t.outputs and t.dtype == np.float32]
    chosen = [t for t in made if t.inputs[0].op != "Constant" and rng.random() < 0.7]
    with Evaluate(threads=1).open(graph, [t.name for t in chosen]) as once:
        seen = [once(feed) for feed in feeds]
    for tensor in chosen:
        values = np.concatenate([o[tensor.name].reshape(-1) for o in seen] + [np.zeros(1, np.float32)])
        low, high = values.min(), values.max()
        scale = np.float32((high - low) / 200 or 1)
        params = [graph.constant(scale, "scale"), graph.constant(np.uint8(27 - round(float(low / scale))), "zero")]
        readers = [(n, i) for n in dict.fromkeys(tensor.outputs) for i, t in enumerate(n.inputs) if t is tensor]
        codes, real = graph.variable("codes", np.uint8), graph.variable("real", np.float32)
        graph.add("QuantizeLinear", [tensor, *params], [codes])
        graph.add("DequantizeLinear", [codes, *params], [real])
        for node, index in readers:
            graph.set_input(node, index, real)
    graph.tidy()
    return len(chosen)


# ---------------------------------------------------------------------- single operators

STEP, ZERO = np.float32(0.05), np.uint8(120)
OUT = (np.float32(0.06), np.uint8(100))


def net(op: str, inputs: list[Any], shape: tuple[int, ...], result: str = "u8", **attrs: Any) -> Graph:
    """x -> Q -> the operator -> DQ. In `inputs` "x" is its codes; arrays become initializers, None is left out."""
    held = {"s": STEP, "z": ZERO, "os": OUT[0], "oz": OUT[1]}
    names = []
    for index, value in enumerate(inputs):
        names.append(value if isinstance(value, str) else "" if value is None else f"c{index}")
        if value is not None and not isinstance(value, str):
            held[f"c{index}"] = value
    domain = "" if op in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    nodes = [
        helper.make_node("QuantizeLinear", ["in", "s", "z"], ["x"]),
        helper.make_node(op, names, ["codes" if result == "u8" else "out"], domain=domain, **attrs),
    ]
    if result == "u8":
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "os", "oz"], ["out"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return load(helper.make_model(graph, ir_version=8, opset_imports=imports))


def codes(*shape: int, seed: int = 1, dtype: Any = np.uint8) -> Array:
    bounds = (0, 256) if dtype == np.uint8 else (-63, 64)  # as where no kernel saturates without VNNI
    return np.asarray(np.random.default_rng(seed).integers(*bounds, shape)).astype(dtype)


X, Y = ["x", "s", "z"], ["os", "oz"]
SCALE, COLUMNS = np.float32(0.004), np.linspace(0.002, 0.006, 5).astype(np.float32)
OPERATORS: dict[str, tuple[str, list[Any], tuple[int, ...], dict[str, Any]]] = {
    "matmul by column": (
        "QLinearMatMul",
        [*X, codes(6, 5, dtype=np.int8), COLUMNS, np.zeros(5, np.int8), *Y],
        (3, 6),
        {},
    ),
    "matmul with a zero point": ("QLinearMatMul", [*X, codes(6, 5), SCALE, np.uint8(99), *Y], (3, 6), {}),
    "matmul from the right": ("QLinearMatMul", [codes(5, 3), SCALE, np.uint8(99), *X, *Y], (3, 6), {}),
    "grouped convolution": (
        "QLinearConv",
        [*X, codes(5, 1, 3, 3), SCALE, np.uint8(128), *Y, codes(5, dtype=np.int32, seed=2) * 20],
        (1, 5, 6, 6),
        {"group": 5, "pads": [1, 1, 1, 1]},
    ),
    "gemm": (
        "QGemm",
        [*X, codes(5, 6, dtype=np.int8), COLUMNS, np.zeros(5, np.int8), codes(5, dtype=np.int32, seed=2) * 20, *Y],
        (3, 6),
        {"transB": 1, "alpha": 1.0},
    ),
    "add": ("QLinearAdd", [*X, codes(6), STEP, np.uint8(9), *Y], (3, 6), {}),
    "mul": ("QLinearMul", [*X, codes(6), SCALE, np.uint8(9), *Y], (3, 6), {}),
    "sigmoid": ("QLinearSigmoid", [*X, *Y], (3, 6), {}),
    "leaky relu": ("QLinearLeakyRelu", [*X, *Y], (3, 6), {"alpha": 0.3}),
    "softmax": ("QLinearSoftmax", [*X, *Y], (3, 6), {"opset": 13, "axis": 0}),
    "average pool": ("QLinearAveragePool", [*X, *Y], (1, 2, 6, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "global pool": ("QLinearGlobalAveragePool", [*X, *Y], (1, 6, 2, 2), {}),
    "where": (
        "QLinearWhere",
        [codes(6) > 127, *X, codes(6), STEP, np.uint8(9), *Y],
        (3, 6),
        {},
    ),
    "concat": ("QLinearConcat", [*Y, *X, codes(3, 2), STEP, np.uint8(128), *X], (3, 6), {"axis": 1}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_on_codes_computes_the_same_in_float(name: str) -> None:
    """All but the rounding to codes, of the operands and of the result, stays."""
    op, inputs, shape, attrs = OPERATORS[name]
    graph = net(op, inputs, shape, **attrs)
    feeds = [{"in": np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)} for seed in range(3)]
    before = outputs(graph, feeds)
    assert run("dequantize", graph) >= 2
    assert integers(graph) == []
    for old, new in zip(before, outputs(graph, feeds), strict=True):
        assert old["out"].shape == new["out"].shape
        assert np.abs(old["out"] - new["out"]).max() < 1.5 * OUT[0]
        assert np.ptp(new["out"]) > 2 * OUT[0]


@pytest.mark.parametrize("name", ["QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_operator_from_codes_to_floats(name: str) -> None:
    weights, zeros = codes(6, 5, dtype=np.int8), np.zeros(5, np.int8)
    bias = np.linspace(-1, 1, 5).astype(np.float32)
    inputs: dict[str, list[Any]] = {
        "QGemm": [*X, weights, COLUMNS, zeros, codes(5, dtype=np.int32) * 20],
        "MatMulIntegerToFloat": ["x", weights, "s", COLUMNS, "z", zeros, bias],
        "DynamicQuantizeMatMul": ["in", weights, COLUMNS, zeros, bias],
    }
    graph = net(name, inputs[name], (3, 6), result="float")
    feeds = [{"in": np.random.default_rng(0).normal(0, 1, (3, 6)).astype(np.float32)}]
    before = outputs(graph, feeds)
    assert run("dequantize", graph) == 1
    assert integers(graph) == []
    assert sqnr(before, outputs(graph, feeds)) > 30


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("QLinearAveragePool", [*X, *Y], {"kernel_shape": [2, 2], "channels_last": 1}),
        ("QLinearSoftmax", [*X, *Y], {"opset": 11, "axis": 1}),
        ("QGemm", [*X, codes(6, 5), SCALE, np.uint8(9), None, *Y], {"alpha": 2.0}),
        ("QLinearMatMul", [codes(6, 6), np.full(6, 0.1, np.float32), np.zeros(6, np.uint8), *X, *Y], {}),
        ("QLinearAdd", [*X, codes(6), "in", np.uint8(9), *Y], {}),
    ],
)
def test_operator_without_a_like_stays(op: str, inputs: list[Any], attrs: dict[str, Any]) -> None:
    """Channels last, Softmax of another operator set, a factor, scales by row, a scale known at run time."""
    graph = net(op, inputs, (1, 6, 6, 6) if "Pool" in op else (6, 6), **attrs)
    assert run("dequantize", graph) == 0
    assert op in integers(graph)


def test_product_of_scales_without_end_is_left_alone() -> None:
    """A scale multiplied by itself again and again would be a product of 2^60 parts."""
    squares = " ".join(f"s{i + 1} = Mul (s{i}, s{i})" for i in range(60))
    text = (
        "g (float[2,4] x) => (float[2,3] y) { q, s0, z = DynamicQuantizeLinear (x) a = MatMulInteger (q, w, z) "
        f"b = Cast<to = 1> (a) {squares} y = Mul (b, s60) }}"
    )
    proto = model(text)
    proto.graph.initializer.append(numpy_helper.from_array(codes(4, 3), "w"))
    start = time.process_time()
    assert run("dequantize", load(proto)) == 0
    assert time.process_time() - start < 5


def test_weights_are_those_of_the_codes() -> None:
    text = """g (float[N,3] x) => (float[N,2] y)
    <uint8[3,2] w = {0, 1, 2, 253, 254, 255}, float s = {0.1}, uint8 c = {3}>
    { q, t, z = DynamicQuantizeLinear (x) a = MatMulInteger (q, w, z, c) b = Cast<to = 1> (a)
      d = Mul (t, s) y = Mul (b, d) }"""
    graph = load(model(text))
    assert run("dequantize", graph) == 1
    (weights,) = (graph.array(c) for c in graph.constants().values())
    expected = (np.array([[0, 1], [2, 253], [254, 255]], np.float32) - 3) * np.float32(0.1)
    np.testing.assert_array_equal(weights, expected.astype(np.float32))


# ---------------------------------------------------------------------- the zoo


def fetched(name: str) -> Path:
    try:
        return zoo.path(name)
    except ZooError as reason:
        pytest.skip(str(reason))


@pytest.mark.zoo
def test_captcha_reader_comes_back(tmp_path: Path) -> None:
    path, made = fetched("ddddocr-rec-int8"), tmp_path / "float.onnx"
    feeds = calibration("ddddocr-rec-int8", 8)
    graph = load(path)
    before = outputs(graph, feeds)
    assert run(f"{SIMPLIFY},dequantize", graph) == 23
    assert integers(graph) == []
    assert sqnr(before, outputs(graph, feeds)) > 30
    save(graph, made)
    scores = [evaluate("ddddocr-rec-int8", open_ort(p, 1), 60).value for p in (path, made)]
    assert scores[1] >= scores[0] - 0.02


@pytest.mark.zoo
def test_segmenter_comes_back() -> None:
    graph = load(fetched("isnet-int8"))
    assert run(f"{SIMPLIFY},dequantize,{SIMPLIFY}", graph) > 0
    assert integers(graph) == []
    assert {n.op for n in graph.walk()} == {"Conv", "Relu", "MaxPool", "Concat", "Resize", "Add", "Sigmoid"}


@pytest.mark.zoo
def test_tensorrt_reads_what_comes_back(tmp_path: Path) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    graph, path = load(fetched("ddddocr-rec-int8")), tmp_path / "float.onnx"
    run(f"{SIMPLIFY},dequantize,{SIMPLIFY}", graph)
    save(graph, path)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse_from_file(str(fetched("ddddocr-rec-int8")))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
