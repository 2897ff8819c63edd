"""Housekeeping that leaves every computed number as it is: fewer nodes, fewer and smaller initializers.

Constant nodes become initializers, no-ops and inference-time Dropout disappear, equal initializers are merged,
results that nobody reads are not computed. One idea a file: constants, dropout, dead, movement and value no-ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.rewrite import apply_rules
from passes.cleanup import movement, values, windows
from passes.cleanup.constants import lift_constants, merge_duplicates
from passes.cleanup.dead import drop_dropout, drop_unused_results, take_branches


@dataclass(frozen=True)
class Cleanup(Pass):
    """Removes what computes nothing: dead code, identities, no-ops, Constant nodes, duplicate initializers."""

    name: ClassVar[str] = "cleanup"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        count = lift_constants(graph)
        taken = take_branches(graph)
        count += taken + drop_dropout(graph)
        count += sum(apply_rules(graph, movement.RULES + windows.RULES + values.RULES).values())
        count += merge_duplicates(graph) + drop_unused_results(graph)
        if taken:
            graph.edited()  # what leaves a subgraph is known better once nothing of the If is left
        return count + graph.sweep()
