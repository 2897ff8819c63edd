"""Housekeeping that leaves every computed number as it is: fewer nodes, fewer and smaller initializers.

Constant nodes become initializers, no-ops and inference-time Dropout disappear, equal initializers are merged,
results that nobody reads are not computed, short loops are unrolled, sequences of known tensors resolved. One idea a
file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.rewrite import apply_rules
from passes.cleanup import (
    bounded,
    broadcast,
    movement,
    optional,
    parts,
    quantized,
    reductions,
    sequences,
    values,
    windows,
)
from passes.cleanup.constants import lift_constants, merge_duplicates
from passes.cleanup.dead import assume_conditions, drop_dropout, drop_unused_results, take_branches
from passes.cleanup.hoist import hoist_invariants
from passes.cleanup.sequences import map_sequences, split_sequences
from passes.cleanup.unroll import unroll_loops

RULES = (
    *movement.RULES,
    *parts.RULES,
    *windows.RULES,
    *values.RULES,
    *broadcast.RULES,
    *bounded.RULES,
    *reductions.RULES,
    *quantized.RULES,
    *optional.RULES,
    *sequences.RULES,
)


@dataclass(frozen=True)
class Cleanup(Pass):
    """Removes what computes nothing: dead code, identities, no-ops, Constant nodes, duplicate initializers."""

    name: ClassVar[str] = "cleanup"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        count = lift_constants(graph) + assume_conditions(graph) + take_branches(graph) + drop_dropout(graph)
        count += split_sequences(graph) + map_sequences(graph)
        count += sum(apply_rules(graph, RULES).values()) + graph.sweep()
        while parted := parts.split_slices(graph) + parts.split_concat(graph):
            count += parted + sum(apply_rules(graph, RULES, infer=False).values()) + graph.sweep()
        count += hoist_invariants(graph) + unroll_loops(graph)
        count += merge_duplicates(graph) + drop_unused_results(graph)
        return count + graph.sweep()
