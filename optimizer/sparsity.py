"""Which weights are sparse: the share of zeros in each, and whether they fit the pattern of sparse tensor cores.

2:4 means that of each four consecutive input channels, at the same place of the kernel and for the same output, two
are zero. It is the only sparsity that a GPU's tensor cores skip, and only in a kernel that was chosen for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.graph import Array, Constant, Graph, Node, Tensor, peek
from optimizer.ops import attribute
from optimizer.qdq import WEIGHTED, array, maker, zero_point

LEAST = 1 / 3  # share of zeros from which on weights are listed
OPS = (*WEIGHTED, "MatMulInteger")
KEEPS_ZEROS = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


def sparsity(graph: Graph) -> list[dict[str, Any]]:
    """A row for each weighted operator, of all scopes, whose constant weights are zero for a third or more.

    `zeros` is the share, `pattern` is "2:4" or None. Int8 codes are read too; one array at a time is in memory.
    """
    known: dict[tuple[int, int], tuple[float, bool]] = {}
    rows = []
    for node in graph.walk():
        weights = constant(graph, node)
        if weights is None or len(weights.shape) < 2 or 0 in weights.shape:
            continue
        key = id(weights), input_axis(graph, node, len(weights.shape))
        if key not in known:
            values = peek(weights)
            known[key] = float(np.mean(values == 0)), is_2_4(values, key[1])
        zeros, fits = known[key]
        if zeros >= LEAST:
            row = {"node": node.name, "op": node.op, "shape": list(weights.shape), "zeros": round(zeros, 4)}
            rows.append(row | {"pattern": "2:4" if fits else None})
    return rows


def input_axis(graph: Graph, node: Node, rank: int) -> int:
    """The axis of a weighted operator's weights that counts its input channels (in a group, for convolutions)."""
    if node.op == "Gemm":
        return 1 if attribute(graph, node, "transB") else 0
    return {"Conv": 1, "ConvTranspose": 0}.get(node.op, rank - 2)


def is_2_4(weights: Array, axis: int) -> bool:
    """True where at most two of each four neighbours on the axis, counted from its start, are not zero."""
    if weights.shape[axis] % 4:
        return False
    fours = np.moveaxis(weights != 0, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(fours, axis=1) <= 2).all())


def constant(graph: Graph, node: Node) -> Constant | None:
    """What a weighted operator's weights are made of, place by place and zeros of zeros; None where it is not constant.

    That is an initializer or the value of a Constant node, as it is, cast, or quantised symmetrically.
    """
    if node.domain or node.op not in OPS or len(node.inputs) < 2:
        return None
    if node.op == "MatMulInteger" and not (len(node.inputs) < 4 or _is_zero(graph, node.inputs[3])):
        return None
    tensor = node.inputs[1]
    while (made := maker(tensor)) is not None and made.op in KEEPS_ZEROS:
        if "Linear" in made.op and not _is_zero(graph, zero_point(made)):
            return None
        tensor = made.inputs[0]
    if made is not None:
        value = made.attrs.get("value") if made.op == "Constant" else None
        return value if isinstance(value, Constant) else None
    return tensor if isinstance(tensor, Constant) and graph.is_constant(tensor) else None


def _is_zero(graph: Graph, point: Tensor | None) -> bool:
    if point is None:
        return True
    values = array(graph, point)
    return values is not None and not values.any()
