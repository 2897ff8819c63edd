"""How long an operator takes as a function of its widths, measured alone on ONNX Runtime's CPU kernels.

Half the multiply-accumulates are not half the time. Each operator is timed on a small grid of widths, and what lies
between is interpolated in every width at once, which is exact for time = a + b*inputs + c*outputs + d*inputs*outputs:
compute, traffic and overhead of a matrix product. Timings are kept by processor, threads and version of the runtime.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.evaluate import session
from optimizer.machine import device, versions
from passes.prune.widths import Layer, Shapes, axes, narrower, sizes

log = logging.getLogger(__name__)
Tell = Callable[[str, int, int], None]

METHOD = 1  # timings taken in another way do not mix with these
FLOOR = 1e-6  # seconds: nothing is thought to take less
ROUNDS = 3
VISIT = 0.02  # seconds of runs in a round
RUNS = 40  # in a round, at most
CAP = 0.08  # seconds spent on a point, loading included, after which it is not visited again
CLIP_TAKES_INPUTS = 11  # operator set
LENGTHS = 4  # the input of a recurrent operator that holds integers


@dataclass(frozen=True)
class Grid:
    """Values at all combinations of the axes' points (the last axis is the fastest), multilinear between them."""

    axes: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]

    @staticmethod
    def through(axes: Sequence[Sequence[float]], measured: NDArray[np.float64]) -> Grid:
        """Made monotone, and continued as a line from the smallest width down to none.

        Noise only ever adds, so where a narrower operator seems to take longer the wider one's time counts for both.
        """
        values = _monotone(measured)
        found = []
        for place, points in enumerate(axes):
            if len(points) == 1:
                found.append(tuple(points))
                continue
            first, second = np.take(values, [0], place), np.take(values, [1], place)
            none = first - (second - first) * points[0] / (points[1] - points[0])
            values = np.concatenate([np.minimum(np.maximum(none, FLOOR), first), values], place)
            found.append((0.0, *points))
        return Grid(tuple(found), tuple(_monotone(values).ravel().tolist()))

    def at(self, widths: Sequence[float]) -> float:
        """The value at these widths; those outside of an axis are taken to its end."""
        places = [(0, 1.0)]
        for points, width in zip(self.axes, widths, strict=True):
            low, share = _between(points, width)
            near = ((low, 1 - share), (low + 1, share)) if share else ((low, 1.0),)
            places = [(place * len(points) + i, part * s) for place, part in places for i, s in near]
        return sum(self.values[place] * part for place, part in places)


def _monotone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """No value above one of a wider operator."""
    for axis in range(values.ndim):
        values = np.flip(np.minimum.accumulate(np.flip(values, axis), axis), axis)
    return values


def _between(points: Sequence[float], width: float) -> tuple[int, float]:
    """The point at or below a width, and how far it is to the next one."""
    if width >= points[-1] or len(points) == 1:
        return len(points) - 1, 0.0
    low = max(0, bisect_right(points, width) - 1)
    return low, max(0.0, (width - points[low]) / (points[low + 1] - points[low]))


class Table:
    """Measured seconds of operators. `threads`: 0 for all cores; `folder`: where timings are kept, None for nowhere."""

    def __init__(self, threads: int, folder: Path | None, tell: Tell):
        self.threads, self._tell = threads, tell
        facts = device()
        self._machine = {
            "method": METHOD,
            "threads": threads or facts["cores"],
            "onnxruntime": versions()["onnxruntime"],
        }
        self._machine |= {name: facts[name] for name in ("cpu", "arch", "cores")}
        digest = hashlib.sha256(json.dumps(self._machine, sort_keys=True).encode()).hexdigest()[:12]
        self._file = folder / f"onnxruntime-{digest}.json" if folder is not None else None
        self._seconds = _read(self._file, self._machine) if self._file is not None else {}
        self._grids: dict[Layer, tuple[Grid, float]] = {}
        self._found: dict[tuple[Layer, Shapes], float] = {}

    def measure(self, layers: Sequence[Layer], round: int) -> None:
        """Measures what is not known yet, at about four multiples of `round` for each width of each layer.

        Takes some 0.1 s a point: three rounds over all of them, each point loaded anew and run for 20 ms, and left out
        once 80 ms were spent on it. The least time of all runs counts.
        """
        grids = {layer: axes(layer, round) for layer in layers}
        points = {layer: narrower(layer, grid) for layer, grid in grids.items()}
        wanted = {point.key: point for found in points.values() for point in found}
        missing = [point for key, point in wanted.items() if key not in self._seconds]
        if missing:
            taken = _measure(missing, self.threads, self._tell)
            self._seconds |= {point.key: seconds for point, seconds in zip(missing, taken, strict=True)}
            if self._file is not None:
                _write(self._file, self._machine, self._seconds)
        self._found.clear()
        for layer, grid in grids.items():
            values = np.array([self._seconds[point.key] for point in points[layer]]).reshape([len(a) for a in grid])
            self._grids[layer] = Grid.through(grid, values), sizes(layer, layer.shapes).rest

    def seconds(self, layer: Layer, shapes: Shapes) -> float:
        """Of a layer that was measured, with input shapes that are no larger than its own."""
        if (layer, shapes) not in self._found:
            grid, rest = self._grids[layer]
            now = sizes(layer, shapes)
            self._found[layer, shapes] = grid.at(now.free) * now.rest / rest
        return self._found[layer, shapes]


