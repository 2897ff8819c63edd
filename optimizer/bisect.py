"""Finds the first pass, and in it the first rewrite, after which outputs differ, and the smallest model that shows it.

The pipeline runs once, with a copy of the graph after every step that changed something; copies are halved until two
neighbours remain, of which the first is right and the second is not. Then the pass between them runs again and again on
the right one, each time allowed so many rewrites by rules, halved likewise. What differs without any is the pass's own
doing. Around that rewrite the smallest part is cut out that still shows it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from optimizer import __version__, artifact, pipeline, shapes, targets
from optimizer.api import check_numbers
from optimizer.compare import Difference, compare
from optimizer.context import Context
from optimizer.cut import Part, Values, smallest
from optimizer.data import Data, Given, open_data
from optimizer.data import Part as Feeding
from optimizer.errors import DataError, ModelError, UserError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.graph import Graph
from optimizer.io import load, save
from optimizer.journal import Journal
from optimizer.machine import versions
from optimizer.manager import PassManager, Step
from optimizer.pipeline import Pass
from optimizer.plan import is_lossy, make_plan
from optimizer.statistics import Statistics

FORMAT = 1
MODEL, FEEDS, REPORT = "model.onnx", "feeds.npz", "report.txt"
FIGURES = ("max_abs", "peak", "sqnr_db")
AT_ONCE = 128  # tensors compared in one run

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bisection:
    """`facts` is what --json prints (docs/explain.md); `folder` holds the reproducer, None where nothing differs."""

    facts: dict[str, Any]
    folder: Path | None = None

    @property
    def differs(self) -> bool:
        return self.folder is not None


@dataclass(frozen=True)
class Gap:
    """One way in which outputs differ: of which output, and how."""

    output: str
    text: str
    difference: Difference | None = None

    def facts(self) -> dict[str, Any]:
        d = self.difference
        figures = {} if d is None or d.broken else {"max_abs": d.max_abs, "peak": d.peak, "sqnr_db": d.sqnr}
        known = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        return {"output": self.output or None, "text": self.text} | dict.fromkeys(FIGURES) | known


@dataclass
class _Keep:
    """An instrument that keeps the graph after each step that changed it, and the step that failed.

    `measured`: the steps that filled the statistics, which lossy passes after them need.
    """

    states: list[tuple[Step | None, Graph]]
    failed: tuple[Step, Exception] | None = None
    measured: list[Step] = field(default_factory=list)

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        known = len(ctx.statistics or ())
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a pass that is broken raises
            self.failed = self.failed or (step, error)
            raise
        if step.count and not step.children:
            self.states.append((step, graph.copy()))
        elif len(ctx.statistics or ()) != known and not step.children:
            self.measured.append(step)


@dataclass
class _Search:
    """What all probes of one bisection share; `feed` is the one that shows the difference, `expected` its outputs."""

    context: Context
    min_sqnr: float | None
    feed: Feeds = field(default_factory=dict)
    expected: Feeds = field(default_factory=dict)

    def gap(self, graph: Graph) -> Gap | None:
        """How the graph's outputs differ from what is expected; None where they do not."""
        return self.between(self.expected, graph, self.feed)

    def between(self, expected: Feeds, graph: Graph, feed: Feeds) -> Gap | None:
        try:
            made = self.context.evaluate(graph, feed, list(expected))
        except Exception as error:  # the original ran, so whatever the runtime raises now is the pass's doing
            return Gap("", f"the model does not run: {_first_line(error)}")
        return self.beyond(expected, made)

    def beyond(self, expected: Feeds, made: Feeds) -> Gap | None:
        """The first output that differs by more than rounding, or by the limit asked for."""
        for name, one in compare([(expected, made)]).items():
            fine = one.within_rounding() if self.min_sqnr is None else one.exact or one.sqnr >= self.min_sqnr
            if one.broken or not fine:
                what = one.broken or f"largest error {one.max_abs:.3g} of {one.peak:.3g}, {one.sqnr:.1f} dB"
                return Gap(name, f"output '{name}': {what}", one)
        return None

    def apply(
        self, passes: Sequence[Pass], graph: Graph, journal: Journal | None = None, ctx: Context | None = None
    ) -> Gap | None:
        """Runs passes in place; a gap where one raises."""
        try:
            PassManager([] if journal is None else [journal]).run(passes, graph, ctx or self.context)
        except UserError:
            raise
        except Exception as error:  # as above
            return Gap("", f"the pass fails: {type(error).__name__}: {_first_line(error)}")
        return None

    def shows(self, passes: Sequence[Pass], graph: Graph, feed: Feeds) -> Gap | None:
        """How passes change what a model computes from a feed, which is all the data there is."""
        try:
            expected = self.context.evaluate(graph, feed)
        except Exception:  # a part that does not run shows nothing
            return None
        twin, ctx = graph.copy(), replace(self.context, batches=[feed], statistics=Statistics())
        try:
            return self.apply(passes, twin, ctx=ctx) or self.between(expected, twin, feed)
        except UserError:  # a part that a pass cannot take shows nothing, either
            return None


