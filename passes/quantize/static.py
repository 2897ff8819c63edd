"""Writes a plan into the graph: node units `DQ -> operator -> Q` for ONNX Runtime on the CPU.

Every tensor has one QuantizeLinear; all its readers, float ones too, read the one DequantizeLinear behind it. Weights
become int8 initializers with a DequantizeLinear per channel; biases stay float, because the runtime folds them into
the accumulator itself. Moves work on the integers directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optimizer.graph import Array, Graph, Node, Tensor
from passes.quantize.codes import Codes, Params, ends, gate
from passes.quantize.kernels import Kind, activations, affine, phases
from passes.quantize.units import Plan, Unit
from passes.quantize.weights import least_scales, quantize_weights, rounding_shift

FLOAT = np.dtype(np.float32)


Mean = Callable[[str], Array | None]


def render(graph: Graph, plan: Plan, bits: int, mean: Mean = lambda name: None) -> int:
    """Rewrites the outermost scope as planned. Returns how many operators run in int8.

    `mean` gives the channel means [C] of a tensor, with which biases make up for the rounding of weights.
    """
    means = {id(u.node): mean(u.inputs[0].name) for u in plan.units if u.kind is Kind.WEIGHTED}
    writer = _Writer(graph, plan.params, bits, means)
    for unit in plan.units:
        writer.write(unit)
    return len(plan.units)


class _Writer:
    """`codes` maps the float view of an int8 tensor, by identity, to the integers and their parameters."""

    def __init__(self, graph: Graph, params: Mapping[str, Params], bits: int, means: Mapping[int, Array | None]):
        self.graph, self.params, self.bits, self.means = graph, params, bits, means
        self.codes: dict[int, tuple[Tensor, Params]] = {}
        self.entered: dict[int, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.constants: dict[Params, tuple[Tensor, Tensor]] = {}

    def write(self, unit: Unit) -> None:
        """Puts an int8 form in the place of the unit's nodes."""
        graph, node = self.graph, unit.node
        inputs: list[Tensor | None] = [t if t.name else None for t in node.inputs]
        for index in activations(graph, node, unit.kind):
            inputs[index] = self._integers(node.inputs[index])
        seen = [self.params[t.name] for t in unit.results]
        codes = self._move(unit, inputs, seen) if unit.kind is Kind.MOVE else [self._codes(unit, inputs, seen[0])]
        for old, made, params in zip(unit.results, codes, seen, strict=True):
            graph.replace(old, self._view(made, params, old))
        for done in reversed(unit.nodes):
            graph.remove(done)

    def _codes(self, unit: Unit, inputs: list[Tensor | None], seen: Params) -> Tensor:
        """The integers of a unit's result, which will be read with `seen`."""
        node, stored = unit.node, seen.before(*unit.view)
        if node.op == "ConvTranspose":
            return self._phases(node, inputs, stored)
        if node.op == "HardSigmoid":
            stored = gate(self.graph, node, seen.dtype)[0]
        op, attrs = node.op, dict(node.attrs)
        if unit.kind is Kind.WEIGHTED:
            axis = 0 if op == "Conv" or attrs.get("transB") else 1
            inputs[1], shift = self._weights(node, node.inputs[1], axis, inputs)
            inputs = self._biased(node, inputs, shift)
        elif unit.kind is Kind.CLAMP or op == "HardSigmoid":
            op, attrs, inputs = "Mul", {}, [inputs[0], self._scalar(1.0, seen.dtype)]
        elif op == "HardSwish":
            op, attrs, inputs = "Mul", {}, [inputs[0], self._gate(unit, inputs[0], seen.dtype)]
        elif unit.kind is Kind.AFFINE:
            a, b = affine(self.graph, node) or (1.0, 0.0)
            x = next(t for t in inputs if t is not None and id(t) in self.codes)
            op, inputs = ("Add" if b else "Mul"), [x, self._scalar(b or a, seen.dtype)]
        return self._store(op, inputs, attrs, stored, node)

    def _integers(self, tensor: Tensor) -> Tensor:
        """The float view of a tensor that comes as integers; a float tensor gets its Q and DQ here, once."""
        if id(tensor) in self.codes:
            return tensor
        if id(tensor) not in self.entered:
            params = self.params[tensor.name]
            codes = self.graph.variable(tensor.name + "_int8", params.dtype)
            reader = min(tensor.outputs, key=lambda n: n.order)
            self.graph.add("QuantizeLinear", [tensor, *self._constants(params)], [codes], before=reader)
            self.entered[id(tensor)] = self._view(codes, params, tensor)
        return self.entered[id(tensor)]

    def _view(self, codes: Tensor, params: Params, like: Tensor) -> Tensor:
        view = self.graph.variable(like.name + "_dq", FLOAT, like.shape)
        self.graph.add("DequantizeLinear", [codes, *self._constants(params)], [view])
        self.codes[id(view)] = (codes, params)
        return view

    def _constants(self, params: Params) -> tuple[Tensor, Tensor]:
        """Scale and zero point as initializers, one pair for each value."""
        if params not in self.constants:
            scale, zero = np.array(params.scale, np.float32), np.array(params.zero, params.dtype)
            self.constants[params] = (self.graph.constant(scale, "scale"), self.graph.constant(zero, "zero_point"))
        return self.constants[params]

    def _store(self, op: str, inputs: list[Tensor | None], attrs: dict[str, Any], params: Params, node: Node) -> Tensor:
        """Adds an operator and the Q behind it in the place of `node`."""
        hint = node.outputs[0].name
        made, codes = self.graph.variable(hint + "_float", FLOAT), self.graph.variable(hint + "_int8", params.dtype)
        self.graph.add(op, inputs, [made], attrs, name=node.name, before=node)
        self.graph.add("QuantizeLinear", [made, *self._constants(params)], [codes], before=node)
        return codes

    # ------------------------------------------------------------------ forms

    def _move(self, unit: Unit, inputs: list[Tensor | None], seen: list[Params]) -> list[Tensor]:
        """A copy of elements works on the integers."""
        node, view = unit.node, inputs[0]
        outputs = [self.graph.variable(t.name + "_int8", p.dtype) for t, p in zip(node.outputs, seen, strict=True)]
        inputs[0] = self.codes[id(view)][0]
        self.graph.add(node.op, inputs, outputs, dict(node.attrs), name=node.name, before=node)
        return list(outputs)

    def _gate(self, unit: Unit, x: Tensor | None, dtype: Codes) -> Tensor:
        stored, seen = gate(self.graph, unit.node, dtype)
        codes = self._store("Mul", [x, self._scalar(1.0, dtype)], {}, stored, unit.node)
        return self._view(codes, seen, unit.node.outputs[0])

    def _phases(self, node: Node, inputs: list[Tensor | None], stored: Params) -> Tensor:
        """A ConvTranspose as one convolution per phase of its stride; their outputs interleave as integers."""
        graph = self.graph
        found, weights = phases(graph, node), graph.array(node.inputs[1])
        assert found is not None and weights is not None
        stride, pads = found
        parts: list[Tensor | None] = []
        for phase in np.ndindex(stride, stride):
            kernel, padding = _phase(weights, stride, pads, (phase[0], phase[1]))
            w, shift = self._weights(node, graph.constant(kernel, node.inputs[1].name), 0, inputs)
            attrs = {"kernel_shape": list(kernel.shape[2:]), "pads": padding}
            parts.append(
                self._store("Conv", self._biased(node, [inputs[0], w, *inputs[2:]], shift), attrs, stored, node)
            )
        joined = graph.variable(node.outputs[0].name + "_phases", stored.dtype)
        codes = graph.variable(node.outputs[0].name + "_int8", stored.dtype)
        graph.add("Concat", parts, [joined], {"axis": 1}, before=node)
        graph.add("DepthToSpace", [joined], [codes], {"blocksize": stride, "mode": b"DCR"}, before=node)
        return codes

    def _weights(
        self, node: Node, tensor: Tensor, axis: int, inputs: list[Tensor | None]
    ) -> tuple[Tensor, Array | None]:
        """The DequantizeLinear of an int8 initializer, the same wherever the same codes serve the operator's inputs.

        With it, what rounding adds to each output channel on average; None where the input's means are not known.
        """
        values = self.graph.array(tensor)
        assert values is not None
        codes, scales = quantize_weights(values, axis, self.bits, self._least(inputs, values.shape[axis]))
        key = f"{tensor.name}/{axis}/{scales.tobytes().hex()}"
        if key not in self.weights:
            graph, name = self.graph, tensor.name
            inputs = [graph.constant(codes, name + "_int8"), graph.constant(scales, name + "_scale")]
            inputs.append(graph.constant(np.zeros(scales.shape, np.int8), name + "_zero_point"))
            self.weights[key] = graph.variable(name + "_dq", FLOAT)
            graph.add("DequantizeLinear", inputs, [self.weights[key]], {"axis": axis})
        mean = self.means[id(node)]
        if mean is None or node.op == "MatMul":
            return self.weights[key], None
        groups = int(node.attrs.get("group", 1)) if node.op == "Conv" else 1
        return self.weights[key], rounding_shift(values, codes, scales, axis, mean, groups)

    def _biased(self, node: Node, inputs: list[Tensor | None], shift: Array | None) -> list[Tensor | None]:
        """The inputs, with a bias that is less by `shift`."""
        old = inputs[2] if len(inputs) > 2 else None
        bias = np.float32(0) if old is None else self.graph.array(old)
        if shift is None or bias is None or bias.shape not in ((), shift.shape):
            return inputs
        made = (bias - shift).astype(np.float32)
        return [*inputs[:2], self.graph.constant(made, node.outputs[0].name + "_bias")]

    def _least(self, inputs: list[Tensor | None], channels: int) -> Array | None:
        x, bias = inputs[0], None if len(inputs) < 3 or inputs[2] is None else self.graph.array(inputs[2])
        if bias is None or bias.size not in (1, channels):
            return None
        return least_scales(bias, self.codes[id(x)][1].scale, channels)

    def _scalar(self, value: float, dtype: Codes) -> Tensor:
        """A scalar, exactly: the code one step above (below) its zero point."""
        first, up = ends(dtype)[0], value > 0
        params = Params(abs(value), first if up else first + 1, dtype)
        code = self.graph.constant(np.array(first + 1 if up else first, dtype), "scalar_int8")
        view = self.graph.variable("scalar", FLOAT)
        self.graph.add("DequantizeLinear", [code, *self._constants(params)], [view])
        return view


def _phase(weights: Array, stride: int, pads: tuple[int, int], phase: tuple[int, int]) -> tuple[Array, list[int]]:
    """The kernel and pads of the plain convolution that computes the outputs at `phase` of every stride.

    out[s*i + r] = sum over k = r + pad - s*d of x[i + d] w[k], for every whole d that keeps k inside the kernel.
    """
    taps, begins, ends = [], [], []
    for axis in (0, 1):
        size, start = weights.shape[2 + axis], phase[axis] + pads[axis]
        shifts = [d for d in range(-size, size) if 0 <= start - stride * d < size]
        taps.append([start - stride * d for d in shifts])
        begins.append(-shifts[0])
        ends.append(shifts[-1])
    kernel = weights[:, :, taps[0]][:, :, :, taps[1]].transpose(1, 0, 2, 3)
    return np.ascontiguousarray(kernel), [*begins, *ends]
