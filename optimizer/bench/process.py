"""One backend in a process of its own, as seen from the bench: ask, wait so long, and say how it ended if it did."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from optimizer.errors import OptimizeError

End = Literal["failed", "crashed", "hung"]
WORKER = "from optimizer.bench.worker import main; main()"
STARTING = 120.0  # seconds that a process may take to say hello
PATIENCE = 0.05  # seconds between looks


class EndedError(OptimizeError):
    """A backend cannot go on: it refused (`failed`), its process died (`crashed`), or it took too long (`hung`)."""

    def __init__(self, how: End, reason: str):
        super().__init__(reason)
        self.how = how


class Process:
    """Use `started`. `limit`: seconds that one request may take."""

    def __init__(self, process: subprocess.Popen[str], connection: Connection, log: Path, limit: float):
        self._process, self._connection, self._log, self.limit = process, connection, log, limit

    def ask(self, name: str, *arguments: Any, limit: float | None = None) -> Any:
        """What the worker's method returns. Raises EndedError; after `crashed` and `hung` the process is gone."""
        limit = self.limit if limit is None else limit
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(limit):
                self.stop()
                raise EndedError("hung", f"no answer within {limit:g} s: it was stopped (--timeout allows more)")
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EndedError("crashed", self._death()) from error
        if kind == "failed":
            raise EndedError("failed", value)
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _death(self) -> str:
        """How the process ended, with the last line it wrote."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.stop()
            return "its process closed the connection"
        return death(code, self._log)


def death(code: int, log: Path) -> str:
    how = f"exit code {code}"
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
        if how == "SIGKILL":
            how += ", as when memory runs out"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"its process died ({how})" + (f": {lines[-1][:200]}" if lines else "")


@contextmanager
def started(limit: float) -> Iterator[Process]:
    """A worker that waits for requests. Raises EndedError where it does not come up."""
    with tempfile.TemporaryDirectory(prefix="optimize-bench-") as folder:
        log = Path(folder) / "log"
        key = secrets.token_bytes(16)
        with Listener(authkey=key) as listener, log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(listener.address)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
            )
            try:
                assert process.stdin is not None
                process.stdin.write(key.hex() + "\n")
                process.stdin.close()
                connection = _accept(listener, process, log)
                made = Process(process, connection, log, limit)
                try:
                    yield made
                finally:
                    connection.close()
            finally:
                _end(process)


def _accept(listener: Listener, process: subprocess.Popen[str], log: Path) -> Connection:
    accepted: SimpleQueue[Connection] = SimpleQueue()

    def accept() -> None:
        with suppress(OSError, EOFError):  # closed, because the process died before it called
            accepted.put(listener.accept())

    threading.Thread(target=accept, daemon=True).start()
    end = time.monotonic() + STARTING
    while True:
        try:
            return accepted.get(timeout=PATIENCE)
        except Empty:
            if (code := process.poll()) is not None:
                raise EndedError("crashed", death(code, log)) from None
            if time.monotonic() > end:
                raise EndedError("hung", f"its process did not start within {STARTING:g} s") from None


def _end(process: subprocess.Popen[str]) -> None:
    """Lets a process whose connection is closed end by itself; not for long."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
