"""Repeats its children until none of them changes anything.

One pass feeds another: a folded constant makes a no-op, its removal a duplicate. Each child is assumed idempotent
when it reports nothing to do, so the loop ends once every child in turn has reported 0 since the last change.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from optimizer import shapes
from optimizer.collector import paused
from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fixpoint(Pass):
    """`fixpoint(a,b)` runs a, b, a, b, ... at most `rounds` times each. Raises ValueError without children."""

    name: ClassVar[str] = "fixpoint"
    rounds: int = 20
    children: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        if not self.children:
            raise ValueError("it needs passes to repeat, as in fixpoint(cleanup,fold)")
        if self.rounds < 1:
            raise ValueError("rounds must be at least 1")

    def run(self, graph: Graph, ctx: Context) -> int:
        with paused(), _patient(graph):
            return self._run(graph, ctx)

    def _run(self, graph: Graph, ctx: Context) -> int:
        total, quiet = 0, 0
        for child in itertools.islice(itertools.cycle(self.children), self.rounds * len(self.children)):
            count = ctx.apply(child)
            total += count
            quiet = 0 if count else quiet + 1
            if quiet == len(self.children):
                graph.patient = False
                if not shapes.infer(graph):
                    return total
                graph.patient, quiet = True, 0
        log.info("fixpoint: still changing after %d rounds", self.rounds)
        return total


@contextmanager
def _patient(graph: Graph) -> Iterator[None]:
    """What rewriting lets inference find is looked for when nothing else is left: most often there is nothing."""
    before, graph.patient = graph.patient, True  # one fixpoint may stand in another
    try:
        yield
    finally:
        graph.patient = before
