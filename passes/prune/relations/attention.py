"""Attention as one operator: heads, and dimensions that queries and keys or values and results share.

Written out as MatMul, Softmax and Reshape it needs nothing of this: the shapes say it all. With fewer key and value
heads than query heads, a head of the former goes with all of the latter that read it.
"""

from __future__ import annotations

from optimizer.graph import Node
from optimizer.ops import attribute
from passes.prune.atoms import Term, product
from passes.prune.coupling import Coupling
from passes.prune.relations.elementwise import same


def attention(c: Coupling, node: Node) -> bool:
    """ai.onnx Attention: queries, keys, values [N, L, heads*dim] with attributes, or [N, heads, L, dim] without."""
    inputs = [c.of(t) for t in node.inputs[:3]]
    out = c.of(node.outputs[0])
    if node.domain or None in inputs or out is None or any(t.name for t in (*node.inputs[4:], *node.outputs[1:])):
        return False
    known = [terms for terms in inputs if terms is not None]
    why = f"{node.op} '{node.name}' attends over it"
    if len(out) == 4:
        queries, keys, values = ([t[1], t[3]] for t in known)
        c.hold([known[0][2], known[1][2], known[2][2], out[2]], why)
        result = [out[1], out[3]]
    else:
        many, few = (int(attribute(c.graph, node, f"{one}_num_heads") or 0) for one in ("q", "kv"))
        sizes = [t[2] for t in (*known, out)]
        if not many or not few or None in sizes:
            return False
        heads = (many, few, few, many)
        queries, keys, values, result = (_heads(c, t, n) for t, n in zip(sizes, heads, strict=True))
        c.hold([known[0][1], known[1][1], known[2][1], out[1]], why)
    if not _masks(c, node, queries[0]):
        return False
    for terms in known:
        c.tie(terms[0], out[0])
    c.tie(queries[1], keys[1])
    c.tie(values[1], result[1])
    c.tie(keys[0], values[0])
    c.tie(queries[0], result[0])
    if queries[0] is not None and keys[0] is not None:
        repeats = queries[0].size // keys[0].size
        _, inner = c.factors(queries[0], [keys[0].size, repeats])
        c.hold([inner], f"{node.op} '{node.name}' reads one key with it")
        c.tie(_times(keys[0], inner), queries[0])
    c.contract(node, 0, len(known[0]) - 1)
    return True


def _masks(c: Coupling, node: Node, heads: Term | None) -> bool:
    """A mask [N, heads, L, L'], or the last of these axes: with one for all heads, heads are free of it."""
    if len(node.inputs) < 4 or not node.inputs[3].name:
        return True
    own, sizes = c.of(node.inputs[3]), c.sizes(node.inputs[3])
    if own is None or sizes is None:
        return False
    if len(own) > 2 and sizes[-3] != 1:
        c.tie(own[-3], heads)
    c.hold([*own[-2:], *own[:-3]], f"{node.op} '{node.name}' attends over it")
    return True


def _heads(c: Coupling, term: Term | None, heads: int) -> list[Term | None]:
    return c.factors(term, [heads, term.size // heads]) if term is not None else [None, None]


def _times(outer: Term, inner: Term | None) -> Term | None:
    return None if inner is None else product(outer, inner)


def multi_head(c: Coupling, node: Node) -> bool:
    """com.microsoft MultiHeadAttention with separate queries, keys and values [N, L, heads*dim] and no more."""
    inputs = [c.of(t) for t in node.inputs[:3]]
    out, heads = c.of(node.outputs[0]), int(node.attrs.get("num_heads", 0))
    extra = any(t.name for t in (*node.inputs[3:], *node.outputs[1:]))
    if extra or not heads or len(inputs) < 3 or out is None:
        return False
    known = [terms for terms in (*inputs, out) if terms is not None and len(terms) == 3]
    if len(known) < 4:
        return False
    queries, keys, values, result = (_heads(c, t[2], heads) for t in known)
    for terms in known:
        c.tie(terms[0], out[0])
        c.hold([terms[1]], f"{node.op} '{node.name}' attends over it")
    c.tie(queries[1], keys[1])
    c.tie(values[1], result[1])
    for other in (keys, values, result):
        c.tie(queries[0], other[0])
    c.contract(node, 0, 2)
    return True


def rotary(c: Coupling, node: Node) -> bool:
    """RotaryEmbedding of [N, heads, L, dim], or [N, L, heads*dim]: dimensions go in the pairs that are rotated."""
    x, first = c.of(node.inputs[0]), 2 if node.domain else 1
    tables = [c.of(t) for t in node.inputs[first : first + 2]]
    heads = int(node.attrs.get("num_heads") or 0)
    if x is None or None in tables or not same(c, node.inputs[0], node.outputs[0]):
        return False
    if len(x) != 4 and (len(x) != 3 or not heads):
        return False
    length, dims = (x[2], x[3]) if len(x) == 4 else (x[1], _heads(c, x[2], heads)[1])
    others = [term for own in tables for term in (own or [])[:-1]]
    c.hold([length, *others], f"{node.op} '{node.name}' rotates along it")
    c.freeze(node.inputs[1 if node.domain else 3 :][:1], f"{node.op} '{node.name}' takes places from it")
    if dims is None or attribute(c.graph, node, "rotary_embedding_dim"):
        c.hold([dims, *((own or [None])[-1] for own in tables)], f"{node.op} '{node.name}' rotates a part of it")
        return True
    interleaved = attribute(c.graph, node, "interleaved")
    factors = c.factors(dims, [dims.size // 2, 2] if interleaved else [2, dims.size // 2])
    pairs, two = factors if interleaved else factors[::-1]
    c.hold([two], f"{node.op} '{node.name}' rotates them with each other")
    for own in tables:
        c.tie(pairs, (own or [None])[-1])
    return True


RELATIONS = {"Attention": attention, "MultiHeadAttention": multi_head, "RotaryEmbedding": rotary}
