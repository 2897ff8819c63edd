"""Mixed precision, written into the graph: as many float32 tensors as pay become float16 or bfloat16.

Runtimes that take every tensor's type from the model (TensorRT, strongly typed) find their precision here; inputs and
outputs of the model keep theirs. `rules` says what must stay in float32, a minimal cut (`cut`) which of the rest pays
for its Casts, `rewrite` writes it down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.shapes import infer
from passes.cast.cut import WEIGHTED, choose
from passes.cast.rewrite import Rewrite
from passes.cast.rules import Rules
from passes.cast.types import TYPES, is_float, ports
from passes.cast.values import Values

COST = "a Cast would cost more than it saves"


@dataclass(frozen=True)
class Cast(Pass):
    """`keep` names nodes, results or operators that stay in float32; `force`: all others that may are half precision.

    float16 needs the ranges that `calibrate{of=all}` learns; a tensor of unknown range stays in float32.
    """

    name: ClassVar[str] = "cast"
    lossy: ClassVar[bool] = True
    to: Literal["fp16", "bf16"] = "fp16"
    keep: tuple[str, ...] = ()
    force: bool = False

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many nodes compute in half precision that did not, and how many it found that nobody needs.

        Raises PipelineError without statistics.
        """
        half, statistics = TYPES[self.to], ctx.statistics
        swept = graph.sweep()  # whose results nobody reads must not say what the others may do
        infer(graph)
        if half.narrow and not statistics and any(ports(graph, node, half) for node in graph.walk()):
            raise PipelineError(f"'{self}' needs the range of every tensor: put 'calibrate{{of=all}}' before it")
        values = Values(graph, statistics or {}, statistics.batches if statistics else 0)
        able, why = Rules(graph, half, values, frozenset(self.keep)).apply()
        chosen = choose(graph, able, values, self.force)
        computing = any(id(node) in chosen and node.op != "Cast" for node in graph.walk())
        if computing:
            graph.name_nodes()
        _note(graph, chosen, why, self.to)
        if not computing:
            return swept
        return swept + Rewrite(graph, half, values, {key: able[key] for key in able if key in chosen}).run()


def _note(graph: Graph, chosen: set[int], why: Mapping[int, str], to: str) -> None:
    """Tells why a weighted node stays in float32."""
    for node in graph.walk():
        if node.op not in WEIGHTED or node.domain or not node.name or id(node) in chosen:
            continue
        if not any(map(is_float, node.outputs)):
            continue
        known, reason = graph.root.notes.get(node.name, ""), f"no {to}: {why.get(id(node), COST)}"
        if reason not in known:
            graph.root.notes[node.name] = f"{known}; {reason}" if known else reason
