"""What a runtime must offer, and the one clock that times every runtime alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from optimizer.evaluate import Feeds
from optimizer.graph import Graph


class Session(Protocol):
    """A loaded model that runs."""

    def run(self, feeds: Feeds) -> Feeds: ...


class Backend(Protocol):
    def available(self) -> str | None:
        """None where the runtime is here, else why not and how to get it."""

    def lower(self, graph: Graph) -> None:
        """Turns the graph, in place, into what this runtime accepts; needs no device."""

    def build(self, model: Path, folder: Path) -> Path:
        """Compiles `model` into `folder` and returns the file to open: the model itself where nothing is compiled."""

    def open(self, built: Path, threads: int = 0) -> AbstractContextManager[Session]:
        """Loads a built file, with its threads pinned (0: all cores)."""


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

    One round runs each session once on the same feed; the order turns with the rounds. It ends after `rounds` rounds
    or about `seconds`, but never before five rounds. Two rounds of warm-up are not counted.
    """
    names = list(sessions)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for feed in list(feeds)[:2]:
        for session in sessions.values():
            session.run(feed)
    end = time.perf_counter() + seconds
    for number in range(rounds):
        feed = feeds[number % len(feeds)]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            sessions[name].run(feed)
            taken[name].append(time.perf_counter() - start)
        if number >= 4 and time.perf_counter() > end:
            break
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def ratio(base: Timing, other: Timing) -> float:
    """How many times faster `other` is than `base`: the median over rounds of base/other."""
    pairs = zip(base.seconds, other.seconds, strict=True)
    return float(np.median([a / b for a, b in pairs]))
