"""DenseNet, ShuffleNetV2 and RegNet in code: the published shapes, as exporters write them, with seeded random weights.

They hold what prunes badly elsewhere: long concatenations, channel shuffles, grouped convolutions between residual
adds, squeeze-excite. BatchNormalization stays unfused, with measured statistics: with made-up ones every picture would
score alike. All take a float32 "image" [N,3,224,224] and give "scores" [N,1000]; building one takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.tiny.build import Builder

SIZE, CLASSES = 224, 1000


class Net(Builder):
    """A Builder of image classifiers whose blocks are convolution and batch normalization."""

    def image(self) -> str:
        return self.input("image", ["N", 3, SIZE, SIZE])

    def conv2d(self, x: str, inside: int, outside: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        """A convolution without bias, weights by He et al. 2015; odd kernels keep the size but for the stride."""
        shape = (outside, inside // group, kernel, kernel)
        weight = self.constant(self.random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5)
        sizes, pads = [kernel, kernel], [kernel // 2] * 4
        return self.op("Conv", x, weight, kernel_shape=sizes, strides=[stride, stride], pads=pads, group=group)

    def conv_bn(self, x: str, *shape: int) -> str:
        """`shape` is that of `conv2d`: inside, outside, kernel, stride, group."""
        return self.batch_norm(self.conv2d(x, *shape), shape[1])

    def conv_bn_relu(self, x: str, *shape: int) -> str:
        return self.op("Relu", self.conv_bn(x, *shape))

    def bn_relu_conv(self, x: str, *shape: int) -> str:
        """Pre-activation, as in DenseNet."""
        return self.conv2d(self.op("Relu", self.batch_norm(x, shape[0])), *shape)

    def max_pool(self, x: str) -> str:
        return self.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def classifier(self, x: str, channels: int) -> onnx.ModelProto:
        """Pools, classifies and finishes the model."""
        x = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        bias = self.constant(self.random.standard_normal(CLASSES) * 0.1)
        self.output(self.op("Gemm", x, self.weight(CLASSES, channels), bias, transB=1), "scores", ["N", CLASSES])
        model = self.model()
        model.producer_name = "benchmarks.nets"
        return with_statistics(model)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Blotches of many sizes [count,3,224,224], mean 0 and deviation 1: as in photographs, no size dominates."""
    random, image = np.random.default_rng(seed), np.zeros((count, 3, SIZE, SIZE))
    blotches = [1, 2, 4, 8, 16, 32, 56, 112, SIZE]
    for size in blotches:
        coarse = random.standard_normal((count, 3, SIZE // size, SIZE // size))
        image += np.repeat(np.repeat(coarse, size, axis=2), size, axis=3)
    return np.asarray(image / len(blotches) ** 0.5, np.float32)


def with_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every BatchNormalization's mean and variance as measured on 16 pictures.

    One run does: in a copy each normalization computes its own statistics, as in training, and gives them out.
    """
    from onnxruntime import InferenceSession, SessionOptions

    training, names = _training(model)
    options = SessionOptions()
    options.intra_op_num_threads = 1  # a sum's order, and so its last bit, must not depend on the machine
    session = InferenceSession(training.SerializeToString(), options, providers=["CPUExecutionProvider"])
    measured = dict(zip(names, session.run(names, {"image": pictures(16)}), strict=True))
    for tensor in model.graph.initializer:
        if tensor.name in measured:
            tensor.CopyFrom(numpy_helper.from_array(measured[tensor.name], tensor.name))
    return model


def _training(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy whose statistics are computed, not constants; their names, which stay, are outputs."""
    copy, nodes, names = onnx.ModelProto(), [], list[str]()
    copy.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            x, (mean, variance) = node.input[0], node.input[3:]
            aligned, centred, squared = f"{mean}_aligned", f"{mean}_centred", f"{mean}_squared"
            nodes += [
                helper.make_node("ReduceMean", [x], [mean], axes=[0, 2, 3], keepdims=0),
                helper.make_node("ReduceMean", [x], [aligned], axes=[0, 2, 3], keepdims=1),
                helper.make_node("Sub", [x, aligned], [centred]),
                helper.make_node("Mul", [centred, centred], [squared]),
                helper.make_node("ReduceMean", [squared], [variance], axes=[0, 2, 3], keepdims=0),
            ]
            names += [mean, variance]
        nodes.append(node)
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(constants)
    copy.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy, names


def densenet(blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 32, seed: int = 0) -> onnx.ModelProto:
    """DenseNet-121 (Huang et al. 2017): each layer reads the concatenation of all before it in its block."""
    net, channels = Net("densenet", seed), 2 * growth
    x = net.max_pool(net.conv_bn_relu(net.image(), 3, channels, 7, 2))
    for place, layers in enumerate(blocks):
        if place:
            x = net.bn_relu_conv(x, channels, channels // 2)
            x, channels = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), channels // 2
        features = [x]
        for _ in range(layers):
            y = net.bn_relu_conv(x, channels, 4 * growth)
            features.append(net.bn_relu_conv(y, 4 * growth, growth, 3))
            x, channels = net.op("Concat", *features, axis=1), channels + growth
    return net.classifier(net.op("Relu", net.batch_norm(x, channels)), channels)


def shufflenetv2(
    widths: Sequence[int] = (24, 116, 232, 464, 1024), repeats: Sequence[int] = (4, 8, 4), seed: int = 0
) -> onnx.ModelProto:
    """ShuffleNetV2 x1.0 (Ma et al. 2018): half of the channels pass by a unit, then both halves are interleaved."""
    net, size = Net("shufflenetv2", seed), SIZE // 4
    stem, *stages, last = widths
    x, channels = net.max_pool(net.conv_bn_relu(net.image(), 3, stem, 3, 2)), stem
    for width, units in zip(stages, repeats, strict=True):
        size //= 2
        x = _shuffle(net, _down_unit(net, x, channels, width // 2), width, size)
        halves, channels = net.constant([width // 2] * 2, np.int64), width
        for _ in range(units - 1):
            left, right = net.ops("Split", 2, x, halves, axis=1)
            x = net.op("Concat", left, _branch(net, right, width // 2, width // 2, 1), axis=1)
            x = _shuffle(net, x, width, size)
    return net.classifier(net.conv_bn_relu(x, channels, last), last)


def _down_unit(net: Net, x: str, inside: int, half: int) -> str:
    left = net.conv_bn_relu(net.conv_bn(x, inside, inside, 3, 2, inside), inside, half)
    return net.op("Concat", left, _branch(net, x, inside, half, 2), axis=1)


def _branch(net: Net, x: str, inside: int, half: int, stride: int) -> str:
    x = net.conv_bn(net.conv_bn_relu(x, inside, half), half, half, 3, stride, half)
    return net.conv_bn_relu(x, half, half)


def _shuffle(net: Net, x: str, width: int, size: int) -> str:
    apart = net.constant([-1, 2, width // 2, size, size], np.int64)
    together = net.constant([-1, width, size, size], np.int64)
    x = net.op("Transpose", net.op("Reshape", x, apart), perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", x, together)


def regnet(seed: int = 0) -> onnx.ModelProto:
    """RegNetX-800MF (Radosavovic et al. 2020): residual blocks around a grouped 3x3 convolution."""
    return _blocks("regnet", (64, 128, 288, 672), (1, 3, 7, 5), 16, False, seed)


def regnety(seed: int = 0) -> onnx.ModelProto:
    """RegNetY-800MF: the same with squeeze-excite after the grouped convolution."""
    return _blocks("regnety", (64, 144, 320, 784), (1, 3, 8, 2), 16, True, seed)


def _blocks(
    name: str, widths: Sequence[int], depths: Sequence[int], group_width: int, excite: bool, seed: int
) -> onnx.ModelProto:
    net, channels = Net(name, seed), 32
    x = net.conv_bn_relu(net.image(), 3, channels, 3, 2)
    for width, depth in zip(widths, depths, strict=True):
        for stride in [2, *[1] * (depth - 1)]:
            y = net.conv_bn_relu(x, channels, width)
            y = net.conv_bn_relu(y, width, width, 3, stride, width // group_width)
            y = _excite(net, y, width, channels // 4) if excite else y
            y = net.conv_bn(y, width, width)
            skip = x if channels == width and stride == 1 else net.conv_bn(x, channels, width, 1, stride)
            x, channels = net.op("Relu", net.op("Add", skip, y)), width
    return net.classifier(x, channels)


def _excite(net: Net, x: str, width: int, squeezed: int) -> str:
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), (width, squeezed), kernel=1))
    return net.op("Mul", x, net.op("Sigmoid", net.conv(gate, (squeezed, width), kernel=1)))


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    builder.__name__: builder for builder in (densenet, shufflenetv2, regnet, regnety)
}
