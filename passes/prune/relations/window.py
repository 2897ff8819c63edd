"""Pooling, padding and resampling: channels pass, positions stay."""

from __future__ import annotations

import numpy as np

from optimizer.graph import Node
from optimizer.ops import attribute
from passes.prune.atoms import Atom, chain, freeze
from passes.prune.coupling import Coupling
from passes.prune.relations.dense import window

POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")


def pool(c: Coupling, node: Node) -> bool:
    """Positions of maxima count through the channels: with them, nothing is known."""
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    if x is None or y is None or len(x) != len(y) or len(x) < 2 or len(node.outputs) > 1:
        return False
    window(c, node)
    c.tie(x[1], y[1])
    return True


def pad(c: Coupling, node: Node) -> bool:
    """What is put around an axis is a constant block beside it."""
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    amounts = _amounts(c, node, len(x) if x else 0)
    if x is None or y is None or len(x) != len(y) or amounts is None:
        return False
    constant = str(attribute(c.graph, node, "mode")) == "constant"
    for axis, (before, after) in enumerate(amounts):
        inner, made = x[axis], y[axis]
        if min(before, after) < 0 or (not constant and (before or after)):
            c.hold([inner, made], f"{node.op} '{node.name}' mirrors or cuts it")
            continue
        if inner is None or made is None:
            c.hold([inner, made], "its size is not known")
            continue
        blocks = [Atom(size) for size in (before, after)]
        for block in blocks:
            freeze(block, f"{node.op} '{node.name}' puts it there")
        c.tie(chain(blocks[0], inner, blocks[1]), made)
    return True


def _amounts(c: Coupling, node: Node, rank: int) -> list[tuple[int, int]] | None:
    given = attribute(c.graph, node, "pads")
    if given is None and len(node.inputs) > 1:
        array = c.graph.array(node.inputs[1])
        given = None if array is None else array.tolist()
    chosen = len(node.inputs) > 3 and node.inputs[3].name
    which = c.graph.array(node.inputs[3]) if chosen else np.arange(rank)
    if given is None or which is None or len(given) != 2 * len(which):
        return None
    found = [(0, 0)] * rank
    for axis, before, after in zip(which.tolist(), given[: len(which)], given[len(which) :], strict=True):
        found[axis] = int(before), int(after)
    return found


def resample(c: Coupling, node: Node) -> bool:
    """Batches and channels pass where a constant says that they keep their number; positions mix."""
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    if x is None or y is None or len(x) != len(y) or len(x) < 3 or not _leaves_channels(c, node, len(x)):
        return False
    for axis in (0, 1):
        c.tie(x[axis], y[axis])
    c.hold([*x[2:], *y[2:]], f"{node.op} '{node.name}' resamples it")
    return True


def _leaves_channels(c: Coupling, node: Node, rank: int) -> bool:
    which = attribute(c.graph, node, "axes")
    if which is not None:
        return all(axis % rank > 1 for axis in which)
    if len(node.inputs) > 3 and node.inputs[3].name:  # sizes: the same as before, or the axes could not be tied
        return True
    scales = attribute(c.graph, node, "scales")
    if scales is None:
        scales = c.graph.array(node.inputs[min(2, len(node.inputs) - 1)])
    crops = attribute(c.graph, node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    return scales is not None and len(scales) == rank and not crops and bool(np.all(np.asarray(scales[:2]) == 1))


def sample(c: Coupling, node: Node) -> bool:
    """GridSample: channels pass, everything else is a place."""
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    if x is None or y is None:
        return False
    c.tie(x[1], y[1])
    c.hold([x[0], *x[2:], y[0], *y[2:]], f"{node.op} '{node.name}' samples it")
    c.freeze(node.inputs[1:], f"{node.op} '{node.name}' takes places from it")
    return True


RELATIONS = {
    **dict.fromkeys(POOLS, pool),
    "Pad": pad,
    "Resize": resample,
    "Upsample": resample,
    "GridSample": sample,
    "RoiAlign": sample,
}
