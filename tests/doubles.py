"""Backends that misbehave in one way each, for the bench: named as "tests.doubles:Slow" and so on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from backends.ort import OrtBackend
from optimizer.backend import Session
from optimizer.engine import Built
from optimizer.errors import ModelError
from optimizer.evaluate import Feeds


@dataclass
class Other:
    """A session with something done to every run."""

    inner: Session
    calls: int = 0

    def run(self, feeds: Feeds) -> Feeds:
        self.calls += 1
        return self.inner.run(feeds)


class Double(OrtBackend):
    """ONNX Runtime, but for the session."""

    session: type[Other] = Other

    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[Session]:  # type: ignore[override]  # wider than the parent's
        with super().open(built, threads) as inner:
            yield self.session(inner)


class _Late(Other):
    share = 0.0

    def run(self, feeds: Feeds) -> Feeds:
        start = time.perf_counter()
        made = super().run(feeds)
        end = time.perf_counter() + self.share * (time.perf_counter() - start)
        while time.perf_counter() < end:  # sleeping less than a millisecond is not to be had
            pass
        return made


class _Later(_Late):
    share = 0.05


class _Slow(_Late):
    share = 3.0  # found even where other tests take turns on the same cores


class _Crash(Other):
    def run(self, feeds: Feeds) -> Feeds:
        if self.calls > 20:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().run(feeds)


class _Memory(Other):
    def run(self, feeds: Feeds) -> Feeds:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("gone")


class _Hang(Other):
    def run(self, feeds: Feeds) -> Feeds:
        if self.calls > 20:
            time.sleep(3600)
        return super().run(feeds)


class _Nan(Other):
    def run(self, feeds: Feeds) -> Feeds:
        made = super().run(feeds)
        for array in made.values():
            array.reshape(-1)[:3] = (np.nan, np.inf, np.nan)
        return made


class _Chatter(Other):
    def run(self, feeds: Feeds) -> Feeds:
        print("a library that talks to standard output")
        return super().run(feeds)


class Later(Double):
    """Five per cent slower."""

    session = _Later


class Slow(Double):
    session = _Slow


class Crash(Double):
    session = _Crash


class Memory(Double):
    session = _Memory


class Hang(Double):
    session = _Hang


class Nan(Double):
    session = _Nan


class Chatter(Double):
    session = _Chatter


class Refuse(OrtBackend):
    @contextmanager
    def open(self, built: Built, threads: int = 0) -> Iterator[Session]:  # type: ignore[override]  # as above
        raise ModelError("no kernel for Conv")
        yield


class Absent(OrtBackend):
    def available(self) -> str | None:
        return "it is not installed: pip install absent"
