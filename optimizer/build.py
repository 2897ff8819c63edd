"""Makes the models to choose from: the float one, what lossy passes all share, each candidate from a copy of that.

Passes run under the instruments asked for. Where the float pipeline turns out to change outputs, it is run once more
with every pass compared, so that the error names the pass and comes with a reproducer.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from optimizer.artifact import MODEL, sha256
from optimizer.backend import Backend, Session
from optimizer.context import Batches, Context
from optimizer.engine import BuildError, EngineOptions
from optimizer.errors import BugError, ModelError, UserError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.graph import Graph
from optimizer.instrument import Dump, Limit, Progress, Reproduce, SameOutputs, Verify, check
from optimizer.io import save
from optimizer.journal import recording
from optimizer.judge import ORIGINAL, Variant, check_float
from optimizer.machine import versions
from optimizer.manager import Instrument, PassManager, Step
from optimizer.pipeline import Pass, build
from optimizer.plan import FLOAT, Plan, essential
from optimizer.precision import DATA, INT8, promised
from optimizer.stored import outside

log = logging.getLogger(__name__)
SEEN = 2  # feeds on which single passes are compared
TRIES = 8  # builds of one candidate, each with more of it in float
REACH = 4  # steps from a node that a compiler complains about to the operators it may mean


@dataclass(frozen=True)
class Watch:
    """How closely passes are watched: validity and outputs checked after each, models dumped, only so many run.

    `provenance`: nodes keep in their metadata what they were made of.
    """

    verify_each: bool = False
    dump: Path | None = None
    limit: Limit | None = None
    provenance: bool = False


@dataclass
class Builder:
    """What all builds of one run share. `bug` is the folder a reproducer goes to, `checks` the held-out feeds.

    `runs`: variants are opened in the runtime, not in the oracle. `engine` says how to compile; None where nothing is
    compiled, or nothing can be.
    """

    backend: Backend
    plan: Plan
    context: Context
    scratch: Path
    bug: Path
    checks: Batches = ()
    watch: Watch = Watch()
    runs: bool = False
    engine: EngineOptions | None = None
    prepared: list[Step] = field(default_factory=list)
    shared: list[Step] = field(default_factory=list)
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

    def start(self, plain: Graph) -> Graph:
        """Where all candidates start: the float model itself, or a copy after the lossy passes that they share.

        Raises what those raise: without them there is nothing to choose from.
        """
        if not self.plan.shared:
            return plain
        graph = plain.copy()
        self.shared = self._run(self.plan.shared, graph, "shared", [])
        return graph

    def candidate(self, scheme: str, start: Graph) -> Variant:
        """A copy of `start` after one scheme's passes. What makes it impossible is kept as the reason, not raised."""
        dropped: list[str] = []
        refusal = ""
        for _ in range(TRIES):
            variant = Variant(scheme, start.copy(), self._folder(scheme), Path(), dropped=list(dropped))
            try:
                self._render(variant)
                if variant.idle and refusal:  # nothing is left of it
                    variant.idle, variant.failed = False, refusal
                if not variant.failed:
                    self.compile(variant)
                return variant
            except BuildError as error:
                variant.failed = refusal = str(error)
                more = _near(variant.graph, error.nodes)
                log.info("%s: %s; %d more operators stay in float", scheme, error, len(more))
                if not more or self.engine is None:
                    return variant
                dropped += more
            except UserError as error:
                if not isinstance(error, ModelError):
                    raise  # every candidate would meet it: the user's to mend
                variant.failed = str(error)
                log.info("%s: %s", scheme, error)
                return variant
            except Exception as error:  # a row of the table, with its reason
                variant.failed = str(error).strip().splitlines()[0]
                level = logging.WARNING if isinstance(error, BugError) else logging.INFO
                log.log(level, "%s: %s", scheme, variant.failed)
                return variant
        return variant

    def _render(self, variant: Variant) -> None:
        """Runs a scheme's own passes; those that can skip nodes skip what the compiler refused before."""
        tail = [_skipping(one, variant.dropped) for one in self.plan.tails[variant.scheme]]
        steps = self._run(tail, variant.graph, variant.scheme, [])
        counts = [steps[place].count for place in essential(tail)] if tail else [s.count for s in self.shared]
        variant.idle = not any(counts)
        variant.steps = [*self.prepared, *self.shared, *steps]
        if variant.idle:
            variant.failed = "finds nothing to change in this model"
            return
        variant.graph.notes |= dict.fromkeys(variant.dropped, "build: the compiler refuses it in int8")
        self._finish(variant)

    def compile(self, variant: Variant) -> None:
        """Makes the engine of a variant, once. Raises BuildError."""
        if self.engine is None or variant.built is not None:
            return
        self.context.progress(f"building {variant.scheme}", 0, 0)
        variant.built = self.backend.build(variant.model, variant.folder, self.engine)

    def open(self, variant: Variant) -> Any:
        """A context manager: a session of the variant in the runtime, or in the oracle where there is none."""
        if not self.runs:
            return _oracle(self.context.evaluate, self._simulated(variant.graph))
        self.compile(variant)
        built = variant.built or self.backend.build(variant.model, variant.folder, EngineOptions())
        return self.backend.open(built, self.context.evaluate.threads)

    def _simulated(self, graph: Graph) -> Graph:
        """What stands for the graph in the oracle: numbers the target rounds are rounded there, too."""
        if not self.context.target.simulate:
            return graph
        twin = graph.copy()
        PassManager().run(build(self.context.target.simulate), twin, self.context)
        return twin

    def check_float(self, original: Graph, plain: Graph) -> dict[str, Any]:
        """Compares outputs in the oracle; see `choose.check_float`. The error of a bug names the pass."""
        try:
            return check_float(original, plain, self.checks, self.context.evaluate, self.context.progress)
        except ModelError as error:
            if self.runs:
                raise
            return {"outputs": False, "reason": str(error)}
        except BugError:
            same = SameOutputs(list(islice(self.checks, SEEN)))
            self._run(self.plan.prepare, original.copy(), "bug", [same])
            raise

    def _folder(self, scheme: str) -> Path:
        folder = self.scratch / scheme
        shutil.rmtree(folder, ignore_errors=True)
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
            context = replace(self.context, verify=self.watch.verify_each)
            with recording(graph) if self.watch.provenance else nullcontext(()) as journal:
                return PassManager([*instruments, *more, *journal]).run(passes, graph, context)
        except BugError as error:
            raise BugError(f"{error}; a reproducer is in '{self.bug}': please report it") from error


