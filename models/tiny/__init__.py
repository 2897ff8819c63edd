"""Tiny models built in code, one idea each, for unit tests: `ALL` maps a name to the function that builds it.

All pass onnx.checker and run in ONNX Runtime, but for those named in `UNCHECKED` and `UNRUNNABLE`.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from models.tiny.build import Builder
from models.tiny.control import constant_if, if_model, local_function, loop_model, scan, sequence_ops
from models.tiny.disk import big_external, external_data
from models.tiny.networks import (
    attention,
    concat_split,
    conv_bn_relu,
    conv_scale,
    convtranspose_bn,
    depthwise_se,
    embedding,
    lstm,
    mlp,
    pad_conv,
    shape_chain,
)
from models.tiny.odd import (
    constant_nodes,
    contrib_domain,
    custom_domain,
    half,
    initializer_inputs,
    metadata,
    old_opset,
    passthrough,
    quantized,
    random_ops,
    redundant,
    shared_weight,
    sparse_weight,
    unsorted,
)

__all__ = ["ALL", "UNCHECKED", "UNRUNNABLE", "Builder", "big_external", "external_data", "feeds"]

_BUILDERS: tuple[Callable[[], onnx.ModelProto], ...] = (
    conv_bn_relu,
    depthwise_se,
    mlp,
    attention,
    lstm,
    convtranspose_bn,
    pad_conv,
    conv_scale,
    concat_split,
    shape_chain,
    embedding,
    if_model,
    constant_if,
    loop_model,
    scan,
    sequence_ops,
    local_function,
    half,
    unsorted,
    initializer_inputs,
    constant_nodes,
    passthrough,
    shared_weight,
    redundant,
    random_ops,
    custom_domain,
    contrib_domain,
    quantized,
    metadata,
    old_opset,
    sparse_weight,
)
ALL = {builder.__name__: builder for builder in _BUILDERS}
UNCHECKED = frozenset({"unsorted", "sparse_weight"})  # onnx.checker with full_check refuses them
UNRUNNABLE = frozenset({"custom_domain"})  # no runtime has the operator


def feeds(model: onnx.ModelProto, seed: int = 0, size: int = 3) -> dict[str, np.ndarray]:
    """Seeded inputs of a tiny model by name: symbolic dimensions become `size`, integers are below it."""
    random = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value or size for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            found[value.name] = random.standard_normal(shape).astype(dtype)
        else:
            found[value.name] = random.integers(0, 2 if dtype.kind == "b" else size, shape).astype(dtype)
    return found
