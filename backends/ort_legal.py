"""What ONNX Runtime's int8 kernels on the CPU refuse, miscompute or leave in float.

The runtime replaces `DQ -> operator -> Q` by one integer kernel where all inputs come from DequantizeLinear and the
only reader of the result is a QuantizeLinear; anything less is computed in float, with the conversions on top. Every
rule was measured on ONNX Runtime 1.31: which operators its optimized graph has, and the numbers they give.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimizer import qdq
from optimizer.graph import Graph, Node, Tensor
from optimizer.lint import Place, Rule, rule
from optimizer.ops import attribute, clamp
from optimizer.qdq import copies, dequantizer, is_dequantize, is_quantize, maker, readers, weighted
from optimizer.targets import Cpu

UNITS = frozenset(
    ["Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax", "Where"]
)
CLAMPS = ("Relu", "Clip")
FLOATABLE = ("Conv", "Gemm")  # whose constant float weights the runtime quantises by itself
RTOL, ATOL = 1e-2, 1e-6  # how far a bias's scale may be from input scale * weight scale

Found = Iterator[tuple[Place, str]]


def rules(cpu: Cpu) -> tuple[Rule, ...]:
    """The rules for a processor: signed activations and full-range weights are bad on some x86 only."""
    x86 = cpu.arch == "x86_64"
    return (*RULES, *((_signed,) if x86 else ()), *((_saturation,) if x86 and not cpu.int8_dot else ()))


@rule(
    "ort-mixed-types",
    "error",
    "inputs of different types",
    "put a Cast before one of them",
)
def _mixed(graph: Graph) -> Found:
    yield from qdq.mixed_types(graph)
    for node in qdq.linear(graph):
        tensor, scale = qdq.type_name(node.inputs[0]), qdq.type_name(node.inputs[1])
        if is_quantize(node) and tensor and scale and tensor != scale and graph.opset < 23:
            yield node, f"'{node.inputs[0].name}' is {tensor}, its scale {scale}"


@rule(
    "ort-opset",
    "error",
    "Q/DQ the operator set does not define",
    "raise the model's operator set",
)
def _opset(graph: Graph) -> Found:
    yield from qdq.low_opset(graph)


@rule(
    "ort-scale-count",
    "error",
    "number of scales that does not fit",
    "give one scale, or one for each channel of the axis",
)
def _scale_count(graph: Graph) -> Found:
    yield from qdq.scale_count(graph)


@rule(
    "ort-activation-channels",
    "error",
    "activation with a scale per channel",
    "quantise activations with one scale; only weights may have one per channel",
)
def _activation_channels(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        axis = qdq.channels(graph, node)
        if axis is None or qdq.rooted(node.inputs[0]):
            continue
        if _made_by_kernel(graph, node.inputs[0]) or _read_by_kernel(graph, node):
            yield node, f"'{node.inputs[0].name}' has scales along axis {axis}: the int8 kernel refuses to run"


@rule(
    "ort-weight-axis",
    "error",
    "weights with scales along the wrong axis",
    "one scale per output channel: axis 0 for Conv, the last for MatMul",
)
def _axis(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        made, axis = _weight_axis(graph, node)
        if node.op in ("Conv", "MatMul") and made and qdq.rooted(node.inputs[1]) and _inputs(graph, node):
            yield node, f"'{node.inputs[1].name}' has scales along axis {axis}: the int8 kernel refuses to run"


@rule(
    "ort-gemm-bias",
    "error",
    "bias of a Gemm in other steps than its sums",
    "give the bias zero point 0 and the scale input scale * weight scale, or leave it in float",
)
def _gemm_bias(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op == "Gemm" and weighted(node) and (why := _wrong_bias(graph, node)):
            yield node, f"{why}: its codes are added as they are"


@rule(
    "ort-half-quantized",
    "slow",
    "weighted operator with one quantised input",
    "quantise its other input too, or take the Q/DQ off this one",
)
def _half(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        a, b = (dequantizer(graph, t, copied=False) for t in node.inputs[:2])
        if (a is None) == (b is None):
            continue
        if a and node.op in FLOATABLE and graph.is_constant(node.inputs[1]):
            continue
        if b and node.op in ("MatMul", "Gemm") and qdq.rooted(b.inputs[0]) and not _only_quantized(graph, node):
            continue  # weight-only: MatMulNBits
        quantized, other = (0, 1) if a else (1, 0)
        yield node, f"'{node.inputs[quantized].name}' is quantised, '{node.inputs[other].name}' is not: runs in float"


@rule(
    "ort-output",
    "slow",
    "weighted operator whose output is not quantised",
    "put a QuantizeLinear behind the operator and let nothing else read its result",
)
def _output(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        if not _inputs(graph, node) or _only_quantized(graph, node) or _clamped(graph, node):
            continue
        if node.op == "Gemm" and (len(node.inputs) < 3 or _dequantized(node.inputs[2])):
            continue
        if node.op == "MatMul" and not _becomes_gemm(graph, node):
            continue
        why = "its bias makes it a Gemm, and " if node.op == "MatMul" else ""
        yield node, f"{why}'{node.outputs[0].name}' is not read by a QuantizeLinear alone: runs in float"


@rule(
    "ort-clamp",
    "slow",
    "Relu or Clip that its QuantizeLinear does not contain",
    "give the QuantizeLinear a range that ends where the clamp does: for Relu, zero point 0 in uint8, -128 in int8",
)
def _clamp(graph: Graph) -> Found:
    for node in graph.walk():
        made = maker(node.inputs[0]) if node.op in CLAMPS and not node.domain else None
        if made is None or not (is_dequantize(made) or (_kernel(made) and _inputs(graph, made))):
            continue
        for reader in readers(node.outputs[0]):
            if is_quantize(reader) and not _contains(graph, reader, node):
                yield node, f"'{_name(reader)}' reaches beyond its ends, so '{_name(made)}' has no quantised output"
                break


@rule(
    "ort-bias",
    "slow",
    "quantised bias of a Conv in other steps than its sums",
    "give the bias int32 codes, zero point 0 and the scale input scale * weight scale, or leave it in float",
)
def _bias(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op == "Conv" and weighted(node) and (why := _wrong_bias(graph, node)):
            yield node, f"{why}: runs in float"


@rule(
    "ort-gemm",
    "slow",
    "Gemm without an int8 form",
    "fold beta into the bias; one scale per output column of the weights, or one for all",
)
def _gemm(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op != "Gemm" or not weighted(node) or not _inputs(graph, node):
            continue
        made, axis = _weight_axis(graph, node)
        if made:
            yield node, f"'{node.inputs[1].name}' has scales along axis {axis}: runs in float"
        elif len(node.inputs) > 2 and attribute(graph, node, "beta") != 1:
            yield node, f"beta is {attribute(graph, node, 'beta'):g}: runs in float"


@rule(
    "ort-unit",
    "slow",
    "operator one Q/DQ short of its int8 kernel",
    "quantise all its inputs, constants too, and let nothing but the QuantizeLinear read its result",
)
def _unit(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op not in UNITS or node.domain or not any(is_quantize(n) for n in readers(node.outputs[0])):
            continue
        operands = qdq.data(node)
        loose = [t for t in operands if not _dequantized(t)]
        if not loose and not _only_quantized(graph, node) and not _clamped(graph, node):
            yield node, f"'{node.outputs[0].name}' is also read in float: runs in float"
        elif loose and len(loose) < len(operands) and _idles(graph, node):
            yield node, f"'{loose[0].name}' is float: runs in float"


@rule(
    "ort-move",
    "slow",
    "operator that copies elements between different scales",
    "give the Q/DQ before and behind it the same scale and zero point",
)
def _move(graph: Graph) -> Found:
    for node in graph.walk():
        made = maker(node.inputs[0]) if node.inputs else None
        if made is None or not is_dequantize(made) or not copies(graph, node):
            continue
        after = [n for t in node.outputs for n in readers(t) if is_quantize(n)]
        wrong = next((n for n in after if not qdq.same_parameters(graph, made, n)), None)
        if wrong is not None and not qdq.rooted(made.inputs[0]):
            yield node, f"'{_name(made)}' and '{_name(wrong)}' differ: it copies floats, between two conversions"


@rule(
    "ort-wide-codes",
    "slow",
    "16-bit codes",
    "quantise to 8 bits: no kernel of the CPU computes with 16",
)
def _wide(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        if is_quantize(node) and qdq.code_type(graph, node) in ("int16", "uint16"):
            yield node, f"quantises '{node.inputs[0].name}' to {qdq.code_type(graph, node)}"


@rule(
    "ort-float16",
    "slow",
    "Q/DQ in half precision",
    "keep scales in float32: kernels of the CPU for int8 know no other",
)
def _float16(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        if qdq.type_name(node.inputs[1]) in ("float16", "bfloat16"):
            yield node, f"its scale is {qdq.type_name(node.inputs[1])}"


@rule(
    "ort-idle",
    "slow",
    "Q/DQ that no int8 operator needs",
    "remove the pair: it costs accuracy and two conversions",
)
def _idle(graph: Graph) -> Found:
    for node in graph.walk():
        if not is_quantize(node) or qdq.rooted(node.inputs[0]) or graph.is_output(node.outputs[0]):
            continue
        if not _made_by_kernel(graph, node.inputs[0]) and not _read_by_kernel(graph, node):
            yield node, f"neither what makes '{node.inputs[0].name}' nor what reads it has an int8 kernel"


@rule(
    "ort-signed",
    "slow",
    "signed activation on x86",
    "quantise activations to uint8 (activation_type=QUInt8 in ONNX Runtime's quantizer)",
)
def _signed(graph: Graph) -> Found:
    for node in graph.walk():
        if not is_quantize(node) or qdq.code_type(graph, node) != "int8" or qdq.rooted(node.inputs[0]):
            continue
        if _made_by_kernel(graph, node.inputs[0]) or _read_by_kernel(graph, node):
            yield node, f"'{node.inputs[0].name}' is int8: the kernels multiply uint8 by int8"


@rule(
    "ort-saturation",
    "error",
    "8-bit weights on an x86 processor without VNNI",
    "quantise weights to 7 bits (reduce_range=True in ONNX Runtime's quantizer)",
)
def _saturation(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        a, b = (dequantizer(graph, t, copied=False) for t in node.inputs[:2])
        codes = None if b is None else qdq.array(graph, b.inputs[0])
        if a is None or codes is None or codes.dtype != np.int8 or qdq.code_type(graph, a) != "uint8":
            continue
        if codes.size and np.abs(codes.astype(np.int16)).max() > 64:
            yield node, f"'{node.inputs[1].name}' has codes beyond 64: sums of two products saturate at 16 bits"


RULES = (
    _mixed,
    _opset,
    _scale_count,
    _activation_channels,
    _axis,
    _gemm_bias,
    _half,
    _output,
    _clamp,
    _bias,
    _gemm,
    _unit,
    _move,
    _wide,
    _float16,
    _idle,
)
EVERY = (*RULES, _signed, _saturation)


def _name(node: Node) -> str:
    return node.name or node.outputs[0].name


def _kernel(node: Node) -> bool:
    """True for an operator that has an integer kernel."""
    return weighted(node) or (node.op in UNITS and not node.domain)


def _dequantized(tensor: Tensor) -> bool:
    made = maker(tensor)
    return made is not None and is_dequantize(made)


def _inputs(graph: Graph, node: Node) -> bool:
    """True where the runtime finds all inputs of an operator quantised."""
    if not weighted(node):
        return all(map(_dequantized, qdq.data(node)))
    a, b = node.inputs[:2]
    weights = dequantizer(graph, b) is not None or (node.op in FLOATABLE and graph.is_constant(b))
    return _dequantized(a) and weights and node.op != "ConvTranspose"


def _only_quantized(graph: Graph, node: Node) -> bool:
    """True where one Q, perhaps behind a clamp that it contains, is all that reads the result."""
    tensor = node.outputs[0]
    for _ in range(2):
        found = readers(tensor)
        if not found or graph.is_output(tensor):
            return False
        if all(map(is_quantize, found)):  # equal ones are merged
            return all(qdq.same_parameters(graph, n, found[0]) for n in found[1:])
        if len(found) != 1 or found[0].op not in CLAMPS:
            return False
        tensor = found[0].outputs[0]
    return False


def _clamped(graph: Graph, node: Node) -> bool:
    """True where a clamp follows that its Q does not contain, which is a finding of its own."""
    found = readers(node.outputs[0])
    if len(found) != 1 or found[0].op not in CLAMPS:
        return False
    return any(is_quantize(n) for n in readers(found[0].outputs[0]))


def _becomes_gemm(graph: Graph, node: Node) -> bool:
    """True where the runtime makes a Gemm of a MatMul and a bias whose sum is not quantised."""
    found = readers(node.outputs[0])
    if len(found) != 1 or found[0].op != "Add" or graph.is_output(node.outputs[0]):
        return False
    bias = [t for t in found[0].inputs if graph.is_constant(t) and len(t.shape) == 1]
    return bool(bias) and graph.is_constant(_codes(node.inputs[1])) and not _only_quantized(graph, found[0])


def _codes(tensor: Tensor) -> Tensor:
    made = maker(tensor)
    return made.inputs[0] if made is not None and is_dequantize(made) else tensor


def _contains(graph: Graph, quantize: Node, node: Node) -> bool:
    """True where the clamp changes nothing that the Q behind it does not change as well."""
    scale, zero = qdq.scales(graph, quantize), qdq.zero_point(quantize)
    kind = qdq.code_type(graph, quantize)
    point = np.zeros(1) if zero is None else qdq.array(graph, zero)
    if scale is None or scale.size != 1 or point is None or kind not in ("int8", "uint8"):
        return False
    first, last = (0, 255) if kind == "uint8" else (-128, 127)
    step, middle = float(scale.reshape(-1)[0]), float(point.reshape(-1)[0])
    low, high = clamp(graph, node) or (np.inf, -np.inf)
    slack = 1e-6 * (last - first) * step
    return low <= (first - middle) * step + slack and (last - middle) * step <= high + slack


def _weight_axis(graph: Graph, node: Node) -> tuple[bool, int | None]:
    """Whether the weights have scales along another axis than that of the outputs, and along which."""
    made = dequantizer(graph, node.inputs[1], copied=False)
    axis = None if made is None else qdq.channels(graph, made)
    return axis is not None and axis != qdq.channel_axis(graph, node), axis


def _wrong_bias(graph: Graph, node: Node) -> str:
    """What is wrong with a bias that comes out of a DQ; '' where nothing is, or nothing can be said."""
    made = maker(node.inputs[2]) if len(node.inputs) > 2 else None
    parts = [dequantizer(graph, t, copied=False) for t in node.inputs[:2]]
    if made is None or not is_dequantize(made) or parts[0] is None or parts[1] is None:
        return ""
    if qdq.code_type(graph, made) != "int32":
        return f"the bias '{made.inputs[0].name}' is {qdq.code_type(graph, made)}, not int32"
    zero = qdq.zero_point(made)
    point = None if zero is None else qdq.array(graph, zero)
    if point is not None and point.any():
        return f"the bias '{made.inputs[0].name}' has a zero point"
    x, w, b = (qdq.scales(graph, n) for n in (parts[0], parts[1], made))
    if x is None or w is None or b is None:
        return ""
    wanted = x.reshape(-1).astype(np.float64) * w.reshape(-1)
    if b.size not in (1, wanted.size) and wanted.size != 1:
        return f"the bias '{made.inputs[0].name}' has {b.size} scales"
    if not np.allclose(b.reshape(-1), wanted, rtol=RTOL, atol=ATOL):
        return f"the bias '{made.inputs[0].name}' has scale {b.reshape(-1)[0]:.3g}, not {wanted[0]:.3g}"
    return ""


def _idles(graph: Graph, node: Node) -> bool:
    """True where some input was quantised for this operator alone."""
    for view in (maker(t) for t in node.inputs):
        if view is None or not is_dequantize(view):
            continue
        quantize = maker(view.inputs[0])
        if quantize is not None and is_quantize(quantize) and not _made_by_kernel(graph, quantize.inputs[0]):
            return len(readers(quantize.outputs[0])) == 1 and len(readers(view.outputs[0])) == 1
    return False


def _made_by_kernel(graph: Graph, tensor: Tensor) -> bool:
    """True where an operator with an integer kernel makes the tensor, perhaps with clamps and copies behind it."""
    node = maker(tensor)
    while node is not None and (node.op in CLAMPS or copies(graph, node)):
        node = maker(node.inputs[0])
    return node is not None and _kernel(node)


def _read_by_kernel(graph: Graph, quantize: Node) -> bool:
    """True where an operator with an integer kernel reads what the Q makes, perhaps behind copies."""
    pending, seen = [quantize.outputs[0]], set[int]()
    while pending:
        for node in readers(pending.pop()):
            if _kernel(node):
                return True
            passes = is_dequantize(node) or is_quantize(node) or node.op in CLAMPS or copies(graph, node)
            if id(node) not in seen and passes:
                seen.add(id(node))
                pending.extend(t for t in node.outputs if t.name)
    return False
