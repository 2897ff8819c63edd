"""The portable float pipeline alone: nothing is run, measured or compared, so little is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from optimizer import registry, targets
from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build


def simplify(model: onnx.ModelProto | Path | str) -> onnx.ModelProto:
    """The model after the portable float pipeline: same interface, same outputs to rounding; the argument stays as is.

    The result holds its weights (at most 2 GiB). Raises ModelError for what is not a complete ONNX model.
    """
    return to_model(portable(model))


def explain(model: onnx.ModelProto | Path | str, what: str = "pruning") -> dict[str, Any]:
    """What a pass could change in the model after the portable float pipeline, and what keeps it from the rest.

    For `pruning`: `groups` of units that can be removed, `frozen` axes with the reason (docs/manifest.md).
    """
    return registry.load_explain(what)(portable(model))


def portable(model: onnx.ModelProto | Path | str) -> Graph:
    """The graph of a model after the portable float pipeline."""
    goal = targets.target("onnx")
    graph = load(model)
    PassManager().run(build(goal.prepare), graph, Context(goal))
    return graph
