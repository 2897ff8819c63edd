"""What pruning may remove from a model, and what keeps it from the rest, for `optimize explain --pruning`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.targets import target
from passes.prune.atoms import Atom, Product, Term, leaves, resolve
from passes.prune.cost import Cost, multiplications
from passes.prune.coupling import Coupling, couple, free

EXAMPLES = 3


def explain(graph: Graph) -> dict[str, Any]:
    """Groups of units that go together, the heaviest first, and frozen axes of weights by reason, the commonest first.

    A group's share of MACs is that of the operators whose cost it changes. The graph's nodes get names.
    """
    coupling = couple(graph)
    cost = Cost(multiplications(coupling, Context(target("onnx"))))
    layers = _layers(coupling)
    inexact = {a for p in coupling.statistics if (term := coupling.along(p)) is not None for a in leaves(term)}
    inner = {a for terms in coupling.axes.values() for term in terms if term is not None for a in _inner(term)}
    outer = {a for terms in coupling.axes.values() for term in terms if term is not None for a in _outer(term)}
    groups = [
        {
            "name": names[0],
            "units": atom.size,
            "unit": _unit(coupling, names, atom in outer, atom in inner),
            "layers": names,
            "macs_share": _share(cost, atom),
            "exact": atom not in inexact,
        }
        for atom, names in sorted(layers.items(), key=lambda item: -(_share(cost, item[0]) or 0.0))
    ]
    return {"groups": groups, "frozen": _frozen(coupling), "units": sum(atom.size for atom in layers)}


def _layers(coupling: Coupling) -> dict[Atom, list[str]]:
    """For each group the names of the operators whose weights it is an axis of."""
    found: dict[Atom, dict[str, None]] = {}
    for node, _, constant in coupling.weights():
        for term in coupling.axes[constant.name]:
            for atom in free(term) if term is not None else ():
                found.setdefault(atom, {})[node.name] = None
    return {atom: list(names) for atom, names in found.items()}


def _unit(coupling: Coupling, names: Sequence[str], several: bool, within: bool) -> str:
    """What one index of a group is: groups of a matrix product are heads."""
    if several:
        return "group" if any(coupling.node(name).op.startswith("Conv") for name in names) else "head"
    return "dimension" if within else "channel"


def _share(cost: Cost, atom: Atom) -> float | None:
    if not cost.whole:
        return None
    return sum(cost.values[i] for i in cost.readers.get(atom, ())) / cost.whole


def _outer(term: Term) -> Sequence[Atom]:
    """Atoms that stand for several indices each: heads, groups of a convolution."""
    term = resolve(term)
    return tuple(leaves(term.outer)) if isinstance(term, Product) else ()


def _inner(term: Term) -> Sequence[Atom]:
    term = resolve(term)
    return tuple(leaves(term.inner)) if isinstance(term, Product) else ()


def _frozen(coupling: Coupling) -> list[dict[str, Any]]:
    """Axes of weights that stay whole, kernels' windows left out: nobody would remove those."""
    found: dict[str, list[str]] = {}
    for node, _, constant in coupling.weights():
        for axis, term in enumerate(coupling.axes[constant.name]):
            if term is None or (node.op.startswith("Conv") and axis > 1):
                continue
            for reason in dict.fromkeys(a.frozen for a in leaves(term) if a.frozen and a.size > 1):
                found.setdefault(reason, []).append(node.name)
    rows = sorted(found.items(), key=lambda row: -len(row[1]))
    return [
        {"reason": reason, "axes": len(names), "examples": list(dict.fromkeys(names))[:EXAMPLES]}
        for reason, names in rows
    ]
