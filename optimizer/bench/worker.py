"""The process that one backend runs in: opens a model when told to, runs it when told to, says how long it took.

Talks over one connection in pickles, a request and its reply at a time. Whatever libraries print goes to the file that
the other side gave as standard output and error.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Client, Connection
from typing import Any, NamedTuple

from optimizer import registry
from optimizer.backend import Kernel, Session
from optimizer.engine import Built
from optimizer.errors import OptimizeError
from optimizer.evaluate import Feeds
from optimizer.machine import peak_memory

Reply = tuple[str, Any]  # ("done", result) or ("failed", one line)


class Slice(NamedTuple):
    """Seconds of each run, of the whole slice, and of each run by the device's own clock where it has one."""

    runs: list[float]
    wall: float
    device: list[float]


class Worker:
    """What the other side may ask for, by method name."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._session: Session | None = None
        self._feeds: list[Feeds] = []
        self._before = 0
        self._device: list[float] = []

    def load(self, backend: str, built: Built, threads: int) -> float:
        """Opens the model; the seconds that took, the backend's own libraries imported before."""
        runtime = registry.load_backend(backend)
        runtime.available()  # imports its library: that is no loading of the model
        self._before = peak_memory()
        start = time.perf_counter()
        self._session = self._stack.enter_context(runtime.open(built, threads))
        return time.perf_counter() - start

    def feeds(self, feeds: Sequence[Feeds]) -> None:
        """What the next slices run on, in turn."""
        self._feeds = list(feeds)

    def first(self) -> float:
        """Seconds of one run, the first on these inputs: kernels are chosen and memory is taken in it."""
        start = time.perf_counter()
        self._run(0)
        return time.perf_counter() - start

    def outputs(self, feeds: Feeds) -> Feeds:
        return self._open.run(feeds)

    def slice(self, seconds: float, least: int, callers: int) -> Slice:
        """Runs for about `seconds`, `least` runs at least, from `callers` threads at once."""
        taken: list[list[float]] = [[] for _ in range(callers)]
        self._device.clear()
        start = time.perf_counter()

        def call(own: list[float], offset: int) -> None:
            number = offset
            while not own or len(own) * callers < least or time.perf_counter() - start < seconds:
                own.append(self._run(number))
                number += callers

        if callers == 1:
            call(taken[0], 0)
        else:
            _together([lambda own=own, place=place: call(own, place) for place, own in enumerate(taken)])  # type: ignore[misc]  # bound early on purpose
        wall = time.perf_counter() - start
        return Slice([one for own in taken for one in own], wall, list(self._device))

    def profile(self, backend: str, built: Built, threads: int, feeds: Sequence[Feeds]) -> list[Kernel] | None:
        """What the backend says of its kernels; nothing needs to be loaded."""
        return registry.load_backend(backend).profile(built, threads, feeds)

    def memory(self) -> tuple[int, int]:
        """Bytes that the process has held at most, and before it loaded the model."""
        return peak_memory(), self._before

    @property
    def _open(self) -> Session:
        assert self._session is not None, "nothing is loaded"
        return self._session

    def _run(self, number: int) -> float:
        """Seconds of one run as its caller waits for it."""
        feed = self._feeds[number % len(self._feeds)]
        start = time.perf_counter()
        self._open.run(feed)
        taken = time.perf_counter() - start
        if (device := getattr(self._open, "seconds", None)) is not None:  # a GPU's own events, without the copies
            self._device.append(device)
        return taken

    def close(self) -> None:
        self._stack.close()


def _together(calls: Sequence[Callable[[], None]]) -> None:
    """Runs all at once; raises what the first one raised that failed."""
    errors: list[Exception] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # raised below, in the thread that was asked
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def serve(connection: Connection) -> None:
    """Answers requests until the other side is gone."""
    worker = Worker()
    try:
        while True:
            name, arguments = connection.recv()
            connection.send(_answer(getattr(worker, name), arguments))
    except EOFError:
        worker.close()


def _answer(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Reply:
    try:
        return "done", method(*arguments)
    except OptimizeError as error:
        return "failed", str(error)
    except Exception as error:  # whatever the runtime raises is a row's reason
        return "failed", (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    """The address to call as argument, the connection's key on standard input."""
    key = bytes.fromhex(sys.stdin.readline().strip())
    with Client(sys.argv[1], authkey=key) as connection:
        serve(connection)