def _skipping(one: Pass, names: Sequence[str]) -> Pass:
    """The pass, told to leave these nodes alone where it has an option for that."""
    own = {f.name: getattr(one, f.name) for f in fields(one)}
    if not names or not one.drops:
        return one
    changed = {"skip": (*own["skip"], *names)}
    return replace(one, **changed)


def _near(graph: Graph, names: Sequence[str]) -> list[str]:
    """The operators in int8 that a complaint about these nodes may mean: themselves, else the nearest ones."""
    found = []
    for node in [n for n in graph.nodes if n.name in names]:
        ring, seen = [node], {id(node)}
        for _ in range(REACH):
            if near := [n.name for n in ring if n.op in DATA and promised(n) == INT8]:
                found += near
                break
            makers = [n for m in ring for t in m.inputs for n in t.inputs]
            readers = [n for m in ring for t in m.outputs for n in t.outputs]
            ring = [n for n in dict.fromkeys(makers + readers) if id(n) not in seen]
            seen.update(map(id, ring))
    return list(dict.fromkeys(found))


@contextmanager
def _oracle(evaluate: Evaluate, graph: Graph) -> Iterator[Session]:
    with evaluate.open(graph) as run:
        yield _Called(run)


@dataclass(frozen=True)
class _Called:
    call: Run

    def run(self, feeds: Feeds) -> Feeds:
        return self.call(feeds)
