"""What codes stand for: the float tensor behind every tensor of 8 or 16 bit integers whose origin is understood.

Codes come from QuantizeLinear and DynamicQuantizeLinear, and operators that only move elements carry them on. The float
tensor is the one that was rounded, moved alike. QuantizeLinear also cuts what its codes cannot hold, which often is the
only thing left of a Relu: a Clip keeps that, unless the tensor is known to stay within half a step of the ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute
from passes.dequantize.arithmetic import CODES, FLOAT, at, number, scale_of

INFINITE = (-math.inf, math.inf)
MOVES = frozenset(
    ["Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherND", "Identity", "MaxPool", "Pad", "Reshape",
     "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"]
)  # fmt: skip
WITHIN = {"Relu": (0.0, math.inf), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0),
          "Tanh": (-1.0, 1.0)}  # fmt: skip
AVERAGES = ("AveragePool", "GlobalAveragePool")
CLIP_INPUTS = 11  # the operator set in which Clip takes its bounds as inputs
LONGEST = 64  # nodes that are looked at to bound a tensor


@dataclass(frozen=True)
class View:
    """codes = round(values / scale) + zero, cut to the codes' ends; tensors where both come at run time."""

    values: Tensor
    scale: float | Tensor
    zero: float | Tensor


class Views:
    """The views of a model's codes, and the nodes added to have them.

    Nodes must be shown in the order in which they run.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.known: dict[int, tuple[Tensor, View]] = {}  # the tensor is held so that its id stays its own
        self.made: list[tuple[Graph, Node]] = []

    def add(
        self, node: Node, op: str, inputs: Sequence[Tensor | None], attrs: dict[str, Any] | None = None, count: int = 1
    ) -> list[Tensor]:
        """New nodes stand before `node`, in its scope. Returns their outputs, of float32."""
        assert node.scope is not None
        outputs: list[Tensor] = [node.scope.variable(f"{node.outputs[0].name}_real", FLOAT) for _ in range(count)]
        self.made.append((node.scope, node.scope.add(op, inputs, outputs, attrs, name=node.name, before=node)))
        return outputs

    def drop_unread(self) -> None:
        """Takes back the added nodes that came to nothing."""
        for scope, node in reversed(self.made):
            if node.order >= 0 and not any(t.outputs or self.graph.is_output(t) for t in node.outputs):
                scope.remove(node)

    def of(self, codes: Tensor) -> View | None:
        return self.known[id(codes)][1] if id(codes) in self.known else None

    def agree(self, view: View, scale: Tensor | None, zero: Tensor | None) -> bool:
        """True where a reader takes the codes for what they were made for."""
        if isinstance(view.scale, float):
            return scale is not None and scale_of(self.graph, scale) == view.scale and self.zero_agrees(view, zero)
        return scale is view.scale and zero is view.zero

    def zero_agrees(self, view: View, zero: Tensor | None) -> bool:
        if isinstance(view.zero, Tensor):
            return zero is view.zero
        return number(self.graph, zero, 0.0) == view.zero

    def read(self, node: Node, codes: Tensor, scale: Tensor | None, zero: Tensor | None) -> Tensor | None:
        """The values a reader sees in the codes, which may be in other steps than they were made in; else None."""
        view = self.of(codes)
        if view is None or self.agree(view, scale, zero):
            return None if view is None else view.values
        step, start = scale_of(self.graph, scale), number(self.graph, zero, 0.0)
        if step is None or start is None or isinstance(view.scale, Tensor) or isinstance(view.zero, Tensor):
            return None
        slope, offset = step / view.scale, (view.zero - start) * step
        (scaled,) = self.add(node, "Mul", [view.values, self._constant(slope)])
        return scaled if not offset else self.add(node, "Add", [scaled, self._constant(offset)])[0]

    # ------------------------------------------------------------------ where codes come from

    def dynamic(self, node: Node) -> None:
        """Notes the codes of a DynamicQuantizeLinear."""
        codes, scale, zero = node.outputs
        self._note(codes, View(node.inputs[0], scale, zero))

    def quantize(self, node: Node) -> None:
        """Notes the codes of a QuantizeLinear of a float32 tensor with one constant scale."""
        x, zero = node.inputs[0], at(node.inputs, 2)
        scale, start = scale_of(self.graph, at(node.inputs, 1)), number(self.graph, zero, 0.0)
        kind = np.dtype(np.uint8 if zero is None else zero.dtype)
        if scale is None or start is None or kind not in CODES or x.dtype is None or np.dtype(x.dtype) != FLOAT:
            return
        if self.graph.is_constant(x) or node.attrs.get("block_size") or node.attrs.get("output_dtype"):
            return
        ends = np.iinfo(kind)
        low, high = ((end - start) * scale for end in (int(ends.min), int(ends.max)))
        least, most = bounds(self.graph, x)
        if least < low - scale / 2 or most > high + scale / 2:
            x = self._clip(node, x, low, high)
        self._note(node.outputs[0], View(x, scale, start))

    def move(self, node: Node) -> None:
        """Moves the values behind the codes that a node moves."""
        inputs: list[Tensor | None] = [t if t.name else None for t in node.inputs]
        data = range(len(inputs)) if node.op == "Concat" else range(1)
        views = [self.of(node.inputs[i]) for i in data]
        first = views[0] if views else None
        if first is None or any(v is None or (v.scale, v.zero) != (first.scale, first.zero) for v in views):
            return
        if len(node.outputs) > 1 and node.op != "Split":
            return
        for index, view in zip(data, views, strict=True):
            inputs[index] = view.values if view else None
        if not self._movable(node, first, inputs):
            return
        made = self.add(node, node.op, inputs, dict(node.attrs), len(node.outputs))
        for codes, values in zip(node.outputs, made, strict=True):
            if codes.name:
                self._note(codes, replace(first, values=values))

    def _movable(self, node: Node, view: View, inputs: list[Tensor | None]) -> bool:
        """True where a node does to floats what it does to codes; a pad's value is put in their terms."""
        if node.op == "Resize":
            sampled = str(attribute(self.graph, node, "coordinate_transformation_mode"))
            return str(attribute(self.graph, node, "mode")) != "cubic" and sampled != "tf_crop_and_resize"
        if node.op != "Pad" or attribute(self.graph, node, "mode") != "constant":
            return True
        filler = at(node.inputs, 2)
        if isinstance(view.zero, Tensor) or isinstance(view.scale, Tensor):
            value = 0.0 if filler is view.zero else None
        else:
            code = number(self.graph, filler, 0.0)
            value = None if code is None else (code - view.zero) * view.scale
        if value is not None:
            inputs[2:3] = [self._constant(value)]
        return value is not None and len(node.inputs) > 1  # older Pads take attributes, and no codes

    def _clip(self, node: Node, x: Tensor, low: float, high: float) -> Tensor:
        if self.graph.opset < CLIP_INPUTS:
            return self.add(node, "Clip", [x], {"min": low, "max": high})[0]
        return self.add(node, "Clip", [x, self._constant(low), self._constant(high)])[0]

    def _constant(self, value: float) -> Tensor:
        return self.graph.constant(np.array(value, np.float32), "real")

    def _note(self, codes: Tensor, view: View) -> None:
        self.known[id(codes)] = (codes, view)


def bounds(graph: Graph, tensor: Tensor) -> tuple[float, float]:
    """An interval that holds every element of a tensor, as far as its makers say."""
    low, high = math.inf, -math.inf
    pending = [tensor]
    for _ in range(LONGEST):
        if not pending:
            return low, high
        makers: list[Node] = pending.pop().inputs
        if not makers or makers[0].domain:
            return INFINITE
        node = makers[0]
        if node.op in MOVES - {"Pad", "Resize"}:
            pending.extend(node.inputs if node.op == "Concat" else node.inputs[:1])
            continue
        if node.op in AVERAGES:  # of the elements, and of zeros where they are padded
            pending.append(node.inputs[0])
            low, high = min(low, 0.0), max(high, 0.0)
            continue
        ends = _clipped(graph, node) if node.op == "Clip" else WITHIN.get(node.op, INFINITE)
        low, high = min(low, ends[0]), max(high, ends[1])
    return INFINITE


def _clipped(graph: Graph, node: Node) -> tuple[float, float]:
    if graph.opset < CLIP_INPUTS:
        return node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)
    low, high = number(graph, at(node.inputs, 1), -math.inf), number(graph, at(node.inputs, 2), math.inf)
    return (-math.inf if low is None else low), (math.inf if high is None else high)
