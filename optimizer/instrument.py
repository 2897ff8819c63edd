"""Instruments: context managers around each step of the pass manager. None of them changes what a pass does.

Verify        the model is valid, its interface unchanged, and "0 rewrites" means untouched
SameOutputs   outputs equal the original's, to rounding, after each pass, in the oracle
Dump          the model, as ONNX and as text, after each pass that changed it
Limit         stops rewriting after the first n steps: halving n finds the step that breaks a model
Reproduce     on a failure, leaves the model before the failing pass and the command to run it again
Progress      tells a listener which pass runs
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from optimizer.compare import compare
from optimizer.context import Context
from optimizer.errors import BugError, OptimizeError, UserError
from optimizer.evaluate import Feeds
from optimizer.graph import Graph
from optimizer.io import nbytes, save, skeleton
from optimizer.manager import Step
from optimizer.text import show

log = logging.getLogger(__name__)


def fingerprint(graph: Graph) -> str:
    """A digest of structure, attributes and small constants; large weights count by name, size and identity.

    Inferred types and shapes do not count: they are notes on the graph, and a pass that only looks may add some.
    """
    model = skeleton(graph)
    _untype(model.graph)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name, constant in graph.constants().items():
        digest.update(f"{name} {nbytes(constant)} {id(constant._values)}".encode())
    return digest.hexdigest()


def _untype(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for body in (attr.g for node in graph.node for attr in node.attribute if attr.type == onnx.AttributeProto.GRAPH):
        for info in [*body.input, *body.output]:
            info.ClearField("type")
        _untype(body)


class Verify:
    """Raises BugError where a pass leaves an invalid model, changes the interface, or miscounts."""

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        before, interface = fingerprint(graph), _interface(graph)
        yield
        if step.skipped:
            return
        if (fingerprint(graph) == before) != (step.count == 0):
            raise BugError(f"pass '{step.name}' reported {step.count} rewrites, but the graph says otherwise")
        if _interface(graph) != interface:
            raise BugError(f"pass '{step.name}' changed the model's inputs or outputs")
        if step.count:
            check(graph, step.name)


def check(graph: Graph, after: str) -> None:
    """Runs onnx.checker, on a copy without large weights. Raises BugError with the checker's own reason."""
    try:
        onnx.checker.check_model(skeleton(graph))
    except onnx.checker.ValidationError as error:
        raise BugError(f"after '{after}' the model is invalid: {str(error).splitlines()[0]}") from error


def _interface(graph: Graph) -> list[bytes]:
    assert graph.header is not None
    infos = [*graph.header.inputs, *graph.header.outputs]
    names = [t.name for t in graph.outputs]
    return [*(v.SerializeToString(deterministic=True) for v in infos), *(n.encode() for n in names)]


@dataclass
class SameOutputs:
    """Compares outputs with the original's after every pass, on `feeds`. For float pipelines."""

    feeds: Sequence[Feeds]
    reference: list[Feeds] = field(default_factory=list)

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        if not self.reference:
            with ctx.evaluate.open(graph) as run:
                self.reference = [run(feed) for feed in self.feeds]
        yield
        if step.count == 0 or step.children:
            return
        try:
            with ctx.evaluate.open(graph) as run:
                differences = compare((r, run(f)) for r, f in zip(self.reference, self.feeds, strict=True))
        except Exception as error:  # the original ran, so whatever the runtime raises now is the pass's doing
            raise BugError(f"after pass '{step.name}' the model does not run: {error}") from error
        for name, difference in differences.items():
            if not difference.within_rounding():
                what = difference.broken or f"largest error {difference.max_abs:.3g} of {difference.peak:.3g}"
                raise BugError(f"pass '{step.name}' changed output '{name}' beyond rounding: {what}")


@dataclass
class Dump:
    """Writes `NN-pass.onnx` and `NN-pass.txt` into a folder after each pass that changed something."""

    folder: Path

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        yield
        if step.count == 0 or step.children:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write '{self.folder}': {error.strerror}; choose another folder") from error
        stem = f"{step.number:02}-{step.name.partition('{')[0]}"
        save(graph, self.folder / f"{stem}.onnx")
        (self.folder / f"{stem}.txt").write_text(show(graph))


@dataclass
class Limit:
    """Skips every step after the first `last`; composite passes count too, so `last` is a `Step.number`."""

    last: int
    seen: int = 0

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        self.seen += 1
        step.skipped = self.seen > self.last
        yield


@dataclass
class Reproduce:
    """On a failure that is not the user's, saves the graph as the innermost failing pass met it, and how to rerun."""

    folder: Path
    versions: Callable[[], dict[str, str]]
    done: bool = False

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        before = graph.copy()
        try:
            yield
        except (KeyboardInterrupt, UserError):
            raise
        except Exception as error:
            if self.done:
                raise
            self.done = True
            self.folder.mkdir(parents=True, exist_ok=True)
            save(before, self.folder / "before.onnx")
            command = f"optimize before.onnx --target onnx --passes '{step.name}' --verify-each"
            note = {"pass": step.name, "error": str(error), "command": command, "versions": self.versions()}
            (self.folder / "reproduce.json").write_text(json.dumps(note, indent=2) + "\n")
            if isinstance(error, OptimizeError):
                raise
            raise BugError(f"pass '{step.name}' failed: {type(error).__name__}: {error}") from error


@dataclass
class Progress:
    """Calls `tell(name of the pass)` as each pass starts."""

    tell: Callable[[str], None]

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        self.tell(step.name)
        yield
