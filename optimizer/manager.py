"""The pass manager is a loop; everything else about it is an instrument (a context manager around one step)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass, text


@dataclass
class Step:
    """One run of one pass: what the instruments see, and what the manifest records."""

    name: str
    number: int
    depth: int
    count: int = 0
    seconds: float = 0.0
    nodes: int = 0
    children: list[Step] = field(default_factory=list)
    skipped: bool = False


class Instrument(Protocol):
    def around(self, step: Step, graph: Graph, ctx: Context) -> AbstractContextManager[None]:
        """Wraps one step: code before the yield runs before the pass, code after it once `step.count` is set."""


class PassManager:
    """Runs passes in order; children of composite passes run through it too, so instruments see inside them."""

    def __init__(self, instruments: Sequence[Instrument] = ()):
        self.instruments = instruments
        self.number = 0

    def run(self, passes: Sequence[Pass], graph: Graph, ctx: Context, depth: int = 0) -> list[Step]:
        """Runs each pass once and returns what happened. Raises what an instrument or a pass raises."""
        return [self._step(one, graph, ctx, depth) for one in passes]

    def _step(self, one: Pass, graph: Graph, ctx: Context, depth: int) -> Step:
        self.number += 1
        step = Step(text(one), self.number, depth)

        def apply(child: Pass) -> int:
            step.children.append(self._step(child, graph, ctx, depth + 1))
            return step.children[-1].count

        start = time.perf_counter()
        with ExitStack() as stack:
            for instrument in self.instruments:
                stack.enter_context(instrument.around(step, graph, ctx))
            if not step.skipped:
                step.count = one.run(graph, replace(ctx, apply=apply))
                if step.count and not step.children:
                    if not one.tracked:
                        graph.edited()
                    graph.sweep()
                    graph.tidy()
            step.seconds = time.perf_counter() - start
            step.nodes = len(graph.nodes)
        return step
