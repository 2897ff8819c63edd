"""The algebra under pruning: what is said of axes holds of the indices that are kept, whatever was said before it.

The last test draws programs of unify, split, factor and freeze at random, and checks every statement of a program on
masks of the atoms that are left in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from passes.prune.atoms import (
    Atom,
    Bools,
    Chain,
    Product,
    Sums,
    Term,
    chain,
    count,
    factors,
    freeze,
    kept,
    leaves,
    product,
    resolve,
    split,
    unify,
)

UNEVEN = "axes that must be equal are divided unevenly"


def masks(rng: np.random.Generator, *terms: Term) -> dict[Atom, Bools]:
    """A random mask of every free atom in the terms."""
    found = dict.fromkeys(atom for term in terms for atom in leaves(term))
    return {atom: rng.random(atom.size) < 0.5 for atom in found if not atom.frozen}


def sizes(term: Term) -> list[int]:
    return [atom.size for atom in leaves(term)]


def test_equal_atoms_are_one() -> None:
    a, b, c = Atom(6), Atom(6), Atom(6)
    assert unify(a, b) and unify(b, c) and unify(a, c)
    assert resolve(a) is resolve(b) is resolve(c)


def test_an_atom_becomes_what_it_is_equal_to() -> None:
    """Six heads of four: the axis of 24 is no atom any more."""
    heads, dims, axis = Atom(6), Atom(4), Atom(24)
    assert unify(axis, product(heads, dims))
    assert list(leaves(axis)) == [heads, dims]
    mask = kept(axis, {heads: np.arange(6) != 2})
    assert mask.reshape(6, 4).all(1).tolist() == [True, True, False, True, True, True]


def test_products_are_refined_to_common_factors() -> None:
    """2 x 6 and 4 x 3 of the same twelve are 2 x 2 x 3."""
    a, b = product(Atom(2), Atom(6)), product(Atom(4), Atom(3))
    assert unify(a, b)
    assert sizes(a) == sizes(b) == [2, 2, 3]
    assert list(leaves(a)) == list(leaves(b))


def test_chains_are_cut_at_each_other_s_ends() -> None:
    a, b = chain(Atom(8), Atom(6)), chain(Atom(5), Atom(9))
    assert unify(a, b)
    assert sizes(a) == sizes(b) == [5, 3, 6]


def test_a_chain_of_equal_parts_is_a_product() -> None:
    """Two halves of six that are reshaped to 2 x 6 lose the same indices."""
    first, second = Atom(6), Atom(6)
    outer, inner = factors(chain(first, second), [2, 6]) or []
    assert resolve(first) is resolve(second) is resolve(inner)
    assert sizes(outer) == [1, 1]


def test_a_concat_with_itself_keeps_the_same_twice() -> None:
    part, whole = Atom(3), Atom(6)
    assert unify(whole, chain(part, part))
    assert kept(whole, {part: np.array([True, False, True])}).tolist() == [True, False, True] * 2


def test_a_concat_with_itself_that_is_cut_elsewhere() -> None:
    """Halves of three beside thirds of two: all six are one index."""
    half, third = Atom(3), Atom(2)
    assert unify(chain(half, half), chain(third, third, third))
    assert len(set(leaves(half)) | set(leaves(third))) == 1


def test_no_common_factors_freeze_both() -> None:
    a, b = product(Atom(3), Atom(4)), product(Atom(4), Atom(3))
    assert not unify(a, b)
    assert {atom.frozen for term in (a, b) for atom in leaves(term)} == {UNEVEN}


@pytest.mark.parametrize("frozen_first", [True, False])
def test_what_is_frozen_freezes_what_is_equal_to_it(frozen_first: bool) -> None:
    a, b = product(Atom(2), Atom(3)), Atom(6)
    if frozen_first:
        freeze(b, "it is an input")
    unify(a, b)
    if not frozen_first:
        freeze(b, "it is an input")
    freeze(a, "too late")
    assert [atom.frozen for atom in leaves(a)] == ["it is an input"] * 2


def test_a_row_that_is_cut_stands_for_itself() -> None:
    """Five rows of two, cut after five: two rows, a half row; the other half, two rows."""
    rows, columns = Atom(5), Atom(2)
    before, after = split(product(rows, columns), [5, 5])
    assert sizes(rows) == [2, 1, 2] and sizes(columns) == [1, 1]
    keep = masks(np.random.default_rng(0), rows, columns)
    keep[list(leaves(rows))[1]] = np.array([True])  # an atom of one index is never removed
    whole = kept(product(rows, columns), keep)
    assert np.concatenate([kept(before, keep), kept(after, keep)]).tolist() == whole.tolist()


def test_factors_of_size_one_and_empty_parts_say_nothing() -> None:
    a = Atom(4)
    assert product(Atom(1), a, Atom(1)) is a
    assert chain(Atom(0), a) is a
    assert [part.size for part in split(a, [0, 4, 0])] == [0, 4, 0]
    assert [part.size for part in factors(a, [1, 4, 1]) or []] == [1, 4, 1]
    assert a.bound is None


def test_what_does_not_divide_is_frozen() -> None:
    a = product(Atom(3), Atom(4))
    assert factors(a, [2, 6]) is None
    assert all(atom.frozen == "it is reshaped across its structure" for atom in leaves(a))


def test_counts_are_those_of_masks() -> None:
    heads, dims, rest = Atom(6), Atom(4), Atom(5)
    axis = chain(product(heads, dims), rest)
    keep = masks(np.random.default_rng(3), axis)
    assert count(axis, lambda atom: float(keep[atom].sum())) == kept(axis, keep).sum()


def test_sums_are_over_what_goes_with_an_index() -> None:
    """A head's score is that of all its dimensions; a dimension's that of all heads; a chain's parts are apart."""
    heads, dims, rest = Atom(2), Atom(3), Atom(2)
    sums = Sums()
    sums.add(chain(product(heads, dims), rest), np.array([1.0, 2, 3, 10, 20, 30, 7, 8]))
    sums.add(rest, np.array([0.5, 0.25]))
    assert sums.of[heads].tolist() == [6, 60]
    assert sums.of[dims].tolist() == [11, 22, 33]
    assert sums.of[rest].tolist() == [7.5, 8.25]