@dataclass(frozen=True)
class _Culprit:
    """The rewrite to blame: the graph it met, its nodes, its rule ('' for the pass itself), its number in the pass."""

    graph: Graph
    nodes: tuple[str, ...]
    rule: str = ""
    number: int = 0
    total: int = 0


def bisect(
    model: onnx.ModelProto | Path | str,
    *,
    target: str = "onnx",
    passes: str | None = None,
    scheme: str | None = None,
    data: Given | None = None,
    preprocess: str | None = None,
    min_sqnr: float | None = None,
    out: Path | str | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Tell = lambda what, done, total: None,
) -> Bisection:
    """Runs a pipeline on `model` and, where outputs differ, finds the rewrite to blame; writes the folder `out` then.

    The pipeline is the target's float one, one of its schemes, or `passes`. Outputs differ where they do by more than
    rounding, or by less than `min_sqnr` dB. Raises UserError for lossy passes without `min_sqnr`, and DataError for
    feeds that the model does not run on.
    """
    check_numbers(threads=threads, seed=seed)
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UserError(f"--min-sqnr {min_sqnr:g} is no limit: give decibels, such as 15")
    source = model if isinstance(model, onnx.ModelProto) else Path(model)
    path = source if isinstance(source, Path) else None
    goal = targets.target(target)
    sequence = make_plan(goal, passes, scheme).sequence(scheme)
    if min_sqnr is None and is_lossy(sequence):
        raise UserError("the pipeline changes outputs by design: say by how much it may, such as --min-sqnr 15")
    folder = artifact.destination(path, "bisect", out)
    graph, evaluate = load(source), Evaluate(threads)
    feeds = open_data(data, graph, evaluate, preprocess=preprocess, seed=seed, tell=progress)
    ctx = Context(goal, evaluate, feeds.calibration, seed, statistics=Statistics(), progress=progress)
    keep = _Keep([(None, graph)])
    progress("running the pipeline", 0, 0)
    try:
        PassManager([keep]).run(sequence, graph.copy(), ctx)
    except Exception:
        if keep.failed is None:
            raise
    search = _Search(ctx, min_sqnr)
    about = {
        "format": FORMAT,
        "model": None if path is None else str(path),
        "target": goal.name,
        "pipeline": pipeline.text(sequence),
        "data": {"source": feeds.source, "synthetic": feeds.synthetic},
        "min_sqnr": min_sqnr,
    }
    place = _first_feed(search, graph, keep, feeds, progress)
    if place is None:
        return Bisection(about | {"differs": False, "feeds": len(_all(feeds))})
    step, before = _between(search, keep, progress)
    (one,) = pipeline.build(step.name)
    culprit = _within(search, one, before, progress)
    progress("cutting out the smallest part", 0, 0)
    measured = [early.name for early in keep.measured if early.number < step.number]
    alone = [*pipeline.build(",".join(measured if is_lossy([one]) else [])), one]
    part = _part(search, alone, culprit)
    facts = about | {"differs": True, "feed": place} | _facts(search, step, alone, before, culprit, part)
    with artifact.writing(folder) as temporary:
        _write(temporary, facts, part or (culprit.graph, search.feed))
    return Bisection(facts, folder)


