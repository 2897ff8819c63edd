"""What removing units costs after the rest has made up for them as well as any linear map can.

An operator with weights W [C, M] reads C numbers x with covariance G. Least squares lets the others stand in for a
removed number i; the error that is left is E_ii / P_ii with E = W W^T and P = G^-1 (optimal brain surgeon, Hassibi
and Stork 1993). Eliminating i changes both:  p = P[:, i] / P_ii,  E -= p E[i] + E[:, i] p^T - E_ii p p^T,  P -= P_ii
p p^T. So units go one after the other, the cheapest first, and of two that say the same only one is cheap. Errors are
shares of an operator's output variance, weighted by how much of an error there reaches the model's outputs
(`propagation`).

A ridge on the covariance keeps what the data does not show from looking worthless, and what seems to hang together in
little data from being taken for it. How large it should be depends on how much the data stands for what will come:
of 64 crops of 25 photographs, a small one finds 1,000 of EfficientNet-Lite0's 1,280 features superfluous, and the
model is lost; where data is plenty, a small one is better. So both are tried, and held-out batches decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.context import Context
from optimizer.graph import Constant, Graph, Node, peek
from passes.prune.atoms import Atom, Floats, Product, Term, resolve
from passes.prune.coupling import Place
from passes.prune.moments import Moments, Wanted, collect
from passes.prune.shrink import Kept

RIDGES = (0.3, 1e-3)  # of the mean variance: little trust in the data, and much
ROUNDS = 64  # eliminations of one group, about: as many units at a time as that takes
MATRICES = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Ints = NDArray[np.int64]


@dataclass
class Reader:
    """An operator that sums over a group's units: `unit` is the unit of each number that it reads."""

    unit: Ints
    energy: Floats  # E, divided by the output's variance and times what of it reaches the outputs
    precision: Floats  # P

    def price(self, size: int) -> Floats:
        """The error of removing each unit alone, [size]."""
        alone = np.diagonal(self.energy) / np.maximum(np.diagonal(self.precision), 1e-30)
        return np.asarray(np.bincount(self.unit, np.maximum(alone, 0), size), np.float64)

    def eliminate(self, units: Ints) -> float:
        """Removes units, lets the others make up for them; returns the error that this adds."""
        gone = np.isin(self.unit, units)
        if not gone.any():
            return 0.0
        inner, left = np.ix_(gone, gone), ~gone
        p = np.linalg.solve(self.precision[inner], self.precision[gone][:, left]).T
        error = float(np.trace(np.linalg.solve(self.precision[inner], self.energy[inner])))
        cross = p @ self.energy[gone][:, left]
        self.energy = self.energy[np.ix_(left, left)] - cross - cross.T + p @ self.energy[inner] @ p.T
        self.precision = self.precision[np.ix_(left, left)] - p @ self.precision[gone][:, left]
        self.unit = self.unit[left]
        return max(error, 0.0)


def losses(
    current: Graph, old: Kept, atoms: Sequence[Atom], ctx: Context, reaches: Mapping[str, float], ridge: float
) -> dict[Atom, Floats]:
    """For each unit of a group the error that its removal adds when it is its turn; rising in the order of removal.

    Groups that no operator with weights sums over are missing. `reaches`: the share of an error at an operator's output
    that reaches the model's outputs, by node name.
    """
    c = old.coupling
    nodes = {node.name: node for node in current.nodes}
    places = [p for p in c.contractions if p.position == 0 and nodes[p.node].op in MATRICES and c.can_lose(p)]
    wanted = {p: (nodes[p.node].inputs[0].name, p.axis) for p in places}
    keys = list(dict.fromkeys(wanted.values()))
    other = {p: o for p in places if (o := _operand(nodes[p.node])) is not None}
    keys += [o for o in dict.fromkeys(other.values()) if o not in keys]
    moments = dict(collect(current, keys, ctx))
    readers: dict[Atom, list[tuple[Place, Ints, Ints]]] = {atom: [] for atom in atoms}
    for place in places:
        term = c.along(place)
        mask = old.of(c.node(place.node).inputs[0], place.axis)
        for atom, labels in _labels(term).items() if term is not None else ():
            if atom in readers:
                now = labels if mask is None else labels[mask]
                at = np.flatnonzero(now >= 0)
                readers[atom].append((place, at, now[at]))
    found = {}
    for done, atom in enumerate(atoms):
        made = [
            one
            for place, at, units in readers[atom]
            if (one := _reader(nodes[place.node], place, at, units, moments, wanted, other, reaches, ridge)) is not None
        ]
        if made:
            alive = np.flatnonzero(old.keep.get(atom, np.ones(atom.size, np.bool_)))
            found[atom] = _eliminate(made, atom.size, alive)
        ctx.progress("prune: importance", done + 1, len(atoms))
    return found


