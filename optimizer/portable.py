"""The portable float pipeline alone: nothing is run, measured or compared, so little is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from optimizer import registry, targets
from optimizer.collector import paused
from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.plan import make_plan


def simplify(model: onnx.ModelProto | Path | str, *, opset: int | None = None) -> onnx.ModelProto:
    """The model after the portable float pipeline: same interface, same outputs to rounding; the argument stays as is.

    `opset`: the operator set to raise it to first. The result holds its weights (at most 2 GiB). Raises ModelError for
    what is not a complete ONNX model, or cannot be raised.
    """
    return to_model(portable(model, opset))


def explain(model: onnx.ModelProto | Path | str, what: str = "pruning") -> dict[str, Any]:
    """What a pass could change in the model after the portable float pipeline, and what keeps it from the rest.

    For `pruning`: `groups` of units that can be removed, `frozen` axes with the reason (docs/manifest.md).
    """
    return registry.load_explain(what)(portable(model))


def portable(model: onnx.ModelProto | Path | str, opset: int | None = None) -> Graph:
    """The graph of a model after the portable float pipeline."""
    goal = targets.target("onnx")
    passes = make_plan(goal, None, None, opset=opset).prepare
    with paused():
        graph = load(model)
        PassManager().run(passes, graph, Context(goal))
    return graph
