"""What TensorRT's parser and builder refuse or read differently: the rules of severity `error`; `fusion` has the rest.

Each was held against the real thing, TensorRT-RTX 1.7 in strongly typed mode, parsing and building ahead of time for
sm_89: `docs/lint.md` says rule by rule what it does. Where it lets through what NVIDIA's documentation of
IQuantizeLayer and IDequantizeLayer forbids, the documentation decides, because its kernels are compiled on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from backends.trt import fusion
from optimizer import qdq
from optimizer.graph import Graph, Tensor
from optimizer.lint import Place, Rule, rule
from optimizer.ops import attribute
from optimizer.targets import Cpu

# Standard operators without an importer.
UNKNOWN = frozenset(
    (
        "AffineGrid",
        "Bernoulli",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "SwiGLU",
        "TfIdfVectorizer",
        "Unique",
    )
)
INTEGER = frozenset(["ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"])
MICROSOFT = frozenset(["DequantizeLinear", "Gelu", "QuantizeLinear", "RotaryEmbedding"])  # read as standard ones
HELD = frozenset(
    (
        "float32",
        "float16",
        "bfloat16",
        "float64",
        "int8",
        "uint8",
        "int32",
        "int64",
        "bool",
        "int4",
        "float8_e4m3fn",
        "float8_e8m0fnu",
        "float4_e2m1fn",
    )
)
FLOATS = ("float32", "float16", "bfloat16")

Found = Iterator[tuple[Place, str]]


def rules(cpu: Cpu) -> tuple[Rule, ...]:
    """All rules for TensorRT; they depend on no processor."""
    return (*RULES, *fusion.RULES)


@rule(
    "trt-operator",
    "error",
    "operator the parser does not know",
    "replace it by standard operators: quantise with QuantizeLinear and DequantizeLinear instead of operators that "
    "compute in integers, save the model before ONNX Runtime's own optimizations, or bring a plugin",
)
def _operator(graph: Graph) -> Found:
    for node in graph.walk():
        domain = node.domain or ""
        if domain in ("", "ai.onnx"):
            if node.op in UNKNOWN:
                yield node, f"{node.op} {'computes in integers and ' if node.op in INTEGER else ''}has no importer"
        elif domain != "com.microsoft" or node.op not in MICROSOFT:
            yield node, f"{domain}.{node.op} is taken for a plugin"


@rule(
    "trt-type",
    "error",
    "type TensorRT has no tensors of",
    "use float32, float16, bfloat16, int32 or int64; 16-bit and unsigned quantisation has no counterpart",
)
def _type(graph: Graph) -> Found:
    for tensor in [*graph.inputs, *graph.constants().values()]:
        if (kind := qdq.type_name(tensor)) and kind not in HELD:
            yield _reader(tensor), f"'{tensor.name}' is {_word(kind)}"
    for node in graph.walk():
        read = {qdq.type_name(t) for t in node.inputs if t.name}
        for tensor in node.outputs:
            kind = qdq.type_name(tensor)
            if kind and kind not in HELD | read and not qdq.is_quantize(node):
                yield node, f"'{tensor.name}' is {_word(kind)}"
        if qdq.is_quantize(node) and qdq.zero_point(node) is None and qdq.code_type(graph, node) not in HELD:
            yield node, f"quantises to {qdq.code_type(graph, node)}"


@rule(
    "trt-uint8",
    "error",
    "uint8 tensor inside the network",
    "uint8 may enter through an input that a Cast reads, and leave through a Cast; compute in int32 between",
)
def _uint8(graph: Graph) -> Found:
    for tensor in graph.inputs:
        if qdq.type_name(tensor) == "uint8":
            for reader in qdq.readers(tensor):
                if reader.op not in ("Cast", "Identity") and not qdq.is_dequantize(reader):
                    yield reader, f"reads '{tensor.name}', which is uint8"
    for node in graph.walk():
        if node.op == "Cast" and qdq.type_name(node.outputs[0]) == "uint8" and node.outputs[0].outputs:
            yield node, f"'{node.outputs[0].name}' is uint8 and is computed with"


@rule(
    "trt-mixed-types",
    "error",
    "inputs of different types",
    "put a Cast before one of them: a strongly typed network converts nothing by itself",
)
def _mixed(graph: Graph) -> Found:
    yield from qdq.mixed_types(graph)


@rule(
    "trt-unsigned",
    "error",
    "unsigned codes",
    "quantise to int8 with zero point 0 (activation_type=QInt8 and ActivationSymmetric in ONNX Runtime's quantizer)",
)
def _unsigned(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        if qdq.code_type(graph, node) != "uint8":
            continue
        if qdq.is_quantize(node):
            zero = qdq.zero_point(node)
            absent = zero is None and not attribute(graph, node, "output_dtype")
            yield node, "no zero point means uint8, TensorRT takes int8" if absent else "quantises to uint8"
        elif qdq.quantizer(node) is None:
            yield node, f"'{node.inputs[0].name}' is uint8"


@rule(
    "trt-zero-point",
    "error",
    "zero point that is not 0",
    "quantise symmetrically: zero point 0, scale = largest magnitude / 127 (ActivationSymmetric and WeightSymmetric "
    "in ONNX Runtime's quantizer)",
)
def _zero_point(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        zero = qdq.zero_point(node)
        if zero is None or qdq.code_type(graph, node) in ("uint8", "int32"):
            continue
        values = qdq.array(graph, zero)
        if values is not None and np.any(values.astype(np.float32)):
            worst = values.reshape(-1)[np.argmax(values.reshape(-1) != 0)]
            yield node, f"zero point {worst}"


@rule(
    "trt-int32",
    "error",
    "int32 codes",
    "leave biases in float: TensorRT adds them to the int32 sums itself (QuantizeBias=False in ONNX Runtime's "
    "quantizer, or fold the DequantizeLinear)",
)
def _int32(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        if qdq.is_dequantize(node) and qdq.code_type(graph, node) == "int32":
            users = [n for n in qdq.readers(node.outputs[0]) if len(n.inputs) > 2 and n.inputs[2] is node.outputs[0]]
            what = f"the bias of '{users[0].name or users[0].outputs[0].name}'" if users else f"'{node.inputs[0].name}'"
            yield node, f"{what} is int32; TensorRT dequantises 8-bit and 4-bit codes only"


@rule(
    "trt-scale",
    "error",
    "scale that is not positive and finite",
    "a tensor that is all zero gets any positive scale, such as 1; calibrate again where a scale is NaN or infinite",
)
def _scale(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        values = qdq.scales(graph, node)
        if values is None:
            continue
        flat = values.astype(np.float64).reshape(-1)
        wrong = flat[~((flat > 0) & np.isfinite(flat))]
        if wrong.size:
            yield node, f"scale {wrong[0]:g}" + (f", and {wrong.size - 1} more like it" if wrong.size > 1 else "")


@rule(
    "trt-constant",
    "error",
    "scale or zero point computed at run time",
    "calibrate and store them as initializers",
)
def _constant(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        for tensor, what in zip(node.inputs[1:], ("scale", "zero point"), strict=False):
            if tensor.name and not qdq.rooted(tensor):
                yield node, f"{what} '{tensor.name}' depends on an input of the model"


@rule(
    "trt-activation-channels",
    "error",
    "activation with a scale per channel",
    "quantise activations with one scale; only weights may have one per channel",
)
def _activation_channels(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        axis = qdq.channels(graph, node)
        if axis is not None and not qdq.rooted(node.inputs[0]):
            yield node, f"'{node.inputs[0].name}' has scales along axis {axis}"


@rule(
    "trt-scale-count",
    "error",
    "number of scales that does not fit",
    "give one scale, or one for each channel of the axis",
)
def _scale_count(graph: Graph) -> Found:
    yield from qdq.scale_count(graph)


@rule(
    "trt-block",
    "error",
    "int8 with a scale per block",
    "give int8 weights one scale per output channel; blocks are for int4, fp8 and fp4",
)
def _block(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        size = attribute(graph, node, "block_size")
        if size and qdq.code_type(graph, node) == "int8":
            yield node, f"int8 in blocks of {size}"


@rule(
    "trt-scale-type",
    "error",
    "scale of another float type than its tensor",
    "store the scale in the tensor's type, or put the Cast before QuantizeLinear",
)
def _scale_type(graph: Graph) -> Found:
    for node in qdq.linear(graph):
        tensor, scale = qdq.type_name(node.inputs[0]), qdq.type_name(node.inputs[1])
        if qdq.is_quantize(node) and tensor and scale and tensor != scale:
            yield node, f"'{node.inputs[0].name}' is {tensor}, its scale {scale}"
        elif scale and scale not in FLOATS:
            yield node, f"the scale is {scale}"


@rule(
    "trt-opset",
    "error",
    "Q/DQ the operator set does not define",
    "raise the model's operator set",
)
def _opset(graph: Graph) -> Found:
    yield from qdq.low_opset(graph)


@rule(
    "trt-codes",
    "error",
    "int8 constant that no DequantizeLinear reads",
    "let a DequantizeLinear read the initializer itself and put Transpose, Gather or Cast behind it; make a scalar a "
    "float constant or a vector of one",
)
def _codes(graph: Graph) -> Found:
    for tensor in graph.constants().values():
        if qdq.type_name(tensor) != "int8":
            continue
        for node in qdq.readers(tensor):
            if node.op in qdq.LINEAR and node.inputs[0] is not tensor:
                continue  # a zero point
            if qdq.is_dequantize(node) and not len(tensor.shape):
                yield node, f"'{tensor.name}' is a scalar"
            elif not qdq.is_dequantize(node) and not node.domain and node.op not in UNKNOWN:
                yield node, f"reads the int8 constant '{tensor.name}'"


@rule(
    "trt-interface",
    "error",
    "int8 input or output away from its Q/DQ",
    "let a DequantizeLinear read an int8 input and a QuantizeLinear make an int8 output, with nothing between; or make "
    "it float",
)
def _interface(graph: Graph) -> Found:
    for tensor in graph.inputs:
        if qdq.type_name(tensor) == "int8":
            wrong = [n for n in qdq.readers(tensor) if not qdq.is_dequantize(n) and n.op not in ("Cast", "Identity")]
            if wrong:
                yield tensor, f"'{wrong[0].name or wrong[0].outputs[0].name}' ({wrong[0].op}) computes with it"
    for tensor in graph.outputs:
        made = qdq.maker(tensor)
        if qdq.type_name(tensor) != "int8" or made is None:
            continue
        if not qdq.is_quantize(made) and made.op not in ("Cast", "Identity"):
            yield tensor, f"made by '{made.name or tensor.name}' ({made.op})"


RULES = (
    _operator,
    _type,
    _uint8,
    _mixed,
    _unsigned,
    _zero_point,
    _int32,
    _scale,
    _constant,
    _activation_channels,
    _scale_count,
    _block,
    _scale_type,
    _opset,
    _codes,
    _interface,
)


def _reader(tensor: Tensor) -> Place:
    """Where to report a tensor: at the first node that reads it."""
    return next(iter(qdq.readers(tensor)), tensor)


def _word(kind: str) -> str:
    return "string" if kind == "object" else kind
