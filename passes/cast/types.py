"""The two half-precision types, and which inputs and outputs of an operator may have them.

The onnx package's schemas decide, at the model's own operator set: Conv takes float16 from the first version, bfloat16
from 22 alone. What must not change although it could is listed here: numbers that say where and how much, not what.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from optimizer.graph import Graph, Node, Tensor

FLOAT = np.dtype(np.float32)
UNTYPED = frozenset(["Shape", "Size"])  # they read a tensor of any type and none of its values
STILL = UNTYPED | {"Constant"}  # no computation at all
KEPT_INPUTS = {"Resize": (1, 2), "OneHot": (0, 1), "Dropout": (1,)}
KEPT_OUTPUTS = {"LayerNormalization": (1, 2)}  # mean and deviation, computed in float32 whatever the rest is
NAMED = ("dtype", "output_datatype", "output_dtype", "softmax_precision")  # attributes: the type of a result


@dataclass(frozen=True)
class Half:
    """A 16-bit type. `limit`: largest finite number, `normal`: smallest with all `digits` bits of precision."""

    name: str
    dtype: np.dtype[Any]
    code: int
    schema: str
    limit: float
    normal: float
    digits: int

    @property
    def narrow(self) -> bool:
        """True where the type's range is smaller than that of float32, so that values must be known."""
        return self.limit < 1e30


FP16 = Half("fp16", np.dtype(np.float16), TensorProto.FLOAT16, "tensor(float16)", 65504.0, 2.0**-14, 11)
BF16 = Half(
    "bf16",
    np.dtype(ml_dtypes.bfloat16),
    TensorProto.BFLOAT16,
    "tensor(bfloat16)",
    255 * 2.0**120,
    2.0**-126,
    8,
)
TYPES = {half.name: half for half in (FP16, BF16)}


@dataclass(frozen=True)
class Ports:
    """Positions of a node's float32 inputs and outputs that become half precision together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def is_float(tensor: Tensor) -> bool:
    return bool(tensor.name) and tensor.dtype is not None and np.dtype(tensor.dtype) == FLOAT


def ports(graph: Graph, node: Node, half: Half) -> Ports | None:
    """What would change if the node computed in half precision; None where it cannot."""
    if node.domain or any(node.bodies()) or node.op in STILL or any(name in node.attrs for name in NAMED):
        return None
    if any(t.name and t.dtype is None for t in (*node.inputs, *node.outputs)):
        return None
    try:
        schema = onnx.defs.get_schema(node.op, graph.opset, "")
    except onnx.defs.SchemaError:
        return None
    inputs = [i for i, t in enumerate(node.inputs) if is_float(t) and i not in KEPT_INPUTS.get(node.op, ())]
    outputs = [i for i, t in enumerate(node.outputs) if is_float(t) and i not in KEPT_OUTPUTS.get(node.op, ())]
    takes, gives = _takers(node.op, schema.since_version, half.schema)
    if not inputs + outputs or not all(_at(takes, i) for i in inputs) or not all(_at(gives, i) for i in outputs):
        return None
    return Ports(tuple(inputs), tuple(outputs))


@cache
def _takers(op: str, version: int, kind: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which inputs and outputs of an operator may have the type."""
    schema = onnx.defs.get_schema(op, version, "")
    return tuple(kind in p.types for p in schema.inputs), tuple(kind in p.types for p in schema.outputs)


def _at(allowed: tuple[bool, ...], index: int) -> bool:
    """The last formal parameter may stand for any number of inputs."""
    return allowed[min(index, len(allowed) - 1)]
