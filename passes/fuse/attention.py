"""Attention (from 23; Vaswani et al. 2017) from its parts.

    softmax(s q k^T + mask) v          s: a product or quotient by a constant, of the scores or of both q and k^T

The parts broadcast, the operator does not: batch and heads of q, k and v must be the same for all sizes of the inputs,
and a mask must have as many rows and columns as the scores. k^T must be a Transpose, which another one replaces (or
none). A row whose mask is -inf throughout is NaN by the parts and zero by the operator; so a mask is taken only where
it is constant and finite, and otherwise with fast-math. (E19 of the usual catalogues.)

Applied only where it is named. ONNX Runtime 1.31 on the CPU is no faster by it (`python -m benchmarks.contrib`) and
refuses empty batches and sequences, and the two products in it are hidden from int8.

Where several heads of q share one of k and v, models repeat the latter first. The operator does that itself (Ainslie et
al. 2023), so what is repeated need not be written: k as [batch, heads, 1, sequence, size], expanded to r in the place
of 1 and joined to r heads each, is the order in which it reads them. This holds for any Attention there is.
(S18 of the usual catalogues.)
"""

from __future__ import annotations

import math

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype
from passes.shapes.algebra import Expr, number
from passes.shapes.interpret import Interpreter

DTYPES = ("float16", "float32")
KEYS = "Transpose(k)"
REPEATED = "Reshape(Expand(Unsqueeze({0}, *{0}1), *{0}2), *{0}3)"
SCORES = {
    "": f"MatMul(q, t={KEYS})",
    "s": f"Mul(MatMul(q, t={KEYS}), s)",
    "d": f"Div(MatMul(q, t={KEYS}), d)",
    "s1": f"MatMul(Mul(q, s1), Mul(t={KEYS}, s2))",
}


def _attention(m: Match, make: Draft) -> Tensor | None:
    """The node, where q, k, v and the mask fit; `mask` is matched or absent."""
    q, transposed, v, mask = m["q"], m["t"].inputs[0], m["v"], m.get("mask")
    perm, scale = make.attr(transposed, "perm"), _scale(m, make)
    softmax = m.node("Softmax")
    if scale is None or perm is None or len(perm) != 4 or make.attr(softmax, "axis") not in (-1, 3):
        return None
    if not all(has_dtype(t, *DTYPES) and t.dtype == q.dtype for t in (q, v)) or not _fits(m, v, mask):
        return None
    order = [*perm[:2], perm[3], perm[2]]
    k = m["k"] if order == [0, 1, 2, 3] else make.node("Transpose", m["k"], attrs={"perm": order})
    return make.node("Attention", q, k, v, mask, attrs={"scale": scale})


def _scale(m: Match, make: Draft) -> float | None:
    """What the scores are multiplied by: positive and finite, for the operator takes its root. None where it is not."""
    given = {name: scalar(make.graph, t) for name in ("s", "d", "s1", "s2") if (t := m.get(name)) is not None}
    if any(value is None or not 0 < value < math.inf for value in given.values()):
        return None
    if any(len(m[name].shape) > 4 for name in given):
        return None
    numbers = {name: float(value) for name, value in given.items() if value is not None}
    return numbers.get("s", 1.0) / numbers.get("d", 1.0) * numbers.get("s1", 1.0) * numbers.get("s2", 1.0)


def _fits(m: Match, v: Tensor, mask: Tensor | None) -> bool:
    """True where nothing is broadcast but the first dims of the mask, whatever the sizes of the inputs."""
    if any(t.shape is None or len(t.shape) != 4 for t in (m["q"], m["t"], v)):
        return False
    facts = Interpreter(m.graph)
    q, t, values = facts.dims(m["q"]), facts.dims(m["t"]), facts.dims(v)
    if q is None or t is None or values is None or not isinstance(m["q"].shape[1], int):
        return False
    if not q[:2] == t[:2] == values[:2] or t[3] != values[2]:
        return False
    return mask is None or _covers(facts.dims(mask), [*q[:3], t[3]])


def _covers(mask: list[Expr] | None, scores: list[Expr]) -> bool:
    if mask is None or not 2 <= len(mask) <= 4 or mask[-2:] != scores[-2:]:
        return False
    pairs = zip(mask[:-2], scores[4 - len(mask) : -2], strict=True)
    return all(one in (number(1), other) for one, other in pairs)


@rule(*(f"MatMul(Softmax({scores}), v)" for scores in SCORES.values()), since=23)
def attention(m: Match, make: Draft) -> Tensor | None:
    return _attention(m, make)


@rule(*(f"MatMul(Softmax(Add({scores}, mask)), v)" for scores in SCORES.values()), since=23)
def attention_bias(m: Match, make: Draft) -> Tensor | None:
    values = make.array(m["mask"])
    return _attention(m, make) if values is not None and np.isfinite(values).all() else None


@rule(*(f"MatMul(Softmax(Add({scores}, mask)), v)" for scores in SCORES.values()), since=23, fast_math=True)
def attention_mask(m: Match, make: Draft) -> Tensor | None:
    return _attention(m, make)


@rule(f"Attention(q, {REPEATED.format('k')}, {REPEATED.format('v')}, mask?)", since=23)
def attention_groups(m: Match, make: Draft) -> Tensor | None:
    facts = Interpreter(m.graph)
    if not all(_repeats(facts, t, m.root.inputs[place]) for place, t in ((1, m["k"]), (2, m["v"]))):
        return None
    return make.node("Attention", m["q"], m["k"], m["v"], m.get("mask"), attrs=m.root.attrs)


def _repeats(facts: Interpreter, heads: Tensor, joined: Tensor) -> bool:
    """True where `joined` is [N, H r, S, D] and repeats each of the H heads r times in a row."""
    expanded = joined.inputs[0].inputs[0]
    own, wide, made = (facts.dims(t) for t in (heads, expanded, joined))
    single = facts.dims(expanded.inputs[0].inputs[0])
    if own is None or wide is None or len(own) != 4 or len(wide) != 5 or own[1].value is None:
        return False
    repeated = wide[2]
    return (
        single == [*own[:2], number(1), *own[2:]]
        and wide == [*own[:2], repeated, *own[2:]]
        and repeated.value is not None
        and made == [own[0], own[1] * repeated, *own[2:]]
    )
