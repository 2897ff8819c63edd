"""Python's garbage collector, and where it only costs time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No search for cycles in here: a graph that is read or rewritten has millions of references and drops no cycle.

    A node that is removed lets go of its tensors, so nothing that a pass drops waits for the collector. It would take
    a quarter of the time. What was made in here counts as old at the end: searched when all is, not at once.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not gc.get_freeze_count():  # somebody else's would be thawed
                gc.freeze()
                gc.unfreeze()
            gc.enable()
