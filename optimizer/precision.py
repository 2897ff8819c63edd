"""Proof of precision: which share of the work runs in int8, in half precision, in float32, and why not in less.

What the graph promises (a weighted operator whose data comes out of DequantizeLinear is int8, any other has the type of
its inputs) is compared, node by node, with how the runtime's own network typed it, where one was built. A tool that
asks for int8 and silently builds float32 is found out here.

Work is counted in multiply-accumulates at the sizes the engine is fastest at (`optimizer.inspect`). Of the promised
precision, operators that a rule of the target excludes are not eligible, nor those that were kept in float on purpose,
for accuracy, by the user or because the compiler refused them; each has its reason, in `Graph.notes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from optimizer.graph import Graph, Node, Tensor
from optimizer.inspect import macs, sized
from optimizer.qdq import COPIES

INT8 = "int8"
MIN_INT8 = 0.9  # of the eligible MACs
DATA = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "MatMul": 2, "LSTM": 3, "GRU": 3, "RNN": 3}  # inputs that carry data
NAMES = {np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16", np.dtype(ml_dtypes.bfloat16): "bf16"}
MOVES = COPIES - {"MaxPool", "Resize"}  # across which the runtime's network is followed
LOST = "lost"  # the runtime's network has no layer of that name
EXCLUDED = ("rule: ", "accuracy: ", "skip: ", "build: ", "reverted: ")


@dataclass(frozen=True)
class Layer:
    """One weighted operator: its work in MACs (None: unknown), the precision promised, and the runtime's."""

    name: str
    op: str
    macs: int | None
    promised: str
    built: str | None
    reason: str

    @property
    def precision(self) -> str:
        return self.built or self.promised

    @property
    def eligible(self) -> bool:
        return not self.reason.startswith(EXCLUDED)


def layers(
    graph: Graph, shapes: Mapping[str, Sequence[int]], built: Mapping[str, str], instead: str = ""
) -> list[Layer]:
    """The weighted operators of all scopes, in order, at these input shapes; `instead`: why not the one wanted."""
    twin = sized(graph, shapes)
    found = []
    for node in twin.walk():
        if node.op in DATA and not node.domain:
            reason, typed = graph.notes.get(node.name, instead), built.get(node.name, LOST) if built else None
            found.append(Layer(node.name, node.op, macs(twin, node), promised(node), typed, reason))
    return found


def promised(node: Node) -> str:
    """The precision that the graph gives a weighted operator."""
    data = [t for t in node.inputs[: DATA[node.op]] if t.name]
    if all(map(_dequantized, data)):
        return INT8
    kinds = {NAMES.get(np.dtype(t.dtype), str(np.dtype(t.dtype))) for t in data if t.dtype is not None}
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _dequantized(tensor: Tensor) -> bool:
    while tensor.inputs and tensor.inputs[0].op in MOVES:
        tensor = tensor.inputs[0].inputs[0]
    return bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear"


def report(found: Sequence[Layer], wanted: str, built: bool) -> dict[str, Any]:
    """The manifest's `precision`: shares of the MACs, and the operators that are not in the `wanted` precision.

    `achieved` is the share of the eligible MACs, `kept` the share of all MACs whose precision is the promised one.
    """
    work = Counter[str]()
    for layer in found:
        work[layer.precision] += layer.macs or 0
    total = sum(work.values())
    eligible = sum(layer.macs or 0 for layer in found if layer.eligible)
    got = sum(layer.macs or 0 for layer in found if layer.eligible and layer.precision == wanted)
    kept = sum(layer.macs or 0 for layer in found if layer.precision == layer.promised)
    return {
        "source": "engine" if built else "model",
        "wanted": wanted,
        "macs": total,
        "shares": {name: _share(count, total) for name, count in sorted(work.items())},
        "eligible": _share(eligible, total),
        "achieved": _share(got, eligible),
        "kept": _share(kept, total),
        "uncounted": sum(layer.macs is None for layer in found),
        "others": [_row(layer, total) for layer in found if layer.precision != wanted],
    }


def shortfall(found: Sequence[Layer], wanted: str, least: float) -> str:
    """What is missing of the promise, with the operators, heaviest first; '' where nothing is.

    `least`: share of the MACs that must have the promised precision and, where int8 is `wanted`, of the eligible MACs
    that must be int8.
    """
    facts = report(found, wanted, True)
    missing = [layer for layer in found if layer.built not in (None, layer.promised)]
    if facts["kept"] is not None and facts["kept"] < least:
        return f"the runtime typed only {facts['kept']:.1%} of the work as the model says: {_list(missing)}"
    if wanted == INT8 and facts["achieved"] is not None and facts["achieved"] < least:
        missing = [layer for layer in found if layer.eligible and layer.precision != INT8]
        return (
            f"only {facts['achieved']:.1%} of the work that could be int8 is (--min-int8 {least:g}): {_list(missing)}"
        )
    return ""


SHOWN = 5


def _list(missing: Sequence[Layer]) -> str:
    rows = sorted(missing, key=lambda layer: -(layer.macs or 0))
    texts = [f"{r.name} ({r.op}) is {r.precision}{': ' + r.reason if r.reason else ''}" for r in rows[:SHOWN]]
    more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return "; ".join(texts) + more


def _row(layer: Layer, total: int) -> dict[str, Any]:
    share = None if layer.macs is None else _share(layer.macs, total)
    row = {"node": layer.name, "op": layer.op, "share": share, "precision": layer.precision}
    return {**row, "reason": layer.reason or None}


def _share(part: int, total: int) -> float | None:
    return round(part / total, 6) if total else None
