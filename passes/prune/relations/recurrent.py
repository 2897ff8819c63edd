"""LSTM, GRU and RNN: hidden units, counted once for every gate, in both directions alike."""

from __future__ import annotations

from optimizer.graph import Node, Tensor
from optimizer.ops import attribute
from passes.prune.atoms import Atom, freeze, product
from passes.prune.coupling import Coupling

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
PEEPHOLES = 3


def recurrent(c: Coupling, node: Node) -> bool:
    """W is [D, gates*H, I], R [D, gates*H, H], B [D, 2*gates*H], P [D, 3*H]; states [D, N, H]."""
    x, w, r = (c.of(t) for t in node.inputs[:3])
    hidden = attribute(c.graph, node, "hidden_size")
    if x is None or w is None or r is None or hidden is None or None in (*w, *r):
        return False
    if attribute(c.graph, node, "layout"):
        return False
    gates, units = GATES[node.op], r[2]
    c.freeze([*node.inputs[4:5]], f"{node.op} '{node.name}' takes lengths from it")
    held = list(x[:2])
    c.tie(x[2], w[2])
    c.contract(node, 0, 2)
    more = [(c.of(tensor), times) for tensor, times in _more(node, gates)]
    for own, times in ((w, gates), (r, gates), *more):
        if own is None or (term := own[1]) is None or units is None:
            return False
        held.append(own[0])
        outer = Atom(times)
        freeze(outer, f"{node.op} '{node.name}' has gates there")
        c.tie(product(outer, units), term)
    for tensor in [*node.inputs[5:7], *node.outputs]:
        terms = c.of(tensor) if tensor.name else []
        if terms is None:
            return False
        if terms:
            c.tie(terms[-1], units)
            held += terms[:-1]
    c.hold(held, f"{node.op} '{node.name}' steps over it")
    c.contract(node, 2, 2)
    return True


def _more(node: Node, gates: int) -> list[tuple[Tensor, int]]:
    """Biases and peepholes with how often each unit occurs in them."""
    places = [(position, times) for position, times in ((3, 2 * gates), (7, PEEPHOLES)) if position < len(node.inputs)]
    return [(node.inputs[position], times) for position, times in places if node.inputs[position].name]


RELATIONS = dict.fromkeys(GATES, recurrent)
