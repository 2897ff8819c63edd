"""The TensorRT backend: real engines for GPUs that are not here, their precision, and what is said of a refusal.

Engines are built by TensorRT for RTX, which needs no GPU for it; without the library those tests are skipped. The tests
marked `gpu` run engines, and need a GPU that the library builds for.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from backends.trt import build as building
from backends.trt import library, messages, session
from backends.trt.backend import TrtBackend
from backends.trt.library import FULL, RTX, Library
from models import tiny, zoo
from models.data import calibration
from models.fetch import ZooError
from optimizer import registry
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.engine import BuildError, Built, EngineOptions, Profile
from optimizer.errors import DataError, UnavailableError, UserError
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.io import load, save
from optimizer.manager import PassManager
from optimizer.pipeline import build as pipeline
from optimizer.targets import target
from tests.conftest import make

needs_rtx = pytest.mark.skipif(library.load(RTX) is None, reason=f"no tensorrt_rtx: {library.INSTALL[RTX]}")
needs_gpu = pytest.mark.skipif(not TrtBackend().runs(EngineOptions()), reason="no GPU here that TensorRT builds for")
RELU = "g (float[N,4] x) => (float[N,4] y) { [relu] y = Relu(x) }"
SIZES = {"x": Profile((1, 4), (2, 4), (8, 4))}
MATMUL = "g (float[2,4] x) => (float[2,4] y) <float[4,4] w = {1.,2.,3.,4.,5.,6.,7.,8.,1.,2.,3.,4.,5.,6.,7.,8.}>"
NESTED = """g (float[N,4] x, bool c, bool d) => (float[N,4] y) {
    [outer] y = If (c) <
        then_branch = a () => (float[N,4] t) {
            [inner] t = If (d) <then_branch = b () => (float[N,4] p) { p = Neg(x) },
                                else_branch = e () => (float[N,4] q) { q = Exp(x) }>
        },
        else_branch = f () => (float[N,4] r) { r = Abs(x) }>
}"""


def lowered(graph: Graph, folder: Path) -> Path:
    TrtBackend().lower(graph)
    save(graph, folder / "model.onnx")
    return folder / "model.onnx"


def engine(graph: Graph, folder: Path, **options: Any) -> Built:
    return TrtBackend().build(lowered(graph, folder), folder, EngineOptions(**{"gpus": ("sm_89",), **options}))


# ---------------------------------------------------------------- what is built


@needs_rtx
def test_an_engine_is_built_for_gpus_that_are_not_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    built = engine(make(RELU), tmp_path, gpus=("sm_89", "sm_120"), profiles=SIZES, level=2, workspace=1 << 28)
    assert built.file == tmp_path / "model.engine" and built.file.stat().st_size > 1000
    facts = json.loads(json.dumps(built.facts))
    assert facts["gpus"] == ["sm_89", "sm_120"]
    assert facts["profiles"] == {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}
    assert facts["types"] == {"ACTIVATION": {"fp32": 1}}
    assert (facts["library"], facts["level"], facts["workspace"], facts["layers"]) == (RTX, 2, 1 << 28, 1)
    assert facts["bytes"] == built.file.stat().st_size and facts["seconds"] > 0
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_without_a_gpu_and_a_name_the_default_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if library.present() is not None:
        pytest.skip("a GPU is here")
    building._say.cache_clear()
    for _ in range(2):
        assert engine(make(RELU), tmp_path, gpus=(), profiles=SIZES).facts["gpus"] == ["sm_89"]
    assert [r.message for r in caplog.records] == ["no GPU is here: the engine is built for sm_89; --gpu names others"]


@needs_rtx
def test_weights_outside_the_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(tiny.ALL["mlp"]())
    monkeypatch.setattr("optimizer.io.LIMIT", 0)
    path = lowered(graph, tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    built = TrtBackend().build(path, tmp_path, EngineOptions(gpus=("sm_89",), profiles=_any_sizes(graph)))
    assert set(built.precision.values()) == {"fp32"}


def _any_sizes(graph: Graph) -> dict[str, Profile]:
    assert graph.header is not None
    found = {}
    for info in graph.header.inputs:
        shape = tuple(dim.dim_value or 2 for dim in info.type.tensor_type.shape.dim)
        if any(not dim.dim_value for dim in info.type.tensor_type.shape.dim):
            found[info.name] = Profile(shape, shape, shape)
    return found


@needs_rtx
def test_dims_that_exporters_call_unknown_may_differ(tmp_path: Path) -> None:
    graph = make(RELU.replace("N,4", "N,H,W"))
    assert graph.header is not None
    for dim in list(graph.header.inputs[0].type.tensor_type.shape.dim)[1:]:
        dim.dim_param = "?"
    save(graph, tmp_path / "raw.onnx")
    options = EngineOptions(gpus=("sm_89",), profiles={"x": Profile((1, 3, 5), (1, 3, 5), (2, 3, 5))})
    with pytest.raises(UserError, match=r"are both called '\?'.* 3:3:3 and 5:5:5"):
        TrtBackend().build(tmp_path / "raw.onnx", tmp_path, options)
    built = TrtBackend().build(lowered(graph, tmp_path), tmp_path, options)
    assert built.facts["profiles"]["x"]["max"] == [2, 3, 5]
    assert [dim.dim_param for dim in graph.header.inputs[0].type.tensor_type.shape.dim] == ["N", "", ""]


@needs_rtx
def test_values_that_are_sizes_have_a_range(tmp_path: Path) -> None:
    graph = make("g (float[2,4] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }")
    with pytest.raises(UserError, match=r"values of input 's' are sizes: .*--shape s=MIN:OPT:MAX.* NxN"):
        engine(graph, tmp_path, profiles={"s": Profile((2,), (2,), (2,))})
    ranged = {"s": Profile((1, 1), (2, 4), (8, 8))}
    assert engine(graph, tmp_path, profiles=ranged).facts["profiles"]["s"]["opt"] == [2, 4]


@needs_rtx
def test_a_stripped_engine_says_so(tmp_path: Path) -> None:
    assert "strip_plan" in engine(make(RELU), tmp_path, profiles=SIZES, strip=True).facts["flags"]
    assert "strip_plan" not in engine(make(RELU), tmp_path, profiles=SIZES).facts["flags"]


@needs_rtx
def test_a_default_that_is_kept_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    building._say.cache_clear()
    engine(make("g (float[2,4] x, float[4] w = {1,2,3,4}) => (float[2,4] y) { y = Mul(x, w) }"), tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "input 'w' has a default" in record.message


# ---------------------------------------------------------------- precision of the typed network

WEIGHTS = "float[4,4] w = {1.,2.,3.,4.,5.,6.,7.,8.,1.,2.,3.,4.,5.,6.,7.,8.}, float[1,1,1] k = {2.}"
SCALES = "float s = {0.5}, float[4] r = {0.5,0.5,0.5,0.5}, int8[4,4] v = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}"
PRODUCTS = """g ({t}[2,4] x, {t}[1,1,6] i) => ({t}[2,4] a, {t}[2,4] b, {t}[1,1,6] c, {t}[1,1,6] d) <{w}> {{
    [matmul] a = MatMul(x, w)
    [gemm] b = Gemm<transB=1>(x, w, w4)
    [conv] c = Conv(i, k)
    [up] d = ConvTranspose(i, k)
}}"""


def products(dtype: str) -> Graph:
    """One of each weighted operator in `dtype`; the weights are cast, for ONNX text has no half literals."""
    text = PRODUCTS.format(t=dtype, w=WEIGHTS + ", float[4] w4 = {1.,2.,3.,4.}")
    return load(onnx_text(text, dtype))


def onnx_text(text: str, dtype: str) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]>\n{text}')
    kind = {"float": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind[dtype])
    for tensor in made.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(wanted), tensor.name))
    return made


@needs_rtx
@pytest.mark.parametrize(("dtype", "expected"), [("float", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")])
def test_precision_is_the_type_of_the_operands(tmp_path: Path, dtype: str, expected: str) -> None:
    graph = products(dtype)
    if dtype == "bfloat16":  # no kernel of the library
        graph.header.outputs.pop()
        graph.ir.outputs.pop()
        graph.sweep()
    built = engine(graph, tmp_path)
    assert built.precision == {node.name: expected for node in graph.nodes}
    assert built.facts["types"]["MATRIX_MULTIPLY"] == {expected: 2}


@needs_rtx
def test_a_product_is_int8_where_both_operands_are(tmp_path: Path) -> None:
    graph = make(
        f"""g (float[2,4] x, float[4] bias) => (float[2,4] a, float[2,4] b, float[2,4] c, float[2,4] d, float[2,4] e)
        <{WEIGHTS.split(", float[1")[0]}, {SCALES}, int64[2] flat = {{2,4}}> {{
            q = QuantizeLinear(x, s)
            f = DequantizeLinear(q, s)
            g = DequantizeLinear<axis=1>(v, r)
            h = DequantizeLinear<axis=0>(v, r)
            [both] a = MatMul(f, g)
            [biased] b = Gemm<transB=1>(f, h, bias)
            m = Reshape(f, flat)
            n = Transpose<perm=[1,0]>(h)
            [moved] c = MatMul(m, n)
            [weight_only] d = MatMul(x, g)
            o = Relu(f)
            [behind_relu] e = MatMul(o, g)
        }}""",
        opset=19,
    )
    built = engine(graph, tmp_path)
    int8 = {"both", "biased", "moved"}
    assert built.precision == {n: "int8" if n in int8 else "fp32" for n in [*int8, "weight_only", "behind_relu"]}
    assert built.facts["types"]["MATRIX_MULTIPLY"] == {"fp32": 2, "int8": 3}


@needs_rtx
@pytest.mark.parametrize("name", ["a b", "x[0]", "[ONNX Layer: y]", "p | q", "a]", "(Unnamed Layer* 3)", "/m/Conv.1"])
def test_any_name_of_a_node_is_found_again(tmp_path: Path, name: str) -> None:
    graph = make(MATMUL + " { y = MatMul(x, w) }")
    graph.nodes[0].name = name
    assert engine(graph, tmp_path).precision == {name: "fp32"}


@needs_rtx
def test_nodes_of_branches_and_loops_are_found(tmp_path: Path) -> None:
    body = "z = MatMul(x, w)"
    graph = make(
        f"""g (float[2,4] x, bool c) => (float[2,4] y) <{WEIGHTS.split(", float[1")[0]}> {{
            y = If (c) <then_branch = t () => (float[2,4] z) {{ [first] {body} }},
                        else_branch = e () => (float[2,4] u) {{ [second] u = Gemm(x, w) }}>
        }}"""
    )
    assert engine(graph, tmp_path).precision == {"first": "fp32", "second": "fp32"}


@needs_rtx
def test_a_recurrent_node_is_found_though_its_products_are_not_named(tmp_path: Path) -> None:
    graph = load(tiny.ALL["lstm"]())
    built = engine(graph, tmp_path, profiles=_any_sizes(graph))
    heavy = [n.name for n in graph.walk() if n.op in ("LSTM", "GRU", "RNN", "MatMul", "Gemm")]
    assert heavy and set(built.precision) == set(heavy)


@needs_rtx
def test_a_product_of_constants_is_no_layer(tmp_path: Path) -> None:
    graph = make(MATMUL + " { [fixed] c = MatMul(w, w) [free] y = MatMul(x, c) }")
    assert "free" in engine(graph, tmp_path).precision


def fetched(name: str) -> Path:
    try:
        return zoo.path(name)
    except ZooError as error:
        pytest.skip(str(error))


@needs_rtx
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["efficientnet-lite0", "ppocr-cls", "ddddocr-rec", "silero-vad-ifless", "magika"])
def test_every_weighted_node_of_a_real_model_is_found(tmp_path: Path, name: str) -> None:
    goal, graph = target("onnx"), load(fetched(name))
    PassManager().run(pipeline(goal.prepare), graph, Context(goal, Evaluate(1)))
    feed = calibration(name, 1)[0]
    sizes = {n: Profile(feed[n].shape, feed[n].shape, feed[n].shape) for n in _any_sizes(graph)}
    built = engine(graph, tmp_path, gpus=("sm_89", "sm_120"), profiles=sizes)
    heavy = {n.name for n in graph.walk() if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")}
    assert heavy and dict.fromkeys(heavy, "fp32") == built.precision


# ---------------------------------------------------------------- options that do not fit


@needs_rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"input 'x' \[\?,4\] has unknown sizes: .* --shape x=1x4:1x4:1x4"),
        ({"profiles": {"x": Profile((1,), (1,), (1,))}}, r"--shape x=1:1:1 does not fit input 'x' \[\?,4\]"),
        ({"profiles": {"x": Profile((1, 5), (1, 5), (1, 5))}}, r"--shape x=1x5:.* does not fit input 'x' \[\?,4\]"),
        ({"profiles": {**SIZES, "z": Profile((1,), (1,), (1,))}}, "the model has no input 'z'; it has x"),
        ({"gpus": ("sm_90",)}, r"does not build for --gpu sm_90; it builds for sm_75, .*sm_89, sm_120, sm_121"),
        ({"level": 6}, "--level 6: give 0 .* to 5"),
        ({"plugins": (Path("none.so"),)}, "no plugin library at 'none.so'"),
        ({"plugins": (Path(__file__),)}, r"test_trt\.py' is no plugin library for TensorRT for RTX .*ELF"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine(make(RELU), tmp_path, **options)
    assert not (tmp_path / "model.engine").exists()


@needs_rtx
def test_dims_of_one_name_get_the_same_sizes(tmp_path: Path) -> None:
    graph = make("g (float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Add(x, z) }")
    with pytest.raises(UserError, match=r"'x' and 'z' are both called 'N'.* 1:2:8 and 1:2:4"):
        engine(graph, tmp_path, profiles={**SIZES, "z": Profile((1, 4), (2, 4), (4, 4))})


# ---------------------------------------------------------------- what is said of a refusal


@needs_rtx
@pytest.mark.parametrize(
    ("text", "message", "nodes"),
    [
        (
            "g (float[2,4] x) => (float[2,4] y) { [odd] y = my.ops.Thing(x) }",
            r"does not take node 'odd' \(Thing\): there is no such operator; give a library .*--plugin",
            ("odd",),
        ),
        (
            "g (float[2,4] x, float16[2,4] z) => (float[2,4] y) { [mixed] y = Add(x, z) }",
            r"node 'mixed' \(Add\): ElementWiseOperation SUM .* Float and Half; .* a Cast",
            ("mixed",),
        ),
        (
            "g (float[2,4] x) => (float[2,4] y) <int32[4] b = {1,2,3,4}, float s = {0.5}> "
            "{ [bias] d = DequantizeLinear(b, s) y = Add(x, d) }",
            r"node 'bias' \(DequantizeLinear\): input has type Int32 .*int32 bias",
            ("bias",),
        ),
        (
            "g (float[2,4] x) => (float[2,4] y) <int8 z = {3}, float s = {0.5}> "
            "{ [narrow] q = QuantizeLinear(x, s, z) [widen] y = DequantizeLinear(q, s, z) }",
            r"node 'narrow' \(QuantizeLinear\): Non-zero zero point .* zero points of 0",
            ("narrow", "widen"),
        ),
        ("g (int16[2,4] x) => (float[2,4] y) { y = Cast<to=1>(x) }", "does not take the model: .*cast it to", ()),
        (
            "g (float[2,4] x) => (uint8[2,4] q, float[2,4] y, float s, uint8 z) "
            "{ [dynamic] q, s, z = DynamicQuantizeLinear(x) y = Relu(x) }",
            r"node 'dynamic' \(DynamicQuantizeLinear\): there is no such operator; the pass dequantize",
            ("dynamic",),
        ),
        ("g (float[2,4] x) => (float[2,4] x, float[2,4] y) { y = Relu(x) }", "'x' is an input and an output", ()),
    ],
)
def test_the_parser_s_refusal_names_node_and_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, message: str, nodes: tuple[str, ...]
) -> None:
    parsed = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19, "my.ops" : 1]>\n{text}')
    with pytest.raises(BuildError, match=message) as caught:
        engine(load(parsed), tmp_path)
    assert set(caught.value.nodes) <= set(nodes) and set(caught.value.nodes[:1]) == set(nodes[:1])
    assert "\n" not in str(caught.value) and "_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_the_builder_s_refusal_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"node 'product' \(MatMul\): .*Turing.*leave sm_75 out") as caught:
        engine(make(MATMUL + " { [product] y = MatMul(x, w) }"), tmp_path, gpus=("sm_75",))
    assert caught.value.nodes == ("product",)


@needs_rtx
def test_a_nested_if_is_refused_in_silence_and_says_what_decides_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildError, match=r"the If 'outer' holds another If.*--freeze c=VALUE"):
        engine(make(NESTED), tmp_path, profiles=SIZES)
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_an_engine_for_later_versions_needs_what_pip_does_not_bring(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="lean runtime"):
        engine(make(RELU), tmp_path, profiles=SIZES, version_compatible=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (?: Input dimensions with this name have "
            "different constant values. In getBounds at /_src/optimizer/shapeContext.cpp:4433)",
            "Input dimensions with this name have different constant values",
        ),
        (
            "[graphScope.cpp::analyze::471] Error Code 2: Internal Error (Assertion a.b() != T::kX failed.  In analyze "
            "at /_src/optimizer/graphScope.cpp:471)",
            "Assertion a.b() != T::kX failed",
        ),
        (
            "IBuilder::build: Error Code 1: Myelin ([graph.h:1295: attach] MyelinCheckException: utils.cpp:3613: "
            "CHECK(i < n) failed.  In compileGraph at /_src/optimizer/codeGenerator.cpp:2012)",
            "CHECK(i < n) failed",
        ),
        ('creator && "Plugin not found, is the name correct?"', "Plugin not found, is the name correct?"),
        ("Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point.", "Non-zero zero point"),
        ("two\nlines", "two lines"),
        ("x" * 500, "x" * 237 + "..."),
    ],
)
def test_messages_lose_their_wrapping(text: str, expected: str) -> None:
    assert messages.clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Could not find any implementation for node {ForeignNode[/a/Conv.../b/Relu]}.", ("/a/Conv", "/b/Relu")),
        ("Could not find any implementation for node Conv_1 + Add_2.", ("Conv_1", "Add_2")),
        ("Conv_12: kernel weights has count 3", ("Conv_12",)),
        ("node Conv_1 in Conv_10", ("Conv_1",)),
        ("Cannot compile operation 'add' for Turing", ("add",)),
        ("cannot add two tensors", ()),
        ("(Unnamed Layer* 3) [Matrix Multiply]: bad", ("gemm",)),
        ("Could not infer output types for operation: 240: deconv: up_output-(bf16[1,1,6,1][]so[])", ("up",)),
        ("Could not infer output types for operation: 31: deconv: add-(bf16[1]) | add", ("add",)),
    ],
)
def test_sentences_give_the_nodes_they_name(text: str, expected: tuple[str, ...]) -> None:
    names = ["/a/Conv", "/b/Relu", "Conv_1", "Conv_12", "Add_2", "add", "Conv"]
    known = {name: name for name in names} | {"(Unnamed Layer* 3) [Matrix Multiply]": "gemm", "up_output": "up"}
    assert messages.mentioned(text, known) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("b = Equal(k, one)", "--freeze k=VALUE"),
        ("s = Shape(x) t = ReduceSum<keepdims=0>(s) b = Equal(t, one)", "--shape"),
    ],
)
def test_a_branch_is_decided_by_values_or_by_sizes(condition: str, expected: str) -> None:
    graph = make(
        f"""g (float[N] x, int64 k) => (float[N] y) <int64 one = {{1}}> {{
            {condition}
            [choice] y = If (b) <then_branch = t () => (float[N] p) {{ [bad] p = Neg(x) }},
                                 else_branch = e () => (float[N] q) {{ q = Exp(x) }}>
        }}"""
    )
    found = messages.branch_advice(graph, ["bad"])
    assert "the If 'choice'" in found and expected in found
    assert messages.branch_advice(graph, ["elsewhere"]) == ""


# ---------------------------------------------------------------- which library, and without one


def pretend(monkeypatch: pytest.MonkeyPatch, gpu: str | None, *names: str) -> None:
    """As on a machine with this GPU and these libraries."""
    gpus = {RTX: ("sm_75", "sm_89"), FULL: ()}
    here = {name: Library(name, SimpleNamespace(__version__="11.3"), gpus[name]) for name in names}
    monkeypatch.setattr(library, "load", here.get)
    monkeypatch.setattr(library, "present", lambda: gpu)


@pytest.mark.parametrize(
    ("gpu", "here", "asked", "expected"),
    [
        ("sm_90", (RTX, FULL), (), FULL),
        ("sm_90", (RTX, FULL), ("sm_90",), FULL),
        ("sm_90", (RTX, FULL), ("sm_89",), RTX),
        (None, (RTX, FULL), (), RTX),
        ("sm_89", (RTX,), (), RTX),
    ],
)
def test_the_library_is_the_one_that_can(
    monkeypatch: pytest.MonkeyPatch, gpu: str | None, here: tuple[str, ...], asked: tuple[str, ...], expected: str
) -> None:
    pretend(monkeypatch, gpu, *here)
    assert library.find(asked).name == expected
    assert TrtBackend().available() is None


@pytest.mark.parametrize(("here", "message"), [((), "neither tensorrt_rtx nor tensorrt 10.13"), ((FULL,), "none is")])
def test_without_a_library_the_command_that_brings_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: tuple[str, ...], message: str
) -> None:
    pretend(monkeypatch, None, *here)
    backend = registry.load_backend("trt")
    told = backend.available()
    assert told is not None and message in told and told.endswith(TrtBackend().install())
    assert not backend.runs(EngineOptions()) and backend.compiles
    with pytest.raises(UnavailableError, match=re.escape(told)):
        backend.build(tmp_path / "model.onnx", tmp_path, EngineOptions())


def test_gpus_are_the_present_one_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "sm_75", RTX, FULL)
    rtx, full = library.load(RTX), library.load(FULL)
    assert rtx is not None and full is not None
    assert rtx.resolve(()) == full.resolve(()) == ("sm_75",)
    assert rtx.resolve(("SM_89", "sm_75", "sm_89")) == ("sm_89", "sm_75")
    with pytest.raises(UserError, match=r"TensorRT 11\.3 does not build for --gpu sm_89; .* present, sm_75"):
        full.resolve(("sm_89",))
    pretend(monkeypatch, "sm_61", RTX)
    assert rtx.resolve(()) == ("sm_89",)
    assert TrtBackend().runs(EngineOptions()) is False


def test_the_command_line_says_all_that_the_options_do() -> None:
    options = EngineOptions(
        gpus=("sm_89", "sm_120"),
        profiles={"x y": Profile((1, 3), (2, 3), (4, 3)), "k": Profile((1,), (1,), (1,))},
        workspace=1 << 30,
        level=4,
        strip=True,
        refit=True,
        version_compatible=True,
        plugins=(Path("a.so"), Path("b.so")),
    )
    assert TrtBackend().command(Path("out/model.onnx"), options) == (
        "tensorrt_rtx --onnx=out/model.onnx --saveEngine=out/model.engine --skipInference --computeCapabilities=89,120 "
        "'--minShapes=x y:1x3,k:1' '--optShapes=x y:2x3,k:1' '--maxShapes=x y:4x3,k:1' "
        "--memPoolSize=workspace:1073741824B --builderOptimizationLevel=4 --stripWeights --refit --versionCompatible "
        "--dynamicPlugins=a.so --dynamicPlugins=b.so"
    )
    assert TrtBackend().command(Path("m.onnx"), EngineOptions()) == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference --stronglyTyped"
    )


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from backends.trt.backend import TrtBackend; from optimizer.engine import EngineOptions; "
        "from pathlib import Path; b = TrtBackend(); b.command(Path('m'), EngineOptions()); b.install(); "
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'cuda', 'onnxruntime') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- timing caches


@dataclass
class Timings:
    """A builder's config as far as timing caches go: takes what starts with `ok`."""

    content: bytes = b""

    def create_timing_cache(self, content: bytes) -> Any:
        return content if content.startswith(b"ok") or not content else None

    def set_timing_cache(self, cache: bytes, mismatch: bool) -> bool:
        assert not mismatch
        self.content = cache
        return cache != b"ok, of another GPU"

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.content + b"ok")


