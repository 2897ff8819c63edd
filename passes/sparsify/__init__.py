"""Zeroes weights of Conv, ConvTranspose, Gemm and MatMul: off by default, and worth little on most runtimes.

What it buys, plainly: a smaller file once it is compressed (zip, gzip; the model itself keeps its size), and no speed
on dense runtimes, which multiply by zeros as by any number; ONNX Runtime on the CPU is one. `pattern=2:4` is what the
sparse tensor cores of NVIDIA's GPUs since Ampere can skip, in engines that TensorRT builds with SPARSE_WEIGHTS; nothing
else runs it faster. To be faster everywhere, remove channels (`prune`) or use int8 (`quantize`).

Every layer loses the same share of its weights: a ranking over all layers compares weights of different scales and
empties some of them. Only where an output sums over a single channel (depthwise convolutions, the first one of a grey
picture) nothing is zeroed: these are few weights, and each is a good part of what its output sees. With data, the
weights that are left make up for the others by least squares on the layer's own inputs (`recover`), in the order of
execution, on a graph in which earlier layers are sparse already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Array, Graph
from optimizer.pipeline import Pass
from optimizer.qdq import array
from optimizer.sparsity import is_2_4
from passes.sparsify.choose import lowest, scores, target, two_of_four
from passes.sparsify.collect import collected
from passes.sparsify.correct import corrected
from passes.sparsify.layers import Layer, layers, named
from passes.sparsify.moments import Moments

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sparsify(Pass):
    """Options of `sparsify`.

    `ratio` of each layer's weights become zero, those with the lowest score: `criterion` is magnitude, activation
    (magnitude times the root mean square of the input; needs data) or random, to compare with. `pattern` 2:4 zeroes
    two of each four neighbouring input channels and leaves alone what has no fours of them. `recover` corrects the
    weights that are left, where there is data. `skip` names nodes or tensors whose layers stay dense.
    """

    name: ClassVar[str] = "sparsify"
    lossy: ClassVar[bool] = True
    ratio: float = 0.5
    pattern: Literal["none", "2:4"] = "none"
    criterion: Literal["magnitude", "random", "activation"] = "magnitude"
    recover: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks values the grammar cannot."""
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is the share of weights to zero, between 0 and 1; got {self.ratio:g}")
        if self.pattern == "2:4" and self.ratio != 0.5:
            raise ValueError("pattern=2:4 zeroes half of the weights: leave ratio out")

    def run(self, graph: Graph, ctx: Context) -> int:
        """Returns how many layers lost weights. Raises PipelineError where the criterion needs data and none is."""
        if self.criterion == "activation" and not len(ctx.batches):
            raise PipelineError("'sparsify{criterion=activation}' needs data: give some with --data")
        due = [layer for layer in layers(graph) if self._is_due(graph, layer)]
        count = 0
        for place, (layer, seen) in enumerate(self._seen(graph, due, ctx)):
            count += self._sparsify(graph, layer, seen, np.random.default_rng([ctx.seed, place]))
        return count

    def _is_due(self, graph: Graph, layer: Layer) -> bool:
        """True where the layer may be made sparse, and is not yet."""
        if why := "it is to be skipped" if named(layer, self.skip) else self._unfit(layer):
            log.info("'%s' stays dense: %s", layer.name, why)
            return False
        weights = _values(graph, layer)
        if self.pattern == "2:4":
            return not is_2_4(weights, layer.layout.inputs)
        return int(np.count_nonzero(weights == 0)) < target(weights.size, self.ratio)

    def _unfit(self, layer: Layer) -> str:
        """Why a layer is left alone, or ''."""
        if layer.channels == 1:
            return "its outputs see one channel each"
        if self.pattern == "2:4" and layer.layout.op == "ConvTranspose":
            return "sparse tensor cores run no ConvTranspose"
        if self.pattern == "2:4" and layer.channels % 4:
            return f"its {layer.channels} input channels are no multiple of four"
        return ""

    def _seen(self, graph: Graph, due: Sequence[Layer], ctx: Context) -> Iterator[tuple[Layer, Moments | None]]:
        """Each layer with what its inputs look like, where that is known and of use."""
        if not len(ctx.batches) or not (self.recover or self.criterion == "activation"):
            return ((layer, None) for layer in due)
        return collected(graph, due, ctx, self.recover and not ctx.synthetic)

    def _sparsify(self, graph: Graph, layer: Layer, seen: Moments | None, rng: np.random.Generator) -> bool:
        """Puts sparse weights in the place of the layer's; False where the criterion knows nothing of it."""
        if self.criterion == "activation" and seen is None:
            log.info("'%s' stays dense: criterion=activation cannot see its inputs", layer.name)
            return False
        matrices = layer.matrices(_values(graph, layer))
        zeroed = self._chosen(layer, matrices, seen, rng)
        if self.recover and seen is not None and seen.whole:
            matrices = corrected(matrices, ~zeroed, seen)
        made = graph.constant(layer.restored(np.where(zeroed, np.float32(0), matrices)), layer.tensor.name)
        for node in layer.nodes:
            graph.set_input(node, 1, made)
        return True

    def _chosen(self, layer: Layer, matrices: Array, seen: Moments | None, rng: np.random.Generator) -> Array:
        """True where a weight is to be zero."""
        squares = seen.squares if seen is not None and self.criterion == "activation" else None
        found = scores(matrices, squares, rng if self.criterion == "random" else None)
        return two_of_four(found, layer.channels) if self.pattern == "2:4" else lowest(found, self.ratio)


def _values(graph: Graph, layer: Layer) -> Array:
    weights = array(graph, layer.tensor)
    assert weights is not None
    return weights
