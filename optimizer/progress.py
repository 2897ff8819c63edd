"""A bar on the terminal for anything that takes longer than a second; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

PATIENCE = 1.0  # seconds


class Bar:
    """Shows the latest step it was told; call it with (what, done, total), total 0 where that is unknown."""

    def __init__(self, wanted: bool = True):
        self.wanted = wanted and sys.stderr.isatty()
        self._latest = ("starting", 0, 0)
        self._lock = threading.Lock()
        self._bar: Any = None  # rich is imported when there is something to show
        self._task: Any = None
        self._timer: threading.Timer | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._latest = (what, done, total)
            if self._bar is not None:
                self._bar.update(self._task, description=what, completed=done, total=total or None)

    def __enter__(self) -> Bar:
        if self.wanted:
            self._timer = threading.Timer(PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            self._bar, self.wanted = None, False

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            if not self.wanted:
                return
            columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            what, done, total = self._latest
            self._task = self._bar.add_task(what, completed=done, total=total or None)
            self._bar.start()
