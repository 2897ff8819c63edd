"""Models in and out: what round-trips, what is refused with one clear line, and what it costs in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer import shapes
from optimizer.errors import ModelError, UserError
from optimizer.evaluate import Evaluate, session
from optimizer.graph import Constant, Graph
from optimizer.io import load, nbytes, save, skeleton, to_model
from optimizer.stored import Stored
from tests.conftest import make, model

RELU = "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
ADD = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"
FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[2] x) => (float[2] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> once (a) => (b) { c = Relu(a) b = Neg(c) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> twice (a) => (b) { c = local.once(a) b = local.once(c) }
"""


def bytes_of(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def with_external(folder: Path, *, location: str = "w.bin", values: int = 1_000, length: int | None = None) -> Path:
    """y = x + w, its weights in a file; `values` of 1,000 are in it."""
    proto = model("g (float[1000] x) => (float[1000] y) { y = Add(x, w) }")
    (folder / "w.bin").write_bytes(np.arange(values, dtype=np.float32).tobytes())
    w = proto.graph.initializer.add(name="w", dims=[1_000], data_type=TensorProto.FLOAT)
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value=location)
    if length is not None:
        w.external_data.add(key="length", value=str(length))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


# ------------------------------------------------------------------ what round-trips


def test_header_metadata_and_documentation_survive() -> None:
    proto = model(RELU)
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "what it is"
    proto.metadata_props.add(key="licence", value="MIT")
    proto.graph.name, proto.graph.doc_string = "the graph", "of the graph"
    proto.graph.metadata_props.add(key="a", value="b")
    proto.graph.input[0].doc_string = "pixels"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.output[0].metadata_props.add(key="unit", value="1")
    proto.graph.node[0].name, proto.graph.node[0].doc_string = "relu", "clips"
    proto.graph.node[0].metadata_props.add(key="namespace", value="block/0")
    assert to_model(load(proto)) == proto


def test_quantization_annotations_keep_their_initializers() -> None:
    proto = model("g (float[2] x) => (float[2] y) <float s = {0.5}, float[2] w = {1, 2}> { y = Add(x, w) }")
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    after = to_model(load(proto).copy())
    assert list(after.graph.quantization_annotation) == [annotation]
    assert {t.name for t in after.graph.initializer} == {"s", "w"}


def test_overridable_initializers_stay_inputs_and_defaults() -> None:
    proto = model("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    graph = load(proto)
    after = to_model(graph)
    assert [v.name for v in after.graph.input] == ["x", "w"]
    assert [t.name for t in after.graph.initializer] == ["w"]
    x = np.zeros(2, np.float32)
    assert Evaluate(1)(graph, {"x": x})["y"].tolist() == [1, 2]
    assert Evaluate(1)(graph, {"x": x, "w": x})["y"].tolist() == [0, 0]


def test_a_default_that_may_have_another_shape_is_an_input_like_any_other() -> None:
    proto = model("g (float[N] w) => (int64[1] s) <float[3] w = {1, 2, 3}> { s = Shape(w) }")
    graph = load(proto)
    assert graph.nodes[0].inputs[0].shape == ["N"]
    for one in (graph, graph.copy()):
        after = to_model(one)
        assert [v.name for v in after.graph.input] == [t.name for t in after.graph.initializer] == ["w"]
        assert Evaluate(1)(one, {})["s"].tolist() == [3]
        assert Evaluate(1)(one, {"w": np.zeros(5, np.float32)})["s"].tolist() == [5]


def test_what_a_subgraph_says_of_an_output_stays_where_no_more_is_known() -> None:
    """ONNX Runtime's Scan asks for it."""
    proto = model("""g (float[] x, float[3,2] s) => (float[2] y, float[3,2] z) {
        y, z = Scan <num_scan_inputs = 1, body = b (float[2] v, float[2] row) => (float[2] w, float[2] out) {
            w = Add(v, row)  out = Mul(w, x) }> (x, s) }""")
    feeds = {"x": np.ones(2, np.float32), "s": np.ones((3, 2), np.float32)}
    for graph in (load(proto), load(proto).copy()):
        shapes.infer(graph)
        assert Evaluate(1)(graph, feeds)["y"].tolist() == [4, 4]


def test_an_overridable_initializer_that_nobody_reads_stays() -> None:
    proto = model("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Relu(x) }")
    assert [t.name for t in to_model(load(proto).copy()).graph.initializer] == ["w"]


def test_optional_and_sequence_inputs_and_outputs_survive() -> None:
    proto = model("g (seq(float[N]) s, optional(float[2]) o) => (seq(float[N]) t, bool h) "
                  "{ t = Identity(s) h = OptionalHasElement(o) }")  # fmt: skip
    after = to_model(load(proto))
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)


