"""The gate: whether a candidate's outputs, or the user's own metric of it, are close enough to the original's.

Without a metric every float output must reach `min_sqnr` dB, and outputs that look like class scores must keep the
place of their largest score in a share `min_agreement` of the rows: the default share allows for chance (one-sided,
5 %), so that one flip among five rows condemns nothing. With a metric these two hold only where asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.compare import Difference
from optimizer.errors import UserError
from optimizer.evaluate import Feeds, Run
from optimizer.functions import load_function
from optimizer.graph import Graph, Node, Tensor

MIN_SQNR = 15.0  # dB
MIN_AGREEMENT = 0.95  # share of rows
MAX_DROP = 0.01  # of the metric's own unit
NORMAL = 1.645  # 95 % of a normal distribution lie below so many deviations

Metric = Callable[[Run], float]
_KEEP_ROWS = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Add", "Flatten", "Clip", "DequantizeLinear"}
_SCORES = {"Softmax", "LogSoftmax", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Gate:
    """The limits. None: not asked for."""

    min_sqnr: float | None
    min_agreement: float | None
    metric: Metric | None = None
    max_drop: float = MAX_DROP
    name: str = ""  # of the metric
    by_chance: bool = False  # agreement may be missed as far as few rows let it by chance

    def measure(self, run: Run) -> float | None:
        """The metric of a variant, higher is better; None without one. Raises UserError where it fails."""
        if self.metric is None:
            return None
        try:
            value = float(self.metric(run))
        except Exception as error:  # whatever the user's function raises
            raise UserError(f"--metric failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise UserError(f"--metric returned {value}: it must return a finite number, higher is better")
        return value

    def misses(
        self, differences: Mapping[str, Difference], scores: set[str], metric: float | None, base: float | None
    ) -> str:
        """The first limit that is missed, in words; '' where none is."""
        for name, difference in differences.items():
            if difference.broken:
                return f"output '{name}': {difference.broken}"
        if metric is not None and base is not None and base - metric > self.max_drop:
            return f"metric {metric:.4g}, {base - metric:.4g} below the original's {base:.4g} (limit {self.max_drop:g})"
        floats = {n: d for n, d in differences.items() if d.dtype.startswith(("float", "bfloat"))}
        for name, difference in (floats or differences).items():
            if self.min_sqnr is not None and difference.sqnr < self.min_sqnr:
                return f"output '{name}': SQNR {difference.sqnr:.1f} dB (limit {self.min_sqnr:g})"
        for name in sorted(scores & set(differences)):
            if self._disagrees(difference := differences[name]):
                rows = f"{difference.agreeing} of {difference.rows} rows"
                return f"output '{name}': same top-1 in {rows} (limit {self.min_agreement:.1%})"
        return ""

    def _disagrees(self, difference: Difference) -> bool:
        if self.min_agreement is None or not difference.rows:
            return False
        expected = (1 - self.min_agreement) * difference.rows
        chance = NORMAL * math.sqrt(expected * self.min_agreement) + 0.5 if self.by_chance else 0.0
        return difference.rows - difference.agreeing > expected + chance + 1e-9


def make_gate(
    min_sqnr: float | None, min_agreement: float | None, metric: str | Metric | None, max_drop: float
) -> Gate:
    """Fills in the defaults. Raises UserError for limits that no model can meet or miss."""
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise UserError(f"--min-agreement {min_agreement:g} is not a share: give a number from 0 to 1, such as 0.98")
    if max_drop < 0 or not math.isfinite(max_drop):
        raise UserError(f"--max-drop {max_drop:g} makes no sense: give how far the metric may fall, such as 0.01")
    by_chance = min_agreement is None
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "")
    if isinstance(metric, str):
        metric = load_function(metric, "--metric")
    if metric is None:
        min_sqnr = MIN_SQNR if min_sqnr is None else min_sqnr
        min_agreement = MIN_AGREEMENT if min_agreement is None else min_agreement
    return Gate(min_sqnr, min_agreement, metric, max_drop, name, by_chance)


def class_scores(graph: Graph) -> set[str]:
    """Names of outputs that look like class scores: more than one column, made by Softmax or a dense layer."""
    return {t.name for t in graph.outputs if t.shape is not None and len(t.shape) >= 2 and _scores(graph, t)}


def _scores(graph: Graph, tensor: Tensor) -> bool:
    rank = len(tensor.shape)
    if tensor.shape[-1] == 1:
        return False
    for _ in range(8):
        node: Node | None = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op not in _KEEP_ROWS | _SCORES:
            return False
        if node.op in ("Softmax", "LogSoftmax"):
            return int(node.attrs.get("axis", -1)) in (-1, rank - 1, 1 if graph.opset < 13 else -1)
        if node.op in _SCORES:
            return any(graph.is_constant(t) for t in node.inputs)
        tensor = next((t for t in node.inputs if not graph.is_constant(t)), node.inputs[0])
    return False


def flat(outputs: Mapping[str, Any]) -> Feeds:
    """Outputs as arrays: a sequence becomes one array per element, a map its values in the order of its keys."""
    found: Feeds = {}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, list):
            found |= flat({f"{name}[{i}]": element for i, element in enumerate(value)})
        elif isinstance(value, dict):
            found[name] = np.array([value[key] for key in sorted(value)])
        else:
            found[name] = np.asarray(value)
    return found