def test_sums_of_a_part_that_occurs_twice() -> None:
    part = Atom(2)
    sums = Sums()
    sums.add(Chain((part, part)), np.array([1.0, 2, 10, 20]))
    assert sums.of[part].tolist() == [11, 22]


def test_many_equal_axes_are_found_without_recursion() -> None:
    """Ten thousand of them, bound one to the next in either direction."""
    atoms = [Atom(8) for _ in range(10_000)]
    for one, other in pairwise(atoms):
        unify(one, other)
    for one, other in zip(atoms[::-2], atoms[::-3], strict=False):
        unify(one, other)
    assert len({resolve(atom) for atom in atoms}) == 1
    freeze(atoms[5000], "one for all")
    assert all(next(leaves(atom)).frozen for atom in atoms)


# ---------------------------------------------------------------------- random programs

Statement = Callable[[dict[Atom, Bools]], bool]


def equal(a: Term, b: Term) -> Statement:
    return lambda keep: np.array_equal(kept(a, keep), kept(b, keep))


class Program:
    """Random statements about axes; each must hold of every mask in the end."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.terms: list[Term] = [Atom(int(n)) for n in self.rng.choice([2, 3, 4, 6, 8, 12], 5)]
        self.said: list[Statement] = []

    def pick(self) -> Term:
        return self.terms[int(self.rng.integers(len(self.terms)))]

    def step(self) -> None:
        moves = (self.unify, self.split, self.factor, self.product, self.chain, self.freeze)
        moves[int(self.rng.choice(len(moves), p=[0.3, 0.2, 0.2, 0.12, 0.15, 0.03]))]()

    def unify(self) -> None:
        a = self.pick()
        b = next((t for t in self.rng.permutation(np.array(self.terms, object)) if t.size == a.size and t is not a), a)
        if unify(a, b):
            self.said.append(equal(a, b))
        else:
            self.said.append(lambda keep: bool(kept(a, keep).all() and kept(b, keep).all()))

    def split(self) -> None:
        whole = self.pick()
        ends = np.sort(self.rng.integers(0, whole.size + 1, 2))
        parts = split(whole, np.diff([0, *ends, whole.size]).tolist())
        self.said.append(lambda keep: np.array_equal(np.concatenate([kept(p, keep) for p in parts]), kept(whole, keep)))
        self.terms += [part for part in parts if part.size]

    def factor(self) -> None:
        whole = self.pick()
        inner = int(self.rng.choice([n for n in range(1, whole.size + 1) if whole.size % n == 0]))
        found = factors(whole, [whole.size // inner, inner])
        if found is None:
            self.said.append(lambda keep: bool(kept(whole, keep).all()))
            return
        self.said.append(equal(Product(*found), whole))
        self.terms += found

    def product(self) -> None:
        a, b = self.pick(), self.pick()
        if a.size * b.size <= 48:
            self.terms.append(product(a, b))
            self.said.append(equal(Product(a, b), self.terms[-1]))

    def chain(self) -> None:
        a, b = self.pick(), self.pick()
        if a.size + b.size <= 48:
            self.terms.append(chain(a, b))
            self.said.append(equal(Chain((a, b)), self.terms[-1]))

    def freeze(self) -> None:
        term = self.pick()
        freeze(term, "frozen by the program")
        self.said.append(lambda keep: bool(kept(term, keep).all()))


def test_random_programs_keep_what_they_say() -> None:
    """Atoms of one index are never removed: a row that a cut goes through is one."""
    free = 0
    for seed in range(400):
        program = Program(seed)
        for _ in range(12):
            program.step()
        atoms = dict.fromkeys(atom for term in program.terms for atom in leaves(term))
        for _ in range(3):
            keep = {a: program.rng.random(a.size) < 0.6 for a in atoms if not a.frozen and a.size > 1}
            free += len(keep)
            assert all(statement(keep) for statement in program.said), seed
    assert free > 3000
