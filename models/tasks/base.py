"""What every task is made of: feeds in, outputs out, a score.

A task gives calibration inputs and scores any callable that runs the model, so that one metric serves the
float model, an int8 variant and a compiled engine. Calibration and evaluation draw from different samples.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

Feeds = dict[str, np.ndarray]
Outputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]
Run = Callable[[Feeds], Outputs]
Split = Literal["calibration", "evaluation"]
Truth = TypeVar("Truth")


@dataclass(frozen=True)
class Score:
    """A metric's value, higher is better; `details` are figures beside it, by name."""

    metric: str
    value: float
    samples: int
    details: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What a model is for, as data and a metric."""

    def calibration(self, count: int) -> list[Feeds]: ...
    def typical(self) -> Feeds: ...
    def evaluate(self, run: Run, limit: int | None = None) -> Score: ...


@dataclass(frozen=True)
class Verdict:
    """What a task's `judge` finds: the metric's value and figures beside it."""

    value: float
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples(Generic[Truth]):
    """Independent samples: `samples` yields inputs with their truth, `judge` weighs outputs against it."""

    metric: str
    count: int  # samples of a full evaluation
    samples: Callable[[Split], Iterator[tuple[Feeds, Truth]]]
    judge: Callable[[Iterable[tuple[list[np.ndarray], Truth]]], Verdict]
    timed: Callable[[], Feeds] | None = None  # an input of the shape latency is measured at, where shapes vary

    def calibration(self, count: int) -> list[Feeds]:
        feeds = [feeds for feeds, _ in itertools.islice(self.samples("calibration"), count)]
        if len(feeds) < count:
            raise ValueError(f"{self.metric}: {count} calibration inputs asked for, {len(feeds)} can be had")
        return feeds

    def typical(self) -> Feeds:
        return self.timed() if self.timed else self.calibration(1)[0]

    def evaluate(self, run: Run, limit: int | None = None) -> Score:
        seen = 0

        def results() -> Iterator[tuple[list[np.ndarray], Truth]]:
            nonlocal seen
            for feeds, truth in itertools.islice(self.samples("evaluation"), limit or self.count):
                seen += 1
                yield arrays(run(feeds)), truth

        verdict = self.judge(results())
        return Score(self.metric, verdict.value, seen, verdict.details)


def arrays(outputs: Outputs) -> list[np.ndarray]:
    """Outputs in the model's order, whether they came by name or in a row."""
    return list(outputs.values()) if isinstance(outputs, Mapping) else list(outputs)


def open_ort(path: Path | str, threads: int = 2) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """A callable that runs a model on ONNX Runtime's CPU, outputs by name in the model's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    return run
