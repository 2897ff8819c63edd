"""Constant folding: what depends on constants alone is computed now, by the oracle, in one batched run per round.

The value stored is the value the model would have computed, because the same kernels compute it (C1). Shape and Size of
known dims need no run (C2, C3: `start` and `end` honoured). `plan` decides what pays; this file runs and replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from optimizer import shapes
from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.graph import Array, Constant, Graph, Header, Names, Node, Tensor, Variable
from optimizer.ir import PlainGraph
from optimizer.ops import attribute
from optimizer.pipeline import Pass
from passes.fold.plan import Plan, plan


@dataclass(frozen=True)
class Fold(Pass):
    """Computes what depends on constants alone. Never makes the file larger by more than 1 % or 1 KiB."""

    name: ClassVar[str] = "fold"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        total = 0
        while True:
            shapes.infer(graph)
            count = _fold_shapes(graph) + _fold_values(graph, ctx)
            if not count:
                return total
            total += count
            graph.sweep()


def _fold_shapes(graph: Graph) -> int:
    count = 0
    for node in graph.walk():
        if node.op not in ("Shape", "Size") or node.domain or (value := _known_shape(graph, node)) is None:
            continue
        _replace([node], [(node.outputs[0], value)])
        count += 1
    return count


def _known_shape(graph: Graph, node: Node) -> Array | None:
    """Shape(x)[start:end] as int64, or Size(x), where the dims asked for are numbers; else None."""
    dims = node.inputs[0].shape
    if dims is None:
        return None
    if node.op == "Shape":
        # Python's slices clamp and count from the end just as the operator does
        dims = list(dims)[attribute(graph, node, "start") or 0 : attribute(graph, node, "end")]
    if not all(isinstance(d, int) for d in dims):
        return None
    return np.array(dims if node.op == "Shape" else np.prod(dims, dtype=np.int64), np.int64)


def _fold_values(graph: Graph, ctx: Context) -> int:
    """One round: plan, run once, replace. Where the run fails, nodes that fail alone are left out of a second plan."""
    chosen = plan(graph, skip=frozenset())
    if not chosen.nodes:
        return 0
    values = _run(graph, chosen, ctx)
    if values is None:
        chosen = plan(graph, skip=_failing(graph, chosen, ctx))
        values = _run(graph, chosen, ctx) if chosen.nodes else {}
    if not values:
        return 0
    _replace(chosen.nodes, [(t, values[t.name]) for t in chosen.results])
    graph.root.grown += chosen.growth
    return len(chosen.nodes)


def _replace(nodes: Sequence[Node], results: Sequence[tuple[Tensor, Array]]) -> None:
    scopes = [t.inputs[0].scope for t, _ in results]
    for node in nodes:
        assert node.scope is not None
        node.scope.remove(node)
    for scope, (tensor, value) in zip(scopes, results, strict=True):
        scope.replace(tensor, scope.constant(value, tensor.name))


def _run(graph: Graph, chosen: Plan, ctx: Context) -> Feeds | None:
    """The plan's results by tensor name, or None where the runtime cannot compute them as tensors of their type."""
    draft = _draft(graph, chosen)
    try:
        values = ctx.evaluate(draft, {})
    except Exception:  # the runtime raises many classes of its own: a kernel is missing, a shape does not fit, ...
        return None
    types = {t.name: t.dtype for t in chosen.results}
    sound = all(
        isinstance(v, np.ndarray) and (types[name] is None or np.dtype(types[name]) == v.dtype)
        for name, v in values.items()
    )
    return values if sound else None


def _failing(graph: Graph, chosen: Plan, ctx: Context) -> frozenset[int]:
    """Ids of the nodes that cannot be run, or that need the result of one that cannot: each is run by itself."""
    known: dict[int, Array] = {}
    failing = set()
    for node in chosen.nodes:
        outputs = [t for t in node.outputs if t.name]
        values = None
        if all(id(t) in known for t in node.inputs if t.name and not graph.is_constant(t)):
            values = _run(graph, Plan([node], outputs, 0, known), ctx)
        if values is None:
            failing.add(id(node))
        else:
            known.update({id(t): values[t.name] for t in outputs})
    return frozenset(failing)


def _draft(graph: Graph, chosen: Plan) -> Graph:
    """A model without inputs that computes a plan's results by copies of its nodes; weights are shared, not copied."""
    assert graph.root.header is not None
    outputs = [onnx.ValueInfoProto(name=t.name) for t in chosen.results]
    header = Header(graph.root.header.ir_version, dict(graph.imports), [], outputs, onnx.ModelProto())
    draft = Graph(PlainGraph(name="fold"), Names(), header)
    twins: dict[str, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor | None:
        if not tensor.name:
            return None
        if tensor.name not in twins:
            value = chosen.known.get(id(tensor))
            twins[tensor.name] = tensor.copy() if value is None else Constant(tensor.name, value)
        return twins[tensor.name]

    for node in chosen.nodes:
        inputs, made = [twin(t) for t in node.inputs], [twin(t) or Variable.empty() for t in node.outputs]
        draft.add(node.op, inputs, made, dict(node.attrs), name=node.name)
    draft.ir.outputs = [twins[t.name] for t in chosen.results]
    return draft
