"""What a unit is worth: numbers per index of every group, from weights alone or from calibration data.

l1, l2          norms of all the weights that a unit has (Li et al. 2016; the group norm of DepGraph, Fang et al. 2023)
bn              the scales of its BatchNormalizations (Network Slimming, Liu et al. 2017)
fpgm            distance of its filter from the others of its layer (He et al. 2019)
activation      variance that it feeds into the operators which sum over it, as a share of all (Wanda, Sun et al. 2023)
reconstruction  the error that is left at the outputs when the others have made up for it (`reconstruction`)
random          a baseline

The last two by data are shares of an operator's output, so they compare across layers; norms do not, and are divided
by their mean in each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Constant, Graph, Node, peek
from optimizer.ops import MULTIPLY
from passes.prune.atoms import Atom, Floats, Sums
from passes.prune.coupling import Coupling, Place
from passes.prune.moments import Wanted, collect
from passes.prune.reconstruction import losses
from passes.prune.shrink import Kept

Criterion = Literal["auto", "l2", "l1", "bn", "fpgm", "activation", "reconstruction", "random"]
BY_DATA = ("activation", "reconstruction")
Scores = Mapping[Atom, Floats]


def importance(
    criterion: Criterion,
    current: Graph,
    old: Kept,
    atoms: Sequence[Atom],
    ctx: Context,
    reaches: Mapping[str, float],
    ridge: float,
) -> Scores:
    """Scores of all groups' units, of the original's size; what is gone has none. `current` is the graph as pruned.

    `reaches` and `ridge` are for reconstruction.

    Raises PipelineError where a criterion lacks what it needs.
    """
    c = old.coupling
    nodes = {node.name: node for node in current.nodes}
    if criterion == "random":
        return _random(c, ctx.seed)
    if criterion == "bn":
        return _relative(_scales(c, nodes, old))
    if criterion not in BY_DATA:
        return _relative(_norms(criterion, c, nodes, old))
    if not len(ctx.batches):
        raise PipelineError(f"'prune' by {criterion} needs data: give some with --data, or take criterion=l2")
    if criterion == "activation":
        return _filled(_shares(c, current, nodes, old, ctx).of, c, nodes, old)
    return _filled(losses(current, old, atoms, ctx, reaches, ridge), c, nodes, old)


def _filled(scores: dict[Atom, Floats], c: Coupling, nodes: Mapping[str, Node], old: Kept) -> Scores:
    """Shares of the weights' energy for groups that meet no weights as data, such as an LSTM's units."""
    for atom, norms in _norms("l2", c, nodes, old).of.items():
        if atom not in scores:
            scores[atom] = np.square(norms) / max(float(np.square(norms).sum()), 1e-30)
    return scores


def _relative(sums: Sums) -> Scores:
    return {atom: values / max(float(values.mean()), 1e-30) for atom, values in sums.of.items()}


def _random(c: Coupling, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    sums = Sums()
    for _, _, constant in c.weights():
        for term in c.axes[constant.name]:
            if term is not None:
                sums.add(term, np.ones(term.size))
    return {atom: rng.random(atom.size) for atom in sums.of}


def _norms(criterion: str, c: Coupling, nodes: Mapping[str, Node], old: Kept) -> Sums:
    sums = Sums()
    for node, position, constant in c.weights():
        values = _whole(nodes[node.name], position, constant, old)
        energy = np.abs(values) if criterion == "l1" else np.square(values)
        for axis, term in enumerate(c.axes[constant.name]):
            if term is None:
                continue
            others = tuple(i for i in range(values.ndim) if i != axis)
            sums.add(term, _spread(values, axis) if criterion == "fpgm" else energy.sum(others))
    if criterion == "l2":
        sums.of = {atom: np.sqrt(values) for atom, values in sums.of.items()}
    return sums


def _whole(node: Node, position: int, constant: Constant, old: Kept) -> Floats:
    """The weights as they are now in the shape they had, zero where they are gone."""
    now = node.inputs[position]
    assert isinstance(now, Constant)
    values = np.zeros(constant.shape)
    masks = old.places(constant)
    index = np.ix_(*(np.flatnonzero(masks[a]) if a in masks else np.arange(n) for a, n in enumerate(constant.shape)))
    values[index] = np.asarray(peek(now), np.float64)
    return values


def _spread(values: Floats, axis: int) -> Floats:
    """For each index the sum of the distances of its slice to all others."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    squares = np.square(rows).sum(1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)).sum(1))


def _scales(c: Coupling, nodes: Mapping[str, Node], old: Kept) -> Sums:
    sums = Sums()
    for node in c.graph.nodes:
        if node.op == "BatchNormalization" and isinstance(scale := node.inputs[1], Constant):
            term = c.axes[scale.name][0]
            if term is not None:
                sums.add(term, np.abs(_whole(nodes[node.name], 1, scale, old)))
    if not sums.of:
        raise PipelineError(
            "'prune' by bn finds no BatchNormalization: 'fuse' folds them; put prune{criterion=bn} before it in "
            "--passes"
        )
    return sums


def _shares(c: Coupling, current: Graph, nodes: Mapping[str, Node], old: Kept, ctx: Context) -> Sums:
    """The share of an operator's output variance that goes with each unit it sums over, added up over operators."""
    sums = Sums()
    places = [p for p in c.contractions if p.position == 0 and c.can_lose(p)]
    tensors = {p: _operands(nodes[p.node], p) for p in places}
    wanted = list(dict.fromkeys(one for pair in tensors.values() for one in pair))
    moments = dict(collect(current, wanted, ctx))
    for place in places:
        term, (first, *other) = c.along(place), tensors[place]
        assert term is not None
        node, seen = nodes[place.node], moments[first]
        weights = moments[other[0]].energy if other else _met(node)
        if weights is None:
            continue
        values = np.zeros(term.size)
        mask = old.of(c.node(place.node).inputs[0], place.axis)
        values[slice(None) if mask is None else mask] = seen.variance * weights
        sums.add(term, values / max(float((seen.variance * weights).sum()), 1e-30))
    return sums


def _operands(node: Node, place: Place) -> list[Wanted]:
    """The data along the axis that is summed over; where both operands are data, the other one's too."""
    found = [(node.inputs[0].name, place.axis)]
    if node.op == "MatMul" and not isinstance(node.inputs[1], Constant):
        found.append((node.inputs[1].name, len(node.inputs[1].shape) - 2))
    return found


def _met(node: Node) -> Floats | None:
    """The energy of the weights that each unit of the input meets; None where they are no weights."""
    if len(node.inputs) < 2 or not isinstance(w := node.inputs[1], Constant) or node.op not in MULTIPLY:
        return None
    energy = np.square(np.asarray(peek(w), np.float64))
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        return np.asarray(energy.reshape(groups, -1, *energy.shape[1:]).sum((1, *range(3, energy.ndim + 1)))).reshape(
            -1
        )
    axis = {"ConvTranspose": 0, "MatMul": energy.ndim - 2, "Gemm": 1 if node.attrs.get("transB") else 0}.get(node.op, 2)
    return np.asarray(energy.sum(tuple(i for i in range(energy.ndim) if i != axis)))
