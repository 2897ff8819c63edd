"""Takes turns: in every round each backend runs for a short slice, and the order turns from round to round.

A setting is a batch size and a number of callers. Every launch starts all processes anew and goes through all settings;
a backend whose process ends in the middle keeps what it has, and is out from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.bench.energy import Meter
from optimizer.bench.process import EndedError, Process, started
from optimizer.engine import Built
from optimizer.evaluate import Feeds

Tell = Callable[[str, int, int], None]

SLICE = 0.05  # seconds of one turn, at least
LEAST = 3  # runs in a turn where those take less than QUICK
QUICK = 0.1  # seconds
WARM_UP = 3.0  # seconds at most
STEADY = 0.05  # how far two slices in a row may differ when a backend is warm
FEWEST = 5  # rounds of a launch


@dataclass(frozen=True)
class Contender:
    """A built model and what runs it. `backend` is a name of the registry."""

    name: str
    backend: str
    built: Built


@dataclass(frozen=True, order=True)
class Setting:
    """`callers` threads ask at once, each for a batch of this size."""

    batch: int = 1
    callers: int = 1


@dataclass
class Samples:
    """What one backend took in one setting: by launch, by round, the seconds of each run in the slice."""

    runs: list[list[list[float]]] = field(default_factory=list)
    walls: list[list[float]] = field(default_factory=list)  # seconds of each slice
    joules: list[float] = field(default_factory=list)  # of each slice, where the machine tells
    device: list[float] = field(default_factory=list)  # seconds of runs by the device's own clock, where it has one

    @property
    def medians(self) -> list[list[float]]:
        """By launch and round."""
        return [[float(np.median(one)) for one in launch] for launch in self.runs]

    @property
    def flat(self) -> list[float]:
        return [run for launch in self.runs for one in launch for run in one]

    @property
    def throughput(self) -> float:
        """Runs a second, over all slices."""
        seconds = sum(wall for launch in self.walls for wall in launch)
        return len(self.flat) / seconds if seconds else 0.0


@dataclass
class Taken:
    """All that was measured of one backend; `ended` says how and why it could not go on."""

    samples: dict[Setting, Samples] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    peak: int = 0  # bytes
    before: int = 0  # bytes that the process had taken without a model
    ended: EndedError | None = None


@dataclass(frozen=True)
class Course:
    """How to measure. `seconds` are those of all backends and launches together, for one setting."""

    threads: int
    seconds: float = 20.0
    launches: int = 5
    limit: float = 120.0  # seconds that one request may take


Inputs = Mapping[Setting, Sequence[Feeds]]


def run(contenders: Sequence[Contender], inputs: Inputs, course: Course, taken: dict[str, Taken], tell: Tell) -> None:
    """Fills in `taken`, launch by launch, so that an interruption leaves what was measured until then."""
    total = course.launches * len(inputs)
    for launch in range(course.launches):
        able = [one for one in contenders if taken[one.name].ended is None]
        with ExitStack() as stack:
            live = start(able, course, taken, stack)
            for number, (setting, feeds) in enumerate(inputs.items()):
                what = f"launch {launch + 1} of {course.launches}, batch {setting.batch}, {setting.callers} at once"
                tell(what, launch * len(inputs) + number, total)
                _warm(live, feeds, setting, number == 0, taken)
                _rounds(live, setting, course.seconds / course.launches, launch, taken)
            for name, process in live.items():
                with Watched(name, live, taken):
                    peak, taken[name].before = process.ask("memory")
                    taken[name].peak = max(taken[name].peak, peak)


def start(
    contenders: Sequence[Contender], course: Course, taken: Mapping[str, Taken], stack: ExitStack, load: bool = True
) -> dict[str, Process]:
    """A process for each backend, its model loaded, one after the other; those that end on the way are left out."""
    live: dict[str, Process] = {}
    for one in contenders:
        try:
            live[one.name] = process = stack.enter_context(started(course.limit))
            if load:
                taken[one.name].loads.append(process.ask("load", one.backend, one.built, course.threads))
        except EndedError as end:
            live.pop(one.name, None)
            taken[one.name].ended = end
    return live


class Watched:
    """Takes a backend out of the race where its process ends inside the block."""

    def __init__(self, name: str, live: dict[str, Process], taken: Mapping[str, Taken]):
        self._name, self._live, self._taken = name, live, taken

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, EndedError):
            return False
        self._taken[self._name].ended = error
        self._live.pop(self._name, None)
        return True


def _warm(
    live: dict[str, Process], feeds: Sequence[Feeds], setting: Setting, fresh: bool, taken: Mapping[str, Taken]
) -> None:
    """Runs each backend until two slices in a row take the same, within 5 %, or for three seconds."""
    for name, process in list(live.items()):
        with Watched(name, live, taken):
            process.ask("feeds", list(feeds))
            first = process.ask("first")
            if fresh:
                taken[name].firsts.append(first)
            end, before = time.perf_counter() + WARM_UP, first
            while time.perf_counter() < end:
                now = float(np.median(process.ask("slice", SLICE, 1, setting.callers).runs))
                if abs(now - before) <= STEADY * before:
                    break
                before = now


def _rounds(
    live: dict[str, Process], setting: Setting, seconds: float, launch: int, taken: Mapping[str, Taken]
) -> None:
    """Rounds of one launch and setting; at least five, then until the time is up."""
    for name in live:
        samples = taken[name].samples.setdefault(setting, Samples())
        samples.runs.append([])
        samples.walls.append([])
    end, number = time.perf_counter() + seconds, 0
    with Meter() as meter:
        while live and (number < FEWEST or time.perf_counter() < end):
            names = list(live)
            turn = (number + launch) % len(names)
            for name in names[turn:] + names[:turn]:
                with Watched(name, live, taken):
                    _slice(live[name], setting, taken[name].samples[setting], meter)
            _level(live, setting, launch, taken)
            number += 1


def _slice(process: Process, setting: Setting, samples: Samples, meter: Meter) -> None:
    before = meter.joules()
    found = process.ask("slice", SLICE, LEAST if _quick(samples) else 1, setting.callers)
    after = meter.joules()
    samples.runs[-1].append(found.runs)
    samples.walls[-1].append(found.wall)
    samples.device += found.device
    if before is not None and after is not None:
        samples.joules.append(after - before)


def _quick(samples: Samples) -> bool:
    latest = samples.runs[-1][-1:] or (samples.runs[-2][-1:] if len(samples.runs) > 1 else [])
    return not latest or float(np.median(latest[0])) < QUICK


def _level(live: Mapping[str, Process], setting: Setting, launch: int, taken: Mapping[str, Taken]) -> None:
    """A backend that ended within a round took no part in it: rounds of all stay the same in number."""
    done = min((len(taken[name].samples[setting].runs[-1]) for name in live), default=0)
    for one in taken.values():
        if one.ended is not None and (samples := one.samples.get(setting)) and len(samples.runs) == launch + 1:
            del samples.runs[-1][done:], samples.walls[-1][done:]
