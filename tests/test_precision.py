"""The proof of precision: what a graph promises, what the runtime made of it, and what is missing."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from optimizer.graph import Graph
from optimizer.io import load
from optimizer.precision import Layer, layers, report, shortfall
from tests.conftest import model

TEXT = """
agraph (float[N,16] x) => (float[N,16] y)
<float s = {0.1}, int8 z = {0}>
{
    [first] a = MatMul(x, w)
    q = QuantizeLinear(a, s, z)
    d = DequantizeLinear(q, s, z)
    e = DequantizeLinear<axis=1>(v, scales)
    [second] b = MatMul(d, e)
    [third] y = MatMul(b, e)
}
"""


def graph() -> Graph:
    proto = model(TEXT, 17)
    weights = {"w": np.ones((16, 16), np.float32), "v": np.ones((16, 16), np.int8), "scales": np.ones(16, np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return load(proto)


def test_int8_is_what_reads_dequantized_data_on_both_sides() -> None:
    found = layers(graph(), {"x": (4, 16)}, {})
    assert [(r.name, r.promised, r.macs) for r in found] == [
        ("first", "fp32", 4 * 256),
        ("second", "int8", 4 * 256),
        ("third", "fp32", 4 * 256),
    ]


def test_reasons_come_from_the_notes_and_decide_what_is_eligible() -> None:
    made = graph()
    made.notes = {"first": "rule: too small", "third": "no reason that counts"}
    facts = report(layers(made, {"x": (4, 16)}, {}), wanted="int8", built=False)
    assert facts["source"] == "model"
    assert facts["shares"] == {"fp32": 0.666667, "int8": 0.333333}
    assert facts["eligible"] == 0.666667
    assert facts["achieved"] == 0.5
    assert [(r["node"], r["reason"]) for r in facts["others"]] == [
        ("first", "rule: too small"),
        ("third", "no reason that counts"),
    ]


def layer(name: str, promised: str, built: str | None, reason: str = "", macs: int = 10) -> Layer:
    return Layer(name, "Conv", macs, promised, built, reason)


def test_a_promise_that_the_runtime_broke_is_found() -> None:
    kept, broken = layer("a", "int8", "int8"), layer("b", "int8", "fp32")
    assert shortfall([kept, kept], "int8", 0.9) == ""
    assert "typed only 50.0% of the work" in shortfall([kept, broken], "int8", 0.9)
    assert "b (Conv) is fp32" in shortfall([kept, broken], "int8", 0.9)
    assert "lost" in shortfall([kept, layer("c", "fp16", "lost")], "fp16", 0.9)


def test_too_little_int8_fails_but_not_what_was_left_out_on_purpose() -> None:
    int8, half = layer("a", "int8", "int8"), layer("b", "fp16", "fp16")
    assert "only 50.0% of the work that could be int8" in shortfall([int8, half], "int8", 0.9)
    assert shortfall([int8, half], "int8", 0.5) == ""
    assert shortfall([int8, layer("b", "fp16", "fp16", "accuracy: 12 dB alone")], "int8", 0.9) == ""
    assert shortfall([half], "fp16", 0.9) == ""


def test_the_heaviest_are_named_first_and_the_rest_counted() -> None:
    rows = [layer(f"n{i}", "int8", "fp32", macs=i) for i in range(1, 9)]
    said = shortfall(rows, "int8", 0.9)
    assert said.index("n8 ") < said.index("n4 ")
    assert "n3 " not in said
    assert said.endswith("and 3 more")


def test_a_model_without_weights_is_no_failure() -> None:
    assert report([], wanted="int8", built=False)["achieved"] is None
    assert shortfall([], "int8", 0.9) == ""
