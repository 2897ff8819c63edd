"""Weights that are left make up for those that are zeroed: least squares on the layer's own inputs, without labels.

With W the weights [outputs, columns], X the inputs and S the places that stay, the error |X (V - W)^T|^2 of weights V
that are zero outside S is a quadratic form of H = X^T X for each output:

    minimise (v - w) (H + d I) (v - w)^T   over v with v = 0 outside S

Every output has an S of its own, so a closed form would invert one matrix an output. SparseGPT (Frantar and Alistarh
2023) avoids that by going through the columns once and never back; conjugate gradients for all outputs together go down
to the minimum itself (as in Meng et al., ALPS, 2024), for one product with H a step and no inverse. They start at plain
zeroing and every step lowers the error, so what they give is never worse on the data that H was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.graph import Array
from passes.sparsify.moments import Moments

RIDGE = 0.01  # d as a share of H's mean diagonal: keeps directions that the data hardly has where they were
STEPS = 32
ENOUGH = 1e-6  # share of the first gradient's square, at which an output has arrived


def corrected(weights: Array, kept: Array, seen: Moments) -> Array:
    """The weights [group, outputs, columns], zero outside `kept`, that come closest to the given ones.

    An output keeps plain zeroing where that is closer on the rows held out.
    """
    wide = weights.astype(np.float64)
    plain = np.where(kept, wide, 0)
    found = _descend(wide, plain, kept, _damped(seen.products))
    better = _error(found - wide, seen.held) < _error(plain - wide, seen.held)
    return np.where(better[:, :, None], found, plain).astype(weights.dtype)


def _error(change: Array, held: Sequence[Array]) -> Array:
    """The squared error of each output, [group, outputs], that a change of the weights makes over the rows."""
    total = np.zeros(change.shape[:2])
    for rows in held:
        total += ((change @ rows.astype(np.float64).transpose(1, 2, 0)) ** 2).sum(axis=2)
    return total


def _damped(products: Array) -> Array:
    columns = np.arange(products.shape[1])
    mean = np.einsum("gii->g", products) / len(columns)
    damped = products.copy()
    damped[:, columns, columns] += np.where(mean > 0, RIDGE * mean, 1.0)[:, None]
    return damped


def _descend(wide: Array, start: Array, kept: Array, h: Array) -> Array:
    """Conjugate gradients with the diagonal as preconditioner, one problem for each output."""
    scale = 1 / np.einsum("gii->gi", h)[:, None, :]
    v = start.copy()
    residual = np.where(kept, (wide - v) @ h, 0)
    direction = residual * scale
    slope = first = (residual * direction).sum(axis=2, keepdims=True)
    for _ in range(STEPS):
        if (slope <= ENOUGH * first).all():
            break
        bent = np.where(kept, direction @ h, 0)
        step = _ratio(slope, (direction * bent).sum(axis=2, keepdims=True))
        v += step * direction
        residual = residual - step * bent
        new = (residual * residual * scale).sum(axis=2, keepdims=True)
        direction = residual * scale + _ratio(new, slope) * direction
        slope = new
    return v


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
