"""int8 for ONNX Runtime: what is written really fuses there, is close to float, and suits the processor."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from optimizer.compare import compare
from optimizer.context import Context
from optimizer.errors import ModelError, PipelineError
from optimizer.evaluate import Evaluate, Feeds, session
from optimizer.graph import Array, Graph
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.statistics import Statistics
from optimizer.targets import Cpu, target, this_cpu
from passes.quantize import Quantize
from passes.quantize.weights import quantize_weights, rounding_shift
from tests.conftest import model

VNNI, PLAIN, ARM = Cpu("x86_64", True), Cpu("x86_64", False), Cpu("aarch64", True)
HERE = Cpu("x86_64", this_cpu().int8_dot)  # weights of 8 bits saturate where there is no VNNI


class Net:
    """A model from text, with normal weights by name, and feeds for it."""

    def __init__(self, text: str, shape: tuple[int, ...], opset: int = 17, count: int = 4, **weights: tuple[int, ...]):
        self.proto = model(text, opset)
        for seed, (name, dims) in enumerate(weights.items()):
            values = np.random.default_rng(seed).normal(0, 1 / np.sqrt(np.prod(dims[1:]) or 1), dims)
            self.proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        name = self.proto.graph.input[0].name
        rng = np.random.default_rng(99)
        self.feeds = [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(count)]

    def context(self, cpu: Cpu = HERE) -> Context:
        goal = replace(target("ort-int8"), cpu=cpu)
        return Context(goal, Evaluate(threads=1), self.feeds, statistics=Statistics())

    def quantized(self, options: str = "", cpu: Cpu = HERE) -> Graph:
        graph = load(self.proto)
        PassManager().run(build(f"calibrate,quantize{{{options}}}"), graph, self.context(cpu))
        return graph

    def sqnr(self, graph: Graph, optimized: bool = True) -> float:
        float_run = session(self.proto.SerializeToString(), threads=1)
        int_run = session(to_model(graph).SerializeToString(), threads=1, optimized=optimized)
        names = [v.name for v in self.proto.graph.output]
        pairs = [(_outputs(float_run, names, f), _outputs(int_run, names, f)) for f in self.feeds]
        return min(d.sqnr for d in compare(pairs).values())


def _outputs(run: Any, names: list[str], feeds: Feeds) -> Feeds:
    return dict(zip(names, run.run(names, feeds), strict=True))


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.walk())


def fused(graph: Graph, path: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime runs it, after its extended optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path / "optimized.onnx")
    ort.InferenceSession(to_model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(path / "optimized.onnx").graph.node)


def weights(graph: Graph) -> dict[str, Array]:
    """int8 initializers by name."""
    found = {}
    for name, tensor in graph.constants().items():
        array = graph.array(tensor)
        if array is not None and array.dtype == np.int8 and array.ndim > 1:
            found[name] = array
    return found


@pytest.fixture
def residual() -> Net:
    return Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa, ba)
          b = Relu (a)
          c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=32> (b, wc)
          d = Add (c, b)
          e = Relu (d)
          f = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (e)
          g = Concat <axis=1> (e, f)
          h = Conv <kernel_shape=[1,1]> (g, wh)
          i = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (h, wa)
          y = Neg (i)
        }""",
        (2, 32, 8, 8),
        wa=(32, 32, 3, 3),
        ba=(32,),
        wc=(32, 1, 3, 3),
        wh=(32, 64, 1, 1),
    )  # fmt: skip


def test_node_units_fuse(residual: Net, tmp_path: Path) -> None:
    graph = residual.quantized("scheme=static")
    ops = fused(graph, tmp_path)
    assert ops["QLinearConv"] == 4 and ops["QLinearAdd"] == 1
    assert ops["QLinearAveragePool"] == 1 and ops["QLinearConcat"] == 1
    assert not {"Conv", "Relu", "Add", "AveragePool", "Concat"} & set(ops)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"]) == (1, 1), "only at the borders"
    assert residual.sqnr(graph) > 28


