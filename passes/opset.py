"""Raises the standard operator set, for what newer sets alone can say (Q/DQ per channel needs 13).

onnx's version converter does it, on a copy without the large weights. What it gets wrong is put right: Resize
before 11 and Upsample sampled asymmetrically, which newer sets must be told. The result is believed only if the oracle
computes the same outputs from it, on the first batch of data or else on random inputs; otherwise nothing changes, or,
where the set was asked for, the reason is raised.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import helper, version_converter

from optimizer import synthetic
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.data import interface
from optimizer.errors import ModelError, OptimizeError
from optimizer.evaluate import Feeds
from optimizer.graph import Constant, Graph
from optimizer.io import load, skeleton
from optimizer.pipeline import Pass
from passes.cleanup.constants import lift_constants

log = logging.getLogger(__name__)

LOWEST = 7  # older sets align operands by attributes; there is nothing to gain between them
SAMPLING = {"coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}


@dataclass(frozen=True)
class Opset(Pass):
    """Raises the standard operator set to `min` where it is older; returns by how many versions.

    `strict`: the model must end up in that very set.
    """

    name: ClassVar[str] = "opset"
    min: int = 13
    strict: bool = False

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not LOWEST <= self.min <= newest:
            raise ValueError(f"min must be between {LOWEST} and {newest}")

    def run(self, graph: Graph, ctx: Context) -> int:
        """Raises ModelError, under `strict`, where the model is newer or cannot be raised."""
        old = graph.imports.get("", self.min)
        if old > self.min and self.strict:
            raise ModelError(
                f"the model is of operator set {old} and cannot be lowered to {self.min}: ask for {old} up"
            )
        if old >= self.min:
            return 0
        made, reason = self._try(graph, ctx)
        if made is not None:
            graph.become(made)
            return self.min - old
        if self.strict:
            raise ModelError(f"the model cannot be raised from operator set {old} to {self.min}: {reason}")
        log.info("operator set %d kept: %s", old, reason)
        return 0

    def _try(self, graph: Graph, ctx: Context) -> tuple[Graph | None, str]:
        """The raised model, or None and why not."""
        try:
            made = _raised(graph, self.min)
            same = _same_outputs(graph, made, ctx)
        except (OptimizeError, RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            return None, str(error).strip().partition("\n")[0]
        return (made, "") if same else (None, f"raised to {self.min} it computes something else")


def _raised(graph: Graph, version: int) -> Graph:
    """The model in another version of the standard set. Raises what onnx's converter raises."""
    light = graph.copy()
    lift_constants(light)
    held = light.constants() | light.overridable
    made = load(version_converter.convert_version(skeleton(light), version))
    placeholders = [t for t in made.inputs if t.name in held]
    made.ir.inputs = [t for t in made.inputs if t.name not in held]
    for placeholder in placeholders:
        weights = Constant(placeholder.name, held[placeholder.name]._values)
        made.replace(placeholder, weights)
        if weights.name in light.overridable:
            made.overridable[weights.name] = weights
    made.header = copy.deepcopy(graph.header)
    assert made.header is not None
    made.header.imports[""] = version
    imports = [helper.make_opsetid(domain, number) for domain, number in made.header.imports.items() if not domain]
    made.header.ir_version = max(made.header.ir_version, helper.find_min_ir_version_for(imports))
    made.annotating = {n: c.copy() for n, c in graph.annotating.items()}
    _restore(graph, made)
    lift_constants(made)
    return made


def _restore(graph: Graph, made: Graph) -> None:
    """What the converter loses: notes on nodes, and how Resize and Upsample of old sets sample."""
    known = {node.name: node for node in graph.walk()}
    sampled = {
        n.outputs[0].name for n in known.values() if n.op == "Upsample" or (n.op == "Resize" and graph.opset < 11)
    }
    for node in made.walk():
        if node.op == "Resize" and node.outputs[0].name in sampled:
            node.attrs.update(SAMPLING)
        if (old := known.get(node.name)) is not None:
            node.doc, node.metadata, node.devices = old.doc, old.metadata, old.devices


def _same_outputs(graph: Graph, made: Graph, ctx: Context) -> bool:
    feeds = _feeds(graph, ctx)
    differences = compare([(ctx.evaluate(graph, feeds), ctx.evaluate(made, feeds))])
    return all(d.within_rounding() for d in differences.values())


def _feeds(graph: Graph, ctx: Context) -> Feeds:
    """The first batch, else random inputs of a size that the model runs with. Raises DataError if none is found."""
    for feeds in ctx.batches:
        return feeds
    source = synthetic.source("random:1", graph, interface(graph), ctx.evaluate, ctx.seed)
    return next(feeds for _, feeds in source.read(None))
