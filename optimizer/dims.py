"""`--shape x=1x3xHx224`: dims of the model's inputs get sizes, before anything else is done with it.

That changes the interface, because it was asked for: a dim that had a name is fixed wherever an input or an output has
that name. A name, or ?, keeps a dim free; an unnamed dim takes the name. Nothing that the model fixes can be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from optimizer.decode import dim
from optimizer.errors import UserError
from optimizer.graph import Dim, Graph

Shapes = Mapping[str, Sequence[Dim]]  # by input; None leaves a dim as it is
EXAMPLE = "such as x=1x3x224x224, with a name or ? for a dim to keep"


def parse_shape(text: str) -> tuple[str, tuple[Dim, ...]]:
    """(input, dims) of `x=1x3xHx224`. Raises UserError for what does not read like that."""
    name, _, written = text.rpartition("=")
    words = written.split("x")
    numbers = [int(word) for word in words if word.isdecimal()]
    if not name or not all(word == "?" or word.isidentifier() or word.isdecimal() for word in words):
        raise UserError(f"--shape {text} is not INPUT=SIZES, {EXAMPLE}")
    if 0 in numbers:
        raise UserError(f"--shape {text}: a size of 0 leaves nothing to compute; give 1 or more")
    return name, tuple(int(word) if word.isdecimal() else None if word == "?" else word for word in words)


def fix_dims(graph: Graph, wanted: Shapes) -> dict[str, list[Dim]]:
    """Fixes dims of inputs in place; returns the new shape of every input that changed.

    Raises UserError for an input that is not there, another rank, or a contradiction with the model or in itself.
    """
    header = graph.header
    assert header is not None
    own = {info.name: _dims(info) for info in header.inputs}
    if unknown := [name for name in wanted if name not in own]:
        raise UserError(f"--shape names '{unknown[0]}', but the model's inputs are {', '.join(own)}")
    chosen = {**own, **{name: _chosen(name, own[name], dims) for name, dims in wanted.items()}}
    sizes = _sizes(own, chosen)
    new = {name: None if dims is None else [_sized(dim, sizes) for dim in dims] for name, dims in chosen.items()}
    changed = {name: dims for name, dims in new.items() if dims is not None and dims != own[name]}
    if not changed:
        return {}
    header.inputs = [_rewritten(info, changed[info.name]) if info.name in changed else info for info in header.inputs]
    outputs = {info.name: [_sized(dim, sizes) for dim in _dims(info) or []] for info in header.outputs}
    header.outputs = [_rewritten(info, outputs[info.name]) if outputs[info.name] else info for info in header.outputs]
    for tensor in graph.inputs:
        if tensor.name in changed:
            tensor.shape = list(changed[tensor.name])
    graph.edited()
    return changed


def _dims(info: onnx.ValueInfoProto) -> list[Dim] | None:
    """The dims of an input or output; None where the rank is not known, or it is no tensor."""
    kind = info.type.tensor_type
    return [dim(d) for d in kind.shape.dim] if kind.HasField("shape") else None


def _chosen(name: str, own: Sequence[Dim] | None, dims: Sequence[Dim]) -> list[Dim]:
    """One input's dims as they are asked for."""
    if own is None:
        return list(dims)
    if len(own) != len(dims):
        raise UserError(f"--shape {name}={_text(dims)}: the input is [{_text(own, ',')}], of rank {len(own)}")
    for axis, (has, want) in enumerate(zip(own, dims, strict=True)):
        named = isinstance(has, str) and isinstance(want, str)
        if has != want and None not in (has, want) and (named or isinstance(has, int)):
            keep = f"its name is '{has}', and ? keeps it" if named else f"it is {has} in the model"
            raise UserError(f"--shape {name}={_text(dims)}: axis {axis} cannot be {want}, {keep}")
    return [has if want is None else want for has, want in zip(own, dims, strict=True)]


def _sizes(own: Mapping[str, Sequence[Dim] | None], chosen: Mapping[str, Sequence[Dim] | None]) -> dict[str, int]:
    """The number that each name stands for from now on."""
    sizes: dict[str, int] = {}
    for name, dims in chosen.items():
        for has, want in zip(own[name] or (), dims or (), strict=False):
            if isinstance(has, str) and isinstance(want, int) and sizes.setdefault(has, want) != want:
                raise UserError(f"--shape makes '{has}' {sizes[has]} and, for input '{name}', {want}: give one size")
    return sizes


def _sized(own: Dim, sizes: Mapping[str, int]) -> Dim:
    return sizes.get(own, own) if isinstance(own, str) else own


def _rewritten(info: onnx.ValueInfoProto, dims: Sequence[Dim]) -> onnx.ValueInfoProto:
    """A copy with these dims; a dim that is not known stays as it is written."""
    made = onnx.ValueInfoProto()
    made.CopyFrom(info)
    shape = made.type.tensor_type.shape
    while len(shape.dim) < len(dims):
        shape.dim.add()
    for proto, new in zip(shape.dim, dims, strict=True):
        if isinstance(new, int):
            proto.dim_value = new
        elif new is not None:
            proto.dim_param = new
    return made


def _text(dims: Sequence[Dim], between: str = "x") -> str:
    return between.join("?" if one is None else str(one) for one in dims)
