"""Which indices of an axis live or die together, as terms over atoms: the algebra under the dependency graph.

An axis is an `Atom` (indices that are free of each other), a `Product` (row-major: 384 = 6 heads x 64) or a `Chain`
(one part after the other, as Concat makes it). To say that two axes are the same is to unify their terms, which
breaks atoms up until both sides have one structure; what cannot be divided evenly is frozen. An index of a product
dies with its outer or its inner index. A union-find over (tensor, axis, index) slots, the usual way, cannot say that:
it would tie every head to every head dimension. It would also hold an object a channel; here an operator costs a few
terms, however wide it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(eq=False)
class Atom:
    """Indices 0 to size - 1, each removable unless `frozen` says why not; `bound` to what it turned out to be."""

    size: int
    frozen: str = ""
    bound: Term | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """Index i * inner.size + j stands for the pair (i, j)."""

    outer: Term
    inner: Term

    @cached_property
    def size(self) -> int:
        return self.outer.size * self.inner.size


@dataclass(frozen=True, eq=False)
class Chain:
    """The indices of one part after those of another."""

    parts: tuple[Term, ...]

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


Term = Atom | Product | Chain


class _Uneven(Exception):  # noqa: N818  # never leaves this module
    """Two structures without a common refinement."""


def product(*factors: Term) -> Term:
    """Row-major product, outermost first; factors of size 1 say nothing."""
    wide = [factor for factor in factors if factor.size != 1]
    if not wide:
        return factors[0] if factors else Atom(1)
    found = wide[-1]
    for factor in reversed(wide[:-1]):
        found = Product(factor, found)
    return found


def chain(*parts: Term) -> Term:
    """One part after the other; a chain among them is no level of its own, however many are put together."""
    flat = [inner for part in parts if part.size for inner in _parts(resolve(part))]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def resolve(term: Term) -> Term:
    """What a term is by now, at its top level."""
    while isinstance(term, Atom) and term.bound is not None:
        if isinstance(term.bound, Atom) and term.bound.bound is not None:
            term.bound = term.bound.bound
        term = term.bound
    return term


def leaves(term: Term) -> Iterator[Atom]:
    """The atoms a term is made of by now; one that occurs twice comes twice."""
    pending = [term]
    while pending:
        last = resolve(pending.pop())
        if isinstance(last, Atom):
            yield last
        else:
            pending.extend(last.parts[::-1] if isinstance(last, Chain) else (last.inner, last.outer))


def freeze(term: Term, reason: str) -> None:
    """Keeps every index of the axis; the first reason given is the one that is told."""
    for atom in leaves(term):
        atom.frozen = atom.frozen or reason


def unify(a: Term, b: Term) -> bool:
    """Makes two axes of equal size the same; False, and both frozen, where their structures do not fit."""
    assert a.size == b.size, (a.size, b.size)
    try:
        _unify(a, b)
    except _Uneven:
        for term in (a, b):
            freeze(term, "axes that must be equal are divided unevenly")
        return False
    return True


def _unify(a: Term, b: Term) -> None:
    pending = [(a, b)]
    while pending:
        s, t = map(resolve, pending.pop())
        if s is t:
            continue
        if isinstance(t, Atom):
            s, t = t, s
        if isinstance(s, Atom):
            _bind(s, t)
        elif isinstance(s, Chain) or isinstance(t, Chain):
            pending += _aligned(s, t)
        else:
            assert isinstance(s, Product) and isinstance(t, Product)
            if s.inner.size < t.inner.size:
                s, t = t, s
            middle, inner = factor(s.inner, t.inner.size)
            pending += [(inner, t.inner), (product(s.outer, middle), t.outer)]


def _aligned(a: Term, b: Term) -> Iterator[tuple[Term, Term]]:
    """Parts of equal sizes, in order."""
    left, right = _parts(a)[::-1], _parts(b)[::-1]
    while left:
        s, t = left.pop(), right.pop()
        if s.size > t.size:
            s, rest = cut(s, t.size)
            left.append(rest)
        elif t.size > s.size:
            t, rest = cut(t, s.size)
            right.append(rest)
        yield s, t


def _parts(term: Term) -> list[Term]:
    return list(term.parts) if isinstance(term, Chain) else [term]


def _bind(atom: Atom, term: Term) -> None:
    if atom.frozen:
        freeze(term, atom.frozen)
    atom.bound = term


def cut(term: Term, at: int) -> tuple[Term, Term]:
    """The indices before `at` and the others. Inside of a row of a product, that row stands for itself."""
    term = resolve(term)
    if isinstance(term, Atom):
        parts = Atom(at), Atom(term.size - at)
        _bind(term, Chain(parts))
        return parts
    if isinstance(term, Product):
        rows, within = divmod(at, term.inner.size)
        above, below = _cut(term.outer, rows)
        if not within:
            return product(above, term.inner), product(below, term.inner)
        _, below = _cut(below, 1)
        first, second = cut(term.inner, within)
        return chain(product(above, term.inner), first), chain(second, product(below, term.inner))
    before: list[Term] = []
    for place, part in enumerate(term.parts):
        if at == 0:
            return chain(*before), chain(*term.parts[place:])
        if at < part.size:
            first, second = cut(part, at)
            return chain(*before, first), chain(second, *term.parts[place + 1 :])
        before.append(part)
        at -= part.size
    raise AssertionError("a cut at the end is none")


def _cut(term: Term, at: int) -> tuple[Term, Term]:
    """Where a side may be empty."""
    if at in (0, term.size):
        return (Atom(0), term) if at == 0 else (term, Atom(0))
    return cut(term, at)


def factor(term: Term, inner: int) -> tuple[Term, Term]:
    """The term as (outer, inner) with an inner part of that size. Raises _Uneven where there is none."""
    term = resolve(term)
    if term.size == inner:
        return Atom(1), term
    if inner == 1:
        return term, Atom(1)
    if term.size % inner:
        raise _Uneven
    if isinstance(term, Atom):
        made = Product(Atom(term.size // inner), Atom(inner))
        _bind(term, made)
        return made.outer, made.inner
    if isinstance(term, Product):
        if inner <= term.inner.size:
            middle, last = factor(term.inner, inner)
            return product(term.outer, middle), last
        if inner % term.inner.size:
            raise _Uneven
        first, middle = factor(term.outer, inner // term.inner.size)
        return first, product(middle, term.inner)
    pairs = [factor(part, inner) for part in term.parts]
    for _, last in pairs[1:]:
        _unify(pairs[0][1], last)
    return chain(*(first if first.size else Atom(1) for first, _ in pairs)), pairs[0][1]


def split(term: Term, sizes: list[int]) -> list[Term]:
    """The term's parts of these sizes in order."""
    parts: list[Term] = []
    rest = term
    for size in sizes[:-1]:
        head, rest = _cut(rest, size)
        parts.append(head)
    return [*parts, rest]


