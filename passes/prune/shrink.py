"""Removes what is not kept: constants are sliced along every axis, and whatever counts channels is rewritten.

Targets of Reshape and Expand, sizes of Split and Resize, ends of Slice, groups of a convolution, heads and hidden
units are numbers of the old width; each becomes the number of the new one. Nothing else in the graph changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.ops import attribute
from optimizer.shapes import infer
from passes.prune.atoms import Bools, Keep, kept
from passes.prune.coupling import Coupling
from passes.prune.relations.layout import sections


@dataclass(frozen=True)
class Kept:
    """What stays of any axis, by the names that the pruned graph shares with the coupled one."""

    coupling: Coupling
    keep: Keep

    def of(self, tensor: Tensor | str, axis: int) -> Bools | None:
        """For each index whether it stays, bool [size]; None where the axis is not known or whole."""
        name = tensor if isinstance(tensor, str) else tensor.name
        terms = self.coupling.axes.get(name)
        if terms is None or (term := terms[axis]) is None:
            return None
        found = kept(term, self.keep)
        return None if found.all() else found

    def places(self, tensor: Tensor | str) -> dict[int, Bools]:
        """The axes of a tensor that lose indices."""
        name = tensor if isinstance(tensor, str) else tensor.name
        axes = range(len(self.coupling.axes.get(name, ())))
        return {axis: mask for axis in axes if (mask := self.of(name, axis)) is not None}

    def taken(self, tensor: Tensor | str, array: Array) -> Array:
        """The part of an array in the shape of `tensor` that stays."""
        for axis, mask in self.places(tensor).items():
            array = np.compress(mask, array, axis)
        return array


def shrink(graph: Graph, old: Kept) -> int:
    """Cuts a copy of the coupled graph down to what is kept; returns how many constants became smaller."""
    for node in graph.nodes:
        if (fix := _FIXES.get(node.op)) is not None:
            fix(graph, node, old)
        if node.domain:
            _redeclare(node, old)
    count = 0
    for constant in graph.constants().values():
        if old.places(constant) and graph.is_constant(constant):
            count += _slice(graph, constant, old)
    graph.sweep()
    graph.tidy()
    infer(graph)
    return count


def _redeclare(node: Node, old: Kept) -> None:
    """Nothing infers the shapes that other domains' operators make."""
    for out in node.outputs:
        if out.name and out.shape is not None:
            for axis, mask in old.places(out).items():
                out.shape[axis] = int(mask.sum())


