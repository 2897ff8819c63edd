"""What a runtime must offer, and the one clock that times every runtime alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optimizer.engine import Built, EngineOptions
from optimizer.evaluate import Feeds
from optimizer.graph import Graph


class Session(Protocol):
    """A loaded model that runs."""

    def run(self, feeds: Feeds) -> Feeds: ...


class Backend(Protocol):
    """One runtime.

    `compiles`: the model is made into an engine; such a model is worth having where the compiler is not at hand, too.
    """

    def runs(self, options: EngineOptions) -> bool:
        """False where what is built so cannot be opened and timed here: the file itself is the result."""

    @property
    def compiles(self) -> bool: ...

    def available(self) -> str | None:
        """None where the runtime (or the compiler) is here, else why not and how to get it."""

    def lower(self, graph: Graph) -> None:
        """Turns the graph, in place, into what this runtime accepts; needs no device."""

    def build(self, model: Path, folder: Path, options: EngineOptions) -> Built:
        """Compiles `model` into `folder`; where nothing is compiled, the file to open is the model itself.

        Raises BuildError where the compiler refuses the model, UserError for options that do not fit it.
        """

    def command(self, model: Path, options: EngineOptions) -> str:
        """The command line that builds the same elsewhere; '' where nothing is compiled."""

    def open(self, built: Built, threads: int = 0) -> AbstractContextManager[Session]:
        """Loads a built file, with its threads pinned (0: all cores)."""

    def recipe(self) -> Mapping[str, Any]:
        """What opens the file elsewhere as it was measured: libraries with versions, provider, options (JSON)."""

    def profile(self, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """What the runtime says of its own kernels, in their order; None where it says nothing.

        Only where `open` works. It runs each of the feeds.
        """


@dataclass(frozen=True)
class Kernel:
    """One kernel as a runtime reports it: `seconds` a run, shapes of inputs and outputs where they are told."""

    name: str
    op: str
    seconds: float
    inputs: Sequence[tuple[str, tuple[int, ...]]] = ()  # (dtype, shape)
    outputs: Sequence[tuple[str, tuple[int, ...]]] = ()


REPEATS = 3
QUICK = 0.1  # seconds: longer runs are not repeated within a round


@dataclass(frozen=True)
class Timing:
    """Seconds per run of one session: one number per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def measure(
    sessions: Mapping[str, Session], feeds: Sequence[Feeds], *, seconds: float = 5.0, rounds: int = 200
) -> dict[str, Timing]:
    """Times sessions round by round, interleaved, so that the machine's noise hits all of them alike.

    A round takes each session's best of three runs on the same feed (of one run, where any session takes longer than
    100 ms): what interrupts a run says nothing about the model. The order turns with the rounds. It ends after `rounds`
    rounds or about `seconds`, but never before five rounds. Two runs each of warm-up are not counted.
    """
    names = list(sessions)
    taken: dict[str, list[float]] = {name: [] for name in names}
    warm_up = [_best(session, feeds[0], 2) for session in sessions.values()]
    repeats = REPEATS if max(warm_up) < QUICK else 1
    end = time.perf_counter() + seconds
    for number in range(rounds):
        feed = feeds[number % len(feeds)]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(_best(sessions[name], feed, repeats))
        if number >= 4 and time.perf_counter() > end:
            break
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def _best(session: Session, feed: Feeds, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(feed)
        best = min(best, time.perf_counter() - start)
    return best


def ratio(base: Timing, other: Timing) -> float:
    """How many times faster `other` is than `base`: the median over rounds of base/other."""
    pairs = zip(base.seconds, other.seconds, strict=True)
    return float(np.median([a / b for a, b in pairs]))


def wins(base: Timing, other: Timing) -> float:
    """Share of the rounds in which `other` took less time than `base`."""
    return float(np.mean([b < a for a, b in zip(base.seconds, other.seconds, strict=True)]))
