"""Tiny networks in the shapes that exporters really write: what fusion, quantization and pruning live on.

Each function returns a valid model of one idea, a few kilobytes large; same arguments, same bytes.
"""

import numpy as np
import onnx
from onnx import TensorProto

from models.tiny.build import OPSET, Builder


def conv_bn_relu(seed: int = 0, opset: int = OPSET) -> onnx.ModelProto:
    """A residual classifier: Conv-BatchNormalization-Relu, a skip, pooling, Gemm. [N,3,16,16] -> [N,10]."""
    b = Builder("conv_bn_relu", seed, opset)
    x = b.input("image", ["N", 3, 16, 16])
    x = b.op("Relu", b.batch_norm(b.conv(x, (3, 8)), 8))
    y = b.op("Relu", b.batch_norm(b.conv(x, (8, 8)), 8))
    y = b.batch_norm(b.conv(y, (8, 8)), 8)
    x = b.op("Relu", b.op("Add", x, y))
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    b.output(b.op("Gemm", x, b.weight(10, 8), b.constant(np.zeros(10)), transB=1), "scores", ["N", 10])
    return b.model()


def depthwise_se(seed: int = 0) -> onnx.ModelProto:
    """A MobileNetV3 block: expand, depthwise, squeeze-excite, HardSwish, project, skip. [N,8,16,16] kept."""
    b = Builder("depthwise_se", seed)
    image = b.input("image", ["N", 8, 16, 16])
    x = b.op("HardSwish", b.batch_norm(b.conv(image, (8, 24), kernel=1), 24))
    x = b.op("HardSwish", b.batch_norm(b.conv(x, (24, 24), group=24), 24))
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), (24, 6), kernel=1))
    gate = b.op("HardSigmoid", b.conv(gate, (6, 24), kernel=1), alpha=1 / 6, beta=0.5)
    x = b.batch_norm(b.conv(b.op("Mul", x, gate), (24, 8), kernel=1), 8)
    b.output(b.op("Add", x, image), "y", ["N", 8, 16, 16])
    return b.model()


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Two dense layers with GELU spelt by Erf between them. [N,16] -> [N,4]."""
    b = Builder("mlp", seed)
    x = b.linear(b.input("x", ["N", 16]), 16, 32)
    b.output(b.linear(_gelu(b, x), 32, 4), "y", ["N", 4])
    return b.model()


def attention(seed: int = 0, width: int = 16, heads: int = 2) -> onnx.ModelProto:
    """A transformer block: LayerNormalization spelt by ReduceMean, Q/K/V, Softmax, MLP. [N,T,16] kept."""
    b = Builder("attention", seed)
    tokens = b.input("tokens", ["N", "T", width])
    x = _layer_norm(b, tokens, width)
    split, size = b.constant([0, 0, heads, width // heads], np.int64), width // heads

    def head(perm: list[int]) -> str:
        return b.op("Transpose", b.op("Reshape", b.linear(x, width, width), split), perm=perm)

    query, key, value = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    scores = b.op("Div", b.op("MatMul", query, key), b.constant(np.sqrt(size)))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), value)
    merged = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant([0, 0, width], np.int64))
    x = b.op("Add", tokens, b.linear(merged, width, width))
    y = b.linear(_gelu(b, b.linear(_layer_norm(b, x, width), width, 2 * width)), 2 * width, width)
    b.output(b.op("Add", x, y), "y", ["N", "T", width])
    return b.model()


def lstm(seed: int = 0, features: int = 6, hidden: int = 8) -> onnx.ModelProto:
    """A two-way LSTM with its first state made from the input's shape, a dense head. [T,N,6] -> [T,N,4]."""
    b = Builder("lstm", seed)
    x = b.input("x", ["T", "N", features])
    batch = b.op("Slice", b.op("Shape", x), b.constant([1], np.int64), b.constant([2], np.int64))
    shape = b.op("Concat", b.constant([2], np.int64), batch, b.constant([hidden], np.int64), axis=0)
    zeros = b.op("ConstantOfShape", shape)
    w, r = b.weight(2, 4 * hidden, features), b.weight(2, 4 * hidden, hidden)
    bias = b.constant(b.random.standard_normal((2, 8 * hidden)) * 0.1)
    y = b.ops("LSTM", 3, x, w, r, bias, "", zeros, zeros, hidden_size=hidden, direction="bidirectional")[0]
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.constant([0, 0, 2 * hidden], np.int64))
    b.output(b.linear(y, 2 * hidden, 4), "y", ["T", "N", 4])
    return b.model()


def convtranspose_bn(seed: int = 0) -> onnx.ModelProto:
    """A decoder step: ConvTranspose in two groups, BatchNormalization, Relu. [N,8,8,8] -> [N,4,16,16]."""
    b = Builder("convtranspose_bn", seed)
    x = b.input("x", ["N", 8, 8, 8])
    x = b.op("ConvTranspose", x, b.weight(8, 2, 2, 2), kernel_shape=[2, 2], strides=[2, 2], group=2)
    b.output(b.op("Relu", b.batch_norm(x, 4)), "y", ["N", 4, 16, 16])
    return b.model()


