"""Einsum as the operator that it spells, where no more nodes are needed than there were.

    ij->ji   Transpose         ij->i   ReduceSum         ij,j->ij   Mul         bik,bkj->bij, bik,kj->bij   MatMul

With one letter a dim, an operand read in the order [.., m, k], the other in [.., k, n] and a result [.., m, n], the sum
over k is a matrix product, and the letters before them broadcast where the shorter list ends the longer one. The dims
of k must be known to be equal: some runtimes broadcast a 1 there. Operands in another order need a Transpose, so they
are left alone unless one is there already to take it in, or constant. (S19 of the usual catalogues.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, rank

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Operand:
    """A tensor and the letters of its dims."""

    tensor: Tensor
    letters: str

    def dim(self, letter: str) -> int | str | None:
        return self.tensor.shape[self.letters.index(letter)]  # type: ignore[no-any-return]  # graphsurgeon is untyped


@rule("Einsum(*xs)")
def einsum(m: Match, make: Draft) -> Tensor | None:
    terms, arrow, result = make.attr(m.root, "equation").replace(" ", "").partition("->")
    operands = [Operand(x, term) for x, term in zip(m.lists["xs"], terms.split(","), strict=True)]
    words = [result, *(o.letters for o in operands)]
    if not arrow or not all(w.isalpha() or not w for w in words) or any(len(set(w)) < len(w) for w in words):
        return None
    if any(not has_dtype(o.tensor, *FLOATS) or rank(o.tensor) != len(o.letters) for o in operands):
        return None
    if len(operands) == 1:
        return _transposed(make, operands[0], result) or _summed(make, operands[0], result)
    if len(operands) != 2:
        return None
    a, b = operands
    return _multiplied(make, a, b, result) or _product(m, make, a, b, result) or _product(m, make, b, a, result)


def _transposed(make: Draft, x: Operand, result: str) -> Tensor | None:
    if sorted(x.letters) != sorted(result):
        return None
    return make.node("Transpose", x.tensor, attrs={"perm": [x.letters.index(letter) for letter in result]})


def _summed(make: Draft, x: Operand, result: str) -> Tensor | None:
    """Letters left out are summed over; the others must keep their order."""
    gone = [i for i, letter in enumerate(x.letters) if letter not in result]
    if not gone or "".join(letter for letter in x.letters if letter in result) != result:
        return None
    if make.graph.opset < 13:
        return make.node("ReduceSum", x.tensor, attrs={"axes": gone, "keepdims": 0})
    return make.node("ReduceSum", x.tensor, make.constant(np.array(gone, np.int64), "axes"), attrs={"keepdims": 0})


def _multiplied(make: Draft, a: Operand, b: Operand, result: str) -> Tensor | None:
    """No letter is left out, one operand has all of them in order, and the other's end the list."""
    longer, shorter = sorted((a.letters, b.letters), key=len, reverse=True)
    if longer != result or not result.endswith(shorter):
        return None
    return make.node("Mul", a.tensor, b.tensor)


def _product(m: Match, make: Draft, a: Operand, b: Operand, result: str) -> Tensor | None:
    """MatMul(a, b), the last letter of the result being one of `b`."""
    inner = set(a.letters) & set(b.letters) - set(result)
    if len(result) < 2 or len(inner) != 1 or set(a.letters + b.letters) != {*result, *inner}:
        return None
    k, lead, row, column = inner.pop(), result[:-2], result[-2], result[-1]
    if row not in a.letters or row in b.letters or column not in b.letters or column in a.letters:
        return None
    before = ["".join(letter for letter in lead if letter in x.letters) for x in (a, b)]
    if lead not in before or not all(lead.endswith(each) for each in before):
        return None
    if a.dim(k) is None or a.dim(k) != b.dim(k):
        return None
    factors = [_turned(m, make, a, before[0] + row + k), _turned(m, make, b, before[1] + k + column)]
    return None if any(factor is None for factor in factors) else make.node("MatMul", *factors)


def _turned(m: Match, make: Draft, x: Operand, wanted: Sequence[str]) -> Tensor | None:
    """The operand with its dims in the order `wanted`, where that costs no node of its own in the end."""
    perm = [x.letters.index(letter) for letter in wanted]
    if perm == sorted(perm):
        return x.tensor
    mergeable = m.graph.is_constant(x.tensor) or any(n.op == "Transpose" and not n.domain for n in x.tensor.inputs)
    if not mergeable or not m.graph.only_feeds(x.tensor, m.root):
        return None
    return make.node("Transpose", x.tensor, attrs={"perm": perm})
