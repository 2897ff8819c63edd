"""The linter: every rule has a model that breaks it and one that does not, both held against the real runtimes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from backends.trt import legal
from models import data, tiny, zoo
from optimizer import registry, targets
from optimizer.cli import main
from optimizer.context import Context
from optimizer.errors import UserError
from optimizer.evaluate import Evaluate
from optimizer.graph import Array
from optimizer.io import load
from optimizer.lint import Finding, lint, rules
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.statistics import Statistics
from optimizer.targets import Cpu
from tests.conftest import model as parse

DOC = Path(__file__).parent.parent / "docs" / "lint.md"
VNNI, PLAIN, ARM = Cpu("x86_64", True), Cpu("x86_64", False), Cpu("aarch64", True)
CODES = np.random.default_rng(0).integers(-60, 61, (16, 16, 3, 3)).astype(np.int8)
HALF = np.float16


def full(value: float, *shape: int, dtype: Any = np.float32) -> Array:
    return np.full(shape, value, dtype)


ARRAYS: dict[str, Array] = {
    "s": full(0.1),
    "s2": full(0.2),
    "z": full(0, dtype=np.int8),
    "u": full(128, dtype=np.uint8),
    "u0": full(0, dtype=np.uint8),
    "w": CODES,
    "sw": full(0.01, 16),
    "zw": full(0, 16, dtype=np.int8),
    "m": CODES[:, :, 0, 0],
    "b": full(1, 16),
    "b32": full(2000, 16, dtype=np.int32),
    "sb": full(0.001, 16),
    "wrong": full(0.01, 16),
    "float_w": CODES.astype(np.float32),
    "float_m": CODES[:, :, 0, 0].astype(np.float32),
    "zero": full(0),
    "six": full(6),
}


@dataclass(frozen=True)
class Net:
    """A model from the body of a graph: `x` in, `y` out unless `head` says otherwise; initializers by name."""

    body: str
    head: str = "float[1,16,8,8] x => y"
    opset: int = 21
    arrays: Mapping[str, Array] = None  # type: ignore[assignment]

    def model(self) -> onnx.ModelProto:
        inputs, _, outputs = self.head.partition("=>")
        outputs = outputs if "[" in outputs else f"float {outputs}"
        text = f'<ir_version: 10, opset_import: ["": {self.opset}]>\n'
        text += f"g ({inputs}) => ({outputs}) {{ {self.body} }}"
        made = parse(text)
        given = {i.name for i in made.graph.input}
        for name, array in (ARRAYS | dict(self.arrays or {})).items():
            if re.search(rf"\b{name}\b", self.body) and name not in given and f"{name} =" not in self.body:
                made.graph.initializer.append(numpy_helper.from_array(array, name))
        return made

    def with_(self, **arrays: Array) -> Net:
        return replace(self, arrays=dict(self.arrays or {}) | arrays)

    def but(self, *pairs: str) -> Net:
        """The same with parts of the body replaced: old, new, old, new, ..."""
        body = self.body
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert old in body
            body = body.replace(old, new)
        return replace(self, body=body)


CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
TRT = Net(f"""
  q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis=0> (w, sw, zw)
  y = {CONV} (d, v)""")
PRODUCT = Net(
    """
  q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis=1> (m, sw, zw)
  y = MatMul (d, v)""",
    "float[4,16] x => y",
)
RESIDUAL = Net(f"""
  q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  e = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis=0> (w, sw, zw)
  c = {CONV} (d, v)
  y = Add (c, e)""")
TAIL = f"""
  r = QuantizeLinear (a, s2, z)  t = DequantizeLinear (r, s2, z)
  y = {CONV} (t, v)"""
SUM = Net(
    f"""
  q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
  p = QuantizeLinear (k, s2, z)  e = DequantizeLinear (p, s2, z)
  v = DequantizeLinear <axis=0> (w, sw, zw)
  a = Add (d, e) {TAIL}""",
    "float[1,16,8,8] x, float[1,16,8,8] k => y",
)
CONCAT = SUM.but("Add (d, e)", "Concat <axis=2> (d, e)", "(k, s2, z)", "(k, s, z)", "(p, s2, z)", "(p, s, z)")
PAIR = Net("q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)")
FLOAT = "float[1,16,8,8] x => y"
HALVES = "float16[1,16,8,8] x => float16[1,16,8,8] y"

# Rule: (breaks it, breaks no rule, what TensorRT-RTX does with the first).
TRT_CASES: dict[str, tuple[Net, Net, str]] = {
    "trt-operator": (
        Net("q, t, o = DynamicQuantizeLinear (x)  y = DequantizeLinear (q, t, o)"),
        Net("y = Relu (x)"),
        "refuses",
    ),
    "trt-type": (
        Net("i = Cast <to=5> (x)  y = Cast <to=1> (i)"),
        Net("i = Cast <to=6> (x)  y = Cast <to=1> (i)"),
        "refuses",
    ),
    "trt-uint8": (
        Net("i = Cast <to=2> (x)  y = Cast <to=1> (i)"),
        Net("f = Cast <to=1> (x)  g = Relu (f)  y = Cast <to=2> (g)", "uint8[4] x => uint8[4] y"),
        "refuses",
    ),
    "trt-mixed-types": (
        Net("h = Cast <to=10> (x)  y = Add (x, h)"),
        Net("h = Cast <to=10> (x)  f = Cast <to=1> (h)  y = Add (x, f)"),
        "refuses",
    ),
    "trt-unsigned": (TRT.but("(x, s, z)", "(x, s)", "(q, s, z)", "(q, s)"), TRT, "accepts"),
    "trt-zero-point": (TRT.with_(z=full(3, dtype=np.int8)), TRT, "refuses"),
    "trt-int32": (
        TRT.but("(d, v)", "(d, v, f)", "v =", "f = DequantizeLinear <axis=0> (b32, sb)  v ="),
        TRT.but("(d, v)", "(d, v, b)"),
        "refuses",
    ),
    "trt-scale": (TRT.with_(s=full(0)), TRT, "refuses"),
    "trt-constant": (
        replace(PAIR, head="float[1,16,8,8] x, float s => y"),
        TRT.but("q =", "s = Mul (s1, s2)  q =").with_(s1=full(2)),
        "accepts",
    ),
    "trt-activation-channels": (
        TRT.but("(x, s, z)", "<axis=1> (x, sw, zw)", "(q, s, z)", "<axis=1> (q, sw, zw)"),
        TRT,
        "accepts",
    ),
    "trt-scale-count": (TRT.with_(sw=full(0.01, 15), zw=full(0, 15, dtype=np.int8)), TRT, "refuses"),
    "trt-block": (
        Net("v = DequantizeLinear <axis=0, block_size=8> (m, s8)  y = MatMul (x, v)", "float[4,16] x => y").with_(
            s8=full(0.01, 2, 16)
        ),
        PRODUCT,
        "accepts",
    ),
    "trt-scale-type": (
        Net("q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)", "float16[1,16,8,8] x => y", 23),
        Net(TRT.body, HALVES, 21, {"s": full(0.1, dtype=HALF), "sw": full(0.01, 16, dtype=HALF)}),
        "accepts",
    ),
    "trt-opset": (replace(TRT.but("<axis=0>", ""), opset=12), replace(TRT, opset=13), "accepts"),
    "trt-codes": (
        Net("t = Transpose (m)  v = DequantizeLinear (t, s, z)  y = MatMul (x, v)", "float[4,16] x => y"),
        PRODUCT,
        "refuses",
    ),
    "trt-interface": (
        Net("q = Add (x, x)  y = DequantizeLinear (q, s, z)", "int8[1,16,8,8] x => y"),
        Net("d = DequantizeLinear (x, s, z)  v = Relu (d)  y = QuantizeLinear (v, s2, z)",
            "int8[1,16,8,8] x => int8[1,16,8,8] y"),
        "accepts",
    ),
    "trt-half-quantized": (
        TRT.but("v = DequantizeLinear <axis=0> (w, sw, zw)", "v = Identity (float_w)"),
        TRT,
        "accepts",
    ),
    "trt-weight-axis": (TRT.but("<axis=0>", "<axis=1>"), TRT, "accepts"),
    "trt-bias": (
        TRT.but("(d, v)", "(d, v, f)", "v =", "f = DequantizeLinear <axis=0> (zw, sb)  v ="),
        TRT.but("(d, v)", "(d, v, b)"),
        "accepts",
    ),
    "trt-cast": (
        Net(TRT.but("(d, v)", "(h, v)", "v =", "h = Cast <to=10> (d)  v =").body,
            "float[1,16,8,8] x => float16[1,16,8,8] y", 21, {"sw": full(0.01, 16, dtype=HALF)}),
        Net("h = Cast <to=10> (x)" + TRT.but("(x, s", "(h, s").body, "float[1,16,8,8] x => float16[1,16,8,8] y", 21,
            {"s": full(0.1, dtype=HALF), "sw": full(0.01, 16, dtype=HALF)}),
        "accepts",
    ),
    "trt-epilogue": (
        TRT.but("y =", "c =", "(d, v)", "(d, v)  r = QuantizeLinear (c, s2, z)  t = DequantizeLinear (r, s2, z) "
                f" o = Relu (t)  i = QuantizeLinear (o, s, z)  j = DequantizeLinear (i, s, z)  y = {CONV} (j, v)"),
        TRT.but("y =", "c =", "(d, v)", f"(d, v)  a = Relu (c) {TAIL}"),
        "accepts",
    ),
    "trt-residual": (
        RESIDUAL.but("y =", "a =", "(c, e)", f"(f, e) {TAIL}", "a =",
                     "p = QuantizeLinear (c, s2, z)  f = DequantizeLinear (p, s2, z)  a ="),
        RESIDUAL,
        "accepts",
    ),
    "trt-two-scales": (
        RESIDUAL.but("e = Deq", "p = QuantizeLinear (x, s2, z)  e = Deq", "e = DequantizeLinear (q, s, z)",
                     "e = DequantizeLinear (p, s2, z)"),
        RESIDUAL,
        "accepts",
    ),
    "trt-float-output": (
        SUM.but(TAIL, "y = Softmax (a)", "v = DequantizeLinear <axis=0> (w, sw, zw)", ""),
        SUM,
        "accepts",
    ),
    "trt-partly-quantized": (SUM.but("Add (d, e)", "Mul (d, k)", "e = Deq", "n = Deq"), SUM, "accepts"),
    "trt-concat": (
        CONCAT.but("(k, s, z)", "(k, s2, z)", "(p, s, z)", "(p, s2, z)"),
        CONCAT,
        "accepts",
    ),
    "trt-idle": (PAIR.but("y = Deq", "d = Deq", "(q, s, z)", "(q, s, z)  y = Softmax (d)"), TRT, "accepts"),
}  # fmt: skip

ORT = TRT.but("(x, s, z)", "(x, s, u)", "(q, s, z)", "(q, s, u)", "y =", "a =", "(d, v)",
              "(d, v)  r = QuantizeLinear (a, s2, u)  y = DequantizeLinear (r, s2, u)")  # fmt: skip
GEMM = replace(ORT, head="float[4,16] x => y").but(CONV, "Gemm", "<axis=0> (w", "<axis=1> (m")
MATMUL = GEMM.but("Gemm", "MatMul")
ADD = Net(
    """
  q = QuantizeLinear (x, s, u)  d = DequantizeLinear (q, s, u)
  p = QuantizeLinear (k, s2, u)  e = DequantizeLinear (p, s2, u)
  a = Add (d, e)
  r = QuantizeLinear (a, s2, u)  y = DequantizeLinear (r, s2, u)""",
    "float[1,16,8,8] x, float[1,16,8,8] k => y",
)
MOVE = ORT.but("y = Deq", "t = Deq", "(r, s2, u)", "(r, s2, u)  f = Transpose <perm=[0,1,3,2]> (t)  "
               f"o = QuantizeLinear (f, s2, u)  g = DequantizeLinear (o, s2, u)  h = {CONV} (g, v)  "
               "i = QuantizeLinear (h, s, u)  y = DequantizeLinear (i, s, u)")  # fmt: skip
RELU = ORT.but("r = Q", "o = Relu (a)  r = Q", "(a, s2, u)", "(o, s2, u0)", "(r, s2, u)", "(r, s2, u0)")
BIASED = "f = DequantizeLinear <axis=0> (b32, {})  a ="

# Rule: (breaks it, breaks no rule, how ONNX Runtime takes the first).
ORT_CASES: dict[str, tuple[Net, Net, str]] = {
    "ort-mixed-types": (TRT_CASES["trt-mixed-types"][0], TRT_CASES["trt-mixed-types"][1], "refuses"),
    "ort-opset": (
        Net(TRT.body, HALVES, 17, {"s": full(0.1, dtype=HALF), "sw": full(0.01, 16, dtype=HALF)}),
        replace(ORT, opset=13),
        "refuses",
    ),
    "ort-scale-count": (ORT.with_(sw=full(0.01, 15), zw=full(0, 15, dtype=np.int8)), ORT, "refuses"),
    "ort-activation-channels": (
        ORT.but("(x, s, u)", "<axis=1> (x, sw, uw)", "(q, s, u)", "<axis=1> (q, sw, uw)").with_(
            uw=full(128, 16, dtype=np.uint8)
        ),
        ORT,
        "refuses",
    ),
    "ort-weight-axis": (
        ORT.but("<axis=0>", "<axis=1>").with_(w=CODES[:, :8], sw=full(0.01, 8), zw=full(0, 8, dtype=np.int8)).but(
            "pads=[1,1,1,1]", "pads=[1,1,1,1], group=2"
        ),
        ORT,
        "refuses",
    ),
    "ort-gemm-bias": (
        GEMM.but("(d, v)", "(d, v, f)", "a =", BIASED.format("wrong")),
        GEMM.but("(d, v)", "(d, v, f)", "a =", BIASED.format("sb")),
        "wrong",
    ),
    "ort-half-quantized": (
        MATMUL.but("v = DequantizeLinear <axis=1> (m, sw, zw)", "v = Identity (float_m)"),
        MATMUL,
        "float",
    ),
    "ort-output": (
        ORT.but("r = QuantizeLinear (a, s2, u)  y = DequantizeLinear (r, s2, u)", "y = Softmax (a)"),
        ORT,
        "float",
    ),
    "ort-clamp": (RELU.but("(o, s2, u0)", "(o, s2, u)", "(r, s2, u0)", "(r, s2, u)"), RELU, "float"),
    "ort-bias": (
        ORT.but("(d, v)", "(d, v, f)", "a =", BIASED.format("wrong")),
        ORT.but("(d, v)", "(d, v, f)", "a =", BIASED.format("sb")),
        "float",
    ),
    "ort-gemm": (GEMM.but("Gemm", "Gemm <beta=0.5>", "(d, v)", "(d, v, b)"), GEMM.but("(d, v)", "(d, v, b)"), "float"),
    "ort-unit": (ADD.but("(d, e)", "(d, b3)").with_(b3=full(1, 16, 1, 1)), ADD, "float"),
    "ort-move": (MOVE.but("(f, s2, u)", "(f, s, u)", "(o, s2, u)", "(o, s, u)"), MOVE, "slow"),
    "ort-wide-codes": (ORT.with_(u=full(32768, dtype=np.uint16)), ORT, "float"),
    "ort-float16": (
        Net(ORT.body, HALVES, 21, {name: ARRAYS[name].astype(HALF) for name in ("s", "s2", "sw")}),
        ORT,
        "float",
    ),
    "ort-idle": (PAIR.but("s, z", "s, u", "y = Deq", "d = Deq", "(q, s, u)", "(q, s, u)  y = Tanh (d)"), ORT, "slow"),
    "ort-signed": (ORT.with_(u=full(0, dtype=np.int8)), ORT, "slow"),
    "ort-saturation": (ORT.with_(w=CODES * 2), ORT, "slow"),
}  # fmt: skip


def found(net: Net, target: str, cpu: Cpu = VNNI) -> list[Finding]:
    return lint(load(net.model()), target, cpu)


def ids(net: Net, target: str, cpu: Cpu = VNNI) -> set[str]:
    return {finding.rule for finding in found(net, target, cpu)}


def every() -> dict[str, Any]:
    return {rule.id: rule for name in registry.LINTS for cpu in (VNNI, PLAIN) for rule in rules(name, cpu)}


def test_every_rule_has_a_case() -> None:
    assert set(TRT_CASES) | set(ORT_CASES) == set(every())


@pytest.mark.parametrize("name", TRT_CASES)
def test_trt_rule(name: str) -> None:
    bad, good, _ = TRT_CASES[name]
    assert name in ids(bad, "trt")
    assert ids(good, "trt") == set()


@pytest.mark.parametrize("name", ORT_CASES)
def test_ort_rule(name: str) -> None:
    bad, good, _ = ORT_CASES[name]
    cpu = PLAIN if name == "ort-saturation" else VNNI
    assert name in ids(bad, "ort-cpu", cpu)
    assert ids(good, "ort-cpu", cpu) == set()


# ---------------------------------------------------------------------- against the runtimes

PROBE = """
import json, sys
from pathlib import Path
import tensorrt_rtx as trt

