"""Questions about optional values that are tensors, and so are there (H12 of the rewrite catalogue)."""

from __future__ import annotations

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule


@rule("OptionalHasElement(x?)", since=18)
def optional_has(m: Match, make: Draft) -> Tensor | None:
    """A tensor (only tensors have a dtype) is an element; no input at all is none."""
    x = m.get("x")
    return None if x is not None and x.dtype is None else make.constant(np.array(x is not None), "has")


@rule("OptionalGetElement(x)", shape_safe=True, since=18)
def optional_get(m: Match, make: Draft) -> Tensor | None:
    """A tensor is its own element."""
    return None if m["x"].dtype is None else m["x"]


RULES = (optional_has, optional_get)
