"""Tiny models that are legal, or nearly so, and unlike what one expects: they try loaders and passes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.tiny import networks
from models.tiny.build import Builder


def half(seed: int = 0) -> onnx.ModelProto:
    """A float16 convolution between two Casts. float32 [N,3,8,8] -> [N,4,8,8]."""
    b = Builder("half", seed)
    x = b.op("Cast", b.input("x", ["N", 3, 8, 8]), to=TensorProto.FLOAT16)
    weight, bias = b.weight(4, 3, 3, 3, dtype=np.float16), b.weight(4, dtype=np.float16)
    x = b.op("Relu", b.op("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1] * 4))
    b.output(b.op("Cast", x, to=TensorProto.FLOAT), "y", ["N", 4, 8, 8])
    return b.model()


def unsorted(seed: int = 0) -> onnx.ModelProto:
    """conv_bn_relu with its nodes in reverse order: the checker refuses it, ONNX Runtime runs it."""
    model = networks.conv_bn_relu(seed)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def initializer_inputs(seed: int = 0) -> onnx.ModelProto:
    """Weights that are inputs too (as before IR 4): the caller may override them. [N,4] -> [N,3]."""
    b = Builder("initializer_inputs", seed)
    x, weight, bias = b.input("x", ["N", 4]), b.weight(4, 3, name="weight"), b.weight(3, name="bias")
    b.input(weight, [4, 3])
    b.input(bias, [3])
    b.output(b.op("Relu", b.op("Add", b.op("MatMul", x, weight), bias)), "y", ["N", 3])
    return b.model()


def constant_nodes(seed: int = 0) -> onnx.ModelProto:
    """conv_bn_relu with every weight in an unnamed Constant node and no initializer, as Paddle exports."""
    model = networks.conv_bn_relu(seed)
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = constants + list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    return model


def passthrough(seed: int = 0) -> onnx.ModelProto:
    """Outputs that are an input, a constant, and one tensor under two names. [N,4] -> four outputs."""
    b = Builder("passthrough", seed)
    x = b.input("x", ["N", 4])
    y = b.op("Relu", x)
    b.output(b.op("Identity", x), "same", ["N", 4])
    b.output(b.op("Identity", b.weight(2, 2)), "constant", [2, 2])
    b.output(y, "first", ["N", 4])
    b.output(b.op("Identity", "first"), "second", ["N", 4])
    return b.model()


def shared_weight(seed: int = 0) -> onnx.ModelProto:
    """One weight read by two convolutions, one of them with BatchNormalization behind it. [N,4,8,8] kept."""
    b = Builder("shared_weight", seed)
    x, weight = b.input("x", ["N", 4, 8, 8]), b.weight(4, 4, 3, 3)
    y = b.batch_norm(b.op("Conv", x, weight, kernel_shape=[3, 3], pads=[1] * 4), 4)
    z = b.op("Conv", y, weight, kernel_shape=[3, 3], pads=[1] * 4)
    b.output(b.op("Add", y, z), "y", ["N", 4, 8, 8])
    return b.model()


def redundant(seed: int = 0) -> onnx.ModelProto:
    """Work for every cleaner: twins, dead code, Identity, Dropout, constant arithmetic. [N,4] kept."""
    b = Builder("redundant", seed)
    x = b.input("x", ["N", 4])
    weight = b.random.standard_normal((4, 4))
    left = b.op("MatMul", x, b.constant(weight))
    right = b.op("MatMul", x, b.constant(weight))
    b.op("Neg", left)
    kept = b.op("Dropout", b.op("Identity", b.op("Add", left, right)))
    folded = b.op("Sqrt", b.op("Exp", b.constant([0.0, 1.0, 2.0, 3.0])))
    b.output(b.op("Mul", kept, folded), "y", ["N", 4])
    return b.model()


def random_ops(seed: int = 0) -> onnx.ModelProto:
    """Noise added on purpose: constant inputs, yet never to be folded or merged. [4] -> [4]."""
    b = Builder("random_ops", seed)
    x = b.input("x", [4])
    noise = [b.op("RandomNormal", shape=[4], scale=0.01) for _ in range(2)]
    b.output(b.op("Add", b.op("Add", x, noise[0]), noise[1]), "y", [4])
    return b.model()


def custom_domain(seed: int = 0) -> onnx.ModelProto:
    """An operator nobody knows, in a domain of its own; no runtime here runs it. [N,4] kept."""
    b = Builder("custom_domain", seed)
    x = b.op("Relu", b.input("x", ["N", 4]))
    x = b.op("Sharpen", x, b.weight(4), domain="org.example", strength=0.5)
    b.output(b.op("Add", x, b.constant(1.0)), "y", ["N", 4])
    return b.model("org.example")


def contrib_domain(seed: int = 0) -> onnx.ModelProto:
    """An operator of ONNX Runtime's own domain, which it runs. [N,4] kept."""
    b = Builder("contrib_domain", seed)
    x = b.input("x", ["N", 4])
    x = b.op("FusedMatMul", x, b.weight(4, 4), domain="com.microsoft", alpha=0.5)
    b.output(b.op("Relu", x), "y", ["N", 4])
    return b.model("com.microsoft")


