"""The teacher's item vectors, projected to the student's width: for the input table and for alignment."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Teacher item vectors [N+1, D] (a buffer) -> [rows, H] through a trained linear map or MLP.

    The projection is taken of table rows, once per step, never of a [B, L, D] tensor of the batch.

    Args:
        table: [N+1, D] teacher vectors, row 0 zeros.
        width: H.
        hidden: width of the MLP's hidden layer; None is a linear map.
        dtype: of the product; bfloat16 halves the table's memory and rounds it, parameters stay float32.
    """

    def __init__(self, table: Tensor, width: int, hidden: int | None, dtype: torch.dtype):
        super().__init__()
        dim = table.shape[1]
        self.map = (
            nn.Linear(dim, width)
            if hidden is None
            else nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, width))
        )
        self.low_precision = dtype == torch.bfloat16
        self.register_buffer("table", table.to(dtype), persistent=False)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """[M, H] float32 for the item ids `rows` [M], or [N+1, H] for all; row 0 (padding) is never read."""
        vectors = self.table if rows is None else self.table.index_select(0, rows)
        if not self.low_precision:
            return self.map(vectors)
        with torch.autocast(vectors.device.type, torch.bfloat16):
            return self.map(vectors).float()
