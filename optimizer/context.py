"""What a pass may ask for besides the graph; handed down, never global."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from optimizer.evaluate import Evaluate, Feeds

if TYPE_CHECKING:
    from optimizer.pipeline import Pass
    from optimizer.statistics import Statistics
    from optimizer.targets import Target


class Batches(Protocol):
    """Inputs that can be gone through again and again: one dict of arrays (by input name) per batch."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...


def _no_children(child: Pass) -> int:
    raise AssertionError(f"{child}: sub-passes run under a PassManager only")


@dataclass(frozen=True)
class Context:
    """`apply` runs a child pass under the manager's instruments; `progress` tells a long step's state.

    `verify`: a lossy pass that can prove what it did must do so (--verify-each). `synthetic`: the batches are random,
    so nothing should be fitted to them.
    """

    target: Target
    evaluate: Evaluate = field(default_factory=Evaluate)
    batches: Batches = ()
    seed: int = 0
    apply: Callable[[Pass], int] = _no_children
    statistics: Statistics | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    verify: bool = False
    synthetic: bool = False