def factors(term: Term, sizes: list[int]) -> list[Term] | None:
    """The term as a product of factors of these sizes, outermost first; None, and it is frozen, where it is none."""
    found: list[Term] = []
    rest = term
    try:
        for size in sizes[:0:-1]:
            rest, last = factor(rest, size)
            found.append(last)
    except _Uneven:
        freeze(term, "it is reshaped across its structure")
        return None
    return [rest, *found[::-1]]


# ---------------------------------------------------------------- what is kept of an axis

Keep = Mapping[Atom, Bools]  # atoms that are missing are whole


def kept(term: Term, keep: Keep) -> Bools:
    """For each index of the axis whether it stays, bool [size]."""
    term = resolve(term)
    if isinstance(term, Atom):
        found = keep.get(term)
        return np.ones(term.size, np.bool_) if found is None else found
    if isinstance(term, Chain):
        return np.concatenate([kept(part, keep) for part in term.parts])
    return np.logical_and.outer(kept(term.outer, keep), kept(term.inner, keep)).reshape(-1)


def count(term: Term, counts: Callable[[Atom], float]) -> float:
    """How many indices of the axis stay, where `counts` says it of an atom."""
    term = resolve(term)
    if isinstance(term, Atom):
        return counts(term)
    if isinstance(term, Chain):
        return math.fsum(count(part, counts) for part in term.parts)
    return count(term.outer, counts) * count(term.inner, counts)


@dataclass
class Sums:
    """Numbers per index of atoms, added up from numbers per index of axes."""

    of: dict[Atom, Floats] = field(default_factory=dict)

    def add(self, term: Term, values: Floats) -> None:
        """Adds `values` [size] of an axis: an index of a factor gets the sum over the other factor's indices."""
        term = resolve(term)
        if isinstance(term, Atom):
            self.of[term] = self.of.get(term, 0) + values
        elif isinstance(term, Chain):
            ends = np.cumsum([part.size for part in term.parts])[:-1]
            for part, values_of_part in zip(term.parts, np.split(values, ends), strict=True):
                self.add(part, values_of_part)
        else:
            table = values.reshape(term.outer.size, term.inner.size)
            self.add(term.outer, table.sum(1))
            self.add(term.inner, table.sum(0))