def _slice(graph: Graph, constant: Constant, old: Kept) -> int:
    values = graph.array(constant)
    assert values is not None
    small = graph.constant(np.ascontiguousarray(old.taken(constant, values)), constant.name)
    for reader in dict.fromkeys(constant.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is constant:
                reader.inputs[index] = small
    return 1


def _width(old: Kept, tensor: Tensor, axis: int) -> int | None:
    """The new size of an axis; None where it does not change."""
    mask = old.of(tensor, axis)
    return None if mask is None else int(mask.sum())


def _set(graph: Graph, node: Node, position: int, values: list[int], like: Array | None = None) -> None:
    dtype = np.dtype(np.int64) if like is None else like.dtype
    graph.set_input(node, position, graph.constant(np.array(values, dtype), f"{node.outputs[0].name}_sizes"))


def _target(position: int, fixed: tuple[int, ...]) -> Callable[[Graph, Node, Kept], None]:
    """For operators with the result's shape as an input; entries in `fixed` mean something else than a size."""

    def fix(graph: Graph, node: Node, old: Kept) -> None:
        changed = {axis: int(mask.sum()) for axis, mask in old.places(node.outputs[0]).items()}
        if not changed or len(node.inputs) <= position or not node.inputs[position].name:
            return
        target = node.inputs[position]
        given, rank = graph.array(target), len(old.coupling.axes[node.outputs[0].name])
        count = target.shape[0] if target.shape and isinstance(target.shape[0], int) else rank
        shift = count - rank
        widths = {axis + shift: width for axis, width in changed.items() if axis + shift >= 0}
        if given is not None:
            _set(
                graph,
                node,
                position,
                [n if n in fixed else widths.get(i, n) for i, n in enumerate(given.tolist())],
                given,
            )
        elif widths:
            _override(graph, node, position, [widths.get(i) for i in range(count)])

    return fix


def _override(graph: Graph, node: Node, position: int, widths: list[int | None]) -> None:
    """Sets some entries of a target that is computed."""
    target = node.inputs[position]
    known = graph.constant(np.array([width is not None for width in widths]), "known")
    values = graph.constant(np.array([width or 0 for width in widths], np.int64), "sizes")
    made = graph.variable(target.name, np.int64, target.shape)
    graph.add("Where", [known, values, target], [made], before=node)
    graph.set_input(node, position, made)


def _split(graph: Graph, node: Node, old: Kept) -> None:
    axis = int(attribute(graph, node, "axis"))
    terms = old.coupling.axes.get(node.inputs[0].name)
    if not terms or old.of(node.inputs[0], axis % len(terms)) is None:
        return
    axis %= len(terms)
    sizes = []
    for out in node.outputs:
        term = old.coupling.axes[out.name][axis]
        assert term is not None
        sizes.append(int(kept(term, old.keep).sum()))
    node.attrs.pop("num_outputs", None)
    if graph.opset < 13:
        node.attrs["split"] = sizes
    else:
        _set(graph, node, 1, sizes)


def _slices(graph: Graph, node: Node, old: Kept) -> None:
    cuts = sections(old.coupling, node)
    if cuts is None or not any(old.of(node.inputs[0], axis) is not None for axis in cuts):
        return
    moved = {axis: _moved(cut, old.of(node.inputs[0], axis)) for axis, cut in cuts.items()}
    starts, ends, steps = (list(column) for column in zip(*moved.values(), strict=True))
    if "starts" in node.attrs:
        node.attrs |= {"starts": starts, "ends": ends, "axes": list(moved)}
        return
    for position, values in enumerate((starts, ends, list(moved), steps), 1):
        _set(graph, node, position, values)


def _moved(cut: tuple[int, int, int], mask: Bools | None) -> tuple[int, int, int]:
    """A section of what is left of an axis. With a step, whole rows of it are gone: the start stays."""
    if mask is None:
        return cut
    start, end, step = slice(*cut).indices(len(mask))
    if step != 1:
        return start, int(mask.sum()), step
    return int(mask[:start].sum()), int(mask[:end].sum()), 1


def _gather(graph: Graph, node: Node, old: Kept) -> None:
    """Indices count what is left."""
    terms, picked = old.coupling.axes.get(node.inputs[0].name), graph.array(node.inputs[1])
    if not terms or picked is None:
        return
    mask = old.of(node.inputs[0], int(attribute(graph, node, "axis")) % len(terms))
    if mask is not None:
        rows = picked % len(mask)
        _set(graph, node, 1, (np.cumsum(mask) - 1)[rows[mask[rows]]].tolist(), picked)


def _squeeze(graph: Graph, node: Node, old: Kept) -> None:
    """Without axes it takes all of size 1, and an axis may have become one of them."""
    if "axes" in node.attrs or len(node.inputs) > 1 or not old.places(node.inputs[0]):
        return
    ones = [axis for axis, size in enumerate(node.inputs[0].shape or ()) if size == 1]
    if graph.opset < 13:
        node.attrs["axes"] = ones
    else:
        _set(graph, node, 1, ones)


def _group(graph: Graph, node: Node, old: Kept) -> None:
    """Groups are input channels over channels of a group (both of a ConvTranspose's weights' axes have it)."""
    groups = int(attribute(graph, node, "group"))
    terms = old.coupling.axes.get(node.inputs[0].name)
    width = None if groups == 1 or not terms else _width(old, node.inputs[0], 1)
    if width is None or terms is None or terms[1] is None:
        return
    if node.op == "Conv":
        inner = old.coupling.axes[node.inputs[1].name][1]
        assert inner is not None
        node.attrs["group"] = width // int(kept(inner, old.keep).sum())
    else:
        made, inner = old.coupling.axes[node.outputs[0].name][1], old.coupling.axes[node.inputs[1].name][1]
        assert made is not None and inner is not None
        node.attrs["group"] = int(kept(made, old.keep).sum()) // int(kept(inner, old.keep).sum())


def _norm_groups(graph: Graph, node: Node, old: Kept) -> None:
    terms = old.coupling.axes.get(node.inputs[0].name)
    width = _width(old, node.inputs[0], 1) if terms else None
    if width is not None and terms is not None and terms[1] is not None:
        per_group = terms[1].size // int(attribute(graph, node, "num_groups"))
        node.attrs["num_groups"] = width // per_group


def _hidden(graph: Graph, node: Node, old: Kept) -> None:
    width = _width(old, node.inputs[2], 2)
    if width is not None:
        node.attrs["hidden_size"] = width


def _heads(graph: Graph, node: Node, old: Kept) -> None:
    """Heads, and the scale of the scores, whose default follows the dimensions of a head."""
    terms = old.coupling.axes.get(node.inputs[0].name)
    if not terms or not any(old.places(t) for t in (*node.inputs[:3], *node.outputs)):
        return
    names = {0: "q_num_heads", 1: "kv_num_heads"} if not node.domain else {0: "num_heads"}
    dims = []
    for position, name in names.items():
        heads = node.attrs.get(name)
        term = old.coupling.axes[node.inputs[position].name][2 if heads else 3]
        assert term is not None
        size = term.size // int(heads or 1)
        dims.append(size)
        if heads:
            mask = kept(term, old.keep).reshape(int(heads), size)
            node.attrs[name] = int(mask.any(1).sum())
    node.attrs.setdefault("scale", float(dims[0] ** -0.5))


def _rotated(graph: Graph, node: Node, old: Kept) -> None:
    terms, heads = old.coupling.axes.get(node.inputs[0].name), int(node.attrs.get("num_heads") or 0)
    mask = old.of(node.inputs[0], 2) if heads and terms and len(terms) == 3 else None
    if mask is not None:
        node.attrs["num_heads"] = int(mask.reshape(heads, -1).any(1).sum())


_FIXES: dict[str, Callable[[Graph, Node, Kept], Any]] = {
    "Reshape": _target(1, (-1,)),
    "Expand": _target(1, (1,)),
    "Resize": _target(3, ()),
    "ConstantOfShape": _target(0, ()),
    "Split": _split,
    "Slice": _slices,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Conv": _group,
    "ConvTranspose": _group,
    "GroupNormalization": _norm_groups,
    "LSTM": _hidden,
    "GRU": _hidden,
    "RNN": _hidden,
    "Attention": _heads,
    "MultiHeadAttention": _heads,
    "RotaryEmbedding": _rotated,
}
