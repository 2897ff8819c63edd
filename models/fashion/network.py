"""The Fashion-MNIST network, said once and read twice: by torch to train it, by onnx to write it down.

A small residual network. Batch normalization is written as its own node, not folded into the convolutions,
so that the committed file looks as an exporter leaves it and the optimizer's fusions have work to do.
"""

from typing import Protocol, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-5
CLASSES = 10
# name, channels in, channels out, stride
BLOCKS = (("block1", 32, 32, 1), ("block2", 32, 64, 2), ("block3", 64, 64, 2))

X = TypeVar("X")


class Operators(Protocol[X]):
    """What the network is made of; X is a tensor to who trains it, a tensor's name to who writes it."""

    def conv_norm(self, name: str, x: X, channels: tuple[int, int], kernel: int, stride: int) -> X: ...
    def relu(self, x: X) -> X: ...
    def add(self, x: X, y: X) -> X: ...
    def average(self, x: X) -> X: ...
    def linear(self, name: str, x: X, channels: tuple[int, int]) -> X: ...


def network(op: Operators[X], image: X) -> X:
    """Class scores [N, 10], before softmax, of grey images [N, 1, 28, 28] with values from 0 to 1."""
    x = op.relu(op.conv_norm("stem", image, (1, 32), kernel=3, stride=1))
    for name, inside, outside, stride in BLOCKS:
        x = _residual(op, name, x, (inside, outside), stride)
    return op.linear("head", op.average(x), (BLOCKS[-1][2], CLASSES))


def _residual(op: Operators[X], name: str, x: X, channels: tuple[int, int], stride: int) -> X:
    inside, outside = channels
    y = op.relu(op.conv_norm(f"{name}.conv1", x, channels, kernel=3, stride=stride))
    y = op.conv_norm(f"{name}.conv2", y, (outside, outside), kernel=3, stride=1)
    if stride != 1 or inside != outside:
        x = op.conv_norm(f"{name}.skip", x, channels, kernel=1, stride=stride)
    return op.relu(op.add(y, x))


class OnnxOperators:
    """Writes each operator down as ONNX nodes; `weights` are the trained arrays by name."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.used: list[str] = []

    def conv_norm(self, name: str, x: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        pads = [kernel // 2] * 4
        x = self._node(
            "Conv",
            name,
            [x, *self._weights(name, "weight")],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads,
        )
        norm = f"{name}.norm"
        statistics = self._weights(norm, "scale", "bias", "mean", "variance")
        return self._node("BatchNormalization", norm, [x, *statistics], epsilon=EPSILON)

    def relu(self, x: str) -> str:
        return self._node("Relu", f"{x}.relu", [x])

    def add(self, x: str, y: str) -> str:
        return self._node("Add", f"{x}.add", [x, y])

    def average(self, x: str) -> str:
        pooled = self._node("GlobalAveragePool", "average", [x])
        return self._node("Flatten", "flatten", [pooled], axis=1)

    def linear(self, name: str, x: str, channels: tuple[int, int]) -> str:
        return self._node("Gemm", name, [x, *self._weights(name, "weight", "bias")], transB=1)

    def _weights(self, name: str, *parts: str) -> list[str]:
        names = [f"{name}.{part}" for part in parts]
        self.used.extend(names)
        return names

    def _node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        output = f"{name}.out"
        node = helper.make_node(kind, inputs, [output], name=name)
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self.nodes.append(node)
        return output


def to_onnx(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The trained network, opset 17: `image` float32 [N, 1, 28, 28] -> `scores` float32 [N, 10]."""
    op = OnnxOperators(weights)
    last = network(op, "image")
    op.nodes.append(helper.make_node("Identity", [last], ["scores"], name="scores"))
    graph = helper.make_graph(
        op.nodes,
        "fashion",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(weights[name].astype(np.float32), name) for name in op.used],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="models.fashion"
    )
    onnx.checker.check_model(model, full_check=True)
    return model
