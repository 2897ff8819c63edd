"""A part of a graph as a model of its own, with inputs recorded from a run of the whole; and the smallest such part.

What the part reads of the rest becomes inputs, what the rest reads of it outputs; initializers go with it, defaults
stay defaults. Shrinking is delta debugging (Zeller & Hildebrandt 2002): ever smaller groups of nodes are left out as
long as what is looked for still shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph, Node, Tensor, Variable
from optimizer.order import reads

TRIES = 200  # parts looked at while shrinking one

Part = tuple[Graph, Feeds]
Shows = Callable[[Graph, Feeds], bool]


@dataclass
class Values:
    """What tensors of a graph hold on one feed; each is computed once, when it is first asked for."""

    graph: Graph
    feed: Feeds
    evaluate: Evaluate
    known: Feeds = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> Feeds:
        """By name. Raises what the runtime raises."""
        wanted = list(names)
        if missing := [name for name in wanted if name not in self.known]:
            self.known.update(self.evaluate(self.graph, self.feed, missing))
        return {name: self.known[name] for name in wanted}


def cut(values: Values, names: Collection[str]) -> Part | None:
    """The nodes of these names, of the outermost scope; None where that is no model, or a value fits in no file."""
    twin = values.graph.copy()
    kept = [node for node in twin.nodes if node.name in names]
    others = [node for node in twin.nodes if node.name not in names]
    made = [t for node in kept for t in node.outputs if t.name]
    read_elsewhere = {id(t) for node in others for t in reads(node)} | {id(t) for t in twin.outputs}
    outputs = [t for t in made if id(t) in read_elsewhere]
    outer = {id(t) for t in [*twin.inputs, *(t for node in others for t in node.outputs)] if isinstance(t, Variable)}
    inputs = [t for t in {id(t): t for node in kept for t in reads(node) if t.name}.values() if id(t) in outer]
    given = values.of(t.name for t in inputs)
    if not outputs or not all(map(_storable, given.values())):
        return None
    given |= values.of(t.name for t in outputs if t.dtype is None)
    defaults = {n: c for n, c in twin.overridable.items() if any(c is t for node in kept for t in reads(node))}
    _outline(twin, inputs, outputs, given, defaults)
    for node in others:
        twin.remove(node)
    return twin, {t.name: given[t.name] for t in inputs} | {n: a for n, a in values.feed.items() if n in defaults}


def _storable(value: Any) -> bool:
    """True for what a .npz file holds and --data takes."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and bool(np.isfinite(value).all())


def _outline(twin: Graph, inputs: list[Tensor], outputs: list[Tensor], given: Feeds, defaults: dict[str, Any]) -> None:
    """Gives a graph another interface; `given` holds the tensors whose types a run is to tell."""
    header = twin.header
    assert header is not None
    for tensor in [*inputs, *outputs]:
        if isinstance(value := given.get(tensor.name), np.ndarray):
            tensor.dtype, tensor.shape = value.dtype, _dims(tensor, value.shape)
    infos = [v for v in header.inputs if v.name in defaults]
    header.inputs, header.annotations = [*map(_info, inputs), *infos], []
    header.outputs = list(map(_info, outputs))
    twin.names.outputs.difference_update(t.name for t in twin.outputs)
    twin.names.outputs.update(t.name for t in outputs)
    twin.ir.inputs, twin.ir.outputs = inputs, outputs
    twin.overridable, twin.annotating = defaults, {}
    twin.edited()


def _dims(tensor: Tensor, size: tuple[int, ...]) -> list[int | str | None]:
    """What is known of a tensor's shape; numbers that the run contradicts are not believed."""
    if tensor.shape is None or len(tensor.shape) != len(size):
        return [None] * len(size)
    return [d if not isinstance(d, int) or d == n else None for d, n in zip(tensor.shape, size, strict=True)]


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    if tensor.dtype is None:  # a sequence, or absent
        kind = getattr(tensor, "type", None)
        return onnx.ValueInfoProto(name=tensor.name, type=kind if isinstance(kind, onnx.TypeProto) else None)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, code, tensor.shape)


def smallest(values: Values, start: Collection[str], shows: Shows) -> Part | None:
    """The smallest part found that shows it: grown from `start` towards the inputs until it does, then shrunk.

    None where not even the whole graph shows it.
    """
    graph = values.graph
    region = _grown(values, [n for n in graph.nodes if n.name in start] or graph.nodes, shows)
    if region is None:
        return None
    names, tries, size = [node.name for node in region], 0, max(1, len(region) // 2)
    while size:
        at, before = 0, len(names)
        while at < len(names) and tries < TRIES:
            fewer = names[:at] + names[at + size :]
            tries += 1
            if fewer and _shows(values, fewer, shows):
                names = fewer
            else:
                at += size
        size = size // 2 if size > 1 or len(names) == before else 1
    found = cut(values, names)
    assert found is not None
    return _one_row(found, shows)


def _grown(values: Values, start: Sequence[Node], shows: Shows) -> list[Node] | None:
    """The nodes to begin with and, ring by ring, those that make what they read, until it shows."""
    nodes, found = values.graph.nodes, {id(node): node for node in start}
    while not _shows(values, [node.name for node in found.values()], shows):
        makers = [m for node in list(found.values()) for t in reads(node) for m in t.inputs if m.scope is values.graph]
        if more := {id(m): m for m in makers if id(m) not in found}:
            found.update(more)
        elif len(found) < len(nodes):
            found = {id(node): node for node in nodes}
        else:
            return None
    return [node for node in nodes if id(node) in found]


def _shows(values: Values, names: Collection[str], shows: Shows) -> bool:
    part = cut(values, set(names))
    return part is not None and shows(*part)


def _one_row(part: Part, shows: Shows) -> Part:
    """The same part on the first row of its batch, where that is enough."""
    graph, feeds = part
    first = [t.shape[0] for t in graph.inputs if t.shape]
    if not first or not isinstance(first[0], str):
        return part
    batched = {t.name for t in graph.inputs if t.shape and t.shape[0] == first[0]}
    fewer = {name: array[:1] if name in batched else array for name, array in feeds.items()}
    return (graph, fewer) if shows(graph, fewer) else part
