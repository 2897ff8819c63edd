"""Writes a choice into the graph: results and constants in half precision, a Cast per tensor and direction.

A tensor keeps its name where one type of it is enough; where both are needed, the name stays with float32. Casts that
were there already and lead to or from the same type vanish into the choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from optimizer.graph import Array, Constant, Graph, Node, Tensor
from passes.cast.cut import readings, takes
from passes.cast.types import UNTYPED, Half, Ports, is_float
from passes.cast.values import Values


@dataclass
class Rewrite:
    """One application. `chosen` maps ids of nodes to their ports, all of which become half precision."""

    graph: Graph
    half: Half
    values: Values
    chosen: Mapping[int, Ports]
    made: dict[int, Tensor] = field(default_factory=dict)  # by id of the float32 tensor, the half one in its place

    def run(self) -> int:
        """Returns how many nodes compute in half precision that did not."""
        nodes = [node for node in self.graph.walk() if id(node) in self.chosen]
        self.following = {
            id(node): after
            for scope in self.graph.scopes()
            for node, after in itertools.zip_longest(scope.nodes, scope.nodes[1:])
        }
        for node in nodes:
            for index in self.chosen[id(node)].outputs:
                self._give(node, index)
        for node in nodes:
            for index in self.chosen[id(node)].inputs:
                self._take(node, index)
        for node in nodes:
            self._collapse(node)
        self.graph.tidy()
        return sum(node.op != "Cast" for node in nodes)

    def _give(self, node: Node, index: int) -> None:
        """Makes one result half; a Cast makes the float32 tensor for those who need it."""
        tensor = node.outputs[index]
        if self._same(node.inputs[0]) and node.op == "Cast":
            self.made[id(tensor)] = node.inputs[0]
            return
        if node.op == "Cast":
            node.attrs["to"] = self.half.code
        elif node.op == "ConstantOfShape":
            value = node.attrs.get("value")
            held = np.zeros(1, np.float32) if value is None else value.values
            node.attrs["value"] = Constant("", self._rounded(held))
        everyone = all(takes(self.chosen, n, i) for n, i in readings(tensor))
        if everyone and not self.graph.is_output(tensor):
            tensor.dtype = self.half.dtype
            self.made[id(tensor)] = tensor
            return
        assert node.scope is not None
        half = node.scope.variable(f"{tensor.name}_{self.half.name}", self.half.dtype, tensor.shape)
        node.outputs[index] = half
        self._cast(node.scope, half, tensor, TensorProto.FLOAT, self.following[id(node)])
        for reader in dict.fromkeys(n for n in tensor.outputs if n.op in UNTYPED):
            self.graph.set_input(reader, 0, half)
        self.made[id(tensor)] = half

    def _take(self, node: Node, index: int) -> None:
        tensor = node.inputs[index]
        if id(tensor) not in self.made:
            array = self.values.array(tensor)
            self.made[id(tensor)] = self._narrowed(tensor) if array is None else self._constant(tensor, array, node)
        self.graph.set_input(node, index, self.made[id(tensor)])

    def _narrowed(self, tensor: Tensor) -> Tensor:
        """A Cast right behind what makes the tensor, or before everything else."""
        maker = tensor.inputs[0] if tensor.inputs else None
        scope = self.graph if maker is None else maker.scope
        if maker is None and (inner := self._body(tensor)) is not None:
            scope = inner
        assert scope is not None
        half = scope.variable(f"{tensor.name}_{self.half.name}", self.half.dtype, tensor.shape)
        before = scope.nodes[0] if maker is None else self.following[id(maker)]
        self._cast(scope, tensor, half, self.half.code, before)
        return half

    def _body(self, tensor: Tensor) -> Graph | None:
        """The subgraph that has the tensor as an input."""
        return next((s for s in self.graph.scopes() if s.parent and any(t is tensor for t in s.inputs)), None)

    def _constant(self, tensor: Tensor, array: Array, node: Node) -> Tensor:
        return self.graph.constant(self._rounded(array), f"{tensor.name}_{self.half.name}")

    def _rounded(self, array: Array) -> Array:
        """Beyond the range there are only the ends of a Clip, which no value reaches."""
        ends = np.where(np.isfinite(array), np.clip(array, -self.half.limit, self.half.limit), array)
        return ends.astype(self.half.dtype)

    def _cast(self, scope: Graph, given: Tensor, made: Tensor, to: int, before: Node | None) -> None:
        cast = scope.add("Cast", [given], [made], {"to": to}, before=before)
        self.following[id(cast)] = before

    def _collapse(self, node: Node) -> None:
        """Removes a Cast between equal types: from half precision, or to it."""
        if node.op != "Cast" or not self._same(node.inputs[0]):
            return
        result = node.outputs[0]
        if is_float(result) and not result.outputs and not self.graph.is_output(result):
            self.graph.remove(node)
        elif self._same(result):
            self.graph.bypass(node, node.inputs[0])

    def _same(self, tensor: Tensor) -> bool:
        return tensor.dtype is not None and np.dtype(tensor.dtype) == self.half.dtype
