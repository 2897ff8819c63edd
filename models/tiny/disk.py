"""Models whose weights lie in a second file, up to sizes that do not fit in one protobuf.

The big one is a sparse file: its weights are zeros that take no space on disk, with one row of numbers each.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.tiny.build import IR_VERSION, OPSET
from models.tiny.networks import conv_bn_relu

PAGE = 4096
LAYERS = 8


def external_data(folder: Path, seed: int = 0) -> Path:
    """Writes conv_bn_relu as folder/model.onnx, its weights in folder/model.onnx.data; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    (folder / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(conv_bn_relu(seed), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def big_external(folder: Path, gigabytes: float = 3.0, seed: int = 0) -> Path:
    """Writes a chain of eight dense layers of `gigabytes` (2^30 bytes) together; returns folder/big.onnx.

    Input `x` and output `y` are float32 [N, width]. The data file, big.onnx.data, is sparse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = max(8, int((gigabytes * 2**30 / 4 / LAYERS) ** 0.5))
    size = 4 * width * width
    stride = -(-size // PAGE) * PAGE
    random = np.random.default_rng(seed)
    with open(folder / "big.onnx.data", "wb") as data:
        for layer in range(LAYERS):
            data.seek(layer * stride)
            data.write((random.standard_normal((1, width)) * width**-0.5).astype(np.float32).tobytes())
            data.truncate((layer + 1) * stride)
    nodes, weights, x = [], [], "x"
    for layer in range(LAYERS):
        y = "y" if layer == LAYERS - 1 else f"x{layer}"
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"product{layer}"], name=f"matmul{layer}"))
        nodes.append(helper.make_node("Tanh", [f"product{layer}"], [y], name=f"tanh{layer}"))
        weights.append(_outside(f"w{layer}", width, layer * stride, size))
        x = y
    shape: list[int | str | None] = ["N", width]
    graph = helper.make_graph(
        nodes,
        "big_external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path = folder / "big.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _outside(name: str, width: int, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[width, width])
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": "big.onnx.data", "offset": str(offset), "length": str(length)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