def pad_conv(seed: int = 0) -> onnx.ModelProto:
    """Uneven zero padding before a strided Conv without padding. [N,3,15,15] -> [N,4,8,8]."""
    b = Builder("pad_conv", seed)
    x = b.input("x", ["N", 3, 15, 15])
    x = b.op("Pad", x, b.constant([0, 0, 0, 1, 0, 0, 2, 1], np.int64), b.constant(0.0))
    x = b.op("Conv", x, b.weight(4, 3, 3, 3), kernel_shape=[3, 3], strides=[2, 2])
    b.output(x, "y", ["N", 4, 8, 8])
    return b.model()


def conv_scale(seed: int = 0) -> onnx.ModelProto:
    """Conv, a factor and an offset per channel, HardSwish and SiLU spelt out. [N,3,8,8] -> [N,8,8,8]."""
    b = Builder("conv_scale", seed)
    x = b.conv(b.input("x", ["N", 3, 8, 8]), (3, 8))
    x = b.op("Add", b.op("Mul", x, b.weight(8, 1, 1)), b.weight(1, 8, 1, 1))
    clipped = b.op("Clip", b.op("Add", x, b.constant(3.0)), b.constant(0.0), b.constant(6.0))
    x = b.op("Div", b.op("Mul", x, clipped), b.constant(6.0))
    x = b.conv(x, (8, 8), kernel=1)
    b.output(b.op("Mul", x, b.op("Sigmoid", x)), "y", ["N", 8, 8, 8])
    return b.model()


def concat_split(seed: int = 0) -> onnx.ModelProto:
    """Channels meet in Concat and part in Split, one part goes depthwise. [N,3,8,8] -> [N,6,8,8]."""
    b = Builder("concat_split", seed)
    x = b.input("x", ["N", 3, 8, 8])
    x = b.op("Concat", b.op("Relu", b.conv(x, (3, 4))), b.op("Relu", b.conv(x, (3, 8), kernel=1)), axis=1)
    upper, lower = b.ops("Split", 2, x, b.constant([6, 6], np.int64), axis=1)
    x = b.op("Add", b.conv(upper, (6, 6), group=6), lower)
    b.output(b.conv(x, (6, 6), kernel=1), "y", ["N", 6, 8, 8])
    return b.model()


def shape_chain(seed: int = 0) -> onnx.ModelProto:
    """Flatten spelt as Shape-Gather-Unsqueeze-Concat-Reshape under a dynamic batch. [N,4,6,6] -> [N,5]."""
    b = Builder("shape_chain", seed)
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 6, 6]), (4, 4)))
    zero = b.constant([0], np.int64)

    def size(axis: int) -> str:
        return b.op("Gather", b.op("Shape", x), b.constant(axis, np.int64), axis=0)

    area = b.op("Mul", b.op("Mul", size(1), size(2)), size(3))
    shape = b.op("Concat", b.op("Unsqueeze", size(0), zero), b.op("Unsqueeze", area, zero), axis=0)
    b.output(b.linear(b.op("Reshape", x, shape), 144, 5), "y", ["N", 5])
    return b.model()


def embedding(seed: int = 0, rows: int = 50) -> onnx.ModelProto:
    """Token ids below 50, a mask, masked mean of their embeddings. int64 [N,T] twice -> [N,8]."""
    b = Builder("embedding", seed)
    ids = b.input("ids", ["N", "T"], TensorProto.INT64)
    mask = b.input("mask", ["N", "T"], TensorProto.INT64)
    x = b.op("Gather", b.weight(rows, 8), ids)
    kept = b.op("Cast", b.op("Unsqueeze", mask, b.constant([2], np.int64)), to=TensorProto.FLOAT)
    one = b.constant([1], np.int64)
    total = b.op("ReduceSum", b.op("Mul", x, kept), one, keepdims=0)
    count = b.op("Max", b.op("ReduceSum", kept, one, keepdims=0), b.constant(1.0))
    b.output(b.linear(b.op("Div", total, count), 8, 8), "y", ["N", 8])
    return b.model()


def _gelu(b: Builder, x: str) -> str:
    bell = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(np.sqrt(2.0)))), b.constant(1.0))
    return b.op("Mul", b.op("Mul", x, bell), b.constant(0.5))


def _layer_norm(b: Builder, x: str, width: int) -> str:
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    variance = b.op("ReduceMean", b.op("Pow", centred, b.constant(2.0)), axes=[-1])
    normal = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.constant(1e-5))))
    return b.op("Add", b.op("Mul", normal, b.weight(width)), b.weight(width))