def _measure(layers: Sequence[Layer], threads: int, tell: Tell) -> list[float]:
    """The least seconds of each, in rounds over all of them: what disturbs the machine for a while hits them alike."""
    best, spent = [math.inf] * len(layers), [0.0] * len(layers)
    with tempfile.TemporaryDirectory(prefix="optimize-") as folder:
        for number in range(ROUNDS):
            for place, layer in enumerate(layers):
                tell("measuring operators", number * len(layers) + place, ROUNDS * len(layers))
                if spent[place] < CAP:
                    start = time.perf_counter()
                    best[place] = min(best[place], *_visit(layer, threads, Path(folder)))
                    spent[place] += time.perf_counter() - start
    return best


def _visit(layer: Layer, threads: int, folder: Path) -> Iterator[float]:
    """Seconds of runs, after one to warm up: at least two."""
    run = _opened(_bare(model(layer), folder), threads)
    run()
    end = time.perf_counter() + VISIT
    for number in range(RUNS):
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        yield now - start
        if now > end and number:
            return


def model(layer: Layer) -> onnx.ModelProto:
    """The operator alone, with random weights."""
    names = ["" if shape is None else f"x{i}" for i, shape in enumerate(layer.shapes)]
    held = zip(names, layer.shapes, layer.constant, strict=True)
    inputs, weights = [], []
    for place, (name, shape, constant) in enumerate(held):
        if shape is None:
            continue
        if constant:
            weights.append(numpy_helper.from_array(_values(shape, place == LENGTHS), name))
        else:
            kind = TensorProto.INT32 if place == LENGTHS else TensorProto.FLOAT
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
    attrs = {name: value for name, value in layer.attrs if value is not None and value != ()}
    nodes = [helper.make_node(layer.op, names, ["made" if layer.then else "y"], **attrs)]
    if layer.then:
        limits = ("low", "high") if layer.then == "Clip" and layer.opset >= CLIP_TAKES_INPUTS else ()
        weights += [helper.make_tensor(name, TensorProto.FLOAT, (), [6 * i]) for i, name in enumerate(limits)]
        nodes.append(helper.make_node(layer.then, ["made", *limits], ["y"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, layer.op, inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", layer.opset)], ir_version=8)


def _values(shape: Sequence[int], lengths: bool = False) -> NDArray[Any]:
    """Small normal numbers, the same few over and over; sequences of length 1 cannot be too long."""
    if lengths:
        return np.ones(shape, np.int32)
    return np.resize(np.random.default_rng(0).normal(0, 0.1, 4099).astype(np.float32), shape)


def _bare(alone: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A convolution in the blocked layout the runtime gives it, without the operators that convert to and from that.

    In a chain of convolutions the layout stays; alone, converting takes up to 40 % of the time.
    """
    if alone.graph.node[0].op_type != "Conv":
        return alone
    made = _optimized(alone, folder)
    nodes = [node for node in made.graph.node if node.op_type not in ("ReorderInput", "ReorderOutput")]
    if len(nodes) != 1 or nodes[0].domain != "com.microsoft.nchwc":
        return alone
    conv = onnx.NodeProto.FromString(nodes[0].SerializeToString())
    converted = any(node.op_type == "ReorderInput" for node in made.graph.node)
    (entry,) = made.graph.input
    if converted:  # channels are filled up to whole blocks
        weights = next(w for w in made.graph.initializer if w.name == conv.input[1])
        groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
        entry.type.tensor_type.shape.dim[1].dim_value = weights.dims[1] * groups
    conv.input[0], conv.output[0] = entry.name, made.graph.output[0].name
    made.graph.output[0].type.tensor_type.ClearField("shape")
    del made.graph.node[:]
    made.graph.node.append(conv)
    return made


def _optimized(alone: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What the runtime makes of a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def _opened(ready: onnx.ModelProto, threads: int) -> Callable[[], None]:
    """Runs it on inputs that are bound once: a call costs 2 us beside the kernel."""
    import onnxruntime as ort

    loaded = session(ready.SerializeToString(), threads=threads, optimized=True)
    binding = loaded.io_binding()
    for entry in ready.graph.input:
        kind = entry.type.tensor_type
        array = _values([d.dim_value for d in kind.shape.dim], kind.elem_type == TensorProto.INT32)
        binding.bind_ortvalue_input(entry.name, ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output(ready.graph.output[0].name)
    return lambda: loaded.run_with_iobinding(binding)


def _read(path: Path, machine: Mapping[str, Any]) -> dict[str, float]:
    """Timings kept for this machine; none where the file is missing, damaged or another machine's."""
    try:
        kept = json.loads(path.read_text())
        timings = {str(key): float(value) for key, value in kept["seconds"].items() if 0 < float(value) < math.inf}
        return timings if kept["machine"] == machine else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _write(path: Path, machine: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    """Adds to what is kept, in one step. Where the folder cannot be written, the next run takes longer, that is all."""
    text = json.dumps({"machine": machine, "seconds": _read(path, machine) | dict(seconds)}, indent=0, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("timings are not kept for the next run: cannot write '%s': %s", path, error.strerror)