def quantized(seed: int = 0) -> onnx.ModelProto:
    """A model that is int8 already: Q/DQ around a Gemm-like MatMul, weights per channel. [N,8] -> [N,4]."""
    b = Builder("quantized", seed)
    x, scale, zero = b.input("x", ["N", 8]), b.constant(0.05), b.constant(128, np.uint8)
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, scale, zero), scale, zero)
    codes = b.constant(b.random.integers(-127, 128, (8, 4)), np.int8)
    zeros = b.constant(np.zeros(4), np.int8)
    weight = b.op("DequantizeLinear", codes, b.constant(np.linspace(0.002, 0.004, 4)), zeros, axis=1)
    y = b.op("MatMul", x, weight)
    b.output(b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero), "y", ["N", 4])
    return b.model()


def metadata(seed: int = 0) -> onnx.ModelProto:
    """mlp with all that a round trip may lose: domain, version, texts, properties, node notes, shapes."""
    model = networks.mlp(seed)
    model.domain, model.model_version, model.doc_string = "org.example.mlp", 7, "what the model is for"
    helper.set_model_props(model, {"author": "somebody", "labels": "a\nb"})
    model.graph.doc_string = "what the graph does"
    model.graph.node[0].doc_string = "the first layer"
    model.graph.value_info.append(
        helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, ["N", 32])
    )
    return model


def old_opset(seed: int = 0) -> onnx.ModelProto:
    """Opset 11: Squeeze with axes as an attribute, no Q/DQ per channel yet. [N,3,8,8] -> [N,4]."""
    b = Builder("old_opset", seed, opset=11)
    x = b.op("Pad", b.input("x", ["N", 3, 8, 8]), b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = b.op("Conv", x, b.weight(4, 3, 3, 3), kernel_shape=[3, 3])
    x = b.op("Clip", x, b.constant(0.0), b.constant(6.0))
    b.output(b.op("Squeeze", b.op("GlobalAveragePool", x), axes=[2, 3]), "y", ["N", 4])
    return b.model()


def sparse_weight(seed: int = 0) -> onnx.ModelProto:
    """A weight stored as a sparse initializer. [N,4] -> [N,4]."""
    b = Builder("sparse_weight", seed)
    x = b.input("x", ["N", 4])
    b.output(b.op("MatMul", x, "sparse"), "y", ["N", 4])
    model = b.model()
    values = numpy_helper.from_array(b.random.standard_normal(3).astype(np.float32), "sparse")
    places = numpy_helper.from_array(np.array([1, 6, 11], np.int64), "sparse_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    return model
