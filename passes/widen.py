"""Turns half precision into float32 inside the model, for what has kernels for float32 alone: int8, and CPUs.

float16 and bfloat16 are subsets of float32, and an operator that takes one of them takes float32: with every constant,
`dtype` attribute and Cast widened, all types agree again. Inputs and outputs keep theirs through Casts at the border.
Intermediate results are no longer rounded to 16 bits, and what overflowed them is finite: closer to the truth, but not
the same numbers.

With `round` they are: behind whatever computes stands a Cast to half precision and one back, so that a runtime that
has kernels for float32 alone computes what one with half-precision tensors and float32 accumulators does, overflow to
infinity included (such as every tensor core). ONNX Runtime's own float16 on a CPU keeps float32 between operators.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from optimizer.context import Context
from optimizer.graph import Constant, Graph, Node, Tensor, Variable, peek
from optimizer.ops import attribute
from optimizer.pipeline import Pass
from optimizer.shapes import infer
from passes.quantize.kernels import is_quantized

HALVES = {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16}
FLOAT = np.dtype(np.float32)
TYPES = ("to", "dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision")  # attributes: a type each
LISTS = (onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
NUMBERED = 6  # the operator set from which on Cast gives its type as a number
BOUNDS_INPUT = 11  # the operator set from which on Pad and Clip take all their numbers as inputs, in the data's type

# Operators whose results are copies of elements of their inputs.
MOVES = frozenset(
    [
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Split",
        "Concat",
        "Expand",
        "Tile",
        "Gather",
        "GatherElements",
        "GatherND",
        "DepthToSpace",
        "SpaceToDepth",
        "ReverseSequence",
        "Trilu",
        "Compress",
        "CenterCropPad",
    ]
)
# Operators whose results are values of their inputs or whole numbers no larger: never in need of rounding.
SELECTS = MOVES | frozenset(
    [
        "Relu",
        "Abs",
        "Neg",
        "Sign",
        "Max",
        "Min",
        "Where",
        "MaxPool",
        "GlobalMaxPool",
        "ReduceMax",
        "ReduceMin",
        "TopK",
        "Constant",
        "ConstantOfShape",
        "EyeLike",
        "Pad",
        "Clip",
    ]
)


@dataclass(frozen=True)
class Widen(Pass):
    """Does all or nothing: nothing where an operator of a foreign domain, or one that reads bits, touches a half.

    `round`: results are still rounded to half precision; quantized models are taken too, their scales widened.
    """

    name: ClassVar[str] = "widen"
    lossy: ClassVar[bool] = True
    prepares: ClassVar[bool] = True
    round: bool = False

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many constants, attributes, inputs and outputs it widened, and results it rounds."""
        if not _sources(graph) or (is_quantized(graph) and not self.round) or graph.opset < NUMBERED:
            return 0
        infer(graph)
        if any(map(_fixed, graph.walk())) or any(
            isinstance(_type(t), onnx.TypeProto) for t in graph.tensors().values()
        ):
            return 0
        if self.round:
            return _rounding(graph)
        border = _border(graph)
        count = _inputs(graph) + _constants(graph) + _outputs(graph, border)
        count += sum(_attributes(node) for node in graph.walk() if id(node) not in border)
        if count:
            _types(graph, {t.name for t in (*graph.inputs, *graph.outputs)})
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


def _rounding(graph: Graph) -> int:
    """Widens all but Casts: what they make stays half and is read through a Cast back, as are inputs of the model."""
    if not any(map(is_half, itertools.chain.from_iterable((*n.inputs, *n.outputs) for n in _computing(graph)))):
        return 0
    count = _constants(graph) + sum(map(_attributes, _computing(graph)))
    following = _following(graph)
    for node in _computing(graph):
        count += sum(_round(graph, node, tensor, following) for tensor in list(node.outputs) if is_half(tensor))
    given = {id(t) for t in (*graph.inputs, *graph.overridable.values())}
    count += sum(_read_back(graph, t, following) for t in _left(graph, given))
    _types(graph, {t.name for t in _left(graph, given)})
    graph.tidy()
    return count


def _left(graph: Graph, given: Collection[int]) -> list[Tensor]:
    """The tensors that stay in half precision: the model's inputs, by id, and what Casts make."""
    halves = [t for t in graph.tensors().values() if is_half(t)]
    return [t for t in halves if id(t) in given or (t.inputs and _is_cast(t.inputs[0]))]


def _computing(graph: Graph) -> list[Node]:
    return [node for node in graph.walk() if not _is_cast(node)]


def _round(graph: Graph, node: Node, tensor: Tensor, following: dict[int, Node | None]) -> bool:
    """Lets a Cast of the node's result, now float32, make the tensor; not where it needs no rounding."""
    assert node.scope is not None
    exact = _selects(graph, node)
    interface = any(t is tensor for t in graph.outputs)
    if exact and not interface:
        return False
    wide = graph.variable(tensor.name + "_float", FLOAT, tensor.shape)
    code = HALVES[np.dtype(tensor.dtype)]
    node.outputs[[t is tensor for t in node.outputs].index(True)] = wide
    if exact:
        for reader, index in _readings(tensor):
            graph.set_input(reader, index, wide)
    cast = node.scope.add("Cast", [wide], [tensor], {"to": code}, before=following[id(node)])
    following[id(cast)] = following[id(node)]
    return True


def _selects(graph: Graph, node: Node) -> bool:
    """True where all results are rounded already because the inputs are; those of a body, inside it."""
    if node.domain or any(node.bodies()):
        return not node.domain
    if node.op in ("Pad", "Clip"):
        return graph.opset >= BOUNDS_INPUT
    if node.op == "Resize":
        mode, transform = (attribute(graph, node, n) for n in ("mode", "coordinate_transformation_mode"))
        return bool(mode == "nearest") and bool(transform != "tf_crop_and_resize")
    return node.op in SELECTS


def _read_back(graph: Graph, tensor: Tensor, following: dict[int, Node | None]) -> bool:
    """A Cast to float32 behind a tensor that stays half, for its readers and for the body whose result it is."""
    maker = tensor.inputs[0] if tensor.inputs else None
    result = graph.is_output(tensor) and not any(t is tensor for t in graph.outputs)
    readings = list(_readings(tensor))
    if not result and all(_is_cast(node) for node, _ in readings):
        return False
    scope = graph if maker is None or maker.scope is None else maker.scope
    back = scope.variable(tensor.name + "_float", FLOAT, tensor.shape)
    place = graph.nodes[0] if maker is None else following[id(maker)]
    cast = scope.add("Cast", [tensor], [back], {"to": TensorProto.FLOAT}, before=place)
    if result:
        graph.replace(tensor, back)  # which takes the result's name
    half = maker.outputs[0] if maker is not None else tensor
    for node, index in [*readings, (cast, 0)]:
        graph.set_input(node, index, half if _is_cast(node) else back)
    return True


def _following(graph: Graph) -> dict[int, Node | None]:
    """What comes after each node in its scope, by its id: a node put before that stands right behind it."""
    return {
        id(node): after
        for scope in graph.scopes()
        for node, after in itertools.zip_longest(scope.nodes, scope.nodes[1:])
    }


def _types(graph: Graph, kept: Collection[str]) -> None:
    """Notes the new types, in the bodies' declarations too; but not of those that are in half precision still."""
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