@pytest.mark.parametrize(
    ("found", "kept"), [(None, b"ok"), (b"ok", b"okok"), (b"junk", b"ok"), (b"ok, of another GPU", b"ok")]
)
def test_timings_are_kept_and_a_broken_file_counts_as_none(tmp_path: Path, found: bytes | None, kept: bytes) -> None:
    full = Library(FULL, SimpleNamespace(__version__="11.3"), ())
    path = building._cache_file(full, ("sm_90",), tmp_path / "new")
    assert path == tmp_path / "new" / "tensorrt-11.3-sm_90.timings"
    if found is not None:
        path.parent.mkdir()
        path.write_bytes(found)
    config = Timings()
    building._read_timings(config, path)
    building._write_timings(config, path)
    assert path.read_bytes() == kept
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@needs_rtx
def test_tensorrt_for_rtx_keeps_no_timings(tmp_path: Path) -> None:
    engine(make(RELU), tmp_path, profiles=SIZES, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------- running, with a stand-in for the GPU


class Device:
    """The CUDA runtime's calls on host memory; `held` is what was not given back."""

    to_device, to_host = "to device", "to host"

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def __call__(self, name: str, *arguments: Any) -> Any:
        if name.endswith("Create"):
            self.held[-len(self.held) - 1] = None
            return -len(self.held)
        if name.endswith(("Destroy", "Free")):
            return self.held.pop(*arguments)
        return {"cudaMalloc": self.allocate, "cudaMemcpyAsync": self.copy, "cudaEventElapsedTime": self.elapsed}.get(
            name, self.known
        )(*arguments)

    def allocate(self, size: int) -> int:
        memory = np.zeros(size, np.uint8)
        self.held[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def copy(self, to: int, source: int, size: int, kind: str, stream: int) -> None:
        device, host = (to, source) if kind == self.to_device else (source, to)
        assert device in self.held and host not in self.held and stream in self.held
        ctypes.memmove(to, source, size)

    def elapsed(self, begin: int, end: int) -> float:
        self.known(begin, end)
        return 250.0

    def known(self, *handles: int) -> None:
        assert all(handle in self.held for handle in handles)


class Doubler:
    """An engine and its context at once: `twice` = 2x, `count` = [rows] on the host, `positive` = the x above 0."""

    kinds = {"x": "FLOAT", "flag": "BOOL", "twice": "FLOAT", "count": "INT64", "positive": "FLOAT"}
    num_io_tensors = len(kinds)

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocator: Any = None

    def get_tensor_name(self, index: int) -> str:
        return list(self.kinds)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in ("x", "flag") else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.kinds[name])

    def get_tensor_location(self, name: str) -> str:
        return "host" if name == "count" else "device"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3), (2, 3), (4, 3)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name == "flag":
            return shape == ()
        self.shape = shape
        return len(shape) == 2 and 0 <= shape[0] <= 4 and shape[1] == 3

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"twice": self.shape, "count": (1,), "positive": (-1,)}[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        self.allocator = allocator

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        x = np.frombuffer(ctypes.string_at(self.addresses["x"], 4 * size), np.float32)
        positive = x[x > 0]
        ctypes.memmove(self.addresses["twice"], (x * 2).ctypes.data, x.nbytes)
        ctypes.memmove(self.addresses["count"], np.array([self.shape[0]]).ctypes.data, 8)
        address = self.allocator.reallocate_output_async("positive", 0, positive.nbytes, 256, stream)
        ctypes.memmove(address, positive.ctypes.data, positive.nbytes)
        self.allocator.notify_shape("positive", positive.shape)
        return True

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": ["double"]}')


class Api:
    """As much of the module as sessions look at."""

    class ILogger:
        WARNING = 2

    IOutputAllocator = type("IOutputAllocator", (), {})
    TensorIOMode = SimpleNamespace(INPUT="input")
    TensorLocation = SimpleNamespace(HOST="host")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    __version__ = "11.3"


@pytest.fixture
def running() -> Iterator[tuple[session.TrtSession, Device]]:
    device, loaded = Device(), Doubler()
    stand_in: Any = device
    made = session.TrtSession(Library(FULL, Api, ()), stand_in, loaded, loaded)
    yield made, device
    made.close()
    assert device.held == {}


def test_a_session_feeds_runs_and_fetches(running: tuple[session.TrtSession, Device]) -> None:
    opened, device = running
    assert opened.seconds == 0
    for rows in (2, 4, 1, 0, 3):
        x = np.arange(-2, 3 * rows - 2, dtype=np.float32).reshape(rows, 3)
        found = opened.run({"x": x[::-1], "flag": np.array(True)})
        np.testing.assert_array_equal(found["twice"], x[::-1] * 2)
        np.testing.assert_array_equal(found["positive"], x[::-1].ravel()[x[::-1].ravel() > 0])
        assert (found["count"].tolist(), found["count"].dtype) == ([rows], np.int64)
    assert opened.seconds == 0.25
    assert opened.layers() == ["double"]
    assert len(device.held) == 3 + 4  # stream, events, and one buffer each but for what stays on the host


def test_results_outlive_the_next_run(running: tuple[session.TrtSession, Device]) -> None:
    opened, _ = running
    first = opened.run({"x": np.ones((1, 3), np.float32), "flag": np.array(True)})
    opened.run({"x": np.zeros((1, 3), np.float32), "flag": np.array(True)})
    assert first["twice"].tolist() == [[2, 2, 2]]


def test_float64_is_narrowed_for_an_engine_has_none(running: tuple[session.TrtSession, Device]) -> None:
    found = running[0].run({"x": np.full((1, 3), 1.5), "flag": np.array(False)})
    assert found["twice"].tolist() == [[3, 3, 3]] and found["twice"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((5, 3), np.float32)}, r"'x' of shape \[5, 3\] is outside .* \[1, 3\] to \[4, 3\].*--shape"),
        ({"x": np.ones((1, 3), np.int64)}, "'x' is int64, and the engine takes float32"),
        ({"x": None}, "'x' is missing"),
        ({"z": np.ones(1)}, "takes no 'z'; its inputs are x, flag"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(
    running: tuple[session.TrtSession, Device], change: dict[str, Any], message: str
) -> None:
    feeds = {"x": np.ones((1, 3), np.float32), "flag": np.array(True), **change}
    with pytest.raises(DataError, match=message):
        running[0].run({name: array for name, array in feeds.items() if array is not None})


@pytest.mark.parametrize(
    ("gpu", "facts", "message"),
    [
        (None, {}, "runs on an NVIDIA GPU \\(sm_89\\), and none is here"),
        ("sm_75", {}, "is for sm_89, and the GPU here is sm_75: build it again with --gpu sm_75"),
        ("sm_89", {"version": "11.2"}, "was built by tensorrt_rtx 11.2, and 11.3 is here"),
        ("sm_89", {"library": FULL}, "was built by tensorrt 11.3, which is not here: pip install"),
    ],
)
def test_an_engine_is_opened_only_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, gpu: str | None, facts: dict[str, Any], message: str
) -> None:
    pretend(monkeypatch, gpu, RTX)
    built = Built(Path("model.engine"), {"library": RTX, "version": "11.3", "gpus": ["sm_89"], "flags": [], **facts})
    with pytest.raises(UnavailableError, match=message), TrtBackend().open(built):
        pass


