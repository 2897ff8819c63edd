"""Shape arithmetic: the algebra, the interpreter, and what the pass makes of graphs (and leaves alone)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from models import zoo
from optimizer import shapes
from optimizer.context import Context
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph, peek
from optimizer.io import load
from optimizer.manager import PassManager
from optimizer.pipeline import build
from passes.shapes import Shapes
from passes.shapes.algebra import TERMS, Expr, choose, divide, equal, larger, less, number, product, smaller, symbol
from passes.shapes.interpret import Interpreter
from tests.conftest import make
from tests.passes import model_of, ops, run

N, M = symbol("N", natural=True), symbol("M", natural=True)
ANY = symbol("any", natural=False)
DATA = symbol("data", natural=False, data=True)
TWO, ONE, ZERO = number(2), number(1), number(0)


# ------------------------------------------------------------------ algebra


def test_sums_and_products_are_equal_in_any_order() -> None:
    assert (N + M) * TWO == M * TWO + N + N
    assert (N + ONE) * (N - ONE) == N * N - ONE
    assert N - N == ZERO and (N - N).value == 0
    assert product([N, TWO, M]) == M * N + N * M


def test_division_is_exact_or_an_atom() -> None:
    assert divide(N * M * number(6), M * TWO) == N * number(3)
    assert divide(N + M, N + M) == ONE
    assert divide(N, TWO) == divide(N, TWO) != divide(M, TWO)
    assert divide(N + ONE, TWO).value is None
    assert divide(number(-7), TWO) == number(-3)  # towards zero, as the runtime does
    assert divide(ONE, ZERO).value is None


def test_signs() -> None:
    assert N.natural and (N * M + ONE).positive and not N.positive
    assert not (N - M).natural and not (-N).natural and not ANY.natural
    assert divide(N, TWO).natural and not divide(N - M, TWO).natural


def test_comparisons_decide_only_what_is_certain() -> None:
    assert equal(N, number(-1)) == ZERO and equal(N, N) == ONE
    assert equal(N, M).value is None and equal(N, ZERO).value is None
    assert less(N, N + ONE) == ONE and less(N + M, N) == ZERO and less(N, M).value is None
    assert larger(N + M, N) == N + M and smaller(N + M, N) == N
    assert larger(N, M) == larger(M, N) and larger(N, M).value is None


def test_data_may_wrap_around() -> None:
    assert DATA * TWO - DATA == DATA and divide(DATA, DATA) == ONE and divide(DATA, ONE) == DATA
    assert less(DATA, DATA + ONE).value is None and less(DATA, DATA) == ZERO
    assert larger(DATA, DATA + ONE) != DATA + ONE and smaller(DATA, DATA + ONE) != DATA
    assert divide(DATA * TWO, TWO) != DATA
    assert less(divide(DATA, TWO), divide(DATA, TWO) + ONE).value is None


@pytest.mark.parametrize(
    "body",
    [
        "b = Less(a, c) y = Cast<to=7>(b)",
        "b = GreaterOrEqual(c, a) y = Cast<to=7>(b)",
        "b = Max(a, c) y = Neg(b)",
        "b = Min(a, c) y = Neg(b)",
        "b = Mul(a, two) d = Div(b, two) y = Neg(d)",
        "b = Cast<to=6>(a) d = Cast<to=7>(b) y = Neg(d)",
    ],
)
def test_elements_of_inputs_may_be_of_any_size(body: str) -> None:
    constants = "<int64 one = {1}, int64 two = {2}>"
    text = f"g (int64[3] x) => (int64[3] y) {constants} {{ a = Add(x, one) c = Add(a, one) {body} }}"
    last = np.iinfo(np.int64).max
    run(
        "shapes", text, feeds=[{"x": np.array(v)} for v in ([0, 5, -7], [last - 1, last, -last], [2**62, 2**40, 2**31])]
    )
    assert choose(ONE, N, M) == N and choose(ANY, N, N) == N and choose(ANY, N, M).value is None


def test_large_expressions_become_atoms() -> None:
    many: Expr = product([symbol(i, natural=True) + ONE for i in range(8)])
    assert len(many.terms) <= TERMS
    assert many.natural


# ------------------------------------------------------------------ dims and elements


def facts(text: str, opset: int = 17) -> tuple[Graph, Interpreter]:
    graph = make(text, opset)
    shapes.infer(graph)
    return graph, Interpreter(graph)


def test_the_length_of_a_target_is_the_rank_of_what_it_shapes_and_of_what_follows() -> None:
    graph, _ = facts("""g (float[N,M] x, int64[3] s, int64[P] p) => (float[A,B,C] y, float[D] z)
        <int64[1] one = {1}, int64[3] all = {0, 1, 2}> {
        r = Reshape(x, s)  t = Transpose<perm = [2, 0, 1]>(r)  h = Shape(t)  i = Gather(h, all)
        u = Reshape(t, i)  y = Relu(u)  v = Reshape(x, p)  z = Relu(v) }""")
    tensors = graph.tensors()
    assert [tensors[name].shape for name in "rtuyvz"] == [[None] * 3] * 4 + [None] * 2


def dims(text: str, name: str = "y") -> list[Any]:
    """Dims as numbers where they are, else as expressions."""
    graph, found = facts(text)
    made = found.dims(graph.tensors()[name])
    assert made is not None
    return [d if d.value is None else d.value for d in made]


def test_convolution_keeps_a_symbolic_size_where_it_does() -> None:
    head = "g (float[N,1,H,W] x) => (float[A,B,C,D] y) <float[1,1,3,3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1}>"
    h, w = symbol("H", natural=True), symbol("W", natural=True)
    assert dims(head + "{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }") == [N, 1, h, w]
    assert dims(head + "{ y = Conv<pads = [2, 1, 2, 1], dilations = [2, 1]>(x, w) }") == [N, 1, h, w]
    halved = dims(head + "{ a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)  y = Relu(a) }")
    assert halved[2] == dims(head + "{ y = MaxPool<kernel_shape=[3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x) }")[2]
    assert halved[2] not in (h, dims(head + "{ y = Conv<strides = [2, 2]>(x, w) }")[2])


def test_resize_by_whole_scales() -> None:
    head = "g (float[N,1,H,W] x) => (float[A,B,C,D] y)"
    h, w = symbol("H", natural=True), symbol("W", natural=True)
    assert dims(head + "<float[4] s = {1, 1, 2, 2}> { y = Resize(x, , s) }") == [N, 1, h * TWO, w * TWO]
    assert dims(head + "<float[4] s = {1, 1, 1.5, 2}> { y = Resize(x, , s) }")[2] != h


def test_dims_through_movement() -> None:
    head = "g (float[N,M] x, float[3] z) => (float[A,B] y)"
    text = (
        head
        + """<int64[1] one = {1}, int64[2] t = {-1, 6}> {
        a = Transpose(x)  b = Unsqueeze(a, one)  c = Concat<axis=1>(b, b)  d = Unsqueeze(z, one)
        e = Mul(c, c)  f = MatMul(c, x)  h = Squeeze(b, one)  y = Concat<axis=0>(h, a) }"""
    )
    assert dims(text, "c") == [M, 2, N]
    assert dims(text, "d") == [3, 1]
    assert dims(text, "f") == [M, 2, M]
    assert dims(text, "y") == [M + M, N]


def test_dims_of_what_is_made_indexed_and_cut_up() -> None:
    head = "g (float[N,M] x, int64[K,2] at) => (float[A] y)"
    text = (
        head
        + """<int64 zero = {0}, int64 one = {1}, int64[2] twice = {2, 1}, int64[4] pads = {1, 0, 2, 0},
                      int64[1] three = {3}, int64[1] first = {0}, int64[2] sizes = {1, 2}, float[3] v = {1, 2, 3}> {
        s = Shape(x)  m = Gather<axis=0>(s, one)
        a = ConstantOfShape(s)  b = Range(zero, m, one)  c = Tile(x, twice)  d = Flatten<axis=0>(x)
        e = GatherND(x, at)  f = Pad(x, pads)  t, i = TopK<axis=0>(x, three)  g = GatherElements(x, k)
        p, q = Split<axis=0>(v, sizes)  k = Cast<to=7>(a)  y = Relu(e) }"""
    )
    n, m, k = N, M, symbol("K", natural=True)
    expected = {"a": [n, m], "b": [m], "c": [n * TWO, m], "d": [1, n * m], "e": [k], "f": [n + number(3), m]}
    expected |= {"t": [3, m], "i": [3, m], "g": [n, m], "q": [2]}
    assert {name: dims(text, name) for name in expected} == expected


def test_what_may_be_empty_the_other_way_round_is_not_said() -> None:
    head = "g (float[N,M] x) => (int64[A] y) <int64 zero = {0}, int64 one = {1}, int64 two = {2}>"
    body = "{ s = Shape(x) n = Gather<axis=0>(s, zero) m = Gather<axis=0>(s, one) y = Range(START, m, STEP) }"
    for start, step in (("n", "one"), ("zero", "two"), ("one", "one")):
        (found,) = dims(head + body.replace("START", start).replace("STEP", step))
        assert found not in (M, M - N, M - ONE)


SLICED = """g (float[N,M,4] x, float[P,4] table) => (float[N,M,4] y)
    <int64 one = {1}, int64[1] zero = {0}, int64[1] axis = {0}> {
    s = Shape(x)  m = Gather<axis=0>(s, one)  mm = Unsqueeze(m, zero)
    p = Slice(t, zero, mm, axis)  y = Add(x, p) }"""


def test_positions_are_cut_to_the_length_they_are_added_to() -> None:
    """The first M of 512 positions, added to something of length M: that long, or the model fails."""
    known = SLICED.replace("float[P,4] table", "float[512,4] t")
    assert dims(known) == [N, M, 4]
    assert smaller(M, number(512)) == dims(known, "p")[0]
    unknown = SLICED.replace("float[P,4] table", "float[P,4] t")  # of no positions at all it would be none
    assert dims(unknown)[1] != M


def test_a_target_whose_zero_copies_a_zero() -> None:
    """[N * M] to [N, M]: an N of 0 would copy N * M, which is 0 as well; M would have nothing to copy and fail."""
    text = """g (float[N,M] x) => (float[A,B] y) <int64[1] all = {-1}> {
        s = Shape(x)  a = Reshape(x, all)  y = Reshape(a, s) }"""
    assert dims(text) == [N, M]


def elements(text: str, name: str) -> list[Any]:
    graph, found = facts(text)
    made = found.values(graph.tensors()[name])
    assert made is not None
    return [e if e.value is None else e.value for e in made.reshape(-1)]


def test_arithmetic_on_shapes() -> None:
    text = """g (float[N,M,6] x) => (int64[K] y) <int64 i = {1}, int64[1] two = {2}, int64[1] zero = {0},
                                                  int64[1] minus = {-1}, int64[1] three = {3}> {
        s = Shape(x)
        m = Gather<axis=0>(s, i)
        v = Unsqueeze(m, zero)
        d = Mul(v, two)
        last = Slice(s, two, three)
        third = Div(last, two)
        all = ReduceProd<keepdims=0>(s)
        n = Slice(s, zero, three, zero, two)
        q = Equal(s, minus)
        w = Where(q, two, s)
        c = Cast<to=6>(d)
        f = ConstantOfShape<value = int64[1] {7}>(two)
        p, r = Split<axis=0>(s, parts)
        y = Concat<axis=0>(d, third, v) }""".replace(
        "int64[1] three = {3}", "int64[1] three = {3}, int64[2] parts = {1, 2}"
    )
    assert elements(text, "s") == [N, M, 6]
    assert elements(text, "y") == [M * TWO, 3, M]
    assert elements(text, "all") == [N * M * number(6)]
    assert elements(text, "n") == [N, 6]
    assert elements(text, "q") == [0, 0, 0]
    assert elements(text, "w") == [N, M, 6]
    assert elements(text, "c") == [M * TWO]
    assert elements(text, "f") == [7, 7]
    assert elements(text, "r") == [M, 6]


def test_small_integers_that_wrap_around_are_not_followed() -> None:
    text = """g (float[N] x) => (uint8[1] y) <uint8[1] a = {200}, uint8[1] b = {100}, uint8[1] two = {2}> {
        s = Add(a, b)  y = Div(s, two) }"""
    graph, found = facts(text)
    assert found.values(graph.tensors()["y"]) is None


# ------------------------------------------------------------------ the pass


def target(graph: Graph, op: str = "Reshape") -> list[int]:
    """The constant second input of the first such node."""
    node = next(n for n in graph.walk() if n.op == op)
    made: list[int] = peek(node.inputs[1]).tolist()
    return made


def test_attention_heads() -> None:
    """The chain that every exported transformer is full of."""
    graph = make("""g (float[N,M,6] x) => (float[N,M,6] y)
        <int64 i0 = {0}, int64 i1 = {1}, int64[1] zero = {0}, int64[1] heads = {2}, int64[1] size = {3},
         int64[1] all = {6}> {
        s = Shape(x)  n = Gather<axis=0>(s, i0)  nn = Unsqueeze(n, zero)
        t = Shape(x)  m = Gather<axis=0>(t, i1)  mm = Unsqueeze(m, zero)
        r = Concat<axis=0>(nn, mm, heads, size)
        a = Reshape(x, r)  b = Transpose<perm=[0, 2, 1, 3]>(a)  c = Exp(b)  d = Transpose<perm=[0, 2, 1, 3]>(c)
        u = Shape(d)  o = Gather<axis=0>(u, i0)  oo = Unsqueeze(o, zero)
        p = Gather<axis=0>(u, i1)  pp = Unsqueeze(p, zero)
        q = Concat<axis=0>(oo, pp, all)  y = Reshape(d, q) }""")
    assert run("shapes", graph) > 0
    assert ops(graph) == ["Reshape", "Transpose", "Exp", "Transpose", "Reshape"]
    assert target(graph) == [0, 0, 2, 3]


FLATTEN = """g (float[N,M,3] x) => (float[A,B] y) <int64 i0 = {0}, int64 i1 = {1}, int64[1] zero = {0},
                                                   int64[1] three = {3}, int64[1] minus = {-1}> {
    s = Shape(x)  n = Gather<axis=0>(s, i0)  m = Gather<axis=0>(s, i1)  p = Mul(n, m)  pp = Unsqueeze(p, zero)
    nn = Unsqueeze(n, zero)  mm = Unsqueeze(m, zero)  ww = Mul(mm, three)
    r = Concat<axis=0>(TARGET)  y = Reshape(x, r) }"""


@pytest.mark.parametrize(
    ("wanted", "made"), [("pp, three", [-1, 3]), ("three, pp", [3, -1]), ("minus, mm", [-1, 0]), ("nn, ww", None)]
)
def test_one_unknown_dim_is_what_is_left(wanted: str, made: list[int] | None) -> None:
    """-1 is written beside numbers; beside a dim that may be 0 it would fail on empty inputs."""
    graph = make(FLATTEN.replace("TARGET", wanted))
    run("shapes", graph)
    node = next(n for n in graph.walk() if n.op == "Reshape")
    assert (peek(node.inputs[1]).tolist() if graph.is_constant(node.inputs[1]) else None) == made


def test_empty_inputs_still_work() -> None:
    """With N = 0 the target [N * M, 3] is [0, 3]."""
    graph = make(FLATTEN.replace("TARGET", "pp, three"))
    feeds = [{"x": np.ones(shape, np.float32)} for shape in ([0, 4, 3], [2, 2, 3])]
    assert run("shapes", graph, feeds=feeds) > 0
    assert target(graph) == [-1, 3]


def test_two_dims_that_are_not_copied_stay() -> None:
    graph = make(
        """g (float[N,M] x, float[K,L] z) => (float[A,B] y) {
        s = Shape(z)  y = Reshape(x, s) }""".replace("float[K,L]", "float[M,N]")
    )
    assert run("shapes", graph) == 0


def test_reshape_to_its_own_symbolic_shape_is_nothing() -> None:
    graph = make("g (float[N,M] x) => (float[N,M] y) { a = Exp(x)  s = Shape(x)  b = Reshape(a, s)  y = Neg(b) }")
    assert run("shapes", graph) == 1
    assert ops(graph) == ["Exp", "Neg"]


def test_expand_to_its_own_symbolic_shape_is_nothing() -> None:
    graph = make("g (float[N,M] x) => (float[N,M] y) { a = Exp(x)  s = Shape(x)  b = Expand(a, s)  y = Neg(b) }")
    assert run("shapes", graph) == 1
    assert ops(graph) == ["Exp", "Neg"]


def test_expand_that_may_broadcast_stays() -> None:
    text = "g (float[N,M] x, float[K] z) => (float[N,M] y) { s = Shape(x)  b = Expand(z, s)  y = Neg(b) }"
    assert run("shapes", text.replace("float[K] z", "float[1] z")) == 0


def test_slice_up_to_a_symbolic_end_is_nothing() -> None:
    graph = make("""g (float[N,M] x) => (float[N,M] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}> {
        s = Shape(x)  e = Slice(s, one, two)  b = Slice(x, zero, e, one)  y = Neg(b) }""")
    assert run("shapes", graph) > 0
    assert ops(graph) == ["Neg"]


def test_slice_up_to_another_dim_stays() -> None:
    graph = make("""g (float[N,M] x) => (float[N,K] y) <int64[1] zero = {0}, int64[1] one = {1}> {
        e = Shape<end=1>(x)  b = Slice(x, zero, e, one)  y = Neg(b) }""")
    feeds = [{"x": np.ones((2, 3), np.float32)}]
    assert run("shapes", graph, feeds=feeds) == 0


def test_exporters_expand_with_where() -> None:
    """torch writes Where(shape == -1, ones, shape) before Expand; dims are never -1."""
    graph = make("""g (float[N,M] x, float[1,M] z) => (float[N,M] y)
        <int64[2] ones = {1, 1}, int64[2] minus = {-1, -1}> {
        s = Shape(x)  q = Equal(s, minus)  w = Where(q, ones, s)  e = Expand(z, w)  y = Add(x, e) }""")
    assert run("shapes", graph) > 0
    assert ops(graph) == ["Shape", "Expand", "Add"]


def test_equal_numbers_are_computed_once() -> None:
    graph = make("""g (float[N,M] x) => (float[N,M] y, int64[2] t) <int64 i0 = {0}, int64 i1 = {1}, int64[1] z = {0}> {
        s = Shape(x)  a = Exp(x)  u = Shape(a)
        n = Gather<axis=0>(u, i0)  nn = Unsqueeze(n, z)  m = Gather<axis=0>(u, i1)  mm = Unsqueeze(m, z)
        c = Concat<axis=0>(nn, mm)  t = Add(c, s)  y = Neg(a) }""")
    assert run("shapes", graph) > 0
    assert sorted(ops(graph)) == ["Add", "Exp", "Neg", "Shape"]


@pytest.mark.parametrize(("opset", "left"), [(17, ["Shape", "Add"]), (13, ["Shape", "Slice", "Add"])])
def test_a_run_of_dims_is_one_node(opset: int, left: list[str]) -> None:
    text = """g (float[N,M,3] x, int64[1] d) => (int64[1] y) <int64 i = {1}, int64[1] z = {0}> {
        s = Shape(x)  n = Gather<axis=0>(s, i)  nn = Unsqueeze(n, z)  y = Add(nn, d) }"""
    graph = make(text, opset)
    assert run("shapes", graph) > 0
    assert ops(graph) == left


@pytest.mark.parametrize("start", [-2, -9])
def test_a_run_of_dims_counted_from_the_end_stays(start: int) -> None:
    """The last one would begin at -1 and end at 0."""
    graph = make(f"""g (float[N,M,3] x) => (int64[1] y) <int64[1] i = {{0}}, int64[1] two = {{2}}> {{
        s = Shape<start = {start}>(x)  m = Gather(s, i)  y = Mul(m, two) }}""")
    run("shapes", graph)
    assert ops(graph) == ["Shape", "Gather", "Mul"]


@pytest.mark.parametrize(
    ("made", "text"), [("float[R,4] y", "y = Expand(x, d)"), ("int64[2] y", "z = Tile(x, d)  y = Shape(z)")]
)
def test_a_default_is_no_value(made: str, text: str) -> None:
    other = {"x": np.zeros((1, 4), np.float32), "d": np.array([3, 4])}
    graph = make(f"g (float[1,4] x, int64[2] d) => ({made}) <int64[2] d = {{1, 1}}> {{ {text} }}")
    before = Evaluate(1)(graph, other)["y"]
    run("fixpoint(cleanup,fold,shapes)", graph)
    np.testing.assert_array_equal(Evaluate(1)(graph, other)["y"], before)


def test_a_dim_is_taken_of_the_first_shape_that_has_it() -> None:
    graph = make("""g (int64[N,S] x, float[9,4] w) => (int64 n, int64 s, float[N,S,4] y)
        <int64 zero = {0}, int64 one = {1}> {
        a = Shape(x)  s = Gather(a, one)  y = Gather(w, x)  b = Shape(y)  c = Gather(b, zero)  n = Neg(c) }""")
    assert run("fixpoint(shapes,cleanup)", graph) > 0
    assert ops(graph).count("Shape") == 1


def test_in_subgraphs_with_captured_tensors() -> None:
    graph = make("""g (bool c, float[N,6] x) => (float[A,B] y) <int64 i = {0}, int64[1] z = {0}, int64[2] h = {2, 3}> {
        s = Shape(x)
        y = If(c) <
            then_branch = t () => (float[C,D] p) {
                n = Gather<axis=0>(s, i)  m = Unsqueeze(n, z)  r = Concat<axis=0>(m, h)  a = Reshape(x, r)
                p = ReduceSum<keepdims=0>(a, z) },
            else_branch = f () => (float[E,F] q) { q = Neg(x) }>
    }""")
    feeds = [{"c": np.array(flag), "x": np.ones((4, 6), np.float32)} for flag in (True, False)]
    assert run("shapes", graph, feeds=feeds) > 0
    assert sorted(ops(graph)) == ["If", "Neg", "ReduceSum", "Reshape"]
    assert target(graph) == [0, 2, 3]


def test_a_loop_may_change_what_it_carries() -> None:
    """The body declares float[2] for a value that doubles each turn: its Shape is not 2."""
    graph = make("""g (float[2] x, int64 n) => (float[M] y, int64[K,1] s) <bool c = {1}> {
        y, s = Loop(n, c, x) <
            body = b (int64 i, bool go, float[2] v) => (bool on, float[L] w, int64[1] d) {
                on = Identity(go)  w = Concat<axis=0>(v, v)  d = Shape(v) }>
    }""")
    feeds = [{"x": np.ones(2, np.float32), "n": np.array(3)}]
    assert run("fixpoint(fold,shapes)", graph, feeds=feeds) == 0


def test_unknown_dims_called_question_mark_are_not_one_symbol() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["?", "?"])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["?", "?"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])
    nodes = [helper.make_node("Shape", ["z"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    feeds = [{"x": np.ones((2, 6), np.float32), "z": np.ones((4, 3), np.float32)}]
    assert run("shapes", model_of(helper.make_graph(nodes, "g", [x, z], [y])), feeds=feeds) == 0


def test_integers_fit_their_type() -> None:
    """2**16 * 2**16 does not fit int32: the runtime wraps around, and so it stays."""
    graph = make("""g (int32[1] x) => (int32[1] y) <int32[1] a = {65536}> { b = Mul(a, a)  y = Add(x, b) }""")
    assert run("shapes", graph) == 0


def test_random_shape_programs_are_computed_alike() -> None:
    """Seeded programs over the shape of x, checked at several sizes: the pass must never change a number."""
    rng = np.random.default_rng(0)
    binary = ["Add", "Sub", "Mul", "Div", "Max", "Min"]
    for _ in range(60):
        lines, known = ["v0 = Shape(x)"], ["v0"]
        for i in range(1, 9):
            a, b = (known[k] for k in rng.integers(0, len(known), 2))
            kind = int(rng.integers(0, 5))
            op = binary[rng.integers(0, len(binary))]
            call = [f"{op}(c, {a})" if op != "Div" else f"Div({a}, c)", f"{op}({a}, {b})" if op != "Div" else
                    f"Div({a}, c)", f"Gather<axis=0>({a}, k)", f"Slice({a}, z, e)", f"q{i}"][kind]  # fmt: skip
            if kind == 4:
                lines.append(f"p{i} = Less({a}, {b})")
                call = f"Where(p{i}, {a}, {b})"
            if kind == 3:
                lines.append(f"u{i} = {call}")
                call = f"Concat<axis=0>(u{i}, f)"
            lines.append(f"v{i} = {call}")
            known.append(f"v{i}")
        text = f"""g (float[N,M,4] x, int64[3] w) => (int64[3] y)
            <int64[3] c = {{2, 3, 4}}, int64[3] k = {{2, 0, 1}}, int64[1] z = {{0}}, int64[1] e = {{2}},
             int64[1] f = {{5}}> {{ {"  ".join(lines)}  y = Add(w, {known[-1]}) }}"""
        run("fixpoint(cleanup,shapes,cse)", text)


ARITHMETIC = {"Shape", "Gather", "Concat", "Where", "Equal", "ConstantOfShape", "Range", "Squeeze", "Unsqueeze", "Cast"}
LEFT = {"minilm-l3": (129, 13), "ppocr-rec": (402, 10), "vit-saliency": (661, 6), "silero-vad": (68, 25)}


@pytest.mark.zoo
@pytest.mark.parametrize("name", LEFT)
def test_real_models_lose_their_shape_arithmetic(name: str, ctx: Context) -> None:
    """Nodes in all scopes, and those that are (or may be) shape arithmetic; no more than this must be left."""
    try:
        graph = load(zoo.path(name))
    except zoo.ZooError as reason:
        pytest.skip(str(reason))
    PassManager().run(build("fixpoint(cleanup,fold,shapes,cse)"), graph, ctx)
    left = ops(graph)
    nodes, arithmetic = LEFT[name]
    assert len(left) <= nodes
    assert sum(op in ARITHMETIC for op in left) <= arithmetic


def test_cost_is_linear(ctx: Context) -> None:
    def seconds(length: int) -> float:
        nodes = []
        for i in range(length):
            nodes.append(helper.make_node("Shape", [f"t{i}"], [f"s{i}"]))
            nodes.append(helper.make_node("Exp", [f"t{i}"], [f"e{i}"]))
            nodes.append(helper.make_node("Reshape", [f"e{i}", f"s{i}"], [f"t{i + 1}"]))
        nodes.append(helper.make_node("Neg", [f"t{length}"], ["y"]))
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("t0", "y")]
        graph = load(model_of(helper.make_graph(nodes, "chain", ends[:1], ends[1:])))
        start = time.process_time()
        assert Shapes().run(graph, ctx) >= length
        return time.process_time() - start

    seconds(100)
    assert seconds(4000) < 60 * max(seconds(200), 0.02)