def _all(feeds: Data) -> Feeding:
    places = {*feeds.calibration.places, *feeds.check.places}
    return Feeding(feeds.check.source, tuple(sorted(places)))


def _first_feed(search: _Search, original: Graph, keep: _Keep, feeds: Data, tell: Tell) -> int | None:
    """Settles on the first feed whose outputs differ at the end, or on any where a pass failed; None: on none."""
    every = _all(feeds)
    with search.context.evaluate.open(original) as run:
        for place, feed in enumerate(every):
            expected = _reference(run, feed)
            if place == 0:
                search.feed, search.expected = feed, expected
                if search.beyond(expected, run(feed)) is not None:
                    raise ModelError("the model's outputs change from run to run: nothing can be told from differences")
            if search.between(expected, keep.states[-1][1], feed) is not None:
                search.feed, search.expected = feed, expected
                return place
            tell("comparing outputs", place + 1, len(every))
    return 0 if keep.failed is not None else None


def _reference(run: Run, feed: Feeds) -> Feeds:
    try:
        return run(feed)
    except Exception as error:  # onnxruntime raises several bare classes of its own
        sizes = ", ".join(f"{name} {list(np.shape(array))}" for name, array in feed.items())
        raise DataError(f"the model does not run on {sizes}: {_first_line(error)}") from error


def _between(search: _Search, keep: _Keep, tell: Tell) -> tuple[Step, Graph]:
    """The step to blame and the graph it met, which is still right."""
    good, bad = 0, len(keep.states) - 1
    if search.gap(keep.states[bad][1]) is None:
        assert keep.failed is not None
        return keep.failed[0], keep.states[bad][1]
    while bad - good > 1:
        middle = (good + bad) // 2
        tell("halving the passes", len(keep.states) - (bad - good), len(keep.states))
        if search.gap(keep.states[middle][1]) is None:
            good = middle
        else:
            bad = middle
    step = keep.states[bad][0]
    assert step is not None
    return step, keep.states[good][1]


def _within(search: _Search, one: Pass, before: Graph, tell: Tell) -> _Culprit:
    """The rewrite to blame inside a pass."""

    def probe(limit: int | None) -> tuple[Gap | None, Journal]:
        graph, journal = before.copy(), Journal(limit)
        return search.apply([one], graph, journal) or search.gap(graph), journal

    total = probe(None)[1].fired
    if total == 0 or probe(0)[0] is not None:
        return _Culprit(before, _differing(search, one, before), total=total)
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        tell("halving the rewrites", total - (bad - good), total)
        good, bad = (middle, bad) if probe(middle)[0] is None else (good, middle)
    journal = probe(bad)[1]
    assert journal.before is not None
    journal.before.sweep()
    journal.before.tidy()
    return _Culprit(journal.before, journal.matched, journal.last, bad, total)


def _differing(search: _Search, one: Pass, before: Graph) -> tuple[str, ...]:
    """The node whose result is the first to differ after a pass; nothing where none can be found by its name."""
    after = before.copy()
    if search.apply([one], after) is not None:
        return ()
    makers = {t.name: node.name for node in before.nodes for t in node.outputs if t.name}
    names = [t.name for node in after.nodes for t in node.outputs if t.name in makers]
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        try:
            pair = [search.context.evaluate(graph, search.feed, some) for graph in (before, after)]
        except Exception:  # a result is no tensor that can be fetched
            return ()
        for name in some:
            if search.beyond({name: pair[0][name]}, {name: pair[1][name]}) is not None:
                return (makers[name],)
    return ()


