"""Which pipelines a run builds: the float passes that all candidates share, and the tail that ends each of them.

`--passes TEXT` takes the place of the target's own pipelines: what stands before its first lossy pass is the float
part, the rest is the one candidate beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from typing import Protocol

from optimizer import pipeline
from optimizer.errors import UserError
from optimizer.pipeline import Pass
from optimizer.targets import Target

FLOAT = "float"
CUSTOM = "passes"


class Attempt(Protocol):
    """A candidate that was built; `idle` where there was nothing to do."""

    @property
    def scheme(self) -> str: ...

    @property
    def usable(self) -> bool: ...

    @property
    def idle(self) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """`tails` maps a scheme to the passes that follow `prepare`, without the float scheme, whose tail is empty.

    `forced`: the scheme that must be shipped if it passes the gate, however fast it is. `fallbacks` maps a scheme to
    the one it stands in for: it is built only where that one misses the gate. `rivals` are built only to race, or
    where no other candidate is usable.
    """

    prepare: tuple[Pass, ...]
    tails: Mapping[str, tuple[Pass, ...]]
    forced: str | None = None
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    rivals: Collection[str] = ()

    def first(self, timed: bool) -> list[str]:
        """The schemes that are built in any case; `timed`: variants will race."""
        return [name for name in self.tails if name not in self.fallbacks and (timed or name not in self.rivals)]

    def late(self, built: Sequence[Attempt]) -> list[str]:
        """The schemes, not built yet, that stand in for what is no use; or the rivals, where nothing is any."""
        useless = [one.scheme for one in built if not one.usable and not one.idle]
        left = [name for name in self.tails if name not in [one.scheme for one in built]]
        due = [name for name in left if self.fallbacks.get(name) in useless]
        if due or any(one.usable for one in built):
            return due
        return [name for name in left if name in self.rivals]

    def text(self, scheme: str) -> str:
        """The whole pipeline of one scheme, as `--passes` takes it."""
        return pipeline.text([*self.prepare, *self.tails.get(scheme, ())])


def make_plan(target: Target, passes: str | None, scheme: str | None, fixed: Mapping[str, float] | None = None) -> Plan:
    """The plan for a target; inputs in `fixed` are bound to their values first.

    Raises PipelineError for a text that names no passes, UserError for a scheme that the target does not have.
    """
    if passes is not None:
        sequence = pipeline.build(passes)
        prepare = tuple(takewhile(lambda one: not is_lossy([one]), sequence))
        rest = sequence[len(prepare) :]
        tails = {CUSTOM: rest} if rest else {}
    else:
        prepare = pipeline.build(target.prepare)
        tails = {name: pipeline.build(text) for name, text in target.candidates.items() if name != FLOAT}
    if fixed:
        prepare = (*pipeline.build(f"fix{{values={','.join(f'{n}:{v:.17g}' for n, v in fixed.items())}}}"), *prepare)
    if scheme is None:
        return Plan(prepare, tails, fallbacks=target.fallbacks, rivals=target.rivals)
    if scheme not in (FLOAT, *tails):
        names = [FLOAT, *tails]
        near = get_close_matches(scheme, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"target '{target.name}' has no scheme '{scheme}'; {hint}It has: {', '.join(names)}")
    return Plan(prepare, {scheme: tails[scheme]} if scheme in tails else {}, scheme)


def essential(tail: Sequence[Pass]) -> list[int]:
    """The place of the pass that makes a scheme what it is: the first lossy one that does more than make way.

    Where all of them only make way, they are all of it.
    """
    lossy = [place for place, one in enumerate(tail) if is_lossy([one])]
    return [place for place in lossy if not tail[place].prepares][:1] or lossy


def is_lossy(passes: Iterable[Pass]) -> bool:
    """True where a pass, or a pass inside one, may change outputs beyond rounding."""
    return any(one.lossy or is_lossy(getattr(one, "children", ())) for one in passes)
