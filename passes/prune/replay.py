"""Runs a graph a stretch of nodes at a time over several batches, and keeps what later nodes read.

Weights behind the stretch may change on the way: nothing before them is computed again. Fitting a model of n layers one
after the other so costs about one run of it, not n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import helper

from optimizer.errors import ModelError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Array, Constant, Graph, Header, Node, Variable
from optimizer.ir import PlainGraph
from optimizer.order import reads


class Replay:
    """A run under way: nodes before `place` are done, `alive` holds for each batch what the others read.

    `wanted` names the results. Node and tensor objects are the graph's own.
    """

    def __init__(self, graph: Graph, evaluate: Evaluate, batches: Sequence[Feeds], wanted: Sequence[str]):
        self.graph, self.evaluate, self.wanted = graph, evaluate, list(wanted)
        self.nodes: list[Node] = list(graph.nodes)
        self.place = 0
        self.alive: list[Feeds] = [dict(feeds) for feeds in batches]
        self.last = last_reads(self.nodes, wanted)

    def advance(self, place: int) -> None:
        """Runs the nodes before `place` that have not been run. Raises ModelError where values cannot be held."""
        if place <= self.place:
            return
        stretch = self.nodes[self.place : place]
        made = [t.name for node in stretch for t in node.outputs if t.name and self.last.get(t.name, -1) >= place]
        for number, found in enumerate(self._run(stretch, made)):
            held = {n: a for n, a in self.alive[number].items() if self.last.get(n, -1) >= place}
            self.alive[number] = held | found
        self.place = place

    def results(self) -> Iterator[Feeds]:
        """What is wanted, batch by batch; the run stays where it is."""
        return self._run(self.nodes[self.place :], self.wanted)

    def _run(self, nodes: Sequence[Node], fetch: Sequence[str]) -> Iterator[Feeds]:
        if not self.alive:
            return
        read = dict.fromkeys(t.name for node in nodes for t in reads(node) if not isinstance(t, Constant))
        read |= dict.fromkeys(fetch)
        inputs = {name: array for name, array in self.alive[0].items() if name in read}
        with self.evaluate.open(_part(self.graph, nodes, inputs, fetch), fetch) as run:
            for held in self.alive:
                found = run({name: held[name] for name in inputs})
                if any(not isinstance(array, np.ndarray) for array in found.values()):
                    raise ModelError("a value between operators is no tensor")
                yield found


def last_reads(nodes: Sequence[Node], wanted: Sequence[str]) -> dict[str, int]:
    """For each tensor the place of the last node that reads it."""
    last = {t.name: place for place, node in enumerate(nodes) for t in reads(node)}
    return last | dict.fromkeys(wanted, len(nodes))


def _part(graph: Graph, nodes: Sequence[Node], inputs: dict[str, Array], outputs: Sequence[str]) -> Graph:
    """A graph of some of the nodes, which stay the other graph's as well: to be run, never edited."""
    ir = PlainGraph(inputs=[Variable(name, array.dtype) for name, array in inputs.items()], name="part")
    assert graph.header is not None
    header = Header(graph.header.ir_version, graph.header.imports, [], [], graph.header.model)
    for name, array in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        header.inputs.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
    header.outputs = [onnx.ValueInfoProto(name=name) for name in outputs]
    part = Graph(ir, graph.names, header)
    ir.nodes, part.nested = list(nodes), graph.root.nested
    return part
