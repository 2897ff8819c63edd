"""Convolutions and matrix products: they sum over one axis and make another.

A grouped convolution needs equally many channels in every group: its channels are a product of groups and channels
within a group, so a whole group is removed, or the same channel of all of them. A depthwise one has one channel a
group.
"""

from __future__ import annotations

from optimizer.graph import Node, Tensor
from optimizer.ops import attribute
from passes.prune.atoms import Term, product
from passes.prune.coupling import Coupling
from passes.prune.relations.elementwise import broadcasts


def conv(c: Coupling, node: Node) -> bool:
    x, w, y = c.of(node.inputs[0]), c.of(node.inputs[1]), c.of(node.outputs[0])
    groups = int(attribute(c.graph, node, "group"))
    if x is None or w is None or y is None or w[0] is None or w[1] is None:
        return False
    window(c, node)
    outer, inner = c.factors(x[1], [groups, w[1].size])
    made, _ = c.factors(w[0], [groups, w[0].size // groups])
    c.tie(outer, made)
    c.tie(inner, w[1])
    c.tie(w[0], y[1])
    bias(c, node, 2, y[1])
    if w[1].size > 1:
        c.contract(node, 0, 1)
    return True


def conv_transpose(c: Coupling, node: Node) -> bool:
    """Weights are [C, M/group, ...]."""
    x, w, y = c.of(node.inputs[0]), c.of(node.inputs[1]), c.of(node.outputs[0])
    groups = int(attribute(c.graph, node, "group"))
    if x is None or w is None or y is None or w[0] is None or w[1] is None:
        return False
    window(c, node)
    outer, _ = c.factors(w[0], [groups, w[0].size // groups])
    c.tie(x[1], w[0])
    c.tie(product(outer, w[1]) if outer is not None else None, y[1])
    bias(c, node, 2, y[1])
    if w[0].size > groups:
        c.contract(node, 0, 1)
    return True


def window(c: Coupling, node: Node) -> None:
    """Batches stay apart; positions mix, so they stay."""
    terms = [c.of(t) or [] for t in (node.inputs[0], node.outputs[0])]
    c.tie(terms[0][0], terms[1][0])
    why = f"{node.op} '{node.name}' slides over it"
    c.hold([*terms[0][2:], *terms[1][2:]], why)
    if node.op.startswith("Conv"):
        c.hold((c.of(node.inputs[1]) or [])[2:], why)


def bias(c: Coupling, node: Node, position: int, term: Term | None) -> None:
    if len(node.inputs) > position and node.inputs[position].name:
        own = c.of(node.inputs[position])
        c.tie(own[0] if own else None, term)


def matmul(c: Coupling, node: Node) -> bool:
    a, b, y = c.of(node.inputs[0]), c.of(node.inputs[1]), c.of(node.outputs[0])
    if a is None or b is None or y is None:
        return False
    c.tie(a[-1], b[-min(2, len(b))])
    c.contract(node, 0, len(a) - 1)
    if min(len(a), len(b)) == 1:  # a vector has no axis in the result
        for term, made in zip(a[:-1] if len(b) == 1 else [*b[:-2], b[-1]], y, strict=True):
            c.tie(term, made)
        return True
    c.tie(a[-2], y[-2])
    c.tie(b[-1], y[-1])
    return broadcasts(c, node.inputs, node.outputs[0], leave=2)


def gemm(c: Coupling, node: Node) -> bool:
    a, b, y = c.of(node.inputs[0]), c.of(node.inputs[1]), c.of(node.outputs[0])
    if a is None or b is None or y is None:
        return False
    k, m = (0, 1) if attribute(c.graph, node, "transA") else (1, 0)
    if attribute(c.graph, node, "transB"):
        b = b[::-1]
    c.tie(a[k], b[0])
    c.tie(a[m], y[0])
    c.tie(b[1], y[1])
    c.contract(node, 0, k)
    addends: list[Tensor] = [t for t in node.inputs[2:] if t.name]
    return broadcasts(c, addends, node.outputs[0])


def einsum(c: Coupling, node: Node) -> bool:
    """Every letter is one axis; those that the result lacks are summed over."""
    text = str(attribute(c.graph, node, "equation")).replace(" ", "")
    sources, arrow, result = text.partition("->")
    words = sources.split(",")
    terms = [c.of(t) for t in (*node.inputs, *node.outputs)]
    if not arrow or "." in text or len(words) != len(node.inputs):
        return False
    seen: dict[str, Term | None] = {}
    for word, axes in zip([*words, result], terms, strict=True):
        if axes is None or len(axes) != len(word) or len(set(word)) != len(word):
            return False
        for letter, term in zip(word, axes, strict=True):
            c.tie(seen.setdefault(letter, term), term)
    for letter in (one for one in seen if one not in result):
        position = next(i for i, word in enumerate(words) if letter in word)
        c.contract(node, position, words[position].index(letter))
    return True


RELATIONS = {"Conv": conv, "ConvTranspose": conv_transpose, "MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
