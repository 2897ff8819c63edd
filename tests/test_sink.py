"""Transposes that move, against ONNX Runtime: random islands of every operator that has another form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.context import Context
from optimizer.graph import Array
from optimizer.io import load
from passes.fuse import Fuse
from passes.fuse.mincut import smallest_side
from passes.fuse.sink import sink_transposes
from tests.conftest import make
from tests.passes import ops, run

Shape = tuple[int, ...]


class Maker:
    """A model that grows node by node; `values` are the floats made so far, by name, with their shapes."""

    def __init__(self, seed: int, opset: int):
        self.rng, self.opset = np.random.default_rng(seed), opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: dict[str, Shape] = {}
        self.values: dict[str, Shape] = {}

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def pick(self) -> tuple[str, Shape]:
        """Rather a late value than an early one."""
        names = list(self.values)
        name = names[-1 - self.below(min(4, len(names)))]
        if len(self.values[name]) < 2:
            name = names[0]
        return name, self.values[name]

    def constant(self, values: Array | Sequence[int]) -> str:
        array = np.asarray(values, np.int64) if isinstance(values, list) else values
        self.weights.append(numpy_helper.from_array(array, f"c{len(self.weights)}"))
        return self.weights[-1].name

    def normal(self, shape: Sequence[int]) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def input(self, shape: Shape) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.values[name] = shape
        return name

    def add(self, op: str, inputs: Sequence[str], *shapes: Shape, keep: bool = True, **attrs: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(len(shapes))]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attrs))  # type: ignore[arg-type]
        if keep:
            self.values.update(zip(names, shapes, strict=True))
        return names[0]

    def listed(self, op: str, x: str, over: list[int], shape: Shape, since: int, **attrs: object) -> None:
        """A node with axes, which are an input from an operator set on."""
        if self.opset < since:
            self.add(op, [x], shape, axes=over, **attrs)
        else:
            self.add(op, [x, self.constant(over)], shape, **attrs)

    def read(self, wanted: set[str]) -> list[onnx.NodeProto]:
        """The nodes that these outputs depend on."""
        kept = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                kept.append(node)
                wanted = wanted | {*node.input}
        return kept[::-1]

    def model(self) -> onnx.ModelProto:
        names = list(self.values)
        outputs = {names[-1], *(names[self.below(len(names))] for _ in range(self.below(3)))} - self.inputs.keys()
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.values[n]) for n in sorted(outputs)]
        graph = helper.make_graph(self.read(outputs), "g", infos, made or infos, self.weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", self.opset)])


def transpose(m: Maker) -> None:
    """Rather one of two inverse orders than any."""
    x, shape = m.pick()
    n = len(shape)
    perm = list(range(n))
    if n > 2 and m.below(4):
        perm = [0, *range(2, n), 1] if m.below(2) else [0, n - 1, *range(1, n - 1)]
    else:
        m.rng.shuffle(perm)
    m.add("Transpose", [x], tuple(shape[p] for p in perm), perm=perm)


def unary(m: Maker) -> None:
    x, shape = m.pick()
    m.add(["Relu", "Sigmoid", "Tanh", "Neg", "Identity", "LeakyRelu"][m.below(6)], [x], shape)


def with_constant(m: Maker) -> None:
    x, shape = m.pick()
    cut = m.below(len(shape) + 1)
    other = [d if m.below(2) else 1 for d in shape[cut:]]
    operands = [x, m.normal(other)]
    op = ["Add", "Sub", "Mul", "Div", "PRelu"][m.below(5)]
    if op in ("Add", "Sub", "Mul") and m.below(2):
        operands.reverse()
    m.add(op, operands, shape)


def join(m: Maker) -> None:
    x, shape = m.pick()
    same = [n for n, s in m.values.items() if s == shape]
    m.add(["Add", "Mul", "Max", "Sum"][m.below(4)], [x, same[m.below(len(same))]], shape)


def foreign(m: Maker) -> None:
    x, shape = m.pick()
    m.add("Add", [x, m.input(tuple(d if m.below(3) else 1 for d in shape))], shape)


def concat(m: Maker) -> None:
    x, shape = m.pick()
    axis, others = m.below(len(shape)), [n for n, s in m.values.items() if s == shape]
    more = [others[m.below(len(others))], *([m.normal(shape)] if m.below(2) else [])]
    total = shape[axis] * (1 + len(more))
    if total > 12:
        return
    made = (*shape[:axis], total, *shape[axis + 1 :])
    m.add("Concat", [x, *more], made, axis=axis - (len(shape) if m.below(2) else 0))


def split(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape))
    if shape[axis] < 2:
        return
    parts = [1, shape[axis] - 1]
    shapes = [(*shape[:axis], p, *shape[axis + 1 :]) for p in parts]
    if m.opset < 13:
        m.add("Split", [x], *shapes, axis=axis, split=parts)
    else:
        m.add("Split", [x, m.constant(parts)], *shapes, axis=axis - (len(shape) if m.below(2) else 0))


def reduce(m: Maker) -> None:
    x, shape = m.pick()
    n = len(shape)
    over = sorted(m.rng.choice(n, 1 + m.below(min(2, n)), replace=False).tolist())
    keep, op = m.below(2), ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"][m.below(4)]
    made = tuple(1 if i in over else d for i, d in enumerate(shape) if keep or i not in over)
    since = 13 if op == "ReduceSum" else 18
    m.listed(op, x, [a - n if m.below(2) else a for a in over], made, since, keepdims=keep)


def reduce_all(m: Maker) -> None:
    x, shape = m.pick()
    if not m.below(3):
        m.add("ReduceMean", [x], (1,) * len(shape), keepdims=1)


def arg(m: Maker) -> None:
    x, shape = m.pick()
    axis, keep = m.below(len(shape)), m.below(2)
    made = tuple(1 if i == axis else d for i, d in enumerate(shape) if keep or i != axis)
    found = m.add(["ArgMax", "ArgMin"][m.below(2)], [x], made, keep=False, axis=axis, keepdims=keep)
    m.add("Cast", [found], made, to=TensorProto.FLOAT)


def softmax(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape)) if m.below(2) else len(shape) - 1
    m.add(["Softmax", "LogSoftmax", "Hardmax"][m.below(3)], [x], shape, axis=axis)


def slices(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape))
    if shape[axis] < 2:
        return
    step = 1 + m.below(2)
    made = (*shape[:axis], len(range(1, shape[axis], step)), *shape[axis + 1 :])
    if m.opset < 10:
        if step == 1:
            m.add("Slice", [x], made, starts=[1], ends=[1000], axes=[axis])
    elif axis == 0 and m.below(2):
        m.add("Slice", [x, m.constant([1]), m.constant([1000]), "", m.constant([step])], made)
    else:
        lists = [[1], [1000], [axis - len(shape) * m.below(2)], [step]]
        m.add("Slice", [x, *map(m.constant, lists)], made)


def pad(m: Maker) -> None:
    x, shape = m.pick()
    n = len(shape)
    if m.opset >= 18 and m.below(2):
        axis = m.below(n)
        made = (*shape[:axis], shape[axis] + 3, *shape[axis + 1 :])
        m.add("Pad", [x, m.constant([1, 2]), "", m.constant([axis - n * m.below(2)])], made)
        return
    amounts = m.rng.integers(0, 2, 2 * n).tolist()
    made = tuple(d + amounts[i] + amounts[n + i] for i, d in enumerate(shape))
    if m.opset < 11:
        m.add("Pad", [x], made, pads=amounts)
    else:
        m.add("Pad", [x, m.constant(amounts)], made)


def squeeze(m: Maker) -> None:
    x, shape = m.pick()
    ones = [i for i, d in enumerate(shape) if d == 1]
    if ones and len(shape) > 2:
        axis = ones[m.below(len(ones))]
        m.listed("Squeeze", x, [axis], (*shape[:axis], *shape[axis + 1 :]), 13)


def unsqueeze(m: Maker) -> None:
    x, shape = m.pick()
    if len(shape) < 5:
        axis = m.below(len(shape) + 1)
        m.listed("Unsqueeze", x, [axis], (*shape[:axis], 1, *shape[axis:]), 13)


def gather(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape))
    if m.below(2) and len(shape) > 2:
        m.add("Gather", [x, m.constant(np.array(0, np.int64))], (*shape[:axis], *shape[axis + 1 :]), axis=axis)
    else:
        m.add("Gather", [x, m.constant([-1, 0, 0])], (*shape[:axis], 3, *shape[axis + 1 :]), axis=axis)


def quantize(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape))
    if m.opset < 10:
        return
    whole = m.opset < 13 or bool(m.below(2))
    scale = m.constant(np.array(0.1, np.float32)) if whole else m.normal([shape[axis]])
    zero = m.constant(np.zeros(() if whole else shape[axis], np.int8))
    attrs = {} if whole else {"axis": axis}
    codes = m.add("QuantizeLinear", [x, scale, zero], shape, keep=False, **attrs)
    m.add("DequantizeLinear", [codes, scale, zero], shape, **attrs)


def resize(m: Maker) -> None:
    x, shape = m.pick()
    if m.opset < 13 or max(shape) > 6:
        return
    scales = np.array([2 if m.below(3) == 0 else 1 for _ in shape], np.float32)
    made = tuple(int(d * s) for d, s in zip(shape, scales, strict=True))
    attrs = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    if m.below(2):
        m.add("Resize", [x, "", m.constant(scales)], made, **attrs)
    elif m.opset >= 18:
        over = m.rng.permutation(len(shape)).tolist()
        m.add("Resize", [x, "", "", m.constant([made[a] for a in over])], made, axes=over, **attrs)
    else:
        m.add("Resize", [x, "", "", m.constant(list(made))], made, **attrs)


def top(m: Maker) -> None:
    x, shape = m.pick()
    axis = m.below(len(shape))
    if m.opset >= 10:
        made = (*shape[:axis], 1, *shape[axis + 1 :])
        name = f"top{len(m.nodes)}"
        m.nodes.append(helper.make_node("TopK", [x, m.constant([1])], [name, f"{name}_at"], axis=axis))
        m.values[name] = made


def barrier(m: Maker) -> None:
    x, shape = m.pick()
    m.add("Reshape", [x, m.constant([*shape])], shape)


MOVES: tuple[Callable[[Maker], None], ...] = (
    transpose, transpose, transpose, transpose, unary, with_constant, with_constant, join, foreign, concat, split,
    reduce, reduce_all, arg, softmax, slices, pad, squeeze, unsqueeze, gather, quantize, resize, top, barrier,
)  # fmt: skip


def island(seed: int) -> onnx.ModelProto:
    m = Maker(seed, (9, 11, 13, 18)[seed % 4])
    m.input((2, 3, 4, 5)[: 4 - (m.below(4) == 0)])
    transpose(m)
    for _ in range(2 + m.below(9)):
        MOVES[m.below(len(MOVES))](m)
    transpose(m)
    return m.model()


@pytest.mark.parametrize("start", range(4))
def test_random_islands_keep_their_outputs(start: int) -> None:
    seen: Counter[str] = Counter()
    saved = 0
    for seed in range(start * 60, start * 60 + 60):
        made = island(seed)
        graph = load(made)
        before = ops(graph).count("Transpose")
        if sink_transposes(graph):
            seen.update(set(ops(graph)))
            assert ops(graph).count("Transpose") <= before
            saved += before - ops(graph).count("Transpose")
        run("fuse", made)
    assert saved > 20 and len(seen) > 20


def test_transposes_stay_where_that_is_asked_for(ctx: Context) -> None:
    text = "g (float[N,3,4] x) => (float[N,3,4] y) { a = Transpose(x) b = Relu(a) y = Transpose(b) }"
    graph = make(text)
    assert Fuse(sink=False).run(graph, ctx) == 0
    assert Fuse().run(graph, ctx) == 3
    assert ops(graph) == ["Relu"]


def test_a_cut_is_the_one_with_the_smallest_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        net: nx.DiGraph[int] = nx.DiGraph()
        net.add_nodes_from((0, 1))
        for start, end, capacity in rng.integers((0, 0, 1), (10, 10, 8), (30, 3)).tolist():
            if start != end:
                net.add_edge(start, end, capacity=capacity)
        edges = {u: {v: net[u][v]["capacity"] for v in net[u]} for u in net}
        assert smallest_side(edges, 0, 1) == set(nx.minimum_cut(net, 0, 1)[1][1])
