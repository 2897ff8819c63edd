"""A constant target for Reshape in place of a computed one (C5): numbers, 0 for a dim that is copied, at most one -1.

-1 is not defined for an empty tensor whose other dims do not say so: ONNX Runtime then refuses. So a -1 that the model
did not have itself is written only beside dims that are certainly not 0.
"""

from __future__ import annotations

from optimizer.graph import Node
from optimizer.ops import attribute
from passes.shapes.algebra import Expr
from passes.shapes.interpret import Interpreter


def constant_target(node: Node, facts: Interpreter) -> list[int] | None:
    """The target as integers that give the same result for all values of the symbols, or None."""
    wanted, dims, made = facts.vector(node, 1), facts.dims(node.inputs[0]), facts.dims(node.outputs[0])
    if wanted is None or made is None or len(made) != len(wanted):
        return None
    source: list[Expr | None] = [*(dims or []), *[None] * len(made)]
    entries = [_entry(w, s, d) for w, s, d in zip(wanted, source, made, strict=False)]
    open_places = [i for i, entry in enumerate(entries) if entry is None]
    if len(open_places) > 1 or (attribute(facts.graph, node, "allowzero") and 0 in entries):
        return None
    if open_places:
        place = open_places[0]
        others = [made[i] for i in range(len(made)) if i != place]
        given = wanted[place].value == -1
        if not given and not all(d.positive for d in others):
            return None
        entries[place] = -1
    return [entry for entry in entries if entry is not None]


def _entry(wanted: Expr, source: Expr | None, made: Expr) -> int | None:
    """One entry of the target: a positive number or 0 for a copy; None where it must be worked out (-1)."""
    number = wanted.value if wanted.value != -1 else made.value
    if number is not None and number > 0:
        return number
    if wanted.value == 0 or (source is not None and source in (wanted, made)):
        return 0
    return None
