"""The oracle of pruning: the whole graph with the contributions of removed units zeroed computes what the pruned one
does.

Wherever an operator sums over an axis, its operand is multiplied by 1 for what is kept and by 0 for what is not. A
mean or a LayerNormalization is spelled out over what is kept: the pruned graph must compute that too, though it is
not what the original says of those units (`approximate` tells which operators these are).

Both compute the same sums in another order. How far rounding alone may take them apart depends on the model, so where
they differ by more than float models usually do, it is measured: the masked graph is run again with half of its weights
moved by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from optimizer.compare import Difference, compare
from optimizer.errors import BugError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.ops import attribute
from passes.prune.coupling import Place
from passes.prune.shrink import Kept

EQUAL = 1e-4  # relative to an output's largest number; beyond, rounding is measured
SPREAD = 4  # of the difference that moved weights make: what another order of sums may
AXES_INPUT = 18  # the operator set in which ReduceMean got its axes as an input


@dataclass(frozen=True)
class Equality:
    """The largest error relative to an output's largest number, and what rounding alone makes; 0 if not measured."""

    error: float
    rounding: float = 0.0

    def __str__(self) -> str:
        return f"to {self.error:.1e}" + (f" (rounding alone: {self.rounding:.1e})" if self.rounding else "")


def verify(original: Graph, pruned: Graph, old: Kept, evaluate: Evaluate, feeds: Sequence[Feeds]) -> Equality:
    """How nearly the pruned graph computes what the masked one does. Raises BugError beyond rounding."""
    graph = masked(original, old)
    with evaluate.open(graph) as reference, evaluate.open(pruned) as run:
        found = compare((reference(feed), run(feed)) for feed in feeds)
        if all(d.within_rounding() for d in found.values()) and _relative(found) <= EQUAL:
            return Equality(_relative(found))
        with evaluate.open(_moved(graph)) as other:
            noise = compare((reference(feed), other(feed)) for feed in feeds)
    for name, difference in found.items():
        if difference.broken or not (
            difference.within_rounding() or difference.max_abs <= SPREAD * noise[name].max_abs
        ):
            what = difference.broken or f"largest error {difference.max_abs:.3g} of {difference.peak:.3g}"
            raise BugError(f"the pruned model's output '{name}' is not that of the masked one: {what}")
    return Equality(_relative(found), _relative(noise))


def _relative(found: Mapping[str, Difference]) -> float:
    return max((d.max_abs / max(d.peak, 1e-3) for d in found.values()), default=0.0)


def _moved(graph: Graph) -> Graph:
    """A copy with half of all weights, chosen at random, one unit in the last place larger."""
    twin, rng = graph.copy(), np.random.default_rng(0)
    for constant in list(twin.constants().values()):
        values = twin.array(constant)
        if values is None or values.dtype.kind != "f" or values.ndim < 2 or twin.is_output(constant):
            continue
        larger = np.nextafter(values, np.array(np.inf, values.dtype))
        made = twin.constant(np.where(rng.random(values.shape) < 0.5, larger, values), constant.name)
        twin.replace(constant, made)
    return twin


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
