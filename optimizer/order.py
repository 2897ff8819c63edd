"""Execution order: a stable sort (Kahn's, no recursion) in which a subgraph's captures count as its node's inputs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from optimizer.errors import ModelError
from optimizer.ir import Tensor

if TYPE_CHECKING:
    from optimizer.graph import Node


def reads(node: Node) -> Iterator[Tensor]:
    """The tensors a node needs: its inputs and, for a node with subgraphs, what they read."""
    yield from node.inputs
    for body in node.bodies():
        for inner in body.walk():
            yield from inner.inputs
        for scope in body.scopes():
            yield from scope.outputs


def in_order(nodes: list[Node], nested: bool) -> list[Node]:
    """The nodes of one scope in execution order, ties by `order`. Raises ModelError, naming a node, on a cycle.

    `nested`: some of them may hold subgraphs.
    """
    if not _ordered(nodes, nested):
        nodes = sorted(nodes, key=attrgetter("order"))  # where that is an execution order, it is the one wanted
        if not _ordered(nodes, nested):
            nodes = _sorted(nodes)
    for place, node in enumerate(nodes, 1):
        node.__dict__["order"] = float(place)
    return nodes


def _ordered(nodes: list[Node], nested: bool) -> bool:
    """True where the nodes are in execution order and by `order`, as most are: sorting would leave them as they are."""
    late = set(nodes)
    before = -math.inf
    for node in nodes:
        if node.order < before:
            return False
        for tensor in reads(node) if nested else node.inputs:
            if tensor.inputs and tensor.inputs[0] in late:
                return False
        before = node.order
        late.discard(node)
    return True


def _sorted(nodes: list[Node]) -> list[Node]:
    index = {id(node): i for i, node in enumerate(nodes)}
    needs: dict[int, int] = {}
    feeds: dict[int, list[Node]] = {}
    for node in nodes:
        makers = {id(m) for t in reads(node) for m in t.inputs if id(m) in index}
        needs[id(node)] = len(makers)
        for key in makers:
            feeds.setdefault(key, []).append(node)
    ready = [(n.order, i, n) for i, n in enumerate(nodes) if not needs[id(n)]]
    heapq.heapify(ready)
    out: list[Node] = []
    while ready:
        _, _, node = heapq.heappop(ready)
        out.append(node)
        for reader in feeds.get(id(node), ()):
            needs[id(reader)] -= 1
            if not needs[id(reader)]:
                heapq.heappush(ready, (reader.order, index[id(reader)], reader))
    if len(out) != len(nodes):
        stuck = _on_cycle([n for n in nodes if needs[id(n)]])
        raise ModelError(f"node '{stuck.name}' ({stuck.op}) needs its own result: the graph cannot be executed")
    return out


def _on_cycle(stuck: list[Node]) -> Node:
    """One node of a cycle: each stuck node waits for a stuck one, so walking upwards comes round."""
    waiting = {id(node) for node in stuck}
    node, seen = stuck[0], set[int]()
    while id(node) not in seen:
        seen.add(id(node))
        node = next(m for t in reads(node) for m in t.inputs if id(m) in waiting)
    return node
