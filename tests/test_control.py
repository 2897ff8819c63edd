"""Control flow and sequences against the oracle, at random: what can be resolved gives what the runtime gave."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.graph import Graph
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import target
from passes.cleanup import Cleanup
from tests.conftest import make
from tests.passes import ops

SIMPLIFY = build("fixpoint(cleanup,fold,shapes,cse)")


def outputs(graph: Graph, ctx: Context, feed: Feeds) -> Feeds | None:
    """None where the model fails."""
    try:
        return ctx.evaluate(graph, feed)
    except Exception:  # onnxruntime raises several bare classes of its own
        return None


def same(text: str, ctx: Context, feed: Feeds, opset: int = 17) -> tuple[bool, list[str]]:
    """Whether the original runs, and the simplified operators; where it does, outputs must be equal."""
    graph = make(text, opset)
    expected = outputs(graph, ctx, feed)
    PassManager().run(SIMPLIFY, graph, ctx)
    if expected is not None:
        found = ctx.evaluate(graph, feed)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=text)
            assert found[name].dtype == value.dtype
    return expected is not None, ops(graph)


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_of_sequences(seed: int, ctx: Context) -> None:
    rng = np.random.default_rng(seed)
    ran = resolved = 0
    for _ in range(15):
        size = int(rng.integers(0, 4))
        lines = [f"s0 = SequenceConstruct ({', '.join('abc'[:size])})" if size else "s0 = SequenceEmpty ()"]
        for step in range(int(rng.integers(0, 4))):
            place = f", k{rng.integers(-3, 4)}".replace("-", "m") if rng.integers(0, 2) else ""
            insert = rng.integers(0, 3) > 0 or size == 0
            call = f"SequenceInsert (s{step}, {rng.choice(list('abc'))}{place})"
            lines.append(f"s{step + 1} = " + (call if insert else f"SequenceErase (s{step}{place})"))
        last = f"s{len(lines) - 1}"
        at = f"k{rng.integers(-3, 4)}".replace("-", "m")
        axis, new = int(rng.integers(-2, 2)), int(rng.integers(0, 2))
        lines.append(f"x1 = SequenceAt ({last}, {at})  x = Neg (x1)")
        lines.append(f"n1 = SequenceLength ({last})  n = Neg (n1)")
        lines.append(f"j1 = ConcatFromSequence <axis = {axis}, new_axis = {new}> ({last})  j = Neg (j1)")
        constants = ", ".join(f"int64 k{v} = {{{v}}}".replace("k-", "km") for v in range(-3, 4))
        joined = "float[A,B,C] j" if new else "float[A,B] j"
        text = f"g (float[2,2] a, float[2,2] b, float[2,2] c) => (float[2,2] x, int64 n, {joined}) <{constants}> {{"
        feed = {name: rng.normal(0, 1, (2, 2)).astype(np.float32) for name in "abc"}
        ok, left = same(f"{text} {'  '.join(lines)} }}", ctx, feed, 11 if rng.integers(0, 2) else 17)
        ran += ok
        resolved += ok and not any("Sequence" in op for op in left)
    assert ran == resolved > 0


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts(seed: int, ctx: Context) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        dim, axis = int(rng.integers(1, 7)), int(rng.integers(-2, 2))
        kind = rng.integers(0, 3)
        piece = int(rng.integers(1, 5))
        sizes = [piece] * (dim // piece) + ([dim % piece] if dim % piece else [])
        several = ", ".join(map(str, sizes))
        split = ["", f"int64 c = {{{piece}}}", f"int64[{len(sizes)}] c = {{{several}}}"][kind]
        count = dim if kind == 0 else len(sizes)
        shape = f"{dim},3" if axis in (-2, 0) else f"3,{dim}"
        keep = 1 if kind else int(rng.integers(0, 2))
        at = int(rng.integers(-count, count))
        rank = "A" if kind == 0 and not keep else "A,B"
        constants = ", ".join(filter(None, [split, f"int64 i = {{{at}}}", "int64 z = {0}"]))
        more = "q = SequenceAt (s, z)  y = Neg (q)" if rng.integers(0, 2) else "q = SequenceLength (s)  y = Neg (q)"
        kind_y = f"float[{rank.replace('A', 'D').replace('B', 'E')}] y" if "At" in more else "int64 y"
        text = f"""g (float[{shape}] x) => (float[{rank}] w, {kind_y}) <{constants}> {{
            s = SplitToSequence <axis = {axis}, keepdims = {keep}> (x{", c" if split else ""})
            p = SequenceAt (s, i)  w = Neg (p)  {more} }}"""
        feed = {"x": rng.normal(0, 1, [int(n) for n in shape.split(",")]).astype(np.float32)}
        ok, left = same(text, ctx, feed, 11 if rng.integers(0, 2) else 18)
        assert ok and not any("Sequence" in op for op in left), text


def test_keepdims_with_sizes_is_left_to_the_runtime() -> None:
    """The operator says that it does not count then, ONNX Runtime drops the axis."""
    graph = make("""g (float[2,3] x) => (float[A,B] y) <int64 one = {1}, int64 z = {0}> {
        s = SplitToSequence <keepdims = 0> (x, one)  y = SequenceAt (s, z) }""")
    assert Cleanup().run(graph, Context(target("onnx"))) == 0
    assert ops(graph) == ["SplitToSequence", "SequenceAt"]


@pytest.mark.parametrize("seed", range(4))
def test_random_loops(seed: int, ctx: Context) -> None:
    """Trip counts, conditions and what the body makes of them; the number of turns is an output."""
    rng = np.random.default_rng(seed)
    unrolled = 0
    for _ in range(12):
        trips = "m" if rng.integers(0, 4) else ""
        start = rng.choice(["", "yes", "no", "go"])
        goes = rng.choice(["Identity (g)", "Or (yes, g)", "And (no, yes)", "Less (i, few)", "Identity (go)"])
        if not trips and "no" not in (start, goes[5:7]):
            trips = "m"
        text = f"""g (float[2] x, bool go) => (float[2] y, float[2] last, int64[T] turns, float[T,2] rows)
            <int64 m = {{{rng.integers(-1, 6)}}}, int64 few = {{{rng.integers(0, 4)}}},
             bool yes = {{1}}, bool no = {{0}}> {{
            y, last, turns, rows = Loop ({trips}, {start}, x, x) <body = b (int64 i, bool g, float[2] v, float[2] u) =>
              (bool h, float[2] w, float[2] t, int64 n, float[2] r) {{
                h = {goes}  f = Cast <to = 1> (i)  e = Add (v, x)  w = Mul (e, f)  t = Identity (v)
                n = Identity (i)  r = If (g) < then_branch = p () => (float[2] a) {{ a = Neg (e) }},
                                               else_branch = q () => (float[2] d) {{ d = Identity (u) }} > }}> }}"""
        feed = {"x": rng.normal(0, 1, 2).astype(np.float32), "go": np.array(rng.integers(0, 2) > 0)}
        ok, left = same(text, ctx, feed)
        assert ok, text
        unrolled += "Loop" not in left
    assert unrolled > 0
