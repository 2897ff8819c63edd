"""Common subexpressions (H6): a node that repeats an earlier one hands its readers over to it.

Nodes are gone through in execution order and looked up by operator, attributes (by value, bit for bit) and inputs
(by identity), so chains of duplicates collapse in one pass. A subgraph may reuse what the scopes around it have
computed before it, never a sibling's. Only pure nodes count (two RandomNormalLike are two samples), nodes with
subgraphs are left alone, and two graph outputs stay two outputs: the engine bridges them by an Identity.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from optimizer.context import Context
from optimizer.graph import Constant, Graph, Node, peek
from optimizer.ops import is_pure
from optimizer.pipeline import Pass


@dataclass(frozen=True)
class Cse(Pass):
    """Computes equal expressions once."""

    name: ClassVar[str] = "cse"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        with graph.equal():
            return _scope(graph, ChainMap())


def _scope(scope: Graph, seen: ChainMap[Hashable, Node]) -> int:
    count = 0
    for node in list(scope.nodes):
        bodies = list(node.bodies()) if node.attrs else []
        for body in bodies:
            count += _scope(body, seen.new_child())
        if bodies or node.op in ("Identity", "Constant") or not node.outputs or not is_pure(node):
            continue
        first = seen.setdefault(_key(node), node)
        if first is not node:
            _merge(scope, node, first)
            count += 1
    return count


def _merge(scope: Graph, node: Node, first: Node) -> None:
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    scope.remove(node)
    for old, new in pairs:
        if old.name:
            scope.replace(old, new)


def _key(node: Node) -> Hashable:
    """Equal keys mean equal results."""
    attrs = tuple((name, _value(node.attrs[name])) for name in sorted(node.attrs))
    inputs = tuple(id(t) if t.name else 0 for t in node.inputs)
    outputs = tuple(bool(t.name) for t in node.outputs)
    return (node.domain, node.op, node.overload, attrs, inputs, outputs)


def _value(value: Any) -> Hashable:
    """An attribute by value: 1, 1.0 and True differ, so do 0.0 and -0.0, and NaN equals itself."""
    if isinstance(value, Constant):
        return _value(peek(value))
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
        return (str(value.dtype), value.shape, hashlib.sha256(content).digest())
    if isinstance(value, onnx.AttributeProto):
        return bytes(value.SerializeToString(deterministic=True))
    if isinstance(value, list):
        return tuple(map(_value, value))
    return (type(value).__name__, repr(value))
