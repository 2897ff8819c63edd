"""Renders a float graph in int8 for ONNX Runtime on the CPU, from calibration statistics.

static   Q/DQ around every operator with an int8 kernel, in chains that pay (`placement` decides, `static` writes)
dynamic  MatMul, Gemm and LSTM with activations quantised at run time (`dynamic`)
hybrid   static convolutions and what stands between them, dynamic MatMul, Gemm and LSTM: the best of both

Which is fastest and close enough is measured on the target, not decided here. On x86 activations are u8 and weights
s8 (7 bits where the processor has no VNNI); on ARM both are s8. A model that is quantised already is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import ModelError, PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.statistics import METHODS, PERCENTILE, Method
from passes.quantize import dynamic, static
from passes.quantize.kernels import is_quantized
from passes.quantize.placement import Choice, plan
from passes.quantize.sensitivity import relieve

OPSET = 13  # the first with scales per channel


@dataclass(frozen=True)
class Quantize(Pass):
    """Options of `quantize`.

    `method` reads ranges off the histograms, `ranges` overrides it for single tensors ("name:method"). `floor` is the
    least SQNR, in dB, that a tensor alone must keep in 8 bits, else its operators stay float (0: no limit); `limit` is
    the same for the outputs: the most sensitive static operators stay float until they reach it. `skip` names nodes or
    tensors whose operators stay float. `bits` of weights: 0 chooses by the processor. `correct` lowers biases by what
    the rounding of weights adds on average.
    """

    name: ClassVar[str] = "quantize"
    lossy: ClassVar[bool] = True
    scheme: Literal["static", "dynamic", "hybrid"] = "hybrid"
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
            return 0
        if graph.opset < OPSET:
            raise ModelError(f"int8 needs opset {OPSET}, the model has {graph.opset}: put 'opset{{min=13}}' before")
        cpu = ctx.target.cpu
        arm = cpu.arch in ("aarch64", "arm64")
        bits = self.bits or (8 if arm or cpu.int8_dot else 7)
        count = 0
        if self.scheme != "dynamic":
            if ctx.statistics is None:
                raise PipelineError("'quantize' needs statistics: put 'calibrate' before it")
            methods = {name: method for name, _, method in (item.rpartition(":") for item in self.ranges)}
            choice = Choice(
                np.dtype(np.int8) if arm else np.dtype(np.uint8),
                self.method,
                methods,
                self.percentile,
                self.floor,
                self.scheme == "static",
                frozenset(self.skip),
            )
            chosen = plan(graph, ctx.statistics, choice)
            mean: static.Mean = ctx.statistics.mean if self.correct else lambda name: None
            if self.limit > 0:
                chosen = relieve(graph, chosen, bits, mean, ctx, self.limit)
            count += static.render(graph, chosen, bits, mean)
        if self.scheme != "static":
            count += dynamic.render(graph, bits, self.skip, lstm=ctx.target.backend == "ort")
        return count
