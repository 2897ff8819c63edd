"""Which units go: the cheapest losses for what they save, in blocks, until the cost is low enough.

global      one ranking over all groups
layer       every group loses the same share
isomorphic  groups with the same operators around them lose the same share, one ranking each (Fang et al. 2024)

A block is as many units as the target wants widths to be multiples of; where that is too coarse to meet the ratio,
the last step takes smaller ones. Every group keeps a block, and 1 - `most` of its units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.prune.atoms import Atom, Bools, Floats, Product, Term, leaves, resolve
from passes.prune.cost import Cost
from passes.prune.coupling import Coupling

TOLERANCE = 0.01  # of the whole cost, that the result may be off the target
BISECTIONS = 20


@dataclass(frozen=True)
class Limits:
    """`grain` by atom: its units go in blocks that leave multiples of it. `least`: how many stay."""

    grain: Mapping[Atom, int]
    least: Mapping[Atom, int]


def limits(coupling: Coupling, atoms: Sequence[Atom], multiple: int, most: float) -> Limits:
    """Blocks such that every axis a group is in stays a multiple of `multiple`, if the group is wide enough."""
    beside: dict[Atom, int] = {}
    for terms in coupling.axes.values():
        for term in terms:
            if term is not None:
                _factors(term, 1, beside)
    grain, least = {}, {}
    for atom in atoms:
        step = max(1, multiple // math.gcd(multiple, beside.get(atom, 1)))
        while step > 1 and atom.size < 2 * step:
            step //= 2
        grain[atom] = step
        least[atom] = max(step, math.ceil(atom.size * (1 - most)), 1)
    return Limits(grain, least)


def _factors(term: Term, times: int, found: dict[Atom, int]) -> None:
    """For each atom of an axis how many indices of the axis go with one of its own; the least over all axes."""
    term = resolve(term)
    if isinstance(term, Atom):
        found[term] = math.gcd(found.get(term, 0), times)
    elif isinstance(term, Product):
        _factors(term.outer, times * term.inner.size, found)
        _factors(term.inner, times * term.outer.size, found)
    else:
        for part in term.parts:
            _factors(part, times, found)


@dataclass
class Search:
    """One selection under way: `order` holds the scores of each group's units that are left, ascending.

    `by_saving`: a block is priced by what it loses for what it saves, where scores compare across groups; else by what
    its units lose on average.
    """

    cost: Cost
    limits: Limits
    order: Mapping[Atom, Floats]
    by_saving: bool

    def take(self, target: float) -> bool:
        """Removes blocks until the cost is at the target, halves of blocks where it must, or as near as they allow.

        False where no more may go.
        """
        fine = 1
        while not self._round(target, fine) and fine < max(self.limits.grain.values()):
            fine *= 2
        if self.cost.total <= target + TOLERANCE * self.cost.whole:
            return True
        return self._nearest(target, fine)

    def _nearest(self, target: float, fine: int) -> bool:
        """The one block that comes nearest to the target, where that is nearer than doing nothing."""
        missing = self.cost.total - target
        found = [
            (abs(self.cost.saving(a, left) - missing), a, left) for a in self.order if (left := self._next(a, fine))
        ]
        if not found:
            return False
        gap, atom, left = min(found, key=lambda one: one[0])
        if gap < missing:
            self.cost.reduce(atom, left)
        return True

    def take_evenly(self, target: float, classes: Sequence[Sequence[Atom]]) -> bool:
        """The same share of every class, found by bisection; what is missing then, by price."""
        start, low, high = dict(self.cost.counts), 0.0, 1.0
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            self._share(start, classes, share)
            low, high = (low, share) if self.cost.total < target else (share, high)
        self._share(start, classes, low)
        return self.take(target)

    def _round(self, target: float, fine: int) -> bool:
        """One round with blocks of one size; a block that would overshoot the target is left to a finer round."""
        prices: dict[Atom, float] = {}
        for atom in self.order:
            self._price(prices, atom, target, fine)
        while self.cost.total > target and prices:
            best = min(prices, key=prices.__getitem__)
            left = self._next(best, fine)
            if left is None or self._overshoots(best, left, target):
                del prices[best]
                continue
            self.cost.reduce(best, left)
            touched = {a: None for i in self.cost.readers[best] for a in self.cost.parts[i].atoms if a in self.order}
            for atom in touched if self.by_saving else [best]:
                self._price(prices, atom, target, fine)
        return self.cost.total <= target

    def _price(self, prices: dict[Atom, float], atom: Atom, target: float, fine: int) -> None:
        left, now = self._next(atom, fine), self.cost.counts[atom]
        saving = 0.0 if left is None else self.cost.saving(atom, left)
        if left is None or saving <= 0 or self._overshoots(atom, left, target):
            prices.pop(atom, None)
            return
        order = self.order[atom]
        lost = order[len(order) - now : len(order) - left]
        prices[atom] = float(lost.sum()) / saving if self.by_saving else float(lost.mean())

    def _next(self, atom: Atom, fine: int) -> int | None:
        """How many units the group has after its next block; None where it may lose no more."""
        grain = max(1, self.limits.grain[atom] // fine)
        left = (self.cost.counts[atom] - 1) // grain * grain
        return left if left >= max(self.limits.least[atom], 1) else None

    def _overshoots(self, atom: Atom, left: int, target: float) -> bool:
        return self.cost.total - self.cost.saving(atom, left) < target - TOLERANCE * self.cost.whole

    def _share(self, start: Mapping[Atom, int], classes: Sequence[Sequence[Atom]], share: float) -> None:
        """Ranks the units of a class together; each group keeps its least and whole blocks."""
        for together in classes:
            bar = float(np.quantile(np.concatenate([self.order[atom] for atom in together]), share, method="lower"))
            for atom in together:
                grain, order = self.limits.grain[atom], self.order[atom]
                above = int((order >= bar).sum()) if share else len(order)
                left = max(self.limits.least[atom], math.ceil(above / grain) * grain)
                self.cost.reduce(atom, min(start[atom], left))


def classes(coupling: Coupling, atoms: Sequence[Atom]) -> list[list[Atom]]:
    """Groups with the same operators around them, that is in the same axes of the same inputs, in equal number."""
    marks: dict[Atom, list[tuple[str, int, int]]] = {atom: [] for atom in atoms}
    for node, position, constant in coupling.weights():
        for axis, term in enumerate(coupling.axes[constant.name]):
            for atom in leaves(term) if term is not None else ():
                if atom in marks:
                    marks[atom].append((node.op, position, axis))
    found: dict[tuple[tuple[str, int, int], ...], list[Atom]] = {}
    for atom in atoms:
        found.setdefault(tuple(sorted(marks[atom])), []).append(atom)
    return list(found.values())


def masks(
    atoms: Sequence[Atom], scores: Mapping[Atom, Floats], before: Mapping[Atom, Bools], cost: Cost
) -> dict[Atom, Bools]:
    """What is kept of each group: of the units that were left, the ones with the largest scores."""
    kept = {}
    for atom in atoms:
        mask = before.get(atom, np.ones(atom.size, np.bool_))
        alive = np.flatnonzero(mask)
        ranked = alive[np.argsort(-scores[atom][alive], kind="stable")]
        now = np.zeros(atom.size, np.bool_)
        now[ranked[: cost.counts[atom]]] = True
        if not now.all():
            kept[atom] = now
    return kept