def test_map_outputs_survive() -> None:
    zipmap = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[3, 4])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    z = helper.make_value_info("z", helper.make_sequence_type_proto(kind))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(helper.make_graph([zipmap], "g", [x], [z]), ir_version=8, opset_imports=imports)
    graph = load(proto)
    assert list(to_model(graph).graph.output) == [z]
    assert Evaluate(1)(graph, {"x": np.array([[1, 2]], np.float32)})["z"] == [{3: 1.0, 4: 2.0}]


def test_a_custom_domain_is_kept_as_it_is() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17, "com.acme" : 3]> '
    magic = 'com.acme.Magic <depth = 4, how = "so"> (a)'
    proto = model(f"{header} g (float[2] x) => (float[2] y) {{ a = Relu(x) y = {magic} }}")
    after = to_model(load(proto))
    assert after.opset_import == proto.opset_import
    assert after.graph.node[1].attribute == proto.graph.node[1].attribute


def test_the_operator_set_that_is_set_is_the_one_written() -> None:
    graph = make(RELU, opset=13)
    assert graph.opset == 13
    graph.imports[""] = 17
    assert to_model(graph).opset_import[0].version == 17


def test_rare_attributes_are_kept() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import.add(domain="com.acme", version=1)
    rare = proto.graph.node.add(op_type="Rare", domain="com.acme", input=["x"], output=["unused"])
    tensor = numpy_helper.from_array(np.arange(3), "")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    rare.attribute.append(helper.make_attribute("tensors", [tensor, tensor]))
    rare.attribute.append(helper.make_attribute("kind", kind))
    rare.attribute.append(helper.make_attribute("kinds", [kind]))
    rare.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.FLOATS))
    rare.attribute.append(helper.make_attribute("nothing", [], attr_type=onnx.AttributeProto.INTS))
    rare.attribute.append(helper.make_attribute("tensor", tensor))
    assert list(to_model(load(proto)).graph.node[1].attribute) == list(rare.attribute)


def test_sparse_initializers_become_dense() -> None:
    proto = model("g (float[2,3] x) => (float[2,3] y) { y = Add(x, w) }")
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 5], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    y = Evaluate(1)(load(proto), {"x": np.zeros((2, 3), np.float32)})["y"]
    assert y.tolist() == [[0, 5, 0], [0, 0, 7]]


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "int64", "uint8", "bool", "bfloat16", "float8_e4m3fn", "int4", "uint4"]
)
def test_weights_of_every_type_survive(dtype: str, tmp_path: Path) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.arange(5).astype(np.float32).astype(kind).reshape(1, 5)
    proto = model("g () => () { y = Identity(w) }")
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    element = helper.np_dtype_to_tensor_dtype(kind)
    proto.graph.output.append(helper.make_tensor_value_info("y", element, [1, 5]))
    graph = load(proto)
    fresh = graph.constant(values, "fresh")
    assert nbytes(graph.constants()["w"]) == nbytes(fresh) == (3 if dtype in ("int4", "uint4") else values.nbytes)
    graph.set_input(graph.nodes[0], 0, fresh)
    save(graph, tmp_path / "m.onnx")
    assert np.array_equal(numpy_helper.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[0]), values)