@pytest.mark.parametrize("options", ["", "method=minmax", "method=percentile percentile=99.9", "method=entropy"])
def test_every_method_stays_close(residual: Net, options: str) -> None:
    assert residual.sqnr(residual.quantized(options)) > (18 if "entropy" in options else 25)


def test_shared_weights_are_stored_once_per_channel(residual: Net) -> None:
    graph = residual.quantized()
    found = weights(graph)
    assert sorted(a.shape for a in found.values()) == [(32, 1, 3, 3), (32, 32, 3, 3), (32, 64, 1, 1)]
    readers = [n for n in graph.nodes if n.op == "DequantizeLinear" and n.inputs[0].name in found]
    assert [n.attrs["axis"] for n in readers] == [0, 0, 0]
    assert all(tuple(n.inputs[1].shape) == (32,) for n in readers)


def test_gates_and_views_need_no_float(tmp_path: Path) -> None:
    net = Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] y) <float half = {0.5}, float shift = {0.25}, float two = {2}> {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          b = HardSwish (a)
          c = Mul (b, half)
          d = Add (c, shift)
          e = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (d, we)
          s = Sigmoid (e)
          f = Mul (e, s)
          g = Sub (f, half)
          h = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (g, wf)
          i = HardSigmoid <alpha=0.25, beta=0.4> (h)
          j = Mul (h, i)
          k = Div (j, two)
          l = Add (k, j)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (l, wa)
        }""",
        (2, 32, 8, 8), wa=(32, 32, 3, 3), we=(32, 32, 3, 3), wf=(32, 32, 3, 3),
    )  # fmt: skip
    graph = net.quantized("scheme=static")
    ops = fused(graph, tmp_path)
    assert ops["QLinearConv"] == 4 and ops["QLinearSigmoid"] == 1
    assert ops["QLinearMul"] == 6, "two for each gate, one for SiLU, one for Div read twice"
    assert not {"Mul", "Add", "Sub", "Div", "HardSigmoid", "HardSwish", "Sigmoid"} & set(ops)
    assert ops["QuantizeLinear"] == 1
    assert net.sqnr(graph) > 26


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "extra"),
    [(2, 2, (0, 0), 0), (4, 2, (1, 1), 0), (3, 2, (1, 1), 1), (3, 2, (0, 1), 0), (7, 3, (2, 2), 0)],
)
def test_conv_transpose_by_phases(kernel: int, stride: int, pads: tuple[int, int], extra: int, tmp_path: Path) -> None:
    attrs = f"strides=[{stride},{stride}], pads=[{pads[0]},{pads[0]},{pads[1]},{pads[1]}]"
    net = Net(
        f"""g (float[1,32,5,6] x) => (float[1,32,H,W] y) {{
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          u = ConvTranspose <kernel_shape=[{kernel},{kernel}], {attrs}, output_padding=[{extra},{extra}]> (a, wu, bu)
          r = Relu (u)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r, wy)
        }}""",
        (1, 32, 5, 6), wa=(32, 32, 3, 3), wu=(32, 16, kernel, kernel), bu=(16,), wy=(32, 16, 3, 3),
    )  # fmt: skip
    graph = net.quantized("scheme=static")
    assert operators(graph)["ConvTranspose"] == 0
    assert fused(graph, tmp_path)["QLinearConv"] == 2 + stride**2
    assert net.sqnr(graph, optimized=False) > 28


def test_other_conv_transposes_stay_float() -> None:
    net = Net(
        """g (float[1,32,5,5] x) => (float[1,16,11,11] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          y = ConvTranspose <kernel_shape=[3,3], strides=[2,2]> (a, wu)
        }""",
        (1, 32, 5, 5), wa=(32, 32, 3, 3), wu=(32, 16, 3, 3),
    )  # fmt: skip
    assert operators(net.quantized("scheme=static"))["ConvTranspose"] == 1


@pytest.fixture
def dense() -> Net:
    return Net(
        """g (float[N,6,64] x) => (float[N,6,32] y, float[N,6,6] s) {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          t = Transpose <perm=[0,2,1]> (k)
          s = MatMul (q, t)
          v = MatMul (x, wv)
          w = MatMul (s, v)
          z = Add (w, b)
          y = MatMul (z, wo)
        }""",
        (2, 6, 64), wq=(64, 48), wk=(64, 48), wv=(64, 64), b=(64,), wo=(64, 32),
    )  # fmt: skip


def test_dynamic_products_fuse(dense: Net, tmp_path: Path) -> None:
    graph = dense.quantized("scheme=dynamic")
    assert operators(graph)["DynamicQuantizeLinear"] == 2, "three readers of x share one"
    assert set(graph.imports) == {""}, "standard operators only"
    ops = fused(graph, tmp_path)
    assert ops["MatMulIntegerToFloat"] + ops["DynamicQuantizeMatMul"] == 4
    assert ops["MatMulInteger"] == 0 and ops["MatMul"] + ops["FusedMatMul"] == 2
    assert dense.sqnr(graph) > 28


def test_gemm_with_bias_is_dynamic_too(tmp_path: Path) -> None:
    text = "g (float[N,64] x) => (float[N,32] y) { y = Gemm <transB=1> (x, w, b) }"
    net = Net(text, (3, 64), w=(32, 64), b=(32,))
    graph = net.quantized()
    assert fused(graph, tmp_path) == Counter({"DynamicQuantizeMatMul": 1})
    assert net.sqnr(graph) > 30
    scaled = Net(text.replace("transB=1", "transB=1, alpha=0.5"), (3, 64), w=(32, 64), b=(32,))
    assert operators(scaled.quantized()) == Counter({"Gemm": 1})


def test_hybrid_is_static_convolutions_with_dynamic_products(tmp_path: Path) -> None:
    net = Net(
        """g (float[N,32,4,4] x) => (float[N,10] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          b = Relu (a)
          c = GlobalAveragePool (b)
          d = Flatten (c)
          e = Gemm (d, we, be)
          y = Gemm (e, wy, by)
        }""",
        (2, 32, 4, 4), wa=(32, 32, 3, 3), we=(32, 64), be=(64,), wy=(64, 20), by=(20,),
    )  # fmt: skip
    assert fused(net.quantized(), tmp_path)["DynamicQuantizeMatMul"] == 2
    assert fused(net.quantized("scheme=static"), tmp_path)["DynamicQuantizeMatMul"] == 0
    assert fused(net.quantized("scheme=dynamic"), tmp_path)["QLinearConv"] == 0


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm(directions: int, tmp_path: Path) -> None:
    direction = "bidirectional" if directions == 2 else "forward"
    net = Net(
        f"""g (float[T,1,24] x) => (float[T,{directions},1,16] y) {{
          y, h, c = LSTM <hidden_size=16, direction="{direction}"> (x, w, r, b)
        }}""",
        (7, 1, 24), w=(directions, 64, 24), r=(directions, 64, 16), b=(directions, 128),
    )  # fmt: skip
    graph = net.quantized("scheme=dynamic")
    assert fused(graph, tmp_path)["DynamicQuantizeLSTM"] == 1
    assert net.sqnr(graph) > 28
    portable = load(net.proto)
    ctx = replace(net.context(), target=target("onnx"))
    assert Quantize(scheme="dynamic").run(portable, ctx) == 0, "not for a target that is not ONNX Runtime"


def test_products_in_branches() -> None:
    net = Net(
        """g (float[N,32] x) => (float[N,32] y) <bool yes = {1}> {
          y = If (yes) <
            then_branch = t () => (float[N,32] a) { a = MatMul (x, w) },
            else_branch = e () => (float[N,32] b) { b = Neg (x) }
          >
        }""",
        (3, 32), w=(32, 32),
    )  # fmt: skip
    graph = net.quantized("scheme=dynamic")
    assert operators(graph)["MatMulInteger"] == 1
    assert net.sqnr(graph, optimized=False) > 28


@pytest.mark.parametrize(("axis", "shape"), [(0, (8, 4, 3, 3)), (1, (16, 8))])
@pytest.mark.parametrize("bits", [7, 8])
def test_weights_round_to_the_nearest_code(axis: int, shape: tuple[int, ...], bits: int) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[(slice(None),) * axis + (3,)] = 0
    codes, scales = quantize_weights(values, axis, bits)
    top = 2 ** (bits - 1) - 1
    wide = scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (8,)
    assert scales[3] == 1 and np.abs(codes).max() == top
    assert np.all(np.abs(codes * wide - values) <= wide * 0.501)


@pytest.mark.parametrize("size", [1e-6, 1e-20, 1e-42, 0])
@pytest.mark.parametrize(
    "text",
    [
        "g (float[4,64,6] x) => (float[4,64,6] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        "g (float[4,64] x) => (float[4,64] y) { a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm(r, v) }",
    ],
    ids=["Conv", "Gemm"],
)
def test_a_dead_channel_keeps_its_bias(text: str, size: float) -> None:
    """The runtime's int32 bias counts in steps of input scale times weight scale, and would overflow."""
    dims = (64, 64, 1) if "Conv" in text else (64, 64)
    net = Net(text, (4, 64, 6)[: len(dims)], w=dims, v=dims, b=(64,))
    scaled(net, "w", (3,), size)
    scaled(net, "b", (3,), -5)
    graph = net.quantized("scheme=static")
    assert operators(graph)["QuantizeLinear"] >= 2
    assert net.sqnr(graph) > 22


