"""The manager and each instrument, on passes that behave and on passes that lie, break or fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

from optimizer import shapes
from optimizer.context import Context
from optimizer.errors import BugError, ModelError
from optimizer.graph import Graph
from optimizer.instrument import Dump, Limit, Progress, Reproduce, SameOutputs, Verify, fingerprint
from optimizer.io import load, to_model
from optimizer.manager import PassManager, Step
from optimizer.pipeline import Pass
from optimizer.text import show
from tests.conftest import make

TEXT = "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { a = Add(x, w) b = Neg(a) c = Neg(b) y = Relu(c) }"
FEEDS = [{"x": np.array([[1, -2], [-3, 4]], np.float32)}]
FUNCTIONS: dict[str, Callable[[Graph], int]] = {}


@dataclass(frozen=True)
class Call(Pass):
    """Runs one of FUNCTIONS, or its children."""

    name: ClassVar[str] = "call"
    what: str = ""
    children: tuple[Pass, ...] = ()

    def run(self, graph: Graph, ctx: Context) -> int:
        if self.children:
            return sum(ctx.apply(child) for child in self.children)
        return FUNCTIONS[self.what](graph)


def step(function: Callable[[Graph], int]) -> Call:
    FUNCTIONS[function.__name__] = function
    return Call(function.__name__)


def drop_pair(graph: Graph) -> int:
    """Right and honest: Neg(Neg(x)) -> x."""
    for node in graph.nodes:
        if node.op == "Neg" and node.inputs[0].inputs and node.inputs[0].inputs[0].op == "Neg":
            graph.bypass(node, node.inputs[0].inputs[0].inputs[0])
            return 1
    return 0


def drop_one(graph: Graph) -> int:
    """Wrong: Neg(x) -> x."""
    node = next(n for n in graph.nodes if n.op == "Neg")
    graph.bypass(node, node.inputs[0])
    return 1


def nothing(graph: Graph) -> int:
    return 0


# ------------------------------------------------------------------ the loop


def test_steps_record_what_happened(ctx: Context) -> None:
    graph = make(TEXT)
    group = Call(children=(step(drop_pair), step(nothing)))
    first, second = PassManager().run([group, step(drop_pair)], graph, ctx)
    assert (first.name, first.number, first.depth, first.count, first.nodes) == (str(group), 1, 0, 1, 2)
    assert [(s.number, s.depth, s.count) for s in first.children] == [(2, 1, 1), (3, 1, 0)]
    assert (second.number, second.count) == (4, 0)
    assert all(s.seconds > 0 for s in [first, second, *first.children])


def test_dead_nodes_are_swept_after_a_change(ctx: Context) -> None:
    graph = make(TEXT)
    PassManager().run([step(drop_pair)], graph, ctx)
    assert [n.op for n in graph.nodes] == ["Add", "Relu"]


def test_instruments_see_every_level(ctx: Context) -> None:
    seen: list[str] = []
    PassManager([Progress(seen.append)]).run([Call(children=(step(nothing), step(drop_pair)))], make(TEXT), ctx)
    assert seen == ["call(call{what=nothing},call{what=drop_pair})", "call{what=nothing}", "call{what=drop_pair}"]


# ------------------------------------------------------------------ Verify


def verify(function: Callable[[Graph], int], ctx: Context, text: str = TEXT) -> list[Step]:
    return PassManager([Verify()]).run([step(function)], make(text), ctx)


def test_verify_lets_honest_passes_through(ctx: Context) -> None:
    assert verify(drop_pair, ctx)[0].count == 1
    assert verify(nothing, ctx)[0].count == 0


def test_verify_allows_looking(ctx: Context) -> None:
    def look(graph: Graph) -> int:
        shapes.infer(graph)
        return 0

    assert verify(look, ctx)[0].count == 0


def test_verify_catches_a_pass_that_hides_a_change(ctx: Context) -> None:
    def hides(graph: Graph) -> int:
        drop_pair(graph)
        return 0

    with pytest.raises(BugError, match=r"'call{what=hides}' reported 0 rewrites"):
        verify(hides, ctx)


def test_verify_catches_a_hidden_change_of_an_attribute_or_a_weight(ctx: Context) -> None:
    def attribute(graph: Graph) -> int:
        graph.nodes[0].attrs["alpha"] = 2.0
        return 0

    def weight(graph: Graph) -> int:
        graph.set_input(graph.nodes[0], 1, graph.constant(np.array([1, 3], np.float32), "w"))
        return 0

    for function in (attribute, weight):
        with pytest.raises(BugError, match="reported 0 rewrites"):
            verify(function, ctx)


def test_verify_catches_a_pass_that_boasts(ctx: Context) -> None:
    def boasts(graph: Graph) -> int:
        return 3

    with pytest.raises(BugError, match="reported 3 rewrites"):
        verify(boasts, ctx)


def test_verify_catches_a_changed_interface(ctx: Context) -> None:
    def renames(graph: Graph) -> int:
        graph.outputs[0].name = "z"
        return 1

    def narrows(graph: Graph) -> int:
        assert graph.header is not None
        graph.header.inputs[0].type.tensor_type.shape.dim[0].dim_value = 1
        graph.nodes[0].attrs.clear()
        return 1

    for function in (renames, narrows):
        with pytest.raises(BugError, match="changed the model's inputs or outputs"):
            verify(function, ctx)


def test_verify_catches_an_invalid_model(ctx: Context) -> None:
    def breaks(graph: Graph) -> int:
        graph.set_input(graph.nodes[-1], 1, graph.inputs[0])  # Relu takes one input
        return 1

    with pytest.raises(BugError, match=r"after 'call{what=breaks}' the model is invalid"):
        verify(breaks, ctx)


def test_the_fingerprint_is_of_the_graph_alone() -> None:
    graph = make(TEXT)
    assert fingerprint(graph) == fingerprint(graph.copy()) == fingerprint(graph)
    twin = graph.copy()
    drop_pair(twin)
    assert fingerprint(twin) != fingerprint(graph)


# ------------------------------------------------------------------ SameOutputs


def test_same_outputs_lets_right_passes_through(ctx: Context) -> None:
    PassManager([SameOutputs(FEEDS)]).run([step(drop_pair)], make(TEXT), ctx)


def test_same_outputs_catches_a_wrong_pass(ctx: Context) -> None:
    with pytest.raises(BugError, match=r"'call{what=drop_one}' changed output 'y' beyond rounding: largest error 6"):
        PassManager([SameOutputs(FEEDS)]).run([step(drop_pair), step(nothing), step(drop_one)], twice(), ctx)


def twice() -> Graph:
    return make(TEXT.replace("y = Relu(c)", "d = Neg(c) y = Relu(d)"))


def test_same_outputs_blames_the_inner_pass(ctx: Context) -> None:
    group = Call(children=(step(nothing), step(drop_one)))
    with pytest.raises(BugError, match=r"^pass 'call{what=drop_one}'"):
        PassManager([SameOutputs(FEEDS)]).run([group], make(TEXT), ctx)


def test_same_outputs_blames_the_pass_for_a_model_that_does_not_run(ctx: Context) -> None:
    def breaks(graph: Graph) -> int:
        graph.set_input(graph.nodes[0], 1, graph.constant(np.ones(5, np.float32)))
        return 1

    with pytest.raises(BugError, match=r"after pass 'call{what=breaks}' the model does not run"):
        PassManager([SameOutputs(FEEDS)]).run([step(breaks)], make(TEXT), ctx)


# ------------------------------------------------------------------ Dump, Limit, Reproduce


def test_dump_writes_the_model_after_each_change(tmp_path: Path, ctx: Context) -> None:
    graph = make(TEXT)
    PassManager([Dump(tmp_path / "steps")]).run([step(nothing), step(drop_pair)], graph, ctx)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["02-call.onnx", "02-call.txt"]
    assert onnx.load(tmp_path / "steps" / "02-call.onnx") == to_model(graph)
    assert (tmp_path / "steps" / "02-call.txt").read_text() == show(graph)


@pytest.mark.parametrize(("last", "left"), [(0, 4), (1, 4), (2, 2), (9, 2)])
def test_limit_stops_after_so_many_steps(last: int, left: int, ctx: Context) -> None:
    graph = make(TEXT)
    steps = PassManager([Limit(last), Verify()]).run([step(nothing), step(drop_pair), step(drop_pair)], graph, ctx)
    assert len(graph.nodes) == left
    assert [s.skipped for s in steps] == [n >= last for n in range(3)]


def test_limit_reaches_inside_composite_passes(ctx: Context) -> None:
    graph = make(TEXT)
    group = Call(children=(step(drop_pair), step(drop_one)))
    (outer,) = PassManager([Limit(2)]).run([group], graph, ctx)
    assert [s.skipped for s in outer.children] == [False, True]


def fails(graph: Graph) -> int:
    graph.bypass(graph.nodes[1], graph.nodes[1].inputs[0])
    raise RuntimeError("no idea")


def test_reproduce_keeps_the_model_before_the_failure(tmp_path: Path, ctx: Context) -> None:
    before = make(TEXT)
    drop_pair(before)
    before.sweep()
    group = Call(children=(step(drop_pair), step(fails)))
    with pytest.raises(BugError, match=r"'call{what=fails}' failed: RuntimeError: no idea"):
        PassManager([Reproduce(tmp_path, lambda: {"onnx": "1"})]).run([group], make(TEXT), ctx)
    assert show(load(tmp_path / "before.onnx")) == show(before)
    note = json.loads((tmp_path / "reproduce.json").read_text())
    assert note["pass"] == "call{what=fails}"
    assert "no idea" in note["error"]
    assert "--passes 'call{what=fails}'" in note["command"]
    assert note["versions"] == {"onnx": "1"}


def test_reproduce_serves_what_other_instruments_find(tmp_path: Path, ctx: Context) -> None:
    manager = PassManager([Reproduce(tmp_path, dict), SameOutputs(FEEDS)])
    with pytest.raises(BugError, match="beyond rounding"):
        manager.run([step(drop_one)], make(TEXT), ctx)
    assert show(load(tmp_path / "before.onnx")) == show(make(TEXT))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError])
def test_reproduce_leaves_the_users_errors_alone(error: type[BaseException], tmp_path: Path, ctx: Context) -> None:
    def stops(graph: Graph) -> int:
        raise error("as it is")

    with pytest.raises(error, match="as it is"):
        PassManager([Reproduce(tmp_path, dict)]).run([step(stops)], make(TEXT), ctx)
    assert list(tmp_path.iterdir()) == []