def test_strings_survive(tmp_path: Path) -> None:
    graph = make("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    words = graph.constant(np.array(["grüße", ""], object), "words")
    assert nbytes(words) == 7
    graph.set_input(graph.nodes[0], 0, words)
    save(graph, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    assert Evaluate(1)(again, {"x": np.array(["a", "b"], object)})["y"].tolist() == ["grüße", ""]


def test_what_is_saved_is_what_to_model_makes(tmp_path: Path) -> None:
    graph = load(model(ADD))
    graph.set_input(graph.nodes[0], 1, graph.constant(np.ones(5_000, np.float32), "big"))
    assert save(graph, tmp_path / "a.onnx") == [tmp_path / "a.onnx"]
    save(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnx.load(tmp_path / "a.onnx") == to_model(graph)


def test_loading_leaves_the_source_untouched() -> None:
    proto = model(ADD)
    before = bytes_of(proto)
    graph = load(proto)
    graph.bypass(graph.nodes[0], graph.inputs[0])
    graph.imports[""] = 20
    assert bytes_of(proto) == before


# ------------------------------------------------------------------ subgraphs and functions


def test_functions_are_inlined_nested_ones_too() -> None:
    graph = load(model(FUNCTIONS))
    assert [n.op for n in graph.nodes] == ["Relu", "Neg", "Relu", "Neg"]
    after = to_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert not after.functions
    assert [e.domain for e in after.opset_import] == [""]
    assert Evaluate(1)(graph, {"x": np.array([1, -1], np.float32)})["y"].tolist() == [0, 0]


HEAD = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[N] x) => (float[N] y) { a = my.f(x) y = my.f <slope = 0.5> (a) }"""


@pytest.mark.parametrize(
    ("functions", "opset"),
    [
        ("""<domain: "my", opset_import: ["" : 17]> f <slope: float = 0.25> (v) => (w) {
            w = LeakyRelu <alpha: float = @slope> (v) }""", {"": 17}),
        ("""<domain: "my", opset_import: ["" : 16, "my" : 1]> f <slope: float = 0.25> (v) => (w) {
            w = my.h <deep: float = @slope> (v) }
        <domain: "my", opset_import: ["" : 17]> h <deep: float = 0.9> (v) => (w) {
            w = LeakyRelu <alpha: float = @deep> (v) }""", {"": 17}),
        ("""<domain: "my", opset_import: ["" : 17, "ai.onnx.ml" : 3]> f <slope: float = 0.25> (v) => (w) {
            s = ai.onnx.ml.Scaler <scale = [2.0], offset = [1.0]> (v) w = LeakyRelu <alpha: float = @slope> (s) }""",
         {"": 17, "ai.onnx.ml": 3}),
    ],
    ids=["defaults", "another set", "a domain of its own"],
)  # fmt: skip
def test_functions_mean_the_same_inlined(functions: str, opset: dict[str, int]) -> None:
    proto = model(f"{HEAD}\n{functions}")
    before = proto.SerializeToString()
    graph = load(proto)
    feeds = {"x": np.array([1, -1, -3], np.float32)}
    (expected,) = session(before, threads=1).run(None, feeds)
    assert np.array_equal(Evaluate(1)(graph, feeds)["y"], expected)
    assert {o.domain: o.version for o in to_model(graph).opset_import} == opset
    assert proto.SerializeToString() == before


def test_a_function_of_a_set_that_differs_is_refused() -> None:
    text = f"""{HEAD} <domain: "my", opset_import: ["" : 12]> f (v) => (w) {{ w = Softmax(v) }}"""
    with pytest.raises(ModelError, match="local function 'f' is written for other operator sets"):
        load(model(text))


LOOP = """g (float[2] x) => (float[2] y, float[K,2] seen) <int64 n = {3}, bool go = {1}, float[2] step = {1, 2}> {
    a = Relu(x)
    y, seen = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w, float[2] out) {
        d = Identity(c)
        s = Add(v, step)
        w = Add(s, a)
        out = Neg(w)
    }>
}"""
SCAN = """g (float[2] x, float[3,2] xs) => (float[2] y, float[3,2] ys) {
    a = Relu(x)
    y, ys = Scan <num_scan_inputs = 1, body = b (float[2] s, float[2] e) => (float[2] t, float[2] out) {
        m = Add(s, e)
        t = Mul(m, a)
        out = Identity(m)
    }> (x, xs)
}"""
IF = """g (bool c, float[2] x) => (float[2] y) <float[2] w = {3, 4}> {
    y = If (c) <
        then_branch = then () => (float[2] t) { t = Add(x, w) },
        else_branch = otherwise () => (float[2] e) <float[2] own = {5, 6}> { k = Add(x, own) e = Mul(k, w) }
    >
}"""
FEEDS = {
    "c": np.array(False),
    "x": np.array([1, -2], np.float32),
    "xs": np.arange(6, dtype=np.float32).reshape(3, 2),
}


@pytest.mark.parametrize("text", [LOOP, SCAN, IF], ids=["Loop", "Scan", "If"])
def test_subgraphs_and_their_captures_survive(text: str) -> None:
    proto = model(text)
    feeds = {v.name: FEEDS[v.name] for v in proto.graph.input}
    graph = load(proto)
    after = to_model(graph.copy())
    onnx.checker.check_model(after, full_check=True)
    assert [v.SerializeToString() for v in after.graph.output] == [v.SerializeToString() for v in proto.graph.output]
    expected = Evaluate(1)(graph, feeds)
    made = Evaluate(1)(load(after), feeds)
    assert all(np.array_equal(expected[name], made[name]) for name in expected)
    bodies = [a.g for n in after.graph.node for a in n.attribute if a.HasField("g")]
    originals = [a.g for n in proto.graph.node for a in n.attribute if a.HasField("g")]
    assert [list(b.input) for b in bodies] == [list(b.input) for b in originals]


def test_a_constant_of_several_subgraphs_is_written_once() -> None:
    after = to_model(load(model(IF)))
    assert [t.name for t in after.graph.initializer] == ["w"]
    inner = [t.name for n in after.graph.node for a in n.attribute for t in a.g.initializer]
    assert inner == ["own"]


def test_large_constants_of_subgraphs_are_held_outside_them() -> None:
    graph = make(IF.replace("float[2]", "float[1000]").replace("<float[1000] w = {3, 4}>", "")
                 .replace("<float[1000] own = {5, 6}>", "").replace("w)", "x)").replace("own)", "x)"))  # fmt: skip
    body = next(iter(next(n for n in graph.nodes if n.op == "If").bodies()))
    body.set_input(body.nodes[0], 1, graph.constant(np.ones(1000, np.float32), "big"))
    assert [t.name for t in to_model(graph).graph.initializer] == ["big"]
    assert not skeleton(graph).graph.initializer
    assert skeleton(graph).graph.input[-1].name == "big"


def test_a_subgraph_output_that_is_an_outer_tensor_is_bridged() -> None:
    graph = make(IF.replace("(float[2] t) { t = Add(x, w) }", "(float[2] x) { t = Add(x, w) }"))
    then = next(iter(next(n for n in graph.nodes if n.op == "If").bodies()))
    assert then.outputs[0].inputs[0].op == "Identity"
    assert Evaluate(1)(graph, {"c": np.array(True), "x": FEEDS["x"]})["y"].tolist() == [1, -2]


# ------------------------------------------------------------------ what is refused


def refuse(source: Path | onnx.ModelProto, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_file(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "no model at")


@pytest.mark.parametrize("content", [b"", b"not a model at all\n", bytes(range(256)), b"\x08\x08"])
def test_not_a_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refuse(path, "not an ONNX model, or it is cut short")


def test_truncated_models(tmp_path: Path) -> None:
    whole = bytes_of(model(IF))
    path = tmp_path / "m.onnx"
    for size in range(0, len(whole) - 8, 7):  # the last eight bytes are the operator set
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            load(path)


def test_unknown_operator_set() -> None:
    proto = model(RELU)
    proto.opset_import[0].version = 999
    refuse(proto, "operator set 999.*upgrade")


def test_unknown_operator_is_named() -> None:
    proto = model(RELU)
    proto.graph.node[0].name, proto.graph.node[0].op_type = "n1", "Frobnicate"
    refuse(proto, "'n1'.*'Frobnicate'")


def test_an_operator_newer_than_the_operator_set_is_refused() -> None:
    refuse(model("g (float[2] x) => (float[2] y) { y = Gelu(x) }", opset=17), "'Gelu'.*operator set 17 does not have")


def test_lists_of_graphs_are_refused_and_the_node_named() -> None:
    proto = model(RELU)
    proto.graph.node[0].name = "n1"
    attribute = proto.graph.node[0].attribute.add(name="branches", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.add(name="a")
    refuse(proto, "'n1'.*'branches'")


def test_training_information_is_refused() -> None:
    proto = model(RELU)
    proto.training_info.add()
    refuse(proto, "training information")


def test_a_tensor_that_nothing_makes() -> None:
    refuse(model("g (float[2] x) => (float[2] y) { y = Add(x, ghost) }"), "'ghost', which nothing makes")
    refuse(model("g (float[2] x) => (float[2] ghost) { y = Relu(x) }"), "'ghost' is made by no node")


def test_a_tensor_made_twice() -> None:
    refuse(model("g (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }"), "'y' is made twice")


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
def test_weights_with_too_few_values(field: str) -> None:
    proto = model(ADD)
    w = proto.graph.initializer[0]
    w.ClearField("float_data")
    if field == "raw_data":
        w.raw_data = b"\0" * 7
    else:
        w.float_data.append(1)
    refuse(proto, "'w' does not hold")


def test_weights_of_an_unknown_type() -> None:
    proto = model(ADD)
    proto.graph.initializer[0].data_type = 99
    refuse(proto, "'w' has element type 99")


def test_external_data_is_read(tmp_path: Path) -> None:
    graph = load(with_external(tmp_path))
    y = Evaluate(1)(graph, {"x": np.zeros(1_000, np.float32)})["y"]
    assert np.array_equal(y, np.arange(1_000, dtype=np.float32))


def test_external_data_is_written_as_external_data(tmp_path: Path) -> None:
    graph = load(with_external(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    assert save(graph, out / "m.onnx") == [out / "m.onnx", out / "m.onnx.data"]
    assert (
        onnx.load(out / "m.onnx", load_external_data=False).graph.initializer[0].data_location == TensorProto.EXTERNAL
    )
    assert np.array_equal(load(out / "m.onnx").array(load(out / "m.onnx").constants()["w"]), np.arange(1_000))


def test_weights_being_read_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    save(load(with_external(tmp_path)), out)
    before = (tmp_path / "m.onnx.data").read_bytes()
    with pytest.raises(UserError, match="holds the weights being read"):
        save(load(out), out)
    assert (tmp_path / "m.onnx.data").read_bytes() == before


def test_external_data_missing(tmp_path: Path) -> None:
    path = with_external(tmp_path)
    (tmp_path / "w.bin").unlink()
    refuse(path, "'w' are missing: put 'w.bin' beside")


@pytest.mark.parametrize("size", [0, 999])
def test_external_data_truncated(size: int, tmp_path: Path) -> None:
    refuse(with_external(tmp_path, values=size), "'w' do not fit in 'w.bin'")


def test_external_data_of_another_size(tmp_path: Path) -> None:
    refuse(with_external(tmp_path, length=17), "'w' do not fit")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", ""])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = with_external(folder, location=location)
    (tmp_path / "w.bin").write_bytes(b"\0" * 4_000)
    refuse(path, "outside the model's folder")


def test_external_data_behind_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = with_external(folder)
    (folder / "w.bin").rename(tmp_path / "w.bin")
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    refuse(path, "outside the model's folder")


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    refuse(onnx.load(with_external(tmp_path), load_external_data=False), "pass the model's path")


def with_large_weights(path: Path, fill: float = 1.0) -> Path:
    """y = x + w, with weights that are left in the file."""
    proto = model("g (float[8000] x) => (float[8000] y) { y = Add(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.full(8_000, fill, np.float32), "w"))
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_model_may_be_written_over_its_own_file(tmp_path: Path) -> None:
    path = with_large_weights(tmp_path / "model.onnx")
    graph = load(path)
    assert save(graph, path) == [path]
    assert list(tmp_path.iterdir()) == [path]
    assert bytes_of(to_model(load(path))) == bytes_of(to_model(graph))


def test_weights_of_a_file_that_was_replaced_are_still_there(tmp_path: Path) -> None:
    path = with_large_weights(tmp_path / "model.onnx")
    graph = load(path)
    with_large_weights(tmp_path / "other.onnx", 2.0).replace(path)
    (made,) = to_model(graph).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(made), np.ones(8_000, np.float32))


def test_weights_of_a_file_that_was_written_to_are_refused(tmp_path: Path) -> None:
    path = with_large_weights(tmp_path / "model.onnx")
    graph = load(path)
    os.utime(with_large_weights(path, 2.0), ns=(1, 1))
    with pytest.raises(ModelError, match="was changed while it was read"):
        to_model(graph)


@pytest.mark.parametrize("cut", [1, 3, 40_000])
def test_a_file_cut_within_large_weights(cut: int, tmp_path: Path) -> None:
    path = with_large_weights(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError):
        load(path)


def test_an_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save(make(RELU), tmp_path / "no" / "such" / "folder.onnx")


# ------------------------------------------------------------------ cost and noise

OPTIMIZE = """
import sys, threading
import psutil
from optimizer import optimize

me, peak, done = psutil.Process(), 0, threading.Event()
base = me.memory_info().rss
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, me.memory_info().rss)
thread = threading.Thread(target=watch)
thread.start()
optimize(sys.argv[1], target="onnx", out=sys.argv[2])
done.set()
thread.join()
print((peak - base) // 2**20)
"""


@pytest.mark.slow
def test_three_gigabytes_pass_through_in_little_memory(tmp_path: Path) -> None:
    count, elements = 6, 1 << 27  # six tables of half a gigabyte
    proto = model("g (float[1,1024] x, int64[1] i) => (float[1,1024] y) { y = Identity(x) }")
    del proto.graph.node[:]
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, 1 << 20, np.uint8).tobytes()
    before = "x"
    with (tmp_path / "w.bin").open("wb") as f:
        for n in range(count):
            w = proto.graph.initializer.add(name=f"w{n}", dims=[elements >> 10, 1 << 10], data_type=TensorProto.FLOAT)
            w.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "w.bin", "offset": f.tell(), "length": elements * 4}.items():
                w.external_data.add(key=key, value=str(value))
            for piece in range(elements * 4 >> 20):
                f.write(bytes([n, piece % 256]) + block[2:])
            proto.graph.node.append(helper.make_node("Gather", [f"w{n}", "i"], [f"g{n}"]))
            proto.graph.node.append(helper.make_node("Add", [before, f"g{n}"], [f"a{n}"]))
            before = f"a{n}"
    proto.graph.node[-1].output[0] = "y"
    path, out = tmp_path / "m.onnx", tmp_path / "out"
    path.write_bytes(proto.SerializeToString())
    command = [sys.executable, "-c", OPTIMIZE, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400, f"{done.stdout} MiB"
    assert (out / "model.onnx.data").stat().st_size == count * elements * 4
    first, second = load(path).constants(), load(out / "model.onnx").constants()
    for n in range(count):
        a, b = (c[f"w{n}"]._values.chunks() for c in (first, second))
        assert all(x == y for x, y in zip(a, b, strict=True))


def test_nothing_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes_of(model(IF)))
    code = (
        "import sys; from pathlib import Path; from optimizer.io import load, save; "
        "from optimizer.evaluate import Evaluate; from optimizer.shapes import infer; import numpy as np; "
        "g = load(Path(sys.argv[1])); infer(g); save(g, Path(sys.argv[1]).with_name('o.onnx')); "
        "Evaluate(1)(g, {'c': np.array(True), 'x': np.zeros(2, np.float32)})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_weights_are_not_kept_in_memory(tmp_path: Path) -> None:
    graph: Graph = load(with_external(tmp_path))
    w = graph.constants()["w"]
    assert isinstance(w, Constant)
    first = graph.array(w)
    assert first is not None and graph.array(w) is not first
    assert not isinstance(w._values, np.ndarray)


def test_values_of_no_element_are_read_whichever_way_they_are_stored() -> None:
    made = onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=[0], raw_data=b"")
    for proto in (made, onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=[0])):
        stored = Stored(proto)
        assert stored.load().shape == (0,) and b"".join(stored.chunks()) == b""