def scaled(net: Net, name: str, place: tuple[int, ...], factor: float) -> None:
    """Multiplies a part of a weight."""
    tensor = next(t for t in net.proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[place] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_weights_that_are_no_numbers_stay(factor: float) -> None:
    net = Net("g (float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }", (4, 32), w=(32, 32))
    assert operators(net.quantized("scheme=dynamic"))["MatMulInteger"] == 1
    scaled(net, "w", (0, 0), factor)
    assert operators(net.quantized("scheme=dynamic")) == {"MatMul": 1}


def test_values_below_the_smallest_scale_stay_float() -> None:
    text = "g (float[N,64,8] x) => (float[N,64,8] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, w) }"
    net = Net(text, (4, 64, 8), w=(64, 64, 1))
    assert operators(net.quantized("scheme=static"))["QuantizeLinear"] > 0
    for feed in net.feeds:
        feed["x"] *= np.float32(1e-12)
    assert operators(net.quantized("scheme=static"))["QuantizeLinear"] == 0


@pytest.mark.parametrize("shape", [(), (1,), (64,), (1, 64), (4, 1), (4, 64)])
def test_gemm_takes_any_bias(shape: tuple[int, ...]) -> None:
    net = Net("g (float[4,64] x) => (float[4,64] y) { a = Gemm(x, w, b) c = Relu(a) y = Gemm(c, w) }", (4, 64),
              w=(64, 64), b=shape)  # fmt: skip
    assert net.sqnr(net.quantized("scheme=static")) > 25


@pytest.mark.parametrize(
    ("cpu", "options", "top", "activations"),
    [(VNNI, "", 127, np.uint8), (PLAIN, "", 63, np.uint8), (PLAIN, "bits=8", 127, np.uint8), (ARM, "", 127, np.int8)],
)
def test_processor_decides_types(residual: Net, cpu: Cpu, options: str, top: int, activations: type) -> None:
    graph = residual.quantized(options, cpu)
    assert max(np.abs(w).max() for w in weights(graph).values()) == top
    zeros = [graph.array(n.inputs[2]) for n in graph.nodes if n.op == "QuantizeLinear"]
    assert zeros and all(z is not None and z.dtype == activations for z in zeros)
    first = np.iinfo(activations).min
    assert sum(int(z) == first for z in zeros if z is not None) >= 4, "lowest code after Relu and what follows it"
    assert residual.sqnr(graph, optimized=False) > 22


def test_skip_keeps_an_operator_in_float(residual: Net) -> None:
    graph = residual.quantized("skip=h,i")
    assert weights(graph) and not any(name.startswith("wh") for name in weights(graph))
    untouched = [n for n in graph.nodes if n.op == "Conv" and n.inputs[1].name in ("wh", "wa")]
    assert len(untouched) == 2


def test_floor_keeps_what_8_bits_would_break() -> None:
    net = Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          b = Mul (a, wide)
          c = Relu (b)
          d = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wd)
          e = Concat <axis=1> (c, d)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (e, wy)
        }""",
        (1, 32, 8, 8), wa=(32, 32, 3, 3), wd=(32, 32, 3, 3), wy=(32, 64, 3, 3), wide=(1, 32, 1, 1),
    )  # fmt: skip
    net.feeds[0]["x"][0, 0, 0, 0] = 1000.0  # an outlier that no method can hold together with the rest
    assert len(weights(net.quantized("method=minmax"))) == 3
    assert weights(net.quantized("method=minmax floor=30")) == {}


def test_limit_leaves_the_most_sensitive_part_in_float() -> None:
    """Channel 0 is a thousand times larger than the rest, and the last convolution takes it out again."""
    net = Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          b = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (a, wb)
          c = Tanh (b)
          d = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (c, wd)
          e = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (d, we)
          y = Neg (e)
        }""",
        (2, 32, 8, 8), wa=(32, 32, 3, 3), wb=(32, 32, 3, 3), wd=(32, 32, 3, 3), we=(32, 32, 3, 3),
    )  # fmt: skip
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in net.proto.graph.initializer}
    arrays["wd"][0] *= 1000
    arrays["we"][:, 0] = 0
    for tensor in net.proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    careless, careful = net.quantized("method=minmax"), net.quantized("method=minmax limit=25")
    assert len(weights(careless)) == 4 and net.sqnr(careless) < 15
    assert {name.removesuffix("_int8") for name in weights(careful)} == {"wa", "wb"}
    assert net.sqnr(careful) > 25