@needs_rtx
def test_cuda_s_own_words_are_shown() -> None:
    if library.present() is not None:
        pytest.skip("a GPU is here")
    with pytest.raises(UnavailableError, match=r"CUDA failed in cudaMalloc: .*driver"):
        session.Cuda()("cudaMalloc", 64)


# ---------------------------------------------------------------- running on a GPU


def here(graph: Graph, folder: Path, **options: Any) -> Built:
    return engine(graph, folder, **{"gpus": (), **options})


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_outputs_are_the_oracle_s(tmp_path: Path) -> None:
    graph, feeds = load(zoo.path("fashion")), calibration("fashion", 4)
    shape = feeds[0]["image"].shape
    built = here(graph, tmp_path, profiles={"image": Profile(shape, shape, shape)})
    with TrtBackend().open(built) as opened:
        pairs = [(Evaluate(1)(graph, feed), opened.run(feed)) for feed in feeds]
        assert isinstance(opened, session.TrtSession)
        assert 0 < opened.seconds < 1
        assert opened.layers()
    (difference,) = compare(pairs).values()
    assert difference.sqnr > 40  # TF32 products keep ten bits


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_sizes_change_from_run_to_run(tmp_path: Path) -> None:
    with TrtBackend().open(here(make(RELU), tmp_path, profiles=SIZES)) as opened:
        for rows in (1, 8, 3):
            x = np.linspace(-1, 1, 4 * rows, dtype=np.float32).reshape(rows, 4)
            np.testing.assert_array_equal(opened.run({"x": x})["y"], np.maximum(x, 0))
        with pytest.raises(DataError, match="outside what the engine was built for"):
            opened.run({"x": np.ones((9, 4), np.float32)})


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "int64", "bool"])
def test_on_a_gpu_every_type_goes_in_and_out(tmp_path: Path, dtype: str) -> None:
    graph = make(f"g ({dtype}[2,3] x) => ({dtype}[3,2] y) {{ y = Transpose(x) }}", opset=19)
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(getattr(ml_dtypes, dtype, dtype))
    with TrtBackend().open(here(graph, tmp_path)) as opened:
        y = opened.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x.T)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_an_output_may_depend_on_values(tmp_path: Path) -> None:
    graph = make(
        """g (float[1,6,4] boxes, float[1,1,6] scores) => (int64[M,3] kept) <int64 most = {9}, float near = {0.5}> {
            kept = NonMaxSuppression(boxes, scores, most, near)
        }"""
    )
    boxes = np.array([[[i, 0, i + 1, 1] for i in (0, 0, 2, 2, 2, 5)]], np.float32)
    feed = {"boxes": boxes, "scores": np.linspace(1, 0.5, 6, dtype=np.float32).reshape(1, 1, 6)}
    with TrtBackend().open(here(graph, tmp_path)) as opened:
        found = opened.run(feed)["kept"]
    np.testing.assert_array_equal(found, Evaluate(1)(graph, feed)["kept"])


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_int8_is_what_the_oracle_simulates(tmp_path: Path) -> None:
    graph = make(
        f"g (float[4,4] x) => (float[4,4] y) <{SCALES}> {{ q = QuantizeLinear(x, s) f = DequantizeLinear(q, s) "
        "h = DequantizeLinear<axis=1>(v, r) [product] y = MatMul(f, h) }",
        opset=19,
    )
    built, feed = here(graph, tmp_path), {"x": np.random.default_rng(0).normal(0, 9, (4, 4)).astype(np.float32)}
    assert built.precision == {"product": "int8"}
    with TrtBackend().open(built) as opened:
        np.testing.assert_allclose(opened.run(feed)["y"], Evaluate(1)(graph, feed)["y"], rtol=1e-3)
