"""The oracle of pruning: the whole graph with the contributions of removed units zeroed computes what the pruned one
does.

Wherever an operator sums over an axis, its operand is multiplied by 1 for what is kept and by 0 for what is not. A
mean or a LayerNormalization is spelled out over what is kept: the pruned graph must compute that too, though it is
not what the original says of those units (`approximate` tells which operators these are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from optimizer.compare import compare
from optimizer.errors import BugError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.ops import attribute
from passes.prune.coupling import Place
from passes.prune.shrink import Kept

NOISE = 5e-7  # absolute: what a Sigmoid of numbers far below zero is off, so that nothing is left of its digits
AXES_INPUT = 18  # the operator set in which ReduceMean got its axes as an input


def verify(original: Graph, pruned: Graph, old: Kept, evaluate: Evaluate, feeds: Sequence[Feeds]) -> float:
    """Largest error relative to an output's largest number. Raises BugError beyond rounding."""
    with evaluate.open(masked(original, old)) as reference, evaluate.open(pruned) as run:
        found = compare((reference(feed), run(feed)) for feed in feeds)
    for name, difference in found.items():
        if not difference.within_rounding() and (difference.broken or difference.max_abs > NOISE):
            what = difference.broken or f"largest error {difference.max_abs:.3g} of {difference.peak:.3g}"
            raise BugError(f"the pruned model's output '{name}' is not that of the masked one: {what}")
    return max((d.max_abs / max(d.peak, 1e-3) for d in found.values()), default=0.0)


def approximate(old: Kept) -> list[str]:
    """Operators that take a statistic over an axis that lost indices, as 'LayerNormalization name'."""
    nodes = {node.name: node for node in old.coupling.graph.nodes}
    hit = [p for p in old.coupling.statistics if old.of(nodes[p.node].inputs[p.position], p.axis) is not None]
    return list(dict.fromkeys(f"{nodes[p.node].op} {p.node}" for p in hit))


def masked(original: Graph, old: Kept) -> Graph:
    """A copy of the coupled graph in which removed units contribute nothing."""
    graph = original.copy()
    nodes = {node.name: node for node in graph.nodes}
    summed, averaged = (_taken(nodes, places, old) for places in (old.coupling.contractions, old.coupling.statistics))
    for (name, position), ones in summed.items():
        node = nodes[name]
        graph.set_input(node, position, _times(graph, node.inputs[position], ones, node))
    for (name, _), ones in averaged.items():
        (_respell_mean if nodes[name].op == "ReduceMean" else _respell)(graph, nodes[name], ones)
    graph.tidy()
    return graph


def _taken(nodes: Mapping[str, Node], places: Sequence[Place], old: Kept) -> dict[tuple[str, int], Array]:
    """What to multiply an input of a node with: 0 for what is gone, in as many axes as the input has."""
    found: dict[tuple[str, int], Array] = {}
    for place in places:
        node = nodes[place.node]
        tensor = node.inputs[place.position]
        mask = old.of(tensor, place.axis)
        if mask is not None:
            rank = len(old.coupling.axes[tensor.name])
            column = mask.reshape([-1 if axis == place.axis else 1 for axis in range(rank)])
            ones = found.get((place.node, place.position), np.ones((), _dtype(tensor, node)))
            found[place.node, place.position] = ones * column.astype(ones.dtype)
    return found


def _times(graph: Graph, tensor: Tensor, ones: Array, before: Node) -> Tensor:
    if isinstance(tensor, Constant):
        values = graph.array(tensor)
        assert values is not None
        return graph.constant(values * ones, tensor.name)
    return _add(graph, before, "Mul", tensor, graph.constant(ones, "mask"))


def _dtype(tensor: Tensor, reader: Node) -> np.dtype[Any]:
    """The tensor's type; where inference did not find it, that of the weights beside it."""
    known = [np.dtype(t.dtype) for t in (tensor, *reader.inputs) if t.dtype is not None]
    return known[0] if known else np.dtype(np.float32)


def _add(graph: Graph, before: Node, op: str, *inputs: Tensor, **attrs: Any) -> Tensor:
    made = graph.variable(op.lower(), inputs[0].dtype, None)
    graph.add(op, inputs, [made], attrs, before=before)
    return made


def _share(graph: Graph, ones: Array) -> Constant:
    """By how much a mean over all of an axis, with zeros for what is gone, is too small."""
    return graph.constant(np.array(ones.size / np.count_nonzero(ones), ones.dtype), "share")


def _respell_mean(graph: Graph, node: Node, ones: Array) -> None:
    """The mean over what is kept."""
    out, share = node.outputs[0], _share(graph, ones)
    graph.set_input(node, 0, _times(graph, node.inputs[0], ones, node))
    node.outputs[0] = graph.variable(out.name, out.dtype, out.shape)
    graph.add("Mul", [node.outputs[0], share], [out])


def _respell(graph: Graph, node: Node, ones: Array) -> None:
    """A LayerNormalization or RMSNormalization over what is kept, in single precision as its operator works."""
    x, out, dtype = node.inputs[0], node.outputs[0], ones.dtype
    over = list(range(int(attribute(graph, node, "axis")) % ones.ndim, ones.ndim))
    if narrow := dtype.itemsize < np.dtype(np.float32).itemsize:
        x, ones = _cast(graph, node, x, np.dtype(np.float32)), ones.astype(np.float32)
    share = _share(graph, ones)
    centred = _times(graph, x, ones, node)
    if node.op == "LayerNormalization":
        mean = _add(graph, node, "Mul", _mean(graph, node, centred, over), share)
        centred = _times(graph, _add(graph, node, "Sub", x, mean), ones, node)
    square = _add(graph, node, "Mul", centred, centred)
    power = _add(graph, node, "Mul", _mean(graph, node, square, over), share)
    epsilon = graph.constant(np.array(attribute(graph, node, "epsilon"), ones.dtype), "epsilon")
    root = _add(graph, node, "Sqrt", _add(graph, node, "Add", power, epsilon))
    made = _add(graph, node, "Div", centred, root)
    if narrow:
        made = _cast(graph, node, made, dtype)
    for op, tensor in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        made = _add(graph, node, op, made, tensor) if tensor.name else made
    graph.remove(node)
    graph.replace(out, made)


def _cast(graph: Graph, before: Node, tensor: Tensor, dtype: np.dtype[Any]) -> Tensor:
    made = _add(graph, before, "Cast", tensor, to=helper.np_dtype_to_tensor_dtype(dtype))
    made.dtype = dtype
    return made


def _mean(graph: Graph, before: Node, tensor: Tensor, over: list[int]) -> Tensor:
    if graph.opset >= AXES_INPUT:
        return _add(graph, before, "ReduceMean", tensor, graph.constant(np.array(over, np.int64), "axes"))
    return _add(graph, before, "ReduceMean", tensor, axes=over)
