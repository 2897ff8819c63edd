"""Builds the two models that no package ships as they are: each function takes the package's file.

EfficientNet-Lite0 is published as weights alone, so its graph is written here (Tan & Le 2019, the variant
without squeeze-and-excite); ISNet is published in half precision and widened to a real 176 MB float model.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from models.checkpoint import read_checkpoint

SIZE = 224
# repeats, stride of the first, expansion, channels in, channels out
STAGES = (
    (1, 1, 1, 32, 16),
    (2, 2, 6, 16, 24),
    (2, 2, 6, 24, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 112),
    (4, 2, 6, 112, 192),
    (1, 1, 6, 192, 320),
)


class _Writer:
    """Writes EfficientNet's pieces as nodes; `size` is the height and width that the last of them gives."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.size = weights, SIZE
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [output], name=f"{kind}_{len(self.nodes)}")
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self.nodes.append(node)
        return output

    def weight(self, name: str) -> str:
        self.initializers.append(numpy_helper.from_array(self.weights[name], name))
        return name

    def conv_norm(self, x: str, conv: str, norm: str, stride: int = 1) -> str:
        """Convolution with TensorFlow's "same" padding, the odd pixel at the end, then BatchNormalization."""
        weight = self.weights[f"{conv}.weight"]
        kernel, after = weight.shape[2], -(-self.size // stride)
        padding = max((after - 1) * stride + kernel - self.size, 0)
        pads = [padding // 2] * 2 + [padding - padding // 2] * 2
        group = weight.shape[0] if weight.shape[1] == 1 else 1
        self.size = after
        x = self.node(
            "Conv",
            [x, self.weight(f"{conv}.weight")],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads,
            group=group,
        )
        statistics = [self.weight(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [x, *statistics], epsilon=1e-3)

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, "zero", "six"])

    def block(self, x: str, name: str, stride: int, expand: bool, skip: bool) -> str:
        y = x
        if expand:
            y = self.relu6(self.conv_norm(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = self.relu6(self.conv_norm(y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = self.conv_norm(y, f"{name}._project_conv", f"{name}._bn2")
        return self.node("Add", [y, x]) if skip else y


def efficientnet_lite0(checkpoint: Path) -> onnx.ModelProto:
    """EfficientNet-Lite0 of opset 13, `input` float32 [N,3,224,224] -> `logits` [N,1000], nothing fused."""
    w = _Writer(read_checkpoint(checkpoint))
    for name, value in (("zero", 0.0), ("six", 6.0)):
        w.initializers.append(numpy_helper.from_array(np.array(value, np.float32), name))
    x = w.relu6(w.conv_norm("input", "_conv_stem", "_bn0", 2))
    number = 0
    for repeats, first_stride, expansion, inside, outside in STAGES:
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            skip = stride == 1 and (repeat > 0 or inside == outside)
            x = w.block(x, f"_blocks.{number}", stride, expansion > 1, skip)
            number += 1
    x = w.relu6(w.conv_norm(x, "_conv_head", "_bn1"))
    x = w.node("Flatten", [w.node("GlobalAveragePool", [x])], axis=1)
    w.node("Gemm", [x, w.weight("_fc.weight"), w.weight("_fc.bias")], "logits", transB=1)
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(w.nodes, "efficientnet_lite0", [image], [logits], w.initializers)
    opsets = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="models.derive")
    onnx.checker.check_model(model, full_check=True)
    return model


def isnet_fp32(half: Path) -> onnx.ModelProto:
    """ISNet with every float16 made float32 and its nodes sorted, which they are not as shipped."""
    model = onnx.load(half)
    graph = model.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _sort(graph)
    onnx.checker.check_model(model)
    return model


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _sort(graph: GraphProto) -> None:
    """Puts each node after those that make its inputs; a graph without subgraphs, some hundred nodes."""
    ready = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        free = [node for node in waiting if all(name in ready for name in node.input)]
        assert free, "ISNet's graph has no cycle"
        ready.update(name for node in free for name in node.output)
        ordered += free
        waiting = [node for node in waiting if not all(name in ready for name in node.output)]
    del graph.node[:]
    graph.node.extend(ordered)
