"""Renders a float graph in int8, from calibration statistics, for ONNX Runtime on the CPU or for TensorRT.

static   Q/DQ around every operator with an int8 kernel, in chains that pay (`placement` decides, `static` writes)
dynamic  MatMul, Gemm and LSTM with activations quantised at run time (`dynamic`)
hybrid   static convolutions and what stands between them, dynamic MatMul, Gemm and LSTM: the best of both
tensorrt Q/DQ before weighted operators, symmetric, as a strongly typed TensorRT network wants it (`tensorrt`)
openvino the same, what stays float in float32: OpenVINO moves Q and DQ to where its own kernels want them

Which is fastest and close enough is measured on the target, not decided here. On x86 activations are u8 and weights
s8 (7 bits where the processor has no VNNI); on ARM both are s8. A model that is quantised already is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import ModelError, PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.qdq import WEIGHTED
from optimizer.shapes import infer
from optimizer.statistics import METHODS, PERCENTILE, Method, Statistics
from passes.quantize import dynamic, static, tensorrt
from passes.quantize.codes import Codes
from passes.quantize.kernels import is_quantized
from passes.quantize.placement import Choice, plan
from passes.quantize.sensitivity import relieve, scores
from passes.quantize.static import Mean
from passes.quantize.tensorrt import Rest
from passes.quantize.units import Plan, Unit, connected, moved, stretches

OPSET = 13  # the first with scales per channel
TAKEN = "rule: quantised before, left as it is"


@dataclass(frozen=True)
class Quantize(Pass):
    """Options of `quantize`.

    `method` reads ranges off the histograms, `ranges` overrides it for single tensors ("name:method"). `floor` is the
    least SQNR, in dB, that a tensor alone must keep in 8 bits, else its operators stay float (0: no limit); `limit` is
    the same for the outputs: the most sensitive static operators stay float until they reach it. `skip` names nodes or
    tensors whose operators stay float. `bits` of weights: 0 chooses by the processor. `correct` lowers biases by what
    the rounding of weights adds on average. `rest` is the type that what stays float will have (of `tensorrt` alone):
    its scales are numbers of that type.
    """

    name: ClassVar[str] = "quantize"
    lossy: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    scheme: Literal["static", "dynamic", "hybrid", "tensorrt", "openvino"] = "hybrid"
    rest: Rest = "fp16"
    method: Method = "mse"
    percentile: float = PERCENTILE
    ranges: tuple[str, ...] = ()
    floor: float = 0.0
    limit: float = 0.0
    bits: int = 0
    correct: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks values the grammar cannot."""
        if self.bits not in (0, 7, 8):
            raise ValueError("bits is 7, 8, or 0 for what suits the processor")
        if not 50 < self.percentile <= 100:
            raise ValueError("percentile lies above 50, up to 100")
        for item in self.ranges:
            if item.rpartition(":")[2] not in METHODS:
                raise ValueError(f"ranges takes tensor:method, with a method of {', '.join(METHODS)}; got '{item}'")

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many operators run in int8. Raises ModelError below opset 13, PipelineError uncalibrated."""
        if is_quantized(graph):
            if self.scheme == "tensorrt":
                graph.name_nodes()
                graph.root.notes.update({n.name: TAKEN for n in graph.walk() if n.op in WEIGHTED})
            return 0
        if graph.opset < OPSET:
            raise ModelError(f"int8 needs opset {OPSET}, the model has {graph.opset}: put 'opset{{min=13}}' before")
        if self.scheme == "tensorrt":
            return self._symmetric(graph, ctx, self.rest, self.bits or 8)
        cpu = ctx.target.cpu
        arm = cpu.arch in ("aarch64", "arm64")
        bits = self.bits or (8 if arm or cpu.int8_dot else 7)
        if self.scheme == "openvino":
            return self._symmetric(graph, ctx, "fp32", bits)
        count = 0
        if self.scheme != "dynamic":
            count += self._static(graph, ctx, np.dtype(np.int8) if arm else np.dtype(np.uint8), bits)
        if self.scheme != "static":
            count += dynamic.render(graph, bits, self.skip, lstm=ctx.target.backend == "ort")
        return count

    def _static(self, graph: Graph, ctx: Context, dtype: Codes, bits: int) -> int:
        statistics, mean = self._statistics(ctx)
        whole = self.scheme == "static"
        choice = Choice(dtype, self.method, self._methods(), self.percentile, self.floor, whole, frozenset(self.skip))
        chosen = plan(graph, statistics, choice)

        def draw(units: Sequence[Unit]) -> Graph | None:
            twin, part = graph.copy(), connected(list(units))
            static.render(twin, Plan(moved(graph, twin, part), chosen.params), bits, mean)
            return twin if part else None

        if self.limit > 0:
            kept = relieve(graph, stretches(chosen.units), draw, ctx, self.limit).kept
            chosen = Plan(connected(kept), chosen.params)
        return static.render(graph, chosen, bits, mean)

    def _symmetric(self, graph: Graph, ctx: Context, rest: Rest, bits: int) -> int:
        """Q/DQ at the inputs of weighted operators."""
        statistics, mean = self._statistics(ctx)
        graph.name_nodes()
        infer(graph)
        both = self.scheme == "openvino"  # takes u8 as well as s8
        choice = tensorrt.Choice(
            rest, self.method, self._methods(), self.percentile, self.floor, frozenset(self.skip), both
        )
        chosen = tensorrt.plan(graph, statistics, choice)

        def draw(names: Sequence[str]) -> Graph | None:
            twin = graph.copy()
            left_out = {node.name: "left out" for node in chosen.heads if node.name not in set(names)}
            made = tensorrt.render(twin, tensorrt.plan(twin, statistics, choice, left_out), rest, mean, bits)
            return twin if made else None

        if self.limit > 0:
            work = {node.name: tensorrt.work(graph, node, statistics) for node in chosen.heads}
            units = [[name] for name in work]
            dropped = relieve(graph, units, draw, ctx, self.limit, scores(graph), work.__getitem__).dropped
            why = {name: f"accuracy: SQNR {alone:.1f} dB alone" for name, alone in dropped}
            chosen = tensorrt.plan(graph, statistics, choice, why)
        graph.root.notes.update(chosen.reasons)
        return tensorrt.render(graph, chosen, rest, mean, bits)

    def _statistics(self, ctx: Context) -> tuple[Statistics, Mean]:
        if ctx.statistics is None:
            raise PipelineError("'quantize' needs statistics: put 'calibrate' before it")
        return ctx.statistics, ctx.statistics.mean if self.correct else lambda name: None

    def _methods(self) -> dict[str, Method]:
        return {name: method for name, _, method in (item.rpartition(":") for item in self.ranges)}  # type: ignore[misc]  # checked
