"""Turns half precision into float32 inside the model, for what has kernels for float32 alone: int8, and CPUs.

float16 and bfloat16 are subsets of float32, and an operator that takes one of them takes float32: with every constant,
`dtype` attribute and Cast widened, all types agree again. Inputs and outputs keep theirs through Casts at the border.
Intermediate results are no longer rounded to 16 bits, and what overflowed them is finite: closer to the truth, but not
the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from optimizer.context import Context
from optimizer.graph import Constant, Graph, Node, Tensor, Variable, peek
from optimizer.pipeline import Pass
from optimizer.shapes import infer
from passes.quantize.kernels import is_quantized

HALVES = {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16}
FLOAT = np.dtype(np.float32)
TYPES = ("to", "dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision")  # attributes: a type each
LISTS = (onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
NUMBERED = 6  # the operator set from which on Cast gives its type as a number


@dataclass(frozen=True)
class Widen(Pass):
    """Does all or nothing: nothing where an operator of a foreign domain, or one that reads bits, touches a half."""

    name: ClassVar[str] = "widen"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many constants, attributes, inputs and outputs it widened."""
        if not _sources(graph) or is_quantized(graph) or graph.opset < NUMBERED:
            return 0
        infer(graph)
        if any(map(_fixed, graph.walk())) or any(
            isinstance(_type(t), onnx.TypeProto) for t in graph.tensors().values()
        ):
            return 0
        border = _border(graph)
        count = _inputs(graph) + _constants(graph) + _outputs(graph, border)
        count += sum(_attributes(node) for node in graph.walk() if id(node) not in border)
        if count:
            _types(graph)
        return count


def is_half(tensor: Tensor) -> bool:
    """True for a tensor of float16 or bfloat16."""
    return tensor.dtype is not None and np.dtype(tensor.dtype) in HALVES


def _sources(graph: Graph) -> bool:
    """True where something may be in half precision at all, before types are inferred."""
    given = [*graph.inputs, *graph.constants().values()]
    return any(map(is_half, given)) or any(_typed(n) or n.domain for n in graph.walk())


def _typed(node: Node) -> dict[str, Any]:
    """The attributes of a standard operator that say or hold half precision, as they read in float32."""
    found: dict[str, Any] = {}
    for key, value in node.attrs.items() if not node.domain else ():
        if key in TYPES and value in HALVES.values():
            found[key] = TensorProto.FLOAT
        elif isinstance(value, Constant) and is_half(value):
            found[key] = Constant("", _wide(value))
    return found


def _wide(constant: Constant) -> np.ndarray[Any, Any]:
    return peek(constant).astype(np.float32)


def _type(tensor: Tensor) -> Any:
    return getattr(tensor, "type", None)


def _fixed(node: Node) -> bool:
    """True where a node touches half precision, or may, and is not known to mean the same in float32."""
    if any(isinstance(value, onnx.AttributeProto) and value.type not in LISTS for value in node.attrs.values()):
        return True
    touched = [t for t in (*node.inputs, *node.outputs) if t.name]
    if node.domain:
        return any(t.dtype is None or is_half(t) for t in touched)
    return node.op == "BitCast" and any(map(is_half, touched))


def _border(graph: Graph) -> set[int]:
    """The Casts, by id, that give the model's outputs their type and serve nothing else that computes."""
    makers = [t.inputs[0] for t in graph.outputs if is_half(t) and t.inputs]
    return {id(n) for n in makers if _is_cast(n) and all(map(_is_cast, n.outputs[0].outputs))}


def _is_cast(node: Node) -> bool:
    return node.op == "Cast" and not node.domain


def _readings(tensor: Tensor) -> Iterator[tuple[Node, int]]:
    for node in list(dict.fromkeys(tensor.outputs)):
        yield from [(node, index) for index, read in enumerate(node.inputs) if read is tensor]


def _inputs(graph: Graph) -> int:
    """A Cast behind each input of the model that is computed with."""
    count = 0
    for tensor in [*graph.inputs, *graph.overridable.values()]:
        readings = [(node, index) for node, index in _readings(tensor) if not _is_cast(node)]
        if not is_half(tensor) or not readings:
            continue
        wide = graph.variable(tensor.name + "_float", FLOAT, tensor.shape)
        graph.add("Cast", [tensor], [wide], {"to": TensorProto.FLOAT}, before=graph.nodes[0])
        for node, index in readings:
            graph.set_input(node, index, wide)
        count += 1
    return count


def _constants(graph: Graph) -> int:
    count = 0
    for constant in graph.constants().values():
        readings = list(_readings(constant))
        if not is_half(constant) or not graph.is_constant(constant) or not readings:
            continue
        wide = graph.constant(_wide(constant), constant.name + "_float")
        for node, index in readings:
            graph.set_input(node, index, wide)
        count += 1
    return count


def _outputs(graph: Graph, border: set[int]) -> int:
    """A Cast before each output of the model that is computed in half precision."""
    count = 0
    for tensor in list({id(t): t for t in graph.outputs}.values()):
        if not is_half(tensor) or not tensor.inputs or id(tensor.inputs[0]) in border:
            continue
        maker, readings = tensor.inputs[0], list(_readings(tensor))
        place = [t is tensor for t in maker.outputs].index(True)
        made = graph.variable(tensor.name, tensor.dtype, tensor.shape)
        cast = graph.add("Cast", [tensor], [made], {"to": HALVES[np.dtype(tensor.dtype)]})
        graph.replace(tensor, made)  # which takes the output's name
        for node, index in [*readings, (cast, 0)]:
            graph.set_input(node, index, maker.outputs[place])
        border.add(id(cast))
        count += 1
    return count


def _attributes(node: Node) -> int:
    found = _typed(node)
    node.attrs.update(found)
    return len(found)


def _types(graph: Graph) -> None:
    """Notes the new types, in the bodies' declarations too; the model's own inputs and outputs keep theirs."""
    kept = {t.name for t in (*graph.inputs, *graph.outputs)}
    for tensor in graph.tensors().values():
        if isinstance(tensor, Variable) and is_half(tensor) and tensor.name not in kept:
            tensor.dtype = FLOAT
    for scope in graph.scopes():
        scope.declared = {name: _widened(info) for name, info in scope.declared.items()}


def _widened(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Copies share declarations, so a new one is made."""
    if info.type.tensor_type.elem_type not in HALVES.values():
        return info
    wide = onnx.ValueInfoProto()
    wide.CopyFrom(info)
    wide.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide
