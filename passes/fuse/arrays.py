"""Constants as rules need them: one value per channel, and rounded to a weight's dtype only where nothing is lost.

A constant broadcasts aligned to the right: [C] varies along the last axis, and along the channels of a 4-d tensor only
as [C, 1, 1]. Arithmetic is done in at least float32, so that half-precision weights are rounded once.
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft


def per_channel(values: Array, rank: int, axis: int, size: int) -> Array | None:
    """`values`, broadcast against a tensor of `rank`, as float64 [size] along `axis`.

    None where they vary along another axis or would enlarge the tensor, whose `axis` has `size` elements (G3).
    """
    if values.ndim > rank:
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis) or shape[axis] not in (1, size):
        return None
    return np.broadcast_to(values.astype(np.float64).reshape(-1), (size,))


def wide(values: Array) -> Array:
    """The array in float32, or in float64 where it is that wide already."""
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def narrow(exact: Array, dtype: np.dtype[np.generic], axis: int | None = None) -> Array | None:
    """`exact` rounded to `dtype`; None where a value overflows.

    With an `axis`, None also where a slice along it vanishes: where the largest value of the slice, in float16, is no
    longer a normal number and has lost its precision. A bias so small does not matter, nor a float32 below 1e-38.
    """
    with np.errstate(over="ignore", under="ignore"):
        made = exact.astype(dtype, copy=False)
    if not np.isfinite(made).all():
        return None
    if axis is None or made.dtype != np.float16:
        return made
    peaks = np.abs(exact).max(axis=tuple(i for i in range(exact.ndim) if i != axis), initial=0)
    return None if ((peaks > 0) & (peaks < np.finfo(np.float16).smallest_normal)).any() else made


def constant_operand(m: Match, make: Draft, a: str = "a", b: str = "b") -> tuple[Tensor, Array] | None:
    """Of two matched operands the one that varies and the value of the one that is constant."""
    for x, c in ((m[a], m[b]), (m[b], m[a])):
        values = make.array(c)
        if values is not None:
            return x, values
    return None


def rank(tensor: Tensor) -> int | None:
    """Number of dims, where known."""
    return None if tensor.shape is None else len(tensor.shape)


def has_dtype(tensor: Tensor, *names: str) -> bool:
    """True where the tensor's dtype is known and among `names`; a fused operator has kernels for few dtypes."""
    return tensor.dtype is not None and np.dtype(tensor.dtype).name in names


def keeps_rank(m: Match, x: Tensor) -> bool:
    """True where no one-element constant of the match has more dims than `x`: broadcasting would add some (G3)."""
    limit = rank(x) or 0
    constants = [t for node in m.nodes for t in node.inputs if m.graph.is_constant(t)]
    return all(len(t.shape) <= limit for t in constants if int(np.prod(t.shape)) == 1)
