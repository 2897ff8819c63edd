"""What precision each weighted ONNX node has in the typed network, read off its layers after parsing.

A strongly typed network fixes every tensor's type before the builder starts, so this is what will run. A product is
int8 where both of its operands come out of a DEQUANTIZE of int8 (through layers that only move data): that is the
pattern from which TensorRT makes an int8 kernel. The bias does not count. Layers find their ONNX nodes by the metadata
which the parser writes on them; the products of a recurrent node carry none, and follow a layer of it that does. A
node whose product the parser folded away has no layer, and no entry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PRODUCTS = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"})
MOVING = frozenset({"SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY", "SLICE"})
PRECISION = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "FP8": "fp8", "INT8": "int8", "INT4": "int4"}
WIDEST = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
MARK = "[ONNX Layer: "
SCOPES = re.compile(r"(?: \| [^|]* \(\w+\))+$")  # " | name of the body (then_branch) | name of the node (If)", ...


@dataclass(frozen=True)
class Typed:
    """`precision` by ONNX node; `types`: counts by layer type and precision; `nodes`: ONNX node by layer and tensor."""

    precision: Mapping[str, str]
    types: Mapping[str, Mapping[str, int]]
    nodes: Mapping[str, str]


def examine(network: Any) -> Typed:
    """Reads a parsed network; changes nothing."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    recurrent = {onnx_node(layer) for layer in layers if layer.type.name == "RECURRENCE"} - {None}
    found: dict[str, str] = {}
    types: dict[str, Counter[str]] = {}
    nodes: dict[str, str] = {}
    last = None
    for layer in layers:
        kind = layer.type.name
        precision = _product(layer, makers) if kind in PRODUCTS else _plain(layer)
        types.setdefault(kind, Counter())[precision] += 1
        last = onnx_node(layer) or last
        node = onnx_node(layer) or (last if last in recurrent and kind in PRODUCTS else None)
        if node is None:
            continue
        nodes[layer.name] = node
        for tensor in _outputs(layer):
            nodes.setdefault(tensor.name, node)
        if kind in PRODUCTS:
            found[node] = min(found.get(node, precision), precision, key=_width)
    counts = {kind: dict(sorted(count.items())) for kind, count in sorted(types.items())}
    return Typed(found, counts, nodes)


def onnx_node(layer: Any) -> str | None:
    """The ONNX node a layer was made from; None for what the parser added, such as constants."""
    text = str(layer.metadata or "")
    return SCOPES.sub("", text[len(MARK) : -1]) if text.startswith(MARK) and text.endswith("]") else None


def _product(layer: Any, makers: Mapping[str, Any]) -> str:
    """One type of both operands before they were dequantized, else the type the product is computed in."""
    given = (layer.get_input(index) for index in range(min(layer.num_inputs, 2)))
    operands = [tensor for tensor in given if tensor is not None]  # a kernel that is no tensor leaves a gap
    stored = {_stored(tensor, makers) for tensor in operands}
    quantized = next(iter(stored)) if len(stored) == 1 and len(operands) == 2 else None
    return quantized or _named(operands[0])


def _stored(tensor: Any, makers: Mapping[str, Any]) -> str | None:
    """The type from which a tensor is dequantized; None where it is not."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in MOVING:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "DEQUANTIZE":
        return None
    return _named(maker.get_input(0))


def _plain(layer: Any) -> str:
    return next((_named(tensor) for tensor in _outputs(layer)), "none")


def _named(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return PRECISION.get(name, name.lower())


def _width(precision: str) -> int:
    return WIDEST.index(precision) if precision in WIDEST else 0


def _outputs(layer: Any) -> Iterator[Any]:
    found = (layer.get_output(index) for index in range(layer.num_outputs))
    return (tensor for tensor in found if tensor is not None)