def _operand(node: Node) -> Wanted | None:
    """The second operand along the axis that is summed over, where it is no constant."""
    if node.op != "MatMul" or isinstance(node.inputs[1], Constant):
        return None
    return node.inputs[1].name, len(node.inputs[1].shape) - 2


def _labels(term: Term) -> dict[Atom, Ints]:
    """For each atom of an axis which of its units every index goes with, -1 where with none."""
    term = resolve(term)
    if isinstance(term, Atom):
        return {term: np.arange(term.size)}
    if isinstance(term, Product):
        outer = {a: np.repeat(labels, term.inner.size) for a, labels in _labels(term.outer).items()}
        return outer | {a: np.tile(labels, term.outer.size) for a, labels in _labels(term.inner).items()}
    found: dict[Atom, Ints] = {}
    start = 0
    for part in term.parts:
        for atom, labels in _labels(part).items():
            whole = found.setdefault(atom, np.full(term.size, -1))
            whole[start : start + part.size] = labels
        start += part.size
    return found


def _reader(
    node: Node,
    place: Place,
    at: Ints,
    units: Ints,
    moments: Mapping[Wanted, Moments],
    wanted: Mapping[Place, Wanted],
    other: Mapping[Place, Wanted],
    reaches: Mapping[str, float],
    ridge: float,
) -> Reader | None:
    """None for what has no weights to speak of, or where nothing varies."""
    seen = moments[wanted[place]]
    matrix = seen.covariance
    if place in other:
        energy = np.diag(moments[other[place]].energy)
        matrix = np.diag(np.diagonal(seen.products) / max(1, seen.count))  # a product of two data: nothing stands in
    else:
        energy = _energy(node)
    whole = float((energy * matrix).sum())
    if whole <= 0 or not np.isfinite(whole):
        return None
    inner = np.ix_(at, at)
    matrix, energy = matrix[inner], energy[inner] * (reaches.get(node.name, 1.0) / whole)
    matrix[np.diag_indices(len(at))] += ridge * max(float(np.diagonal(matrix).mean()), 1e-12)
    return Reader(units, energy, np.asarray(np.linalg.inv(matrix), np.float64))


def _energy(node: Node) -> Floats:
    """W W^T over outputs and kernel positions, [C, C]; channels of different groups meet no common weight."""
    w: NDArray[Any] = np.asarray(peek(node.inputs[1]), np.float64)  # type: ignore[arg-type]  # a constant: checked
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        size = w.shape[1]
        found = np.zeros((groups * size, groups * size))
        for g, part in enumerate(np.split(w, groups)):
            rows = np.moveaxis(part, 1, 0).reshape(size, -1)
            found[g * size : (g + 1) * size, g * size : (g + 1) * size] = rows @ rows.T
        return found
    if node.op == "Gemm" and node.attrs.get("transB"):
        w = w.T
    if node.op == "MatMul":
        w = np.moveaxis(w, -2, 0)
    rows = w.reshape(len(w), -1)
    return np.asarray(rows @ rows.T)


def _eliminate(readers: Sequence[Reader], size: int, alive: Ints) -> Floats:
    """The error each unit adds when it goes, in the order in which they go; those that stay last have the largest."""
    losses, left, last = np.zeros(size), alive, 0.0
    step = max(1, len(alive) // ROUNDS)
    while len(left):
        prices = np.sum([reader.price(size) for reader in readers], 0)
        units = left[np.argsort(prices[left], kind="stable")[:step]]
        error = sum(reader.eliminate(units) for reader in readers) / len(units)
        last = max(last, error)
        losses[units] = last * (1 + 1e-9 * np.arange(len(units)))
        left = left[~np.isin(left, units)]
    return losses
