"""Second moments of what a layer sums over, collected batch by batch: X^T X in float64, and some rows to judge by.

The error of other weights V in the place of W is sum((X (V - W)^T)^2), a quadratic form of X^T X: all that correcting
weights needs of the data, in memory that does not grow with it. Every fourth batch only judges what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from optimizer.graph import Array

LARGEST = 1 << 28  # bytes of X^T X: some 5,800 columns; above, only its diagonal is kept
PIECE = 512  # rows that are in float64 at a time
JUDGING = 4  # every fourth


@dataclass
class Moments:
    """`products` is X^T X, [group, columns, columns], or only its diagonal, [group, columns]; `held` are rows."""

    products: Array
    held: list[Array] = field(default_factory=list)

    @staticmethod
    def empty(group: int, columns: int, whole: bool) -> Moments:
        whole = whole and nbytes(group, columns) <= LARGEST
        return Moments(np.zeros((group, columns, columns) if whole else (group, columns)))

    @property
    def whole(self) -> bool:
        return self.products.ndim == 3

    @property
    def squares(self) -> Array:
        """The sum of squares of each column, [group, columns]."""
        return np.diagonal(self.products, axis1=1, axis2=2) if self.whole else self.products

    def add(self, rows: Array, batch: int, batches: int) -> None:
        """Takes rows [rows, group, columns] of one batch."""
        judging = np.arange(len(rows)) % JUDGING == JUDGING - 1
        if batches >= JUDGING:
            judging[:] = batch % JUDGING == JUDGING - 1
        if self.whole:
            self.held.append(rows[judging])
            rows = rows[~judging]
        for start in range(0, len(rows), PIECE):
            x = rows[start : start + PIECE].astype(np.float64).swapaxes(0, 1)
            self.products += x.swapaxes(1, 2) @ x if self.whole else (x * x).sum(axis=1)


def nbytes(group: int, columns: int) -> int:
    return group * columns * columns * 8
