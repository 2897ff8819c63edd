"""Makes the models to choose from: the float one by the common passes, then each candidate from a copy of it.

Passes run under the instruments asked for. Where the float pipeline turns out to change outputs, it is run once more
with every pass compared, so that the error names the pass and comes with a reproducer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from optimizer.artifact import MODEL, sha256
from optimizer.backend import Backend, Session
from optimizer.context import Batches, Context
from optimizer.errors import BugError, DataError, ModelError, PipelineError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.graph import Graph
from optimizer.instrument import Dump, Limit, Progress, Reproduce, SameOutputs, Verify, check
from optimizer.io import save
from optimizer.judge import ORIGINAL, Variant, check_float
from optimizer.machine import versions
from optimizer.manager import Instrument, PassManager, Step
from optimizer.pipeline import Pass
from optimizer.plan import FLOAT, Plan, is_lossy
from optimizer.stored import outside

log = logging.getLogger(__name__)
SEEN = 2  # feeds on which single passes are compared


@dataclass(frozen=True)
class Watch:
    """How closely passes are watched: validity and outputs checked after each, models dumped, only so many run."""

    verify_each: bool = False
    dump: Path | None = None
    limit: Limit | None = None


@dataclass
class Builder:
    """What all builds of one run share. `bug` is the folder a reproducer goes to, `checks` the held-out feeds."""

    backend: Backend
    plan: Plan
    context: Context
    scratch: Path
    bug: Path
    checks: Batches = ()
    watch: Watch = Watch()
    prepared: list[Step] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # digest of a model's files: the scheme that made them first
    checkable: bool = True  # the original passes onnx.checker, so what is made of it must too

    def original(self, graph: Graph, path: Path | None) -> Variant:
        """The model as it came; one that came without a file is written to have one."""
        folder = self._folder(ORIGINAL)
        if path is None:
            save(graph, path := folder / MODEL)
        files = {path, *(file for c in graph.constants().values() if (file := outside(c)) is not None)}
        return Variant(ORIGINAL, graph, folder, path, sum(file.stat().st_size for file in files))

    def plain(self, original: Graph) -> Variant:
        """The optimized float model. Raises BugError where a pass breaks an invariant."""
        try:
            check(original, "loading")
        except BugError as error:
            self.checkable = False
            log.info("onnx.checker refuses the original (%s), so it does not judge what is made of it", error)
        graph = original.copy()
        feeds = list(islice(self.checks, SEEN)) if self.watch.verify_each else []
        self.prepared = self._run(self.plan.prepare, graph, FLOAT, [SameOutputs(feeds)] if feeds else [])
        return self._finish(Variant(FLOAT, graph, self._folder(FLOAT), Path(), steps=self.prepared))

    def candidate(self, scheme: str, plain: Graph) -> Variant:
        """A float graph's variant for one scheme. What makes it impossible is kept as the reason, not raised."""
        variant = Variant(scheme, plain.copy(), self._folder(scheme), Path())
        try:
            tail = self.plan.tails[scheme]
            steps = self._run(tail, variant.graph, scheme, [])
            lossy = [step for one, step in zip(tail, steps, strict=True) if is_lossy([one])]
            if not lossy or not lossy[-1].count:  # those before it, such as 'widen', only make way for it
                variant.failed = "finds nothing to change in this model"
            variant.steps = [*self.prepared, *steps]
            return variant if variant.failed else self._finish(variant)
        except (DataError, PipelineError):
            raise  # every candidate would meet it: the user's to mend
        except Exception as error:  # a row of the table, with its reason
            variant.failed = str(error).strip().splitlines()[0]
            log.log(logging.WARNING if isinstance(error, BugError) else logging.INFO, "%s: %s", scheme, variant.failed)
            return variant

    def open(self, variant: Variant) -> Any:
        """A context manager: a session of the variant in the runtime, or in the oracle where there is none."""
        if not self.backend.runs:
            return _oracle(self.context.evaluate, variant.graph)
        built = self.backend.build(variant.model, variant.folder)
        return self.backend.open(built, self.context.evaluate.threads)

    def check_float(self, original: Graph, plain: Graph) -> dict[str, Any]:
        """Compares outputs in the oracle; see `choose.check_float`. The error of a bug names the pass."""
        try:
            return check_float(original, plain, self.checks, self.context.evaluate, self.context.progress)
        except ModelError as error:
            if self.backend.runs:
                raise
            return {"outputs": False, "reason": str(error)}
        except BugError:
            same = SameOutputs(list(islice(self.checks, SEEN)))
            self._run(self.plan.prepare, original.copy(), "bug", [same])
            raise

    def _folder(self, scheme: str) -> Path:
        folder = self.scratch / scheme
        folder.mkdir(parents=True)
        return folder

    def _finish(self, variant: Variant) -> Variant:
        self.backend.lower(variant.graph)
        if self.checkable:
            check(variant.graph, variant.scheme)
        variant.model = variant.folder / MODEL
        files = save(variant.graph, variant.model)
        variant.bytes = sum(file.stat().st_size for file in files)
        first = (
            self.seen.setdefault(" ".join(map(sha256, files)), variant.scheme) if self.plan.tails else variant.scheme
        )
        if first != variant.scheme:
            variant.failed = f"it is the same model as {first}"
        return variant

    def _run(self, passes: Sequence[Pass], graph: Graph, stage: str, more: list[Instrument]) -> list[Step]:
        def tell(name: str) -> None:
            self.context.progress(f"{stage}: {name.partition('{')[0].partition('(')[0]}", 0, 0)

        instruments: list[Instrument] = [Reproduce(self.bug, versions), Progress(tell)]
        if self.watch.limit is not None:
            instruments.append(self.watch.limit)
        if self.watch.verify_each:
            instruments.append(Verify())
        if self.watch.dump is not None:
            instruments.append(Dump(self.watch.dump / stage))
        try:
            return PassManager([*instruments, *more]).run(passes, graph, self.context)
        except BugError as error:
            raise BugError(f"{error}; a reproducer is in '{self.bug}': please report it") from error


@contextmanager
def _oracle(evaluate: Evaluate, graph: Graph) -> Iterator[Session]:
    with evaluate.open(graph) as run:
        yield _Called(run)


@dataclass(frozen=True)
class _Called:
    call: Run

    def run(self, feeds: Feeds) -> Feeds:
        return self.call(feeds)
