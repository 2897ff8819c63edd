"""Facts about operators in one place: which are pure, what their attributes default to, where their axes are.

Defaults and operator versions come from the onnx package's schemas, so that a rule reads the semantics of the
model's own operator set (G7) and never a remembered one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx

from optimizer.graph import Constant, Graph, Node, Tensor

RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
MULTIPLY = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")  # whose weights are multiplied with data
CONTROL = frozenset(["If", "Loop", "Scan", "SequenceMap"])  # the standard operators that hold subgraphs
COMMUTATIVE = frozenset(
    ["Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean", "BitwiseAnd", "BitwiseOr", "BitwiseXor"]
)


def is_pure(node: Node) -> bool:
    """True where the same inputs always give the same outputs and nothing else happens (G5).

    Random operators, Dropout and BatchNormalization in training mode, operators of unknown domains, and
    control flow around any of them are not pure.
    """
    if node.op in RANDOM or (node.domain or "") not in KNOWN_DOMAINS:
        return False
    if node.op == "BatchNormalization" and (node.attrs.get("training_mode", 0) or len(node.outputs) > 1):
        return False
    if node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2].name:
        return False
    if not node.domain and node.op not in CONTROL:
        return True
    return not node.attrs or all(is_pure(inner) for body in node.bodies() for inner in body.walk())


@cache
def defaults(op: str, version: int, domain: str = "") -> dict[str, Any]:
    """Attribute defaults of an operator in one version of its operator set; empty where it is unknown."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return {}
    values = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.type}
    return {name: onnx.helper.get_attribute_value(v) for name, v in values.items()}


def attribute(graph: Graph, node: Node, name: str) -> Any:
    """An attribute's value as the model's operator set defines it: written, else the default, else None.

    Strings come as str, tensors as arrays.
    """
    value = node.attrs.get(name)
    if value is None:
        domain = node.domain or ""
        value = defaults(node.op, graph.imports.get(domain, 1), domain).get(name)
    if isinstance(value, bytes):
        return value.decode()
    return value


def axes(graph: Graph, node: Node, rank: int | None, position: int = 1) -> tuple[int, ...] | None:
    """The `axes` of Squeeze, Unsqueeze, Reduce*, ... from attribute or input, made non-negative and sorted.

    None where they are not constant or the rank needed to normalise them is unknown. Absent axes give ().
    """
    value = node.attrs.get("axes")
    if value is None and len(node.inputs) > position and node.inputs[position].name:
        array = graph.array(node.inputs[position])
        if array is None:
            return None
        value = array.reshape(-1).tolist()
    if value is None:
        return ()
    if any(a < 0 for a in value) and rank is None:
        return None
    return tuple(sorted(int(a) % rank if a < 0 and rank else int(a) for a in value))


def scalar(graph: Graph, tensor: Tensor) -> float | int | bool | None:
    """The value of a true constant with one element, else None."""
    if not graph.is_constant(tensor) or int(np.prod(tensor.shape)) != 1:
        return None
    array = graph.array(tensor)
    return None if array is None or array.dtype == object else array.reshape(-1)[0].item()


def clamp(graph: Graph, node: Node) -> tuple[float, float] | None:
    """(low, high) that a Relu or a Clip lets through, infinite where it has no end; None where one is not constant."""
    if node.op == "Relu":
        return 0.0, np.inf
    ends = []
    for index, (name, absent) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value = attribute(graph, node, name) if graph.opset < 11 else None
        if graph.opset >= 11 and len(node.inputs) > index and node.inputs[index].name:
            value = scalar(graph, node.inputs[index])
            if value is None:
                return None
        ends.append(absent if value is None else float(value))
    return ends[0], ends[1]


def parameters(graph: Graph) -> int:
    """Number of weights: the elements of all initializers and Constant nodes that hold numbers."""
    values = [v for n in graph.walk() if n.op == "Constant" and isinstance(v := n.attrs.get("value"), Constant)]
    held = [*graph.constants().values(), *values]
    return sum(int(np.prod(c.shape)) for c in held if np.dtype(c.dtype).kind != "O")
