"""The fixpoint pass: repeats until every child is quiet, counts honestly, and always ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.manager import PassManager
from optimizer.pipeline import Pass, build, text
from optimizer.shapes import infer
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


@dataclass(frozen=True)
class Reveal(Pass):
    """Puts the constant `shape` in the place of an equal tensor, which tells inference the result's dims."""

    name: ClassVar[str] = "reveal"
    tracked: ClassVar[bool] = True

    def run(self, graph: Graph, ctx: Context) -> int:
        reshape = next(node for node in graph.nodes if node.op == "Reshape")
        if graph.is_constant(reshape.inputs[1]):
            return 0
        with graph.equal():
            graph.set_input(reshape, 1, graph.constant(np.array([2, 3])))
        return 1


@dataclass(frozen=True)
class Look(Pass):
    """Notes what is known of the result."""

    name: ClassVar[str] = "look"
    tracked: ClassVar[bool] = True
    seen: list[object] = field(default_factory=list)

    def run(self, graph: Graph, ctx: Context) -> int:
        infer(graph)
        self.seen.append(graph.nodes[-1].outputs[0].shape)
        return 0


def test_what_equal_values_let_inference_find_is_found_once_the_rest_is_done(ctx: Context) -> None:
    graph, look = make("g (float[6] x, int64[2] s) => (float[a,b] y) { z = Reshape(x, s) y = Relu(z) }"), Look()
    infer(graph)
    PassManager().run([Fixpoint(20, (Reveal(), look))], graph, ctx)
    assert look.seen == [[None, None], [2, 3]]  # no inference for the sake of a hint, but at the end
    assert not graph.patient and not graph.hints
