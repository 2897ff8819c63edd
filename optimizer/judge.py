"""Runs every variant beside the original: outputs and metrics compared, limits applied, latency measured.

The float model must keep outputs to rounding in the oracle, else it is a bug. A candidate that does not load or run is
a row with its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.backend import Session, Timing, measure
from optimizer.compare import Difference
from optimizer.context import Batches
from optimizer.engine import Built
from optimizer.errors import BugError, DataError, ModelError
from optimizer.evaluate import Evaluate, Feeds, Run
from optimizer.fidelity import Gate, class_scores, flat
from optimizer.graph import Graph
from optimizer.manager import Step
from optimizer.plan import FLOAT

log = logging.getLogger(__name__)

ORIGINAL = "original"
TIMED = 8  # feeds at most that are kept in memory for timing
TIMED_BYTES = 1 << 28
SECONDS = 5.0
ROUNDS = 1000

Tell = Callable[[str, int, int], None]


@dataclass
class Variant:
    """One model that might be shipped: the original, the optimized float, or a candidate.

    `folder` holds its files, `model` is the .onnx among them (the original's is where the user has it).
    `failed` says why it cannot be built or loaded, `misses` which limit it does not meet; `idle`: it failed because
    there was nothing to do. `built` is what the runtime's compiler made of it, `dropped` are nodes that it wanted in
    float.
    """

    scheme: str
    graph: Graph
    folder: Path
    model: Path
    bytes: int = 0  # of all its files
    steps: list[Step] = field(default_factory=list)
    failed: str = ""
    misses: str = ""
    idle: bool = False
    built: Built | None = None
    dropped: list[str] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    metric: float | None = None
    timing: Timing | None = None

    @property
    def usable(self) -> bool:
        return not self.failed and not self.misses


Open = Callable[[Variant], AbstractContextManager[Session]]


def check_float(original: Graph, optimized: Graph, feeds: Batches, evaluate: Evaluate, tell: Tell) -> dict[str, Any]:
    """Compares both in the oracle. Returns the manifest's `checked`; raises BugError beyond rounding."""
    found: dict[str, Difference] = {}
    with evaluate.open(original) as reference, evaluate.open(optimized) as run:
        for done, feed in enumerate(feeds):
            expected = _reference(reference, feed)
            if done == 0 and not _repeats(expected, reference(feed)):
                return {"outputs": False, "reason": "the model's outputs change from run to run"}
            _add(found, expected, flat(run(feed)))
            tell("checking the float model", done + 1, len(feeds))
    for name, difference in found.items():
        if not difference.within_rounding():
            what = difference.broken or f"largest error {difference.max_abs:.3g} of {difference.peak:.3g}"
            raise BugError(f"the float pipeline changed output '{name}' beyond rounding: {what}")
    worst = max((d.max_abs for d in found.values()), default=0.0)
    return {"outputs": True, "feeds": len(feeds), "max_abs": worst}


def _reference(run: Run, feed: Feeds) -> Feeds:
    try:
        return flat(run(feed))
    except Exception as error:  # onnxruntime raises several bare classes of its own
        shapes = ", ".join(f"{n} {list(np.shape(a))}" for n, a in feed.items())
        raise DataError(f"the model does not run on {shapes}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _repeats(first: Feeds, second: Feeds) -> bool:
    found: dict[str, Difference] = {}
    _add(found, first, flat(second))
    return all(d.exact for d in found.values())


def _add(found: dict[str, Difference], expected: Feeds, got: Feeds) -> None:
    for name, array in expected.items():
        difference = found.setdefault(name, Difference())
        if name in got:
            difference.add(array, got[name])
        else:
            difference.broken = "missing"


def judge(
    variants: list[Variant], original: Variant, open_: Open, feeds: Batches, gate: Gate, evaluate: Evaluate, tell: Tell
) -> None:
    """Fills in differences from the original, metrics, and the limits that candidates miss.

    Raises ModelError where the runtime cannot load the original, BugError where it loads that but not the float model.
    """
    with ExitStack() as stack:
        sessions = _open(variants, open_, stack)
        _compare(variants, original, sessions, feeds, evaluate, tell)
        scores = class_scores(original.graph)
        for variant in variants:
            if variant.failed:
                continue
            tell(f"judging {variant.scheme}", 0, 0)
            variant.metric = gate.measure(sessions[variant.scheme].run)
            if variant.scheme not in (ORIGINAL, FLOAT):
                variant.misses = gate.misses(variant.differences, scores, variant.metric, original.metric)


def clock(variants: list[Variant], open_: Open, feeds: Batches, tell: Tell) -> None:
    """Times all variants that run, interleaved, those that missed a limit too: what they would have gained is news."""
    tell("measuring latency", 0, 0)
    with ExitStack() as stack:
        sessions = _open(variants, open_, stack)
        timings = measure(sessions, few(feeds), seconds=SECONDS, rounds=ROUNDS)
    for variant in variants:
        variant.timing = timings.get(variant.scheme)


def _open(variants: list[Variant], open_: Open, stack: ExitStack) -> dict[str, Session]:
    sessions = {}
    for variant in variants:
        if variant.failed:
            continue
        try:
            sessions[variant.scheme] = stack.enter_context(open_(variant))
        except Exception as error:  # whatever the runtime raises
            _fail(variant, error)
    return sessions


def _fail(variant: Variant, error: Exception) -> None:
    """A candidate that does not load or run is out of the race; without the original or float there is none."""
    reason = _first_line(error)
    if variant.scheme == ORIGINAL:
        raise error if isinstance(error, ModelError) else ModelError(f"the runtime refuses the model: {reason}")
    if variant.scheme == FLOAT:
        raise BugError(f"the original runs, but not the float model made of it: {reason}") from error
    variant.failed = reason
    log.info("%s: %s", variant.scheme, reason)


def _compare(
    variants: list[Variant],
    original: Variant,
    sessions: dict[str, Session],
    feeds: Batches,
    evaluate: Evaluate,
    tell: Tell,
) -> None:
    """Runs every variant on every held-out feed beside the original in the oracle; one feed is in memory at a time."""
    with evaluate.open(original.graph) as reference:
        for done, feed in enumerate(feeds):
            expected = _reference(reference, feed)
            for variant in variants:
                if variant.failed:
                    continue
                try:
                    _add(variant.differences, expected, flat(sessions[variant.scheme].run(feed)))
                except Exception as error:  # whatever the runtime raises
                    _fail(variant, error)
            tell("comparing outputs", done + 1, len(feeds))


def few(feeds: Iterable[Feeds]) -> list[Feeds]:
    """The first feeds, as many as timing may hold in memory."""
    kept: list[Feeds] = []
    size = 0
    for feed in islice(feeds, TIMED):
        kept.append(feed)
        size += sum(array.nbytes for array in feed.values())
        if size > TIMED_BYTES:
            break
    return kept
