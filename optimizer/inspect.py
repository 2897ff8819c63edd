"""What a model is made of: operators, parameters, multiply-accumulates, interface; for `optimize inspect`.

MACs are counted from inferred shapes with batch 1 (a symbolic or unknown dim counts as 1 and is reported), for the
operators whose time they explain: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN and their integer forms. Bodies
of If, Loop and Scan count once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer import ops
from optimizer.graph import Graph, Node, Tensor
from optimizer.io import load
from optimizer.shapes import infer
from optimizer.stored import nbytes, outside
from optimizer.text import kind


def inspect(model: Path) -> dict[str, Any]:
    """Facts about a model file, as `optimize inspect --json` prints them. Raises ModelError."""
    graph = load(model)
    infer(graph)
    operators: Counter[str] = Counter()
    work: Counter[str] = Counter()
    open_dims: set[str] = set()
    for node in graph.walk():
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        operators[name] += 1
        work[name] += macs(graph, node, open_dims)
    constants = graph.constants()
    files = {model, *(path for c in constants.values() if (path := outside(c)) is not None)}
    assert graph.header is not None
    return {
        "file": str(model),
        "bytes": sum(path.stat().st_size for path in files),
        "ir_version": graph.header.ir_version,
        "opset": {domain or "ai.onnx": version for domain, version in sorted(graph.imports.items())},
        "producer": " ".join([graph.header.model.producer_name, graph.header.model.producer_version]).strip(),
        "nodes": sum(operators.values()),
        "subgraphs": sum(1 for _ in graph.scopes()) - 1,
        "parameters": ops.parameters(graph),
        "weights": _weights(constants),
        "macs": sum(work.values()),
        "macs_assume_one": sorted(open_dims),
        "inputs": {t.name: kind(t) for t in graph.inputs},
        "defaults": {name: kind(t) for name, t in graph.overridable.items()},
        "outputs": {v.name: kind(t) for v, t in zip(graph.header.outputs, graph.outputs, strict=True)},
        "operators": {name: {"count": n, "macs": work[name]} for name, n in operators.most_common()},
    }


def _weights(constants: dict[str, Any]) -> dict[str, int]:
    """Bytes of weights by dtype."""
    found: Counter[str] = Counter()
    for constant in constants.values():
        found[str(constant.dtype)] += nbytes(constant)
    return dict(found.most_common())


def macs(graph: Graph, node: Node, open_dims: set[str]) -> int:
    """Multiply-accumulates of one node at batch 1; adds to `open_dims` what was taken for 1."""
    count = _COUNTS.get(node.op)
    if count is None or (node.domain and node.op != "FusedMatMul"):
        return 0
    return count(graph, node, lambda tensor: _dims(tensor, open_dims))


Sizes = Callable[[Tensor], list[int]]


def _dims(tensor: Tensor, open_dims: set[str]) -> list[int]:
    """The shape with 1 for what is not known; [] for an unknown rank."""
    if tensor.shape is None:
        open_dims.add(f"shape of {tensor.name}")
        return []
    for axis, dim in enumerate(tensor.shape):
        if not isinstance(dim, int) and axis:
            open_dims.add(str(dim) if dim is not None else f"{tensor.name}[{axis}]")
    return [dim if isinstance(dim, int) else 1 for dim in tensor.shape]


def _conv(graph: Graph, node: Node, sizes: Sizes) -> int:
    """Every output element needs one kernel: [M, C/group, k...] gives C/group * k products."""
    return math.prod(sizes(node.outputs[0])) * math.prod(sizes(node.inputs[1])[1:])


def _conv_transpose(graph: Graph, node: Node, sizes: Sizes) -> int:
    """Every input element is spread over one kernel: [C, M/group, k...]."""
    return math.prod(sizes(node.inputs[0])) * math.prod(sizes(node.inputs[1])[1:])


def _matmul(graph: Graph, node: Node, sizes: Sizes) -> int:
    return math.prod(sizes(node.outputs[0])) * _inner(node.inputs[0], -1, node.inputs[1], -2, sizes)


def _gemm(graph: Graph, node: Node, sizes: Sizes) -> int:
    a = 0 if ops.attribute(graph, node, "transA") else -1
    b = -1 if ops.attribute(graph, node, "transB") else 0
    return math.prod(sizes(node.outputs[0])) * _inner(node.inputs[0], a, node.inputs[1], b, sizes)


def _inner(a: Tensor, i: int, b: Tensor, j: int, sizes: Sizes) -> int:
    """The axis that is summed over, from whichever operand knows it."""
    for tensor, axis in ((b, j), (a, i)):
        if tensor.shape and len(tensor.shape) >= abs(axis) and isinstance(tensor.shape[axis], int):
            return int(tensor.shape[axis])
    return (sizes(a) or [1])[i]


def _recurrent(graph: Graph, node: Node, sizes: Sizes) -> int:
    """Per time step and direction: input weights W [D, gates*H, I] and recurrent weights R [D, gates*H, H]."""
    steps = math.prod(sizes(node.inputs[0])[:2])  # time * batch, in either layout
    return steps * (math.prod(sizes(node.inputs[1])) + math.prod(sizes(node.inputs[2])))


_COUNTS: dict[str, Callable[[Graph, Node, Sizes], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "FusedMatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
