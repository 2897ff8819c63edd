"""Questions about optional values that are known (H12 of the rewrite catalogue).

A tensor is its own element (from 18; only tensors have a dtype), no input at all is none, and what Optional makes holds
what it was given, or nothing.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.cleanup.movement import producer


@rule("OptionalHasElement(x?)", since=15)
def optional_has(m: Match, make: Draft) -> Tensor | None:
    """True of a tensor and of Optional(y), False of Optional() and where there is no input."""
    x = m.get("x")
    if x is not None and (maker := producer(x, "Optional")) is not None:
        return make.constant(np.array(any(t.name for t in maker.inputs)), "has")
    return None if x is not None and x.dtype is None else make.constant(np.array(x is not None), "has")


@rule("OptionalGetElement(x)", shape_safe=True, since=15)
def optional_get(m: Match, make: Draft) -> Tensor | None:
    """A tensor itself, and y of Optional(y)."""
    x = m["x"]
    if (maker := producer(x, "Optional")) is not None:
        return next((t for t in maker.inputs if t.name), None)
    return None if x.dtype is None else x


RULES = (optional_has, optional_get)