class Silent(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        pass

def verdict(path):
    logger = Silent()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return "refuses"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return "accepts" if builder.build_serialized_network(network, config) else "refuses"

print(json.dumps({path.stem: verdict(path) for path in sorted(Path(sys.argv[1]).glob("*.onnx"))}))
"""


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")
def test_tensorrt_does_what_the_rules_say(tmp_path: Path) -> None:
    """In a process of its own: the library writes to the terminal, and does not survive every model."""
    for name, (bad, good, _) in TRT_CASES.items():
        onnx.save(bad.model(), tmp_path / f"{name}.bad.onnx")
        onnx.save(good.model(), tmp_path / f"{name}.good.onnx")
    done = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = json.loads(done.stdout.splitlines()[-1])
    wanted = {f"{name}.bad": verdict for name, (_, _, verdict) in TRT_CASES.items()}
    assert verdicts == wanted | {f"{name}.good": "accepts" for name in TRT_CASES}


IMPORTERS = """
import json, sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
print(json.dumps([op for op in json.loads(sys.argv[1]) if not parser.supports_operator(op)]))
"""


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")
def test_operators_without_importer() -> None:
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""})
    command = [sys.executable, "-c", IMPORTERS, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == legal.UNKNOWN


def run(net: Net, path: Path | None) -> tuple[Array, Counter[str]]:
    """The output, and the operators of the optimized graph; `path` None switches optimizations off."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if path else levels.ORT_DISABLE_ALL
    if path:
        options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(net.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": HALF}
    feeds = {i.name: rng.normal(size=i.shape).astype(kinds[i.type]) for i in session.get_inputs()}
    result = np.asarray(session.run(None, feeds)[0])
    return result, Counter(n.op_type for n in onnx.load(path).graph.node) if path else Counter()


def kernels(operators: Counter[str]) -> int:
    """How many operators compute in integers."""
    return sum(n for op, n in operators.items() if op.startswith("QLinear") or op in ("QGemm", "MatMulIntegerToFloat"))


@pytest.mark.parametrize("name", ORT_CASES)
def test_onnx_runtime_does_what_the_rules_say(name: str, tmp_path: Path) -> None:
    bad, good, verdict = ORT_CASES[name]
    result, fast = run(good, tmp_path / "good.onnx")
    np.testing.assert_allclose(result, run(good, None)[0], atol=0.21)  # one step, by which rounding may differ
    if verdict == "refuses":
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            run(bad, tmp_path / "bad.onnx")
        return
    result, slow = run(bad, tmp_path / "bad.onnx")
    if verdict == "float":
        assert kernels(slow) < kernels(fast)
    if verdict == "wrong":
        assert np.abs(result - run(bad, None)[0]).max() > 5


# ---------------------------------------------------------------------- details of rules


def test_parameters_are_reported_once() -> None:
    """At the Q: its DQ only repeats them."""
    (finding,) = found(TRT_CASES["trt-zero-point"][0], "trt")
    assert (finding.op, finding.output) == ("QuantizeLinear", "q")
    assert finding.message == "zero point 3"


def test_other_tools_operators_are_refused() -> None:
    net = Net("y = com.microsoft.FusedConv <kernel_shape=[1,1]> (x, w)")
    made = net.model()
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    (finding,) = lint(load(made), "trt")
    assert (finding.rule, finding.op) == ("trt-operator", "com.microsoft.FusedConv")


def test_int4_weights_alone_are_fine() -> None:
    made = Net("v = DequantizeLinear <axis=0, block_size=8> (i, s8)  y = MatMul (x, v)", "float[4,16] x => y").with_(
        s8=full(0.01, 2, 16)
    ).model()  # fmt: skip
    made.graph.initializer.append(onnx.helper.make_tensor("i", onnx.TensorProto.INT4, [16, 16], [1] * 256))
    assert lint(load(made), "trt") == []


def test_projection_shortcut_keeps_one_branch_in_float() -> None:
    """Both operands come from convolutions: it is enough that one of them is not quantised."""
    shortcut = f"g = {CONV} (e, v)  p = QuantizeLinear (g, s2, z)  h = DequantizeLinear (p, s2, z)  y ="
    both = RESIDUAL.but("y =", shortcut, "(c, e)", "(c, h)")
    assert ids(both, "trt") == set()
    quantized = both.but(
        "y =", "o = QuantizeLinear (c, s2, z)  i = DequantizeLinear (o, s2, z)  y =", "(c, h)", "(i, h)"
    )
    assert ids(quantized, "trt") == {"trt-residual"}


def test_swish_split_by_quantisation() -> None:
    """As ONNX Runtime's quantizer makes it: the gate is quantised too, by a Q of its own."""
    net = TRT.but("y =", "c =", "(d, v)", f"""(d, v)
      r = QuantizeLinear (c, s2, z)  t = DequantizeLinear (r, s2, z)  o = Sigmoid (t)
      i = QuantizeLinear (o, s, z)  j = DequantizeLinear (i, s, z)
      n = Mul (t, j)  f = QuantizeLinear (n, s, z)  h = DequantizeLinear (f, s, z)  y = {CONV} (h, v)""")  # fmt: skip
    assert [(f.rule, f.output) for f in found(net, "trt")] == [("trt-epilogue", "r")]


def test_subgraphs_are_linted() -> None:
    net = Net(
        """y = If (c) <then_branch = t () => (float a) { q = QuantizeLinear (x, s, u)  a = DequantizeLinear (q, s, u) },
                  else_branch = e () => (float b) { b = Identity (x) }>""",
        "bool c, float[1,16,8,8] x => y",
    )
    assert "trt-unsigned" in ids(net, "trt")


@pytest.mark.parametrize("cpu", [ARM, VNNI])
def test_signed_activations_suit_arm(cpu: Cpu) -> None:
    assert ids(ORT_CASES["ort-signed"][0], "ort-cpu", cpu) == (set() if cpu is ARM else {"ort-signed"})


def test_equal_quantizers_are_one(tmp_path: Path) -> None:
    """The runtime merges them, so the convolution still has one reader."""
    net = ORT.but("y = Deq", "o = QuantizeLinear (a, s2, u)  k = DequantizeLinear (o, s2, u)  l = Deq",
                  "(r, s2, u)", "(r, s2, u)  y = Sub (k, l)")  # fmt: skip
    assert ids(net, "ort-cpu") == set()
    assert run(net, tmp_path / "m.onnx")[1]["QLinearConv"] == 1


def test_matmul_needs_no_quantised_output_without_bias(tmp_path: Path) -> None:
    tail = "r = QuantizeLinear (a, s2, u)  y = DequantizeLinear (r, s2, u)"
    for body, expected, op in (
        ("y = Softmax (a)", set(), "MatMulIntegerToFloat"),
        ("y = Add (a, b)", {"ort-output"}, "Gemm"),
    ):
        net = MATMUL.but(tail, body)
        assert ids(net, "ort-cpu") == expected
        assert run(net, tmp_path / "m.onnx")[1][op] == 1


def test_the_graph_is_not_touched() -> None:
    graph = load(TRT.model())
    before = {name: (t.dtype, t.shape) for name, t in graph.tensors().items()}
    lint(graph, "trt")
    assert {name: (t.dtype, t.shape) for name, t in graph.tensors().items()} == before


# ---------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", tiny.ALL)
def test_tiny_models_lint(name: str) -> None:
    for target in registry.LINTS:
        assert all(finding.message and finding.node for finding in lint(load(tiny.ALL[name]()), target))


def rendered(name: str, target: str, scheme: str) -> list[Finding]:
    """What lint says of a zoo model that a target's own pipeline has quantised."""
    goal = targets.target(target)
    graph = load(zoo.path(name))
    context = Context(goal, Evaluate(threads=1), data.calibration(name, 2), statistics=Statistics())
    PassManager().run(build(f"{goal.prepare},{goal.candidates[scheme]}"), graph, context)
    assert any(node.op == "QuantizeLinear" for node in graph.walk())
    return lint(graph, target)


@pytest.mark.parametrize(("target", "scheme"), [("ort-int8", "static"), ("ort-int8", "hybrid"), ("trt-int8", "int8")])
def test_own_renderings_have_no_findings(target: str, scheme: str) -> None:
    assert rendered("fashion", target, scheme) == []


def test_onnx_runtimes_quantizer_is_found_out(tmp_path: Path) -> None:
    """Its default, asymmetric int8 with int32 biases, is what TensorRT refuses and x86 has no use for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(data.calibration("fashion", 2))

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(zoo.path("fashion"), tmp_path / "m.onnx", Reader())
    graph = load(tmp_path / "m.onnx")
    found = Counter(f.rule for f in lint(graph, "trt") if f.severity == "error")
    assert set(found) == {"trt-zero-point", "trt-int32"}
    assert found["trt-int32"] == sum(n.op in ("Conv", "Gemm") for n in graph.walk())
    assert "ort-signed" in {f.rule for f in lint(graph, "ort-cpu", VNNI)}


# ---------------------------------------------------------------------- the command and its documentation


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    onnx.save(TRT_CASES["trt-zero-point"][0].model(), "bad.onnx")
    onnx.save(TRT.model(), "good.onnx")
    return "bad.onnx"


def test_command(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", bad, "--target", "trt"]) == 4
    out = capfd.readouterr().out
    assert out.startswith("1 finding\n")
    assert "trt-zero-point  error: zero point that is not 0 (1)" in out
    assert "fix: quantise symmetrically" in out
    assert "-> 'q': zero point 3" in out
    assert main(["lint", "good.onnx", "-t", "trt-int8"]) == 0
    assert capfd.readouterr() == ("0 findings\n", "")


def test_command_prints_json(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", bad, "--target", "trt-fp16", "--json"]) == 4
    (finding,) = json.loads(capfd.readouterr().out)
    assert list(finding) == ["rule", "severity", "node", "op", "output", "message", "fix"]
    assert main(["lint", "good.onnx", "--target", "trt", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []


def test_command_ignores_rules(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", bad, "--target", "trt", "--ignore", "trt-zero-point"]) == 0
    assert main(["lint", bad, "--target", "trt", "--ignore", "trt-zero"]) == 2
    assert "--ignore trt-zero: the rules for trt are" in capfd.readouterr().err


def test_command_explains_wrong_input(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["nothing.onnx", "--target", "trt"], "no model at 'nothing.onnx'"),
        ([bad, "--target", "trt-int9"], "no target is called 'trt-int9'; did you mean trt-int8"),
        ([bad, "--target", "onnx"], "there are no rules for 'onnx', only for trt, ort-cpu"),
        ([bad], "--target"),
    ):
        assert main(["lint", *words]) == 2
        assert message in capfd.readouterr().err


def test_long_lists_are_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "".join(f"q{i} = QuantizeLinear (x, s, u)  y{i} = DequantizeLinear (q{i}, s, u)  " for i in range(12))
    net = Net(body, "float[1,16,8,8] x => " + ", ".join(f"float[1,16,8,8] y{i}" for i in range(12)))
    onnx.save(net.model(), tmp_path / "m.onnx")
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", "trt", "--ignore", "trt-idle"]) == 4
    out = capfd.readouterr().out
    assert out.count("-> 'q") == 8
    assert "and 4 more, which --json lists" in out


def test_targets_map_to_runtimes() -> None:
    for target, name in (("trt-int8", "trt"), ("trt-fp32", "trt"), ("ort-int8", "ort-cpu"), ("ort-fp32", "ort-cpu")):
        assert rules(target, VNNI) == rules(name, VNNI)
    with pytest.raises(UserError, match="no rules for 'ort-fp16'"):
        rules("ort-fp16")


def test_documentation_lists_every_rule() -> None:
    """Each rule has a section: its id, its severity and its title as the linter prints them."""
    told = re.findall(r"^### `([\w-]+)` \((\w+)\)\n\n\*\*(.+?)\.\*\*", DOC.read_text(), re.MULTILINE)
    assert told == [(rule.id, rule.severity, rule.title) for rule in every().values()]


def test_documentation_says_what_tensorrt_does() -> None:
    text = DOC.read_text()
    for name, (_, _, verdict) in TRT_CASES.items():
        section = text.partition(f"### `{name}`")[2].partition("\n### ")[0]
        assert f"TensorRT-RTX 1.7: {verdict}" in section.replace("\n", " "), name
