"""Ranges of values: what is claimed of each operator, and that no value of a random graph breaks a claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimizer import shapes
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.ranges import ANY, NOT_NEGATIVE, Range, span
from tests.conftest import make

CLAIMS: dict[str, Range] = {
    "Relu(x)": NOT_NEGATIVE,
    "Neg(x)": ANY,
    "Mul(x, x)": NOT_NEGATIVE,
    "Mul(x, z)": ANY,
    "Pow(x, two)": NOT_NEGATIVE,
    "Pow(x, three)": ANY,
    "Clip(x, one, three)": (1, 3),
    "Clip(x, three, one)": (1, 1),
    "Clip(x, one)": (1, math.inf),
    "Max(x, one)": (1, math.inf),
    "Min(one, three)": (1, 1),
    "Add(one, three)": (3, math.inf),
    "Div(one, three)": NOT_NEGATIVE,
    "Where(c, one, three)": (1, 3),
    "ReduceMax(one)": ANY,
    "Cast<to = 6>(three)": (-(2**31), 2**31 - 1),
    "Cast<to = 1>(i)": ANY,
    "Cast<to = 1>(u)": NOT_NEGATIVE,
    "Cast<to = 7>(u)": (0, 255),
    "Cast<to = 3>(u)": (-128, 127),
    "Cast<to = 9>(x)": (0, 1),
    "ArgMax<axis = 1>(x)": (0, 3),
    "ArgMax<axis = 0>(x)": (0, 2**63 - 1),
    "Mod(i, five)": (0, 4),
    "Mod<fmod = 1>(i, five)": (-(2**63), 2**63 - 1),
    "Mod(i, minus)": (-(2**63), 2**63 - 1),
    "Abs(i)": (-(2**63), 2**63 - 1),
    "Shape(x)": (0, 2**63 - 1),
}


def graph_of(body: str, output: str = "y") -> Graph:
    constants = ("float one = {1}", "float two = {2}", "float three = {3}", "int64 five = {5}", "int64 minus = {-5}",
                 "float[1,1] four = {4}", "float[1,1] less = {-1}")  # fmt: skip
    inputs = "float[N,4] x, float[N,4] z, bool[N,4] c, uint8[N,4] u, int64[N,4] i"
    graph = make(f"g ({inputs}) => (float[N,4] {output}) <{', '.join(constants)}> {{ {body} }}", 18)
    shapes.infer(graph)
    return graph


@pytest.mark.parametrize("operator", CLAIMS)
def test_of_one_operator(operator: str) -> None:
    graph = graph_of(f"t = {operator}  y = Cast<to = 1>(t)")
    assert span(graph, graph.nodes[0].outputs[0]) == CLAIMS[operator]


UNARY = ["Relu", "Neg", "Abs", "Exp", "Sigmoid", "Softmax", "Sqrt", "HardSigmoid", "Softplus", "Floor", "Identity",
         "Tanh", "ReduceMean", "ReduceSum", "ReduceL2", "Transpose<perm = [0, 1]>", "Cast<to = 1>"]  # fmt: skip
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min"]


def drawn(rng: np.random.Generator, count: int) -> str:
    names, body = ["x", "z", "four", "less"], []
    for index in range(count):
        a, b = rng.choice(names[-6:], 2)
        forms = [
            f"{rng.choice(UNARY)}({a})",
            f"{rng.choice(BINARY)}({a}, {b})",
            f"Clip({a}, one, three)",
            f"Mul({a}, {a})",
        ]
        form = rng.choice(forms, p=[0.5, 0.35, 0.05, 0.1])
        body.append(f"t{index} = {form}")
        names.append(f"t{index}")
    return "  ".join(body)


@pytest.mark.parametrize("seed", range(8))
def test_holds_for_special_values_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = graph_of(drawn(rng, 40), "t39")
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38, 1, -1, 0.1, -7], np.float32)
    feeds = {n: rng.choice(special, (6, 4)) for n in "xz"}
    feeds |= {n: np.ones((6, 4), t) for n, t in (("c", bool), ("u", np.uint8), ("i", np.int64))}
    made = [node.outputs[0] for node in graph.nodes]
    values = Evaluate(threads=1)(graph, feeds, [t.name for t in made])
    claimed = 0
    for tensor in made:
        low, high = span(graph, tensor)
        array = values[tensor.name]
        assert np.all((array >= low) & (array <= high) | np.isnan(array)), (tensor.name, low, high)
        claimed += (low, high) != ANY
    assert claimed > 10
