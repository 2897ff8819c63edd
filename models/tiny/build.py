"""A pencil for small graphs: add inputs, weights and operators by call, get a model.

Weights are drawn from a seed, names are given in order, so that a tiny model is the same bytes every time.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 8
OPSET = 17
Shape = Sequence[int | str | None]


class Builder:
    """Collects one graph. Every method that makes a tensor returns its name."""

    def __init__(self, name: str, seed: int = 0, opset: int = OPSET, prefix: str = "") -> None:
        self.name, self.opset, self.prefix = name, opset, prefix
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, tensor: str, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> None:
        """Makes `tensor` a graph output called `name`: the node that made it is told the new name."""
        maker = next(node for node in self.nodes if tensor in node.output)
        maker.output[list(maker.output).index(tensor)] = name
        for node in self.nodes:
            for place, read in enumerate(node.input):
                if read == tensor:
                    node.input[place] = name
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, values: object, dtype: type = np.float32, name: str = "") -> str:
        name = name or f"{self.prefix}c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape: int, dtype: type = np.float32, name: str = "") -> str:
        """Seeded normal weights [out, in, ...] or [in, out], scaled to keep the size of a layer's input."""
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.constant(self.random.standard_normal(shape) * fan**-0.5, dtype, name)

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: object) -> list[str]:
        """A node with `count` outputs."""
        name = f"{self.prefix}{kind.lower()}{len(self.nodes)}"
        outputs = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        node = helper.make_node(kind, inputs, outputs, name=name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self.nodes.append(node)
        return outputs

    def conv(self, x: str, channels: tuple[int, int], kernel: int = 3, group: int = 1) -> str:
        """A convolution with bias that keeps height and width."""
        inside, outside = channels
        weight = self.weight(outside, inside // group, kernel, kernel)
        bias, pads = self.constant(self._small(outside)), [kernel // 2] * 4
        return self.op("Conv", x, weight, bias, kernel_shape=[kernel, kernel], pads=pads, group=group)

    def batch_norm(self, x: str, channels: int) -> str:
        scale, variance = self.random.uniform(0.5, 1.5, (2, channels))
        bias, mean = self._small(channels), self._small(channels)
        statistics = [self.constant(values) for values in (scale, bias, mean, variance)]
        return self.op("BatchNormalization", x, *statistics, epsilon=1e-5)

    def linear(self, x: str, inside: int, outside: int) -> str:
        """MatMul and Add, as exporters write a dense layer."""
        product = self.op("MatMul", x, self.weight(inside, outside))
        return self.op("Add", product, self.constant(self._small(outside)))

    def graph(self) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)

    def model(self, *domains: str) -> onnx.ModelProto:
        """The finished model; `domains` are the operator sets besides the standard one, at version 1."""
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(domain, 1) for domain in domains),
        ]
        return helper.make_model(self.graph(), opset_imports=opsets, ir_version=IR_VERSION, producer_name="models.tiny")

    def _small(self, size: int) -> np.ndarray:
        return self.random.standard_normal(size) * 0.1
