"""Dims of what operators make, repeat, index or cut up: where the result is as large as some integers say."""

from __future__ import annotations

from collections.abc import Callable

from optimizer.graph import Node
from optimizer.ops import attribute
from passes.shapes.algebra import Expr, number, product
from passes.shapes.facts import Dims, Facts


def _filled(node: Node, facts: Facts) -> Dims | None:
    """ConstantOfShape is as large as its input says."""
    size = facts.vector(node, 0)
    return None if size is None else [entry if entry.natural else None for entry in size]


def _range(node: Node, facts: Facts) -> Dims | None:
    """From start to limit in steps of one; where it may be empty the other way round, nothing is said."""
    ends = [facts.vector(node, place) for place in range(3)]
    if any(end is None or len(end) != 1 for end in ends):
        return None
    start, limit, step = (end[0] for end in ends if end is not None)
    count = limit - start
    return [count if step.value == 1 and count.natural else None]


def _tile(node: Node, facts: Facts) -> Dims | None:
    dims, repeats = facts.dims(node.inputs[0]), facts.vector(node, 1)
    if dims is None or repeats is None or len(dims) != len(repeats):
        return None
    return [d * r if r.natural else None for d, r in zip(dims, repeats, strict=True)]


def _flatten(node: Node, facts: Facts) -> Dims | None:
    dims, axis = facts.dims(node.inputs[0]), int(attribute(facts.graph, node, "axis"))
    if dims is None:
        return None
    axis += len(dims) * (axis < 0)
    return [product(dims[:axis]), product(dims[axis:])]


def _gather_nd(node: Node, facts: Facts) -> Dims | None:
    data, places = facts.dims(node.inputs[0]), facts.dims(node.inputs[1])
    if data is None or not places or places[-1].value is None:
        return None
    batch = int(attribute(facts.graph, node, "batch_dims") or 0)
    return [*places[:-1], *data[batch + places[-1].value :]]


def _like_second(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[1])
    return None if dims is None else list(dims)


def _like_first(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    return None if dims is None else list(dims)


def _pad(node: Node, facts: Facts) -> Dims | None:
    dims, pads = facts.dims(node.inputs[0]), facts.vector(node, 1)
    if dims is None or pads is None or (len(node.inputs) > 3 and node.inputs[3].name):
        return None
    rank = len(dims)
    if len(pads) != 2 * rank:
        return None
    made = [d + a + b for d, a, b in zip(dims, pads[:rank], pads[rank:], strict=True)]
    return [d if d.natural else None for d in made]


def _most(node: Node, facts: Facts) -> Dims | None:
    """TopK, both of its outputs."""
    dims, count = facts.dims(node.inputs[0]), facts.vector(node, 1)
    if not dims or count is None or len(count) != 1:
        return None
    made: Dims = list(dims)
    made[int(attribute(facts.graph, node, "axis"))] = count[0] if count[0].natural else None
    return made


def _blocks(node: Node, facts: Facts) -> Dims | None:
    dims, size = facts.dims(node.inputs[0]), int(attribute(facts.graph, node, "blocksize") or 0)
    if dims is None or len(dims) != 4 or size < 1:
        return None
    square, side = number(size * size), number(size)
    if node.op == "DepthToSpace":
        return [dims[0], dims[1].over(square), dims[2] * side, dims[3] * side]
    return [dims[0], dims[1] * square, dims[2].over(side), dims[3].over(side)]


def parts(node: Node, facts: Facts) -> list[Dims | None]:
    """Split, output by output: by the sizes it is given, else equal ones where they divide exactly."""
    dims, count = facts.dims(node.inputs[0]), len(node.outputs)
    if not dims:
        return [None] * count
    axis = int(attribute(facts.graph, node, "axis") or 0) % len(dims)
    sizes: list[Expr] | None = None
    if len(node.inputs) > 1 and node.inputs[1].name:
        sizes = facts.vector(node, 1)
    elif node.attrs.get("split"):
        sizes = [number(n) for n in node.attrs["split"]]
    elif (each := dims[axis].over(number(count))) is not None:
        sizes = [each] * count
    if sizes is None or len(sizes) != count:
        sizes = []
    cut = [s if s.natural else None for s in sizes] or [None] * count
    return [[*dims[:axis], one, *dims[axis + 1 :]] for one in cut]


MAKING: dict[str, Callable[[Node, Facts], Dims | None]] = {
    **dict.fromkeys(["ScatterElements", "ScatterND", "EyeLike", "RandomNormalLike", "RandomUniformLike"], _like_first),
    **dict.fromkeys(["DepthToSpace", "SpaceToDepth"], _blocks),
    "ConstantOfShape": _filled,
    "Flatten": _flatten,
    "GatherElements": _like_second,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Range": _range,
    "Tile": _tile,
    "TopK": _most,
}
SEVERAL: dict[str, Callable[[Node, Facts], list[Dims | None]]] = {
    "Split": parts,
    "TopK": lambda node, facts: [_most(node, facts)] * len(node.outputs),
}
