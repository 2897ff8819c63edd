"""Random convolutional networks of every layout operator, cut, shuffled and put together again: pruning stays exact.

A network is built move by move on a list of feature maps [N, C, 4, 4]; a move takes one of them and adds another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx
import pytest

from optimizer.io import load
from passes.prune.coupling import couple
from passes.prune.masked import verify
from passes.prune.shrink import Kept, shrink
from tests.fuzz import random_feeds, random_model
from tests.passes import random_feed
from tests.test_prune_relations import EVALUATE, Net, groups, prune, some

Map = tuple[str, int]
Maps = list[Map]
T = TypeVar("T")
SEEDS, CHUNK = 120, 20
PLACES = 4
WIDEST = 24


class Maker:
    """`maps` holds (name, channels) of what was made, the latest last."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.net = Net(rng=self.rng)
        x = self.net.input("N", 3, PLACES, PLACES)
        self.maps = [(self.net.conv(x, 3, int(c)), int(c)) for c in self.rng.choice([4, 6, 8, 12], 2)]

    def step(self) -> None:
        x, c = self.pick()
        move = MOVES[int(self.rng.integers(len(MOVES)))]
        self.maps += [(name, width) for name, width in move(self, x, c) if 0 < width <= WIDEST]

    def pick(self) -> Map:
        return self.maps[-1 - min(int(self.rng.exponential(1.5)), len(self.maps) - 1)]

    def alike(self, c: int) -> str:
        """Another map with as many channels, or the same one."""
        return str(self.choose([name for name, width in self.maps if width == c]))

    def choose(self, options: list[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def divisor(self, c: int) -> int:
        return self.choose([n for n in range(1, c + 1) if c % n == 0])

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.net.nodes for name in node.input}
        ends = [self.net.conv(x, c, 2) for x, c in self.maps if x not in read]
        return self.net.model(self.net("Sum", *ends))


# ---------------------------------------------------------------------- moves


def conv(m: Maker, x: str, c: int) -> Maps:
    width = m.choose([2, 4, 6, 8, 12])
    return [(m.net.conv(x, c, width), width)]


def depthwise(m: Maker, x: str, c: int) -> Maps:
    width = c * m.choose([1, 1, 2])
    return [(m.net.conv(x, c, width, 3, group=c, pads=[1, 1, 1, 1]), width)]


def grouped(m: Maker, x: str, c: int) -> Maps:
    groups = m.divisor(c)
    width = groups * m.choose([1, 2, 3])
    return [(m.net.conv(x, c, width, group=groups), width)]


def dense(m: Maker, x: str, c: int) -> Maps:
    width = m.choose([4, 6, 8])
    y = m.net.dense(m.net("Transpose", x, perm=[0, 2, 3, 1]), c, width)
    return [(m.net("Transpose", y, perm=[0, 3, 1, 2]), width)]


def activation(m: Maker, x: str, c: int) -> Maps:
    return [(m.net(m.choose(["Relu", "Tanh", "Sigmoid", "Abs"]), x), c)]


def norm(m: Maker, x: str, c: int) -> Maps:
    if m.below(2):
        return [(m.net("InstanceNormalization", x, m.net.positive(c), m.net.w(c)), c)]
    return [(m.net("BatchNormalization", x, m.net.positive(c), m.net.w(c), m.net.w(c), m.net.positive(c)), c)]


def layer_norm(m: Maker, x: str, c: int) -> Maps:
    y = m.net("Transpose", x, perm=[0, 2, 3, 1])
    y = m.net("LayerNormalization", y, m.net.positive(c), m.net.w(c), epsilon=0.1)
    return [(m.net("Transpose", y, perm=[0, 3, 1, 2]), c)]


def with_constant(m: Maker, x: str, c: int) -> Maps:
    shape = m.choose([(c, 1, 1), (1, c, 1, 1), (1,), (c, PLACES, PLACES)])
    return [(m.net(m.choose(["Add", "Mul", "Max"]), x, m.net.w(*shape)), c)]


def two(m: Maker, x: str, c: int) -> Maps:
    other = m.alike(c)
    if m.below(3):
        return [(m.net("Tanh", m.net(m.choose(["Add", "Mul"]), x, other)), c)]
    return [(m.net("Where", m.net("Greater", x, m.net.w(c, 1, 1)), x, other), c)]


def concat(m: Maker, x: str, c: int) -> Maps:
    other, width = (x, c) if m.below(3) == 0 else m.pick()
    return [(m.net("Concat", x, other, axis=1), c + width)]


def split(m: Maker, x: str, c: int) -> Maps:
    if c == 1:
        return []
    at = 1 + m.below(c - 1)
    first, second = m.net.several("Split", 2, x, m.net.ints(at, c - at), axis=1)
    both = [(m.net("Concat", second, first, axis=1), c)] if m.below(2) else []
    return [(first, at), (second, c - at), *both]


def cut(m: Maker, x: str, c: int) -> Maps:
    start = m.below(c)
    end = start + 1 + m.below(c - start)
    return [(m.net("Slice", x, m.net.ints(start), m.net.ints(end), m.net.ints(1)), end - start)]


def stride(m: Maker, x: str, c: int) -> Maps:
    step = m.choose([n for n in (1, 2, 3) if c % n == 0])
    ends = m.net.ints(2**31 - 1)
    return [(m.net("Slice", x, m.net.ints(m.below(step)), ends, m.net.ints(1), m.net.ints(step)), c // step)]


def pick(m: Maker, x: str, c: int) -> Maps:
    """The axis turned by some places."""
    return [(m.net("Gather", x, m.net.const(np.roll(np.arange(c), m.below(c)), np.int64), axis=1), c)]


def shuffle(m: Maker, x: str, c: int) -> Maps:
    n = m.divisor(c)
    y = m.net("Reshape", x, m.net.ints(0, n, c // n, PLACES, PLACES))
    return [(m.net("Reshape", m.net("Transpose", y, perm=[0, 2, 1, 3, 4]), m.net.ints(0, c, PLACES, PLACES)), c)]


def factors(m: Maker, x: str, c: int) -> Maps:
    n = m.divisor(c)
    shape = m.choose([(n, 1, 1, 1), (c // n, 1, 1), (n, c // n, 1, 1)])
    y = m.net("Mul", m.net("Reshape", x, m.net.ints(0, n, -1, PLACES, PLACES)), m.net.w(*shape))
    return [(m.net("Reshape", y, m.net.ints(-1, c, PLACES, PLACES)), c)]


def gate(m: Maker, x: str, c: int) -> Maps:
    y = m.net("Relu", m.net.conv(m.net("GlobalAveragePool", x), c, 3))
    return [(m.net("Mul", x, m.net("Sigmoid", m.net.conv(y, 3, c))), c)]


def pad(m: Maker, x: str, c: int) -> Maps:
    before, after = m.below(3), m.below(3)
    return [(m.net("Pad", x, m.net.ints(0, before, 0, 0, 0, after, 0, 0)), c + before + after)]


def attention(m: Maker, x: str, c: int) -> Maps:
    heads, net, length = m.divisor(c), m.net, PLACES * PLACES
    rows = net("Transpose", net("Reshape", x, net.ints(0, c, length)), perm=[0, 2, 1])
    apart = net.ints(0, length, heads, c // heads)
    q, k, v = (net("Reshape", net.dense(rows, c, c) if m.below(3) else rows, apart) for _ in range(3))
    q, v = (net("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 3, 1])), axis=-1)
    y = net("Reshape", net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3]), net.ints(0, length, c))
    return [(net("Reshape", net("Transpose", y, perm=[0, 2, 1]), net.ints(0, c, PLACES, PLACES)), c)]


def repeat(m: Maker, x: str, c: int) -> Maps:
    if m.below(2):
        return [(m.net("Tile", x, m.net.ints(1, 2, 1, 1)), 2 * c)]
    y = m.net("Expand", m.net("Unsqueeze", x, m.net.ints(2)), m.net.ints(1, c, 3, PLACES, PLACES))
    return [(m.net("Reshape", y, m.net.ints(0, -1, PLACES, PLACES)), 3 * c)]


def depth_to_space(m: Maker, x: str, c: int) -> Maps:
    if c % 4:
        return []
    y = m.net("DepthToSpace", x, blocksize=2, mode=m.choose(["DCR", "CRD"]))
    pooled = m.net("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return [(pooled, c // 4), (m.net("SpaceToDepth", y, blocksize=2), c)]


def recurrent(m: Maker, x: str, c: int) -> Maps:
    op, hidden, net = m.choose(["LSTM", "GRU"]), m.choose([2, 3]), m.net
    gates = (4 if op == "LSTM" else 3) * hidden
    steps = net("Transpose", net("Reshape", x, net.ints(0, c, PLACES * PLACES)), perm=[2, 0, 1])
    weights = net.w(2, gates, c), net.w(2, gates, hidden), net.w(2, 2 * gates)
    y = net(op, steps, *weights, hidden_size=hidden, direction="bidirectional")
    y = net("Reshape", net("Transpose", y, perm=[2, 1, 3, 0]), net.ints(0, 2 * hidden, PLACES, PLACES))
    return [(y, 2 * hidden)]


def softmax(m: Maker, x: str, c: int) -> Maps:
    return [(m.net("Softmax", x, axis=m.choose([1, 2, 3])), c)] if m.below(3) == 0 else []


MOVES: tuple[Callable[[Maker, str, int], Maps], ...] = (
    conv, depthwise, grouped, dense, activation, norm, layer_norm, with_constant, two, two, concat, concat, split,
    split, cut, stride, pick, shuffle, shuffle, factors, gate, pad, attention, repeat, depth_to_space, recurrent,
    softmax,
)  # fmt: skip


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_random_networks_are_pruned_exactly(first: int) -> None:
    found = 0
    for seed in range(first, first + CHUNK):
        maker = Maker(seed)
        for _ in range(int(maker.rng.integers(4, 16))):
            maker.step()
        graph = load(maker.model())
        coupling, feeds = couple(graph), [random_feed(graph)]
        atoms = groups(coupling)
        found += len(atoms)
        for _ in range(2):
            keep = {atom: some(maker.rng, atom) for atom in atoms if maker.rng.random() < 0.8}
            if keep:
                prune(graph, coupling, keep, feeds)
    assert found >= 2 * CHUNK, "the generator makes too little that can be pruned"


def test_models_that_passes_are_tried_on_are_pruned_exactly() -> None:
    """Shape arithmetic, captures, defaults that callers may override, operator sets from 11 on."""
    found = 0
    for seed in range(60):
        model, rng = random_model(seed), np.random.default_rng(seed)
        graph, feeds = load(model), random_feeds(model, seed)
        coupling = couple(graph)
        keep = {atom: some(rng, atom) for atom in groups(coupling)}
        old, pruned = Kept(coupling, keep), graph.copy()
        found += len(keep)
        shrink(pruned, old)
        try:
            with EVALUATE.open(graph) as run:
                run(feeds[0])
        except Exception:  # the runtime itself fails on it, in one of several ways
            continue
        verify(graph, pruned, old, EVALUATE, feeds)
    assert found >= 20
