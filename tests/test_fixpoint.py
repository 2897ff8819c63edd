"""The fixpoint pass: repeats until every child is quiet, counts honestly, and always ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.manager import PassManager
from optimizer.pipeline import Pass, build, text
from passes.fixpoint import Fixpoint
from tests.conftest import make
from tests.passes import ops, run


@dataclass(frozen=True)
class Scripted(Pass):
    """Reports the given digits as counts, one a run, then 0."""

    name: ClassVar[str] = "scripted"
    counts: str = ""
    runs: list[int] = field(default_factory=list)

    def run(self, graph: Graph, ctx: Context) -> int:
        self.runs.append(1)
        return int(self.counts[len(self.runs) - 1]) if len(self.runs) <= len(self.counts) else 0


def loop(ctx: Context, *children: Scripted, rounds: int = 20) -> int:
    graph = make("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    return PassManager().run([Fixpoint(rounds, children)], graph, ctx)[0].count


def test_ends_once_every_child_is_quiet(ctx: Context) -> None:
    a, b = Scripted("21"), Scripted("03")
    assert loop(ctx, a, b) == 6
    assert (len(a.runs), len(b.runs)) == (3, 3)  # a2 b0 a1 b3 a0 b0


def test_nothing_to_do_is_one_round(ctx: Context) -> None:
    a, b = Scripted(), Scripted()
    assert loop(ctx, a, b) == 0
    assert (len(a.runs), len(b.runs)) == (1, 1)


def test_rounds_bound_children_that_never_rest(ctx: Context) -> None:
    restless = Scripted("1" * 1000)
    assert loop(ctx, restless, rounds=7) == 7
    assert len(restless.runs) == 7


def test_one_pass_feeds_the_next() -> None:
    graph = make("""g (float[N,6] x) => (float[N,6] y) <int64[1] one = {1}, int64[1] five = {5}> {
        start = Sub(one, one)
        end = Add(one, five)
        a = Slice(x, start, end, one)
        y = Relu(a)
    }""")
    assert run("fixpoint(cleanup,fold)", graph) == 3
    assert ops(graph) == ["Relu"]


def test_text_round_trips() -> None:
    source = "fixpoint{rounds=3}(cleanup,fixpoint(fold,cse))"
    assert text(build(source)) == source


@pytest.mark.parametrize("source", ["fixpoint", "fixpoint{rounds=0}(cleanup)"])
def test_refuses_what_makes_no_sense(source: str) -> None:
    with pytest.raises(PipelineError, match="fixpoint"):
        build(source)
