"""What each operator says of its axes: which are the same, which it sums over, which it needs whole.

One table from operator to relation; what is not in it, or what a relation cannot tell, is frozen.
"""

from __future__ import annotations

from collections.abc import Callable

from optimizer.graph import Node
from optimizer.ops import KNOWN_DOMAINS
from passes.prune.coupling import Coupling
from passes.prune.relations import attention, dense, elementwise, layout, norm, recurrent, window

BROADCASTS = 7  # the operator set from which on axes are aligned as numpy does it
Relation = Callable[[Coupling, Node], bool]

RELATIONS: dict[str, Relation] = {
    **elementwise.RELATIONS,
    **dense.RELATIONS,
    **norm.RELATIONS,
    **window.RELATIONS,
    **layout.RELATIONS,
    **recurrent.RELATIONS,
    **attention.RELATIONS,
}

# From which input on an operator takes sizes, axes or places, which are no channels.
NUMBERS = {
    **dict.fromkeys(
        ("Reshape", "Expand", "Tile", "Split", "Slice", "Squeeze", "Unsqueeze", "Pad", "Resize", "TopK"), 1
    ),
    **dict.fromkeys((*norm.SUMS, *norm.NEED_ALL, "ReduceMean", "CumSum", "Upsample"), 1),
    "ConstantOfShape": 0,
}


def relate(c: Coupling, node: Node) -> None:
    """Applies the node's relation; freezes the axes of all it touches where there is none, or it returns False."""
    known = c.graph.opset >= BROADCASTS and (node.domain or "") in KNOWN_DOMAINS
    relation = RELATIONS.get(node.op) if known else None
    if relation is None:
        c.freeze([*node.inputs, *node.outputs], f"{node.op} '{node.name}': nothing is known of its axes")
    elif not relation(c, node):
        c.freeze([*node.inputs, *node.outputs], f"{node.op} '{node.name}': its axes cannot be told")
    else:
        c.freeze(
            node.inputs[NUMBERS.get(node.op, len(node.inputs)) :], f"{node.op} '{node.name}' takes numbers from it"
        )
