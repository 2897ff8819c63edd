"""Runs the float graph over the calibration batches and keeps a histogram of every tensor that int8 may need.

One batch at a time, one run a batch. A copy of the graph reduces its own large tensors, each as soon as it is made, to
exact extremes and a sample, so that the runtime keeps no more of them than in a plain run, whatever the number of
batches and however many tensors a model has. Statistics that already hold every tensor are not made again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.evaluate import Feeds
from optimizer.graph import Graph, Node, Tensor
from optimizer.histogram import SAMPLE
from optimizer.pipeline import Pass
from optimizer.shapes import infer, static
from optimizer.statistics import Digest, Statistics
from passes.quantize.kernels import is_quantized
from passes.quantize.placement import averaged, observed

log = logging.getLogger(__name__)
AXES_INPUT = 18  # the operator set in which ReduceMean got its axes as an input
STEPS = 10  # the operator set in which Slice got steps; tensors of older models are fetched whole
FLOAT = np.dtype(np.float32)
NUMBERS = {
    "all": -1,
    "zero": 0,
    "end": np.iinfo(np.int64).max,
    "round": SAMPLE - 1,
    "pair": 2 * SAMPLE,
    "two": 2,
    "one": 1,
}


@dataclass(frozen=True)
class Calibrate(Pass):
    """Fills `ctx.statistics`; never changes the graph.

    `of`: the tensors that int8 may need, or all of float32, which half precision needs too.
    """

    name: ClassVar[str] = "calibrate"
    of: Literal["int8", "all"] = "int8"

    def run(self, graph: Graph, ctx: Context) -> int:
        """Raises PipelineError where there is nothing to calibrate with."""
        statistics = ctx.statistics
        if statistics is None:
            raise PipelineError("'calibrate' has nowhere to put statistics: the context holds none")
        twin = graph.copy()
        infer(twin)
        wanted = _floats(twin, _computed(graph) if self.of == "all" else [] if is_quantized(graph) else observed(graph))
        if all(t.name in statistics or (t.dtype is None and statistics) for t in wanted):
            return 0
        if not len(ctx.batches):
            raise PipelineError("'calibrate' needs data: give some with --data")
        statistics.clear()
        _collect(twin, ctx, wanted, statistics)
        return 0


def _computed(graph: Graph) -> list[str]:
    """Inputs that are read and everything computed, of the outermost scope."""
    names = [t.name for t in graph.inputs if t.outputs]
    names += [t.name for node in graph.nodes if node.op != "Constant" for t in node.outputs if t.name]
    return names


def _floats(graph: Graph, names: Sequence[str]) -> list[Tensor]:
    """The tensors of float32, and those whose type only a run can tell."""
    tensors = graph.tensors()
    return [t for t in map(tensors.__getitem__, names) if t.dtype is None or np.dtype(t.dtype) == FLOAT]


def _collect(graph: Graph, ctx: Context, wanted: Sequence[Tensor], statistics: Statistics) -> None:
    digest, summaries, means = Digest(), _summarise(graph, wanted), _average(graph, wanted)
    parts = {t.name: summaries.get(t.name, (t.name,)) for t in wanted}
    with ctx.evaluate.open(graph, [*(name for names in parts.values() for name in names), *means.values()]) as run:
        for number, feeds in enumerate(ctx.batches, 1):
            digest.add(feeds)
            _add(statistics, parts, means, run(feeds))
            ctx.progress("calibrate", number, len(ctx.batches))
    statistics.batches = len(ctx.batches)
    statistics.data = digest.hexdigest()
    log.info("calibrated %d tensors on %d batches", len(statistics), statistics.batches)


def _add(statistics: Statistics, parts: Mapping[str, Sequence[str]], means: Mapping[str, str], found: Feeds) -> None:
    """Adds one batch; a tensor came whole or as its sample, its size and [lowest, highest, sum].

    The runtime's extremes pass over a NaN, a sum never does. (A sum that overflows both ways is NaN as well: with such
    numbers in it, the tensor is no use in 8 bits either.)
    """
    for name, names in parts.items():
        arrays = [np.asarray(found[n]) for n in names]
        if len(arrays) == 1:
            size = arrays[0].size
            if arrays[0].dtype == FLOAT:
                statistics.add(name, arrays[0])
        else:
            size, (low, high, total) = int(arrays[1]), arrays[2].tolist()
            statistics.take(name, arrays[0], size, math.nan if math.isnan(total) else low, high)
        if size and name in means:
            statistics.add_mean(name, found[means[name]].astype(np.float64))


def _average(graph: Graph, wanted: Sequence[Tensor]) -> Mapping[str, str]:
    """Adds a mean over all axes but the first channel axis where biases will need it; its name by tensor."""
    names, means, following = set(averaged(graph)), {}, _following(graph)
    for tensor in wanted:
        if tensor.name not in names or tensor.shape is None or tensor.dtype is None:
            continue
        axes = [axis for axis in range(len(tensor.shape)) if axis != 1]
        given = graph.constant(np.array(axes), "axes") if graph.opset >= AXES_INPUT else None
        attrs = {"keepdims": 0} if given is not None else {"keepdims": 0, "axes": axes}
        mean = graph.variable(tensor.name + "_mean")
        before = following.get(id(tensor.inputs[0])) if tensor.inputs else None
        graph.add("ReduceMean", [tensor] if given is None else [tensor, given], [mean], attrs, before=before)
        means[tensor.name] = mean.name
    graph.tidy()
    return means


def _following(graph: Graph) -> dict[int, Node | None]:
    """What comes after each node, by its id: a reader put before that runs as soon as the node has."""
    return dict(zip(map(id, graph.nodes), [*graph.nodes[1:], None], strict=True))


def _summarise(graph: Graph, wanted: Sequence[Tensor]) -> Mapping[str, tuple[str, str, str]]:
    """Adds nodes that reduce large tensors, and those of unknown size; names of (sample, size, ends) by tensor."""
    following = _following(graph)
    numbers = {n: graph.constant(np.array([value]), n) for n, value in NUMBERS.items()}
    summaries = {}
    for tensor in wanted:
        shape = static(tensor)
        small = shape is not None and math.prod(shape) <= SAMPLE
        if not small and tensor.dtype is not None and tensor.inputs and graph.opset >= STEPS:
            summaries[tensor.name] = _summary(graph, tensor, numbers, following[id(tensor.inputs[0])])
    graph.tidy()
    return summaries


def _summary(graph: Graph, tensor: Tensor, numbers: Mapping[str, Tensor], before: Node | None) -> tuple[str, str, str]:
    """The sample takes every `histogram.stride(size)`-th element; the graph computes the stride from the size."""

    def add(op: str, *inputs: Tensor, attrs: dict[str, int] | None = None) -> Tensor:
        made = graph.variable(f"{tensor.name}_{op.lower()}")
        graph.add(op, inputs, [made], attrs, before=before)
        return made

    flat, size = add("Reshape", tensor, numbers["all"]), add("Size", tensor)
    half = add("Div", add("Add", size, numbers["round"]), numbers["pair"])
    step = add("Add", add("Mul", half, numbers["two"]), numbers["one"])
    sample = add("Slice", flat, numbers["zero"], numbers["end"], numbers["zero"], step)
    ends = [add(op, flat) for op in ("ReduceMin", "ReduceMax", "ReduceSum")]
    return sample.name, size.name, add("Concat", *ends, attrs={"axis": 0}).name
