"""What a model is made of: operators, parameters, multiply-accumulates, interface; for `optimize inspect`.

MACs are counted from inferred shapes, with sizes the model runs with in place of its inputs' unknown dims (reported
with the count), for the operators whose time they explain: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN and
their integer forms. Both branches of an If count; the body of a Loop or Scan counts once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer import ops
from optimizer.context import Context
from optimizer.data import Input, interface
from optimizer.errors import DataError, ModelError
from optimizer.evaluate import Evaluate
from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.io import load
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.shapes import infer
from optimizer.stored import nbytes, outside
from optimizer.synthetic import key, source, usual_sizes
from optimizer.targets import target
from optimizer.text import kind

FOLD = "fixpoint(cleanup,fold,shapes)"
HEAVY = 1 << 30  # bytes of weights above which a model is not run to find sizes


def inspect(model: Path) -> dict[str, Any]:
    """Facts about a model file, as `optimize inspect --json` prints them. Raises ModelError."""
    graph = load(model)
    assert graph.header is not None
    files = {model, *(path for c in graph.constants().values() if (path := outside(c)) is not None)}
    operators = Counter(f"{node.domain}.{node.op}" if node.domain else node.op for node in graph.walk())
    work, sizes, unknown = _work(graph)
    infer(graph)
    return {
        "file": str(model),
        "bytes": sum(path.stat().st_size for path in files),
        "ir_version": graph.header.ir_version,
        "opset": {domain or "ai.onnx": version for domain, version in sorted(graph.imports.items())},
        "producer": " ".join([graph.header.model.producer_name, graph.header.model.producer_version]).strip(),
        "nodes": sum(operators.values()),
        "subgraphs": sum(1 for _ in graph.scopes()) - 1,
        "parameters": ops.parameters(graph),
        "weights": _weights(graph),
        "macs": sum(work.values()),
        "macs_at": sizes,
        "macs_unknown": unknown,
        "inputs": {t.name: kind(t) for t in graph.inputs},
        "defaults": {name: kind(t) for name, t in graph.overridable.items()},
        "outputs": {v.name: kind(t) for v, t in zip(graph.header.outputs, graph.outputs, strict=True)},
        "operators": {name: {"count": n, "macs": work[name]} for name, n in operators.most_common()},
    }


def _work(graph: Graph) -> tuple[Counter[str], dict[str, list[int]], int]:
    """MACs by operator, the input shapes they hold for, and how many operators could not be counted.

    Counted after shape arithmetic is folded: it hides sizes from inference, and costs no multiplications itself.
    """
    shapes = usual_shapes(graph)
    twin = sized(graph, shapes)
    work: Counter[str] = Counter()
    unknown = 0
    for node in twin.walk():
        count = macs(twin, node)
        work[node.op] += count or 0
        unknown += count is None
    return work, shapes, unknown


def sized(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """A copy with these shapes for its inputs, its shape arithmetic folded and the shapes of all tensors inferred."""
    twin = graph.copy()
    assert twin.header is not None
    tensors = {t.name: t for t in twin.inputs}
    for info in twin.header.inputs:
        if info.name not in shapes or info.name not in tensors:
            continue
        tensors[info.name].shape = list(shapes[info.name])
        for proto, size in zip(info.type.tensor_type.shape.dim, shapes[info.name], strict=True):
            proto.dim_value = size
    PassManager().run(build(FOLD), twin, Context(target("onnx")))
    infer(twin)
    return twin


def usual_shapes(graph: Graph) -> dict[str, list[int]]:
    """Shapes of the inputs with which the model runs."""
    inputs = interface(graph)
    sizes = _sizes(graph, inputs)
    return {
        name: [dim if isinstance(dim, int) else sizes[key(want, axis)] for axis, dim in enumerate(want.shape)]
        for name, want in inputs.items()
        if want.shape is not None and name not in graph.overridable
    }


def _sizes(graph: Graph, inputs: Mapping[str, Input]) -> Mapping[str, int]:
    """Sizes with which the model runs, found by trying; the usual ones where it is too large or nothing can run it."""
    if all(isinstance(dim, int) for want in inputs.values() for dim in want.shape or ()):
        return {}
    if sum(nbytes(c) for c in graph.constants().values()) < HEAVY:
        try:
            return source("random:1", graph, inputs, Evaluate(), 0).sizes
        except (DataError, ModelError):
            pass
    return usual_sizes(inputs)


def _weights(graph: Graph) -> dict[str, int]:
    """Bytes of weights by dtype; those of Constant nodes count too."""
    found: Counter[str] = Counter()
    values = [v for n in graph.walk() if n.op == "Constant" and isinstance(v := n.attrs.get("value"), Constant)]
    for constant in [*graph.constants().values(), *values]:
        found[str(constant.dtype)] += nbytes(constant)
    return dict(found.most_common())


class _Unknown(Exception):  # noqa: N818  # never leaves this module
    """A shape that inference could not tell."""


def macs(graph: Graph, node: Node) -> int | None:
    """Multiply-accumulates of one node; None where inference could not tell its shapes."""
    count = _COUNTS.get(node.op)
    try:
        return 0 if count is None or node.domain else count(graph, node)
    except _Unknown:
        return None


def _dims(tensor: Tensor) -> list[int]:
    if tensor.shape is None or not all(isinstance(dim, int) for dim in tensor.shape):
        raise _Unknown
    return list(tensor.shape)


def _conv(graph: Graph, node: Node) -> int:
    """Every output element needs one kernel: [M, C/group, k...] gives C/group * k products."""
    return math.prod(_dims(node.outputs[0])) * math.prod(_dims(node.inputs[1])[1:])


def _conv_transpose(graph: Graph, node: Node) -> int:
    """Every input element is spread over one kernel: [C, M/group, k...]."""
    return math.prod(_dims(node.inputs[0])) * math.prod(_dims(node.inputs[1])[1:])


def _matmul(graph: Graph, node: Node) -> int:
    return math.prod(_dims(node.outputs[0])) * _inner(node.inputs[0], -1, node.inputs[1], -2)


def _gemm(graph: Graph, node: Node) -> int:
    a = 0 if ops.attribute(graph, node, "transA") else -1
    b = -1 if ops.attribute(graph, node, "transB") else 0
    return math.prod(_dims(node.outputs[0])) * _inner(node.inputs[0], a, node.inputs[1], b)


def _inner(a: Tensor, i: int, b: Tensor, j: int) -> int:
    """The axis that is summed over, from whichever operand knows it."""
    for tensor, axis in ((b, j), (a, i)):
        if tensor.shape and len(tensor.shape) >= abs(axis) and isinstance(tensor.shape[axis], int):
            return int(tensor.shape[axis])
    raise _Unknown


def _recurrent(graph: Graph, node: Node) -> int:
    """Per time step and direction: input weights W [D, gates*H, I] and recurrent weights R [D, gates*H, H]."""
    steps = math.prod(_dims(node.inputs[0])[:2])  # time * batch, in either layout
    return steps * (math.prod(_dims(node.inputs[1])) + math.prod(_dims(node.inputs[2])))


_COUNTS: dict[str, Callable[[Graph, Node], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda graph, node: math.prod(_dims(node.outputs[0])) * math.prod(_dims(node.inputs[3])[1:]),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
