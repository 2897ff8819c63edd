"""Integer expressions over dims: sums of products with integer coefficients, equal exactly when they look equal.

What is no polynomial (a rounded division, the smaller of two) becomes an atom named by the operator and its operands,
so that equal computations stay equal. Nothing is approximated: an expression is either what it says or an atom.
Sums and products hold for integers that wrap around too. Order and division do not: x < x + 1 is not so for the largest
x. They are resolved for dims, which are far too small to wrap, and not for `data`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

TERMS = 24  # an expression of more terms becomes an atom: shape arithmetic never needs it


@dataclass(frozen=True)
class Atom:
    """An unknown integer; `natural` where it cannot be negative, as dims cannot; `data` where it may be any number."""

    key: Hashable
    natural: bool
    data: bool = False


Monomial = frozenset[tuple[Atom, int]]  # atoms with their powers; the empty one is 1
ONE: Monomial = frozenset()


@dataclass(frozen=True)
class Expr:
    """A polynomial: coefficients by monomial, none of them zero."""

    terms: frozenset[tuple[Monomial, int]]

    @property
    def value(self) -> int | None:
        """The number it is, or None."""
        if not self.terms:
            return 0
        (monomial, coefficient), *more = self.terms
        return coefficient if monomial == ONE and not more else None

    @property
    def natural(self) -> bool:
        """True where it is certainly not negative."""
        return all(c > 0 and all(atom.natural for atom, _ in m) for m, c in self.terms)

    @property
    def positive(self) -> bool:
        """True where it is certainly at least 1."""
        return self.natural and any(m == ONE for m, _ in self.terms)

    @property
    def data(self) -> bool:
        """True where arithmetic with it may wrap around, because it is made of more than dims."""
        return any(atom.data for m, _ in self.terms for atom, _ in m)

    def __add__(self, other: Expr) -> Expr:
        total = Counter(dict(self.terms))
        for monomial, coefficient in other.terms:
            total[monomial] += coefficient
        return _expr(total, "add", self, other)

    def __neg__(self) -> Expr:
        return Expr(frozenset((m, -c) for m, c in self.terms))

    def __sub__(self, other: Expr) -> Expr:
        return self + -other

    def __mul__(self, other: Expr) -> Expr:
        total: Counter[Monomial] = Counter()
        for m, c in self.terms:
            for n, d in other.terms:
                powers = Counter(dict(m))
                powers.update(dict(n))
                total[frozenset(powers.items())] += c * d
        return _expr(total, "mul", self, other)

    def over(self, other: Expr) -> Expr | None:
        """The exact quotient, where `other` is one term that divides every term; None otherwise."""
        if len(other.terms) != 1:
            return number(1) if self == other else None
        ((divisor, by),) = other.terms
        found: Counter[Monomial] = Counter()
        for m, c in self.terms:
            powers = dict(m)
            if c % by or any(powers.get(atom, 0) < power for atom, power in divisor):
                return None
            left = ((atom, power - dict(divisor).get(atom, 0)) for atom, power in m)
            found[frozenset((atom, power) for atom, power in left if power)] += c // by
        return Expr(frozenset(found.items()))


def _expr(total: Counter[Monomial], op: str, *args: Expr) -> Expr:
    terms = frozenset((m, c) for m, c in total.items() if c)
    return Expr(terms) if len(terms) <= TERMS else opaque(op, *args, natural=all(a.natural for a in args))


@lru_cache(1 << 14)
def number(value: int) -> Expr:
    return Expr(frozenset([(ONE, int(value))] if value else []))


def symbol(key: Hashable, *, natural: bool, data: bool = False) -> Expr:
    """An unknown, the same wherever the key is the same."""
    return Expr(frozenset([(frozenset([(Atom(key, natural, data), 1)]), 1)]))


def opaque(op: str, *args: Expr | frozenset[Expr], natural: bool) -> Expr:
    """The result of an operation that the algebra does not resolve."""
    data = any(e.data for arg in args for e in (arg if isinstance(arg, frozenset) else (arg,)))
    return symbol((op, *args), natural=natural, data=data)


def product(factors: Iterable[Expr]) -> Expr:
    return prod(factors, start=number(1))


def divide(a: Expr, b: Expr) -> Expr:
    """Integer division, rounded towards zero as the runtime rounds it."""
    m, n = a.value, b.value
    if m is not None and n:
        return number(abs(m) // abs(n) * (1 if (m < 0) == (n < 0) else -1))
    sure = n == 1 or a == b or not (a.data or b.data)
    exact = a.over(b) if sure and n != 0 else None
    return exact if exact is not None else opaque("div", a, b, natural=a.natural and b.natural)


def at_most(a: Expr, b: Expr) -> bool:
    """True where a <= b is certain."""
    return a == b or (not (a.data or b.data) and (b - a).natural)


def smaller(a: Expr, b: Expr) -> Expr:
    if at_most(a, b):
        return a
    return b if at_most(b, a) else opaque("min", frozenset([a, b]), natural=a.natural and b.natural)


def is_cut(a: Expr, b: Expr) -> bool:
    """True where a is the smaller of b and something that is at least 1: broadcast against b it gives b or fails."""
    if len(a.terms) != 1:
        return False
    ((monomial, coefficient),) = a.terms
    if coefficient != 1 or len(monomial) != 1:
        return False
    ((atom, power),) = monomial
    if power != 1 or not isinstance(atom.key, tuple) or atom.key[0] != "min":
        return False
    pair = atom.key[1]
    return b in pair and all(other.positive for other in pair if other != b)


def larger(a: Expr, b: Expr) -> Expr:
    if at_most(b, a):
        return a
    return b if at_most(a, b) else opaque("max", frozenset([a, b]), natural=a.natural or b.natural)


def equal(a: Expr, b: Expr) -> Expr:
    """1 or 0 where it is certain, else an atom that is one of both."""
    difference = a - b
    if difference.value == 0:
        return number(1)
    if difference.positive or (-difference).positive or difference.value is not None:
        return number(0)
    return opaque("equal", frozenset([a, b]), natural=True)


def less(a: Expr, b: Expr) -> Expr:
    if at_most(b, a):
        return number(0)
    sure = not (a.data or b.data) and (b - a).positive
    return number(1) if sure else opaque("less", a, b, natural=True)


def choose(condition: Expr, a: Expr, b: Expr) -> Expr:
    if a == b or condition.value == 1:
        return a
    return b if condition.value == 0 else opaque("where", condition, a, b, natural=a.natural and b.natural)