def test_ranges_of_single_tensors(residual: Net) -> None:
    plain, changed = residual.quantized(), residual.quantized("ranges=x:minmax")
    before, after = (g.array(g.nodes[0].inputs[1]) for g in (plain, changed))
    assert plain.nodes[0].op == changed.nodes[0].op == "QuantizeLinear"
    assert before is not None and after is not None and after > before
    with pytest.raises(PipelineError, match="tensor:method"):
        build("quantize{ranges=x:widest}")


def test_same_inputs_same_bytes(residual: Net) -> None:
    files = {to_model(residual.quantized()).SerializeToString(deterministic=True) for _ in range(3)}
    assert len(files) == 1


def test_second_run_does_nothing(residual: Net) -> None:
    graph = residual.quantized()
    before = to_model(graph).SerializeToString(deterministic=True)
    assert Quantize().run(graph, residual.context()) == 0
    assert to_model(graph).SerializeToString(deterministic=True) == before


def test_interface_is_kept(residual: Net) -> None:
    net = Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] r, float[N,32,8,8] y) {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          r = Relu (a)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r, wy)
        }""",
        (1, 32, 8, 8), wa=(32, 32, 3, 3), wy=(32, 32, 3, 3),
    )  # fmt: skip
    graph = net.quantized()
    made = to_model(graph)
    assert [v.SerializeToString() for v in made.graph.output] == [v.SerializeToString() for v in net.proto.graph.output]
    assert net.sqnr(graph) > 28


def test_old_opsets_and_missing_statistics_are_refused(residual: Net) -> None:
    old = Net("g (float[N,32] x) => (float[N,32] y) { y = MatMul (x, w) }", (1, 32), opset=11, w=(32, 32))
    with pytest.raises(ModelError, match=r"needs opset 13, the model has 11: put 'opset\{min=13\}' before"):
        Quantize().run(load(old.proto), old.context())
    with pytest.raises(PipelineError, match="put 'calibrate' before"):
        Quantize().run(load(residual.proto), replace(residual.context(), statistics=None))
    with pytest.raises(PipelineError, match="bits is 7, 8, or 0"):
        build("quantize{bits=4}")


def test_an_offset_beyond_the_codes_is_added_as_an_operator(tmp_path: Path) -> None:
    """As a view, an offset would put the zero point of values that are never near 0 below the lowest code."""
    net = Net(
        """g (float[N,32,8,8] x) => (float[N,32,8,8] y) <float far = {-9}> {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa, ba)
          c = Add (a, far)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (c, wy)
        }""",
        (2, 32, 8, 8), wa=(32, 32, 3, 3), wy=(32, 32, 3, 3),
    )  # fmt: skip
    net.proto.graph.initializer.append(numpy_helper.from_array(np.full(32, 30, np.float32), "ba"))
    graph = net.quantized()
    assert fused(graph, tmp_path)["QLinearAdd"] == 1
    assert net.sqnr(graph) > 25


def test_static_products_fuse(tmp_path: Path) -> None:
    text = "g (float[N,256] x) => (float[N,64] y) { a = MatMul (x, wa) b = Relu (a) y = Gemm (b, wy, by) }"
    net = Net(text, (3, 256), wa=(256, 256), wy=(256, 64), by=(64,))
    graph = net.quantized("scheme=static")
    assert fused(graph, tmp_path) == Counter(QuantizeLinear=1, DequantizeLinear=1, QLinearMatMul=1, QGemm=1)
    assert net.sqnr(graph) > 28


@pytest.mark.parametrize("cpu", [VNNI, ARM])
def test_moves_run_on_integers_of_either_sign(cpu: Cpu) -> None:
    net = Net(
        """g (float[1,32,8,8] x) => (float[1,32,H,W] y)
        <float[4] scales = {1, 1, 2, 2}, int64[4] shape = {1, 32, 8, 8}> {
          a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wa)
          b = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
          c = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (b, , scales)
          d = Transpose <perm=[0,1,3,2]> (c)
          e = Reshape (d, shape)
          f, h = Split <axis=1, num_outputs=2> (e)
          i = Concat <axis=1> (h, f)
          y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (i, wa)
        }""",
        (1, 32, 8, 8), opset=18, wa=(32, 32, 3, 3),
    )  # fmt: skip
    graph = net.quantized(cpu=cpu)
    dtype = np.int8 if cpu is ARM else np.uint8
    moves = [n for n in graph.nodes if n.op in ("MaxPool", "Resize", "Transpose", "Reshape", "Split")]
    assert len(moves) == 5 and all(n.outputs[0].dtype == dtype for n in moves)
    assert operators(graph)["QuantizeLinear"] == 4, "x, two convolutions and the Concat"
    assert net.sqnr(graph, optimized=cpu is VNNI) > 28


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_shift_of_rounding_is_what_a_convolution_adds(groups: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 8 // groups, 3, 3)).astype(np.float32)
    mean = rng.normal(size=8)
    codes, scales = quantize_weights(weights, 0)
    shift = rounding_shift(weights, codes, scales, 0, mean, groups)
    error = codes * scales.reshape(-1, 1, 1, 1) - weights
    for out in range(8):
        group = out // (8 // groups)
        inputs = mean[group * (8 // groups) : (group + 1) * (8 // groups)]
        expected = sum(error[out, i].sum() * inputs[i] for i in range(8 // groups))
        assert shift[out] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_biases_make_up_for_rounded_weights() -> None:
    """Inputs with a mean turn the rounding of weights into an offset, which the bias can take back."""
    net = Net(
        """g (float[N,16,16,16] x) => (float[N,16,16,16] y) {
            c = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(x, w) r = Relu(c)
            y = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(r, v) }""",
        (2, 16, 16, 16),
        w=(16, 16, 3, 3),
        v=(16, 16, 3, 3),
    )
    net.feeds = [{"x": feed["x"] + 8} for feed in net.feeds]
    assert net.sqnr(net.quantized("correct=true")) > net.sqnr(net.quantized("correct=false")) + 1
