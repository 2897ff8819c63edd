"""Which pipelines a run builds: the float passes, the lossy ones that all candidates start with, and each one's tail.

`--passes TEXT` takes the place of the target's own pipelines: what stands before its first lossy pass is the float
part, the rest is the one candidate beside it. `--opset` puts raising the operator set before everything else, `--prune`
puts pruning between the float part and every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from typing import Protocol

from optimizer import pipeline
from optimizer.errors import PipelineError, UserError
from optimizer.pipeline import Pass
from optimizer.targets import Target

FLOAT = "float"
CUSTOM = "passes"
PRUNED = "pruned"


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
    """`tails` maps a scheme to the passes that follow `prepare` and `shared`; the float scheme is `prepare` alone.

    `shared`: lossy passes that run once, on the float model; what they make is where every tail starts. `forced`: the
    scheme that must be shipped if it passes the gate, however fast it is. `fallbacks` maps a scheme to the one it
    stands in for: it is built only where that one misses the gate. `rivals` are built only to race, or where no other
    candidate is usable.
    """

    prepare: tuple[Pass, ...]
    tails: Mapping[str, tuple[Pass, ...]]
    forced: str | None = None
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    rivals: Collection[str] = ()
    shared: tuple[Pass, ...] = ()

    def first(self, timed: bool) -> list[str]:
        """The schemes that are built in any case, one without passes of its own first; `timed`: variants will race."""
        due = [name for name in self.tails if name not in self.fallbacks and (timed or name not in self.rivals)]
        return sorted(due, key=lambda name: bool(self.tails[name]))

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
        return pipeline.text(self.sequence(scheme))

    def sequence(self, scheme: str | None = None) -> list[Pass]:
        """The passes of one scheme, from the first; of --passes where no scheme is named, else of the float one."""
        tail = CUSTOM if scheme is None else scheme
        return [*self.prepare, *(() if tail not in self.tails else (*self.shared, *self.tails[tail]))]


def make_plan(
    target: Target,
    passes: str | None,
    scheme: str | None,
    fixed: Mapping[str, float] | None = None,
    prune: float | str | None = None,
    opset: int | None = None,
) -> Plan:
    """The plan for a target; inputs in `fixed` are bound to their values first, `prune` is a ratio or a pass's options.

    `opset`: the operator set to raise the model to before that.

    Raises PipelineError for a text that names no passes, UserError for a scheme that the target does not have.
    """
    shared = () if prune is None else (pruning(prune),)
    if shared and passes is not None:
        raise UserError("--prune and --passes do not go together: write it into the pipeline, such as prune{ratio=0.3}")
    if shared and scheme == FLOAT:
        raise UserError(f"--scheme {FLOAT} is not pruned: drop --prune, or ask for --scheme {PRUNED}")
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
    if opset is not None:
        prepare = (raising(opset), *prepare)
    rivals = target.rivals
    if shared:
        tails, rivals = {**tails, PRUNED: ()}, (*rivals, PRUNED)
    if scheme is None:
        return Plan(prepare, tails, fallbacks=target.fallbacks, rivals=rivals, shared=shared)
    if scheme not in (FLOAT, *tails):
        raise UserError(_unknown(target, scheme, [FLOAT, *tails]))
    return Plan(prepare, {scheme: tails[scheme]} if scheme in tails else {}, scheme, shared=shared)


def _unknown(target: Target, scheme: str, names: Sequence[str]) -> str:
    if scheme == PRUNED:
        return f"--scheme {PRUNED} needs to know how much: add --prune, such as --prune 0.3"
    near = get_close_matches(scheme, names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"target '{target.name}' has no scheme '{scheme}'; {hint}It has: {', '.join(names)}"


def pruning(given: float | str) -> Pass:
    """The pass `prune`, of a ratio or of what --prune takes: `0.3`, or its options, `ratio=0.3 of=latency`.

    Raises UserError for what is no ratio, PipelineError for options that the pass does not have.
    """
    words = str(given).split()
    if words and "=" not in words[0]:
        words[0] = f"ratio={words[0]}"
    try:
        (ratio,) = (float(word.removeprefix("ratio=")) for word in words if word.startswith("ratio="))
    except ValueError:
        raise UserError(
            f"--prune '{given}' names no ratio: write 0.3, or options such as 'ratio=0.3 of=latency'"
        ) from None
    if not is_ratio(ratio):
        raise UserError(f"--prune {ratio:g}: give the share to remove, above 0 and below 1, such as 0.3")
    (made,) = pipeline.build(f"prune{{{' '.join(words)}}}")
    return made


def raising(opset: int) -> Pass:
    """The pass that raises the operator set, or fails. Raises UserError for a set that onnx does not know."""
    try:
        (made,) = pipeline.build(f"opset{{min={opset} strict=true}}")
    except PipelineError as error:
        raise UserError(f"--opset {opset}: {str(error).rpartition(': ')[2]}") from None
    return made


def is_ratio(number: float) -> bool:
    """True for a share that can be removed."""
    return math.isfinite(number) and 0 < number < 1


def essential(tail: Sequence[Pass]) -> list[int]:
    """The place of the pass that makes a scheme what it is: the first lossy one that does more than make way.

    Where all of them only make way, they are all of it.
    """
    lossy = [place for place, one in enumerate(tail) if is_lossy([one])]
    return [place for place in lossy if not tail[place].prepares][:1] or lossy


def is_lossy(passes: Iterable[Pass]) -> bool:
    """True where a pass, or a pass inside one, may change outputs beyond rounding."""
    return any(one.lossy or is_lossy(getattr(one, "children", ())) for one in passes)
