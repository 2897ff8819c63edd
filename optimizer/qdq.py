"""Reads Q/DQ: what QuantizeLinear and DequantizeLinear nodes say, and what stands on either side of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import helper

from optimizer.graph import Array, Constant, Graph, Node, Tensor, peek
from optimizer.ops import attribute

LINEAR = ("QuantizeLinear", "DequantizeLinear")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DOMAINS = ("", "ai.onnx", "com.microsoft")
COPIES = frozenset(
    (
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Identity",
        "MaxPool",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
UNARY = frozenset(
    (
        "Abs",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Neg",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
        "ThresholdedRelu",
    )
)
BINARY = frozenset(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"))
OPSETS = {"float16": 19, "bfloat16": 19, "float8_e4m3fn": 19, "float8_e5m2": 19, "int16": 21, "uint16": 21} | {
    "int4": 21,
    "uint4": 21,
    "float4_e2m1fn": 23,
}


def is_quantize(node: Node) -> bool:
    return node.op == "QuantizeLinear" and (node.domain or "") in DOMAINS


def is_dequantize(node: Node) -> bool:
    return node.op == "DequantizeLinear" and (node.domain or "") in DOMAINS


def linear(graph: Graph) -> Iterator[Node]:
    """Every Q and DQ in all scopes, but those DQ that only repeat the parameters of their Q."""
    for node in graph.walk():
        if len(node.inputs) < 2 or not (is_quantize(node) or is_dequantize(node)):
            continue
        before = quantizer(node) if is_dequantize(node) else None
        if before is None or not same_parameters(graph, before, node):
            yield node


def weighted(node: Node) -> bool:
    """True for an operator whose dot products int8 speeds up."""
    return not node.domain and node.op in WEIGHTED and len(node.inputs) > 1


def copies(graph: Graph, node: Node) -> bool:
    """True where every output element is an input element, so that Q and DQ may move across."""
    if node.domain or node.op not in COPIES or (node.op == "MaxPool" and len(node.outputs) > 1):
        return False
    return node.op != "Resize" or (
        attribute(graph, node, "mode") == "nearest"
        and attribute(graph, node, "coordinate_transformation_mode") != "tf_crop_and_resize"
    )


def maker(tensor: Tensor) -> Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def readers(tensor: Tensor) -> list[Node]:
    """The nodes that read the tensor, each once."""
    return list({id(n): n for n in tensor.outputs}.values())


def data(node: Node) -> list[Tensor]:
    """The inputs that carry the node's numbers: for an operator that copies or has a window, the first."""
    if node.op in ("Concat", "Add", "Mul", "Sub", "Div", "Max", "Min", "Sum", "MatMul"):
        return [t for t in node.inputs if t.name]
    return list(node.inputs[1:3] if node.op == "Where" else node.inputs[:1])


def dequantizer(graph: Graph, tensor: Tensor, through: Collection[str] = (), copied: bool = True) -> Node | None:
    """The DequantizeLinear that makes the tensor, perhaps with copies or the operators in `through` in between."""
    node = maker(tensor)
    while node is not None and not is_dequantize(node):
        if not (copied and copies(graph, node)) and node.op not in through:
            return None
        node = maker(node.inputs[0])
    return node


def quantizer(node: Node) -> Node | None:
    """The Q whose codes a DQ reads, perhaps with copies in between."""
    made = maker(node.inputs[0])
    while made is not None and not is_quantize(made):
        made = maker(made.inputs[0]) if made.op in COPIES else None
    return made


def array(graph: Graph, tensor: Tensor) -> Array | None:
    """The value of an initializer or of a Constant node, behind Identity too; else None."""
    node = maker(tensor)
    while node is not None and node.op == "Identity":
        tensor = node.inputs[0]
        node = maker(tensor)
    if node is not None and node.op == "Constant" and isinstance(value := node.attrs.get("value"), Constant):
        return peek(value)
    return graph.array(tensor)


def rooted(tensor: Tensor) -> bool:
    """True where the tensor is computed from initializers alone, those that callers may override included."""
    pending, seen = [tensor], set[int]()
    while pending:
        last = pending.pop()
        if isinstance(last, Constant) or not last.name or id(last) in seen:
            continue
        seen.add(id(last))
        node = maker(last)
        if node is None or any(node.bodies()):
            return False
        pending.extend(node.inputs)
    return True


