"""Tiny models with graphs inside graphs (If, Loop, Scan) and with sequences.

Bodies capture tensors and weights of the graph around them: whoever forgets captures breaks these.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.tiny.build import Builder


def if_model(seed: int = 0) -> onnx.ModelProto:
    """Branches capture an outer tensor and an outer weight; one holds an If. [N,4], bool -> [N,4]."""
    b = Builder("if_model", seed)
    x = b.op("Relu", b.input("x", ["N", 4]))
    flag, weight = b.input("flag", [], TensorProto.BOOL), b.weight(4, 4)
    negative = Builder("negative", seed, prefix="negative.")
    negative.output(negative.op("Neg", x), "negated", ["N", 4])
    square = Builder("square", seed, prefix="square.")
    square.output(square.op("Mul", x, x), "squared", ["N", 4])
    inner = Builder("inner", seed, prefix="inner.")
    chosen = inner.op("If", flag, then_branch=square.graph(), else_branch=negative.graph())
    inner.output(inner.op("Add", chosen, inner.weight(4)), "shifted", ["N", 4])
    product = Builder("product", seed, prefix="product.")
    product.output(product.op("MatMul", x, weight), "multiplied", ["N", 4])
    y = b.op("If", flag, then_branch=inner.graph(), else_branch=product.graph())
    b.output(b.op("Add", y, x), "y", ["N", 4])
    return b.model()


def constant_if(seed: int = 0) -> onnx.ModelProto:
    """An If whose condition is a constant: the branch not taken is dead. [N,4] -> [N,4]."""
    b = Builder("constant_if", seed)
    x = b.input("x", ["N", 4])
    taken, dead = Builder("taken", seed, prefix="taken."), Builder("dead", seed + 1, prefix="dead.")
    taken.output(taken.linear(x, 4, 4), "taken_y", ["N", 4])
    dead.output(dead.op("Neg", x), "dead_y", ["N", 4])
    y = b.op("If", b.constant(True, np.bool_), then_branch=taken.graph(), else_branch=dead.graph())
    b.output(b.op("Relu", y), "y", ["N", 4])
    return b.model()


def loop_model(seed: int = 0) -> onnx.ModelProto:
    """x <- Tanh(x W), `trips` times, W captured; every step is kept too. [N,4], int64 -> [N,4], [T,N,4]."""
    b = Builder("loop_model", seed)
    start, trips = b.input("x", ["N", 4]), b.input("trips", [], TensorProto.INT64)
    weight = b.weight(4, 4)
    body = Builder("step", seed, prefix="step.")
    body.input("i", [], TensorProto.INT64)
    going = body.input("going", [], TensorProto.BOOL)
    state = body.input("state", ["N", 4])
    body.output(body.op("Identity", going), "still_going", [], TensorProto.BOOL)
    step = body.op("Tanh", body.op("MatMul", state, weight))
    body.output(step, "next_state", ["N", 4])
    body.output(body.op("Identity", "next_state"), "kept", ["N", 4])
    last, every = b.ops("Loop", 2, trips, b.constant(True, np.bool_), start, body=body.graph())
    b.output(last, "last", ["N", 4])
    b.output(every, "every", ["T", "N", 4])
    return b.model()


def scan(seed: int = 0) -> onnx.ModelProto:
    """A running sum of rows by Scan, scaled by a captured weight. [T,4] -> [4] and [T,4]."""
    b = Builder("scan", seed)
    rows, scale = b.input("rows", ["T", 4]), b.weight(4)
    body = Builder("add_row", seed, prefix="add.")
    total, row = body.input("total", [4]), body.input("row", [4])
    body.output(body.op("Add", total, body.op("Mul", row, scale)), "new_total", [4])
    body.output(body.op("Identity", "new_total"), "running", [4])
    last, every = b.ops("Scan", 2, b.constant(np.zeros(4)), rows, body=body.graph(), num_scan_inputs=1)
    b.output(last, "last", [4])
    b.output(every, "every", ["T", 4])
    return b.model()


def sequence_ops(seed: int = 0) -> onnx.ModelProto:
    """Tensors that travel in a sequence and come back joined. [N,4] -> [2N,4]."""
    b = Builder("sequence_ops", seed)
    x = b.input("x", ["N", 4])
    packed = b.op("SequenceConstruct", x, b.op("Relu", x), b.linear(x, 4, 4))
    first = b.op("SequenceAt", packed, b.constant(0, np.int64))
    kept = b.op("SequenceErase", packed, b.constant(1, np.int64))
    joined = b.op("ConcatFromSequence", kept, axis=0)
    doubled = b.op("Concat", first, first, axis=0)
    b.output(b.op("Add", joined, doubled), "y", ["M", 4])
    return b.model()


def local_function(seed: int = 0) -> onnx.ModelProto:
    """A function of the model's own, called twice, with an attribute of its own. [N,4] -> [N,4]."""
    b = Builder("local_function", seed)
    x = b.input("x", ["N", 4])
    for alpha in (0.1, 0.3):
        x = b.op("DenseLeaky", x, b.weight(4, 4), b.weight(4), domain="models.tiny", alpha=alpha)
    b.output(b.op("Relu", x), "y", ["N", 4])
    body = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("LeakyRelu", ["sum"], ["y"]),
    ]
    alpha = onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    body[-1].attribute.append(alpha)
    opsets = [helper.make_opsetid("", b.opset)]
    function = helper.make_function(
        "models.tiny", "DenseLeaky", ["x", "w", "b"], ["y"], body, opsets, attributes=["alpha"]
    )
    model = b.model("models.tiny")
    model.functions.append(function)
    return model
