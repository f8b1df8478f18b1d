"""The read-out of the `item` objective: user vectors against item vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ItemHead(nn.Module):
    """Maps LLM states to user and item vectors of one space.

    score(u, i) = u . v_i / (sqrt(D) * temperature) + b_i (+ prior(u, i)) with u = LN(W_u z_u), v_i = W_i LN(z_i): the
    user side is normalised, the norm of an item vector is free (it can carry popularity).

    Args:
        hidden: width H of the LLM's states.
        dim: width D of the vectors.
        n_items: catalogue size N.
        temperature: divides the scores.
        train_counts: [N] how often each item is a training target; b starts at their log, centred.
        residual: the scores are added to a prior: item vectors and b start at 0, so that the first scores
            are the prior's.
    """

    def __init__(
        self,
        hidden: int,
        dim: int,
        n_items: int,
        temperature: float,
        train_counts: Tensor,
        residual: bool = False,
    ):
        super().__init__()
        self.user, self.user_norm = nn.Linear(hidden, dim), nn.LayerNorm(dim)
        self.item_norm, self.item = nn.LayerNorm(hidden), nn.Linear(hidden, dim)
        log_counts = torch.log(train_counts.float() + 1.0)
        self.bias = nn.Parameter(torch.zeros(n_items) if residual else log_counts - log_counts.mean())
        if residual:
            nn.init.zeros_(self.item.weight)
            nn.init.zeros_(self.item.bias)
        self.scale = 1.0 / (dim**0.5 * temperature)

    def users(self, states: Tensor) -> Tensor:
        """Read-out states [B, H] -> user vectors [B, D]."""
        return self.user_norm(self.user(states.float()))

    def items(self, states: Tensor) -> Tensor:
        """States of the item texts [M, H] -> item vectors [M, D]."""
        return self.item(self.item_norm(states.float()))

    def scores(self, users: Tensor, items: Tensor, columns: Tensor | None = None) -> Tensor:
        """[B, D] x [M, D] -> [B, M]; `columns` [M] are the catalogue columns of `items` (None: all N)."""
        bias = self.bias if columns is None else self.bias[columns]
        return users @ items.T * self.scale + bias
