"""Effective rank and principal directions of a table of vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Spread of a table's centred rows.

    Attributes:
        largest: share of the variance in the direction that has most of it.
        effective_rank: exp of the entropy of the directions' shares (Roy & Vetterli 2007, on variances).
        rank: directions with a singular value above rounding.
        width: columns of the table.
    """

    largest: float
    effective_rank: float
    rank: int
    width: int

    def __str__(self) -> str:
        return (
            f"width {self.width}, rank {self.rank}, effective rank {self.effective_rank:.1f}, "
            f"largest direction {self.largest:.1%} of the variance"
        )


def geometry(vectors: np.ndarray) -> Geometry:
    """The geometry of vectors [N, D] (without a padding row)."""
    _, values = principal_directions(vectors)
    total = float((values**2).sum())
    if total == 0:  # all rows equal
        return Geometry(1.0, 1.0, 0, vectors.shape[1])
    shares = values**2 / total
    some = shares[shares > 0]
    entropy = float(-(some * np.log(some)).sum())
    return Geometry(float(shares[0]), float(np.exp(entropy)), len(values), vectors.shape[1])


def principal_directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred vectors [N, D] as (U [N, R], s [R]): `U * s` are their principal components, largest first.

    Directions within rounding of 0 are left out. The largest entry of a column of U is positive, so that equal
    input gives equal signs. Float64.
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    some = values > max(centred.shape) * np.finfo(np.float32).eps * max(values[0], 1e-300)
    left, values = left[:, some], values[some]
    at = np.abs(left).argmax(axis=0) if left.shape[1] else np.empty(0, int)
    return left * np.sign(left[at, np.arange(left.shape[1])]), values
