"""Runs a pipeline on a model written as text and checks what every pass owes: valid, same outputs, honest, settled."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.instrument import Verify
from optimizer.io import load
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import target
from tests.conftest import make

SIZES = (2, 5, 1)  # of the symbolic dims, in turn: each is tried at more than one


def model_of(graph: onnx.GraphProto, opset: int = 17) -> onnx.ModelProto:
    """A model of a graph made in code, in versions that the runtime reads."""
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def run(pipeline: str, graph: Graph | onnx.ModelProto | str, opset: int = 17, feeds: list[Feeds] | None = None) -> int:
    """Runs a pipeline in place and returns its count; `graph` may be ONNX text. Raises where a check fails."""
    if not isinstance(graph, Graph):
        graph = make(graph, opset) if isinstance(graph, str) else load(graph)
    ctx = Context(target("onnx"), Evaluate(threads=1))
    feeds = feeds or [random_feed(graph, shift) for shift in range(len(SIZES))]
    with ctx.evaluate.open(graph) as original:
        expected = [original(f) for f in feeds]
    count = sum(step.count for step in PassManager([Verify()]).run(build(pipeline), graph, ctx))
    with ctx.evaluate.open(graph) as rewritten:
        differences = compare(zip(expected, [rewritten(f) for f in feeds], strict=True))
    for name, difference in differences.items():
        assert difference.within_rounding(), f"{name}: {difference}"
    assert sum(s.count for s in PassManager([Verify()]).run(build(pipeline), graph, ctx)) == 0, "not settled"
    return count


def random_feed(graph: Graph, shift: int = 0) -> Feeds:
    """Normal floats, small integers; symbols are bound to SIZES in the order in which they appear."""
    rng = np.random.default_rng(shift)
    symbols = list(dict.fromkeys(d for t in graph.inputs for d in t.shape if not isinstance(d, int)))
    bound = {symbol: SIZES[(i + shift) % len(SIZES)] for i, symbol in enumerate(symbols)}
    feeds = {}
    for tensor in graph.inputs:
        shape, dtype = [bound.get(d, d) for d in tensor.shape], np.dtype(tensor.dtype)
        values = rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)
        feeds[tensor.name] = np.asarray(values).astype(dtype)
    return feeds


def ops(graph: Graph) -> list[str]:
    """Operators in execution order, those of subgraphs after the node that holds them."""
    return [node.op for scope in graph.scopes() for node in scope.nodes]
