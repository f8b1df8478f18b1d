"""Chosen samples with their weights; no heavy import here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Selection:
    """Chosen samples, and how much each counts: in a training, or in what is distilled of it.

    Attributes:
        sample_ids: [n] int64, each once.
        weights: [n] float32, non-negative (mean 1 keeps the loss's scale); None counts all alike.
        provenance: what made it (the manifest of a selection's artifact).
    """

    sample_ids: np.ndarray
    weights: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def chunks(n: int, size: int = 2**16) -> Iterator[slice]:
    """0..n in pieces, so that what is made of each stays small."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
