"""Which units go: the cheapest losses for what they save, in blocks, until the cost is low enough.

global      one ranking over all groups
layer       every group loses the same share
isomorphic  groups with the same operators around them lose the same share, one ranking each (Fang et al. 2024)

A block is as many units as the target wants widths to be multiples of. Where whole blocks come nowhere near the ratio,
the last step takes smaller ones, unless the multiple was asked for. Every group keeps a block, and 1 - `most` of its
units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.prune.atoms import Atom, Bools, Floats, Product, Term, leaves, resolve
from passes.prune.cost import Cost
from passes.prune.coupling import Coupling

TOLERANCE = 0.04  # of what goes, or of what stays where that is less, that the result may be off the target
BISECTIONS = 20


@dataclass(frozen=True)
class Limits:
    """`grain` by atom: what is left of it is a multiple of that, if `strict` always. `least`: how many units stay."""

    grain: Mapping[Atom, int]
    least: Mapping[Atom, int]
    strict: bool = False


def limits(coupling: Coupling, atoms: Sequence[Atom], multiple: int, most: float, strict: bool = False) -> Limits:
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
    return Limits(grain, least, strict)


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


@dataclass(frozen=True)
class Block:
    """Units that one group could lose; `gap`: how far from the target the cost would be then."""

    gap: float
    atom: Atom
    left: int


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

    def take(self, target: float, last: bool = True) -> bool:
        """Removes blocks until the cost is near the target; in the last step smaller and smaller ones where it must.

        False where no more may go.
        """
        finest = 1 if self.limits.strict or not last else max(self.limits.grain.values())
        fine = 1
        while not self._round(target, fine) and last and not self._near(target):
            nearest = self._nearest(target, fine)
            if nearest and (fine >= finest or nearest.gap <= self._tolerance(target)):
                if nearest.gap < self.cost.total - target:
                    self.cost.reduce(nearest.atom, nearest.left)
                break
            if fine >= finest:
                return False
            fine *= 2
        return True

    def _nearest(self, target: float, fine: int) -> Block | None:
        """The one block that comes nearest to the target."""
        missing = self.cost.total - target
        lefts = [(atom, left) for atom in self.order if (left := self._next(atom, fine))]
        found = [Block(abs(self.cost.saving(atom, left) - missing), atom, left) for atom, left in lefts]
        return min(found, key=lambda block: block.gap, default=None)

    def _near(self, target: float) -> bool:
        return self.cost.total <= target + self._tolerance(target)

    def _tolerance(self, target: float) -> float:
        return TOLERANCE * min(self.cost.whole - target, target)

    def take_evenly(self, target: float, classes: Sequence[Sequence[Atom]], last: bool = True) -> bool:
        """The same share of every class, found by bisection.

        Whole blocks are too coarse to meet the target with: what is missing goes by price, first from those that the
        next larger share would take more of.
        """
        start, low, high = dict(self.cost.counts), 0.0, 1.0
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            self._share(start, classes, share)
            low, high = (low, share) if self.cost.total < target else (share, high)
        self._share(start, classes, high)
        next_ = dict(self.cost.counts)
        self._share(start, classes, low)
        if not last:
            return True
        least = {atom: max(left, next_[atom]) for atom, left in self.limits.least.items()}
        Search(self.cost, Limits(self.limits.grain, least), self.order, self.by_saving)._round(target, 1)
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
        return self.cost.total - self.cost.saving(atom, left) < target - self._tolerance(target)

    def _share(self, start: Mapping[Atom, int], classes: Sequence[Sequence[Atom]], share: float) -> None:
        """Ranks the units of a class together, what is gone first; each group keeps its least and whole blocks."""
        for together in classes:
            ranked = np.sort(np.concatenate([self.order[atom] for atom in together]))
            size = sum(atom.size for atom in together)
            gone = min(round(share * size) - (size - len(ranked)), len(ranked) - 1)
            for atom in together:
                grain, order = self.limits.grain[atom], self.order[atom]
                above = int((order >= ranked[gone]).sum()) if gone > 0 else len(order)
                left = max(self.limits.least[atom], round(above / grain) * grain)
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