def _part(search: _Search, alone: Sequence[Pass], culprit: _Culprit) -> Part | None:
    """The smallest part around the rewrite that the pass alone still breaks; None where not even the whole is one."""
    graph = culprit.graph
    shapes.infer(graph)
    holder = {node.name: node.name for node in graph.nodes}
    for node in graph.nodes:
        holder.update((inner.name, node.name) for body in node.bodies() for inner in body.walk())
    start = {holder[name] for name in culprit.nodes if name in holder}
    values = Values(graph, search.feed, search.context.evaluate)
    return smallest(values, start, lambda part, feed: search.shows(alone, part, feed) is not None)


def _facts(
    search: _Search, step: Step, alone: Sequence[Pass], before: Graph, culprit: _Culprit, part: Part | None
) -> dict[str, Any]:
    after, ops = before.copy(), {node.name: node.op for node in culprit.graph.walk()}
    gap = search.apply(alone[-1:], after) or search.gap(after)
    shown = None if part is None else search.shows(alone, *part)
    graph = culprit.graph if part is None else part[0]
    options = "" if search.min_sqnr is None else f" --min-sqnr {search.min_sqnr:g}"
    return {
        "pass": step.name,
        "step": step.number,
        "rule": culprit.rule or None,
        "rewrite": culprit.number or None,
        "rewrites": culprit.total,
        "nodes": [{"node": name, "op": ops[name]} for name in culprit.nodes],
        "difference": None if gap is None else gap.facts(),
        "reproducer": {
            "file": MODEL,
            "feeds": FEEDS,
            "nodes": sum(1 for _ in graph.walk()),
            "of": len(ops),
            "difference": None if shown is None else shown.facts(),
        },
        "command": f"optimize bisect {MODEL} --target {search.context.target.name} "
        f"--passes '{pipeline.text(alone)}' "
        f"--data {FEEDS}{options}",
        "versions": versions(),
    }


def _write(folder: Path, facts: dict[str, Any], part: Part) -> None:
    """The model, what it is fed, what is wrong in words, and a manifest that says whose folder this is."""
    graph, feed = part
    save(graph, folder / MODEL)
    with zipfile.ZipFile(folder / FEEDS, "w") as file:  # numpy.savez takes no array called "file"
        for name, array in feed.items():
            with file.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array.astype(str) if array.dtype.kind == "O" else array)
    (folder / REPORT).write_text(report(facts, None))
    tool = {"name": artifact.TOOL, "version": __version__}
    artifact.write_manifest(folder, {"schema": artifact.SCHEMA, "tool": tool, "bisect": facts})


def report(facts: dict[str, Any], folder: Path | None) -> str:
    """What was found, in a few lines."""
    if not facts["differs"]:
        return f"nothing differs on {facts['feeds']} feeds ({facts['data']['source']}), by {facts['pipeline']}\n"
    nodes = ", ".join(f"{node['node']} ({node['op']})" for node in facts["nodes"]) or "not to be told"
    small, gap = facts["reproducer"], facts["difference"]
    shown = small["difference"]
    rewrite = f"{facts['rewrite']} of {facts['rewrites']} by rules in that pass; the rule {facts['rule']}"
    rows = (
        ("pass", f"{facts['pass']}, step {facts['step']} of {facts['pipeline']}"),
        ("rewrite", rewrite if facts["rule"] else "by no rule: the pass itself"),
        ("nodes", nodes),
        ("differs", f"{gap['text'] if gap else 'only together with what ran before'} (feed {facts['feed']})"),
        ("reproducer", f"{folder or '.'}/{MODEL} with {FEEDS}: {small['nodes']} of {small['of']} nodes"),
        ("it shows", shown["text"] if shown else "nothing by itself: what several passes round adds up"),
        ("run there", facts["command"]),
    )
    return "".join(f"{key:<12}{value}\n" for key, value in rows)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