def scales(graph: Graph, node: Node) -> Array | None:
    """The scale of a Q or DQ where it is constant."""
    return array(graph, node.inputs[1])


def zero_point(node: Node) -> Tensor | None:
    return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None


def code_type(graph: Graph, node: Node) -> str:
    """The type of the integers on the one side of a Q or DQ, such as `int8`; '' where it is not known."""
    if is_dequantize(node):
        return type_name(node.inputs[0])
    zero = zero_point(node)
    if zero is not None:
        return type_name(zero)
    number = attribute(graph, node, "output_dtype") or onnx.TensorProto.UINT8
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(number)))


def type_name(tensor: Tensor) -> str:
    return "" if tensor.dtype is None else str(np.dtype(tensor.dtype))


def channels(graph: Graph, node: Node) -> int | None:
    """The axis of a Q or DQ with a scale per channel, non-negative where the rank is known; None with one scale."""
    found = scales(graph, node)
    if found is None or found.size == 1 or attribute(graph, node, "block_size"):
        return None
    axis, shape = attribute(graph, node, "axis"), node.inputs[0].shape
    axis = 1 if axis is None else int(axis)
    return axis % len(shape) if shape and -len(shape) <= axis < len(shape) else axis


def channel_axis(graph: Graph, node: Node) -> int | None:
    """The axis of a weighted operator's second input that counts its outputs; None where no single one does."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    if node.op == "Gemm":
        return 0 if attribute(graph, node, "transB") else 1
    shape = node.inputs[1].shape
    return 1 if shape is not None and len(shape) == 2 else None


def same_parameters(graph: Graph, a: Node, b: Node) -> bool:
    """True where two Q or DQ have equal scales and zero points; unknown ones only where they are the same tensor."""
    pairs = [(a.inputs[1], b.inputs[1]), (zero_point(a), zero_point(b))]
    return all(x is y or _equal(graph, x, y) for x, y in pairs)


def _equal(graph: Graph, a: Tensor | None, b: Tensor | None) -> bool:
    x, y = (np.zeros(()) if t is None else array(graph, t) for t in (a, b))
    return x is not None and y is not None and np.array_equal(x.reshape(-1), y.reshape(-1))


# ---------------------------------------------------------------------- findings that several runtimes share


def mixed_types(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Operators whose inputs must have one type, by ONNX's own definition, and have two."""
    for node in graph.walk():
        if node.domain or node.op in LINEAR:
            continue
        try:
            schema = onnx.defs.get_schema(node.op, graph.opset, "")
        except onnx.defs.SchemaError:
            continue
        seen: dict[str, str] = {}
        variables = {constraint.type_param_str for constraint in schema.type_constraints}
        for index, tensor in enumerate(node.inputs):
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            kind = type_name(tensor)
            if not tensor.name or not kind or formal.type_str not in variables or not formal.is_homogeneous:
                continue
            if (first := seen.setdefault(formal.type_str, kind)) != kind:
                yield node, f"input '{tensor.name}' is {kind}, an earlier one {first}"
                break


def low_opset(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Q and DQ that the model's operator set does not define."""
    for node in linear(graph):
        if node.domain:
            continue
        found = scales(graph, node)
        kinds = [type_name(node.inputs[0]), type_name(node.inputs[1]), code_type(graph, node)]
        needs = [(OPSETS.get(kind, 10), kind) for kind in kinds]
        if found is not None and found.size > 1:
            needs.append((13, "a scale per channel"))
        if attribute(graph, node, "block_size"):
            needs.append((21, "block_size"))
        least, what = max(needs)
        if graph.opset < least:
            yield node, f"{what} needs operator set {least}, the model has {graph.opset}"


def scale_count(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Per-channel scales whose number is not the size of their axis."""
    for node in linear(graph):
        found, axis, shape = scales(graph, node), channels(graph, node), node.inputs[0].shape
        if found is None or axis is None or shape is None:
            continue
        if axis >= len(shape) or axis < 0:
            yield node, f"axis {axis} does not exist: '{node.inputs[0].name}' has {len(shape)}"
        elif isinstance(shape[axis], int) and shape[axis] != found.size:
            yield node, f"{found.size} scales for the {shape[axis]} channels of '{node.inputs[0].name}'"
