"""The teacher's two losses: next-item cross-entropy over the catalogue, and that of the answer's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.teacher.ilora_model import ItemHead
from src.teacher.llm import token_logits
from src.teacher.prompts import IGNORE


def answer_losses(llm: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every answer token in nats, [M] in row-major order of `labels`.

    Args:
        llm: its output head reads the states.
        states: [B, T, H] final hidden states; those at t predict the token at t + 1.
        labels: [B, T] the answers' tokens at their own positions, IGNORE elsewhere.
    """
    following = labels[:, 1:]
    wanted = following != IGNORE
    logits = token_logits(llm, states[:, :-1][wanted])
    return F.cross_entropy(logits, following[wanted], reduction="none")


def item_loss(
    head: ItemHead,
    readout: Tensor,
    item_states: Tensor,
    targets: Tensor,
    columns: Tensor | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Sum over the batch of next-item cross-entropy.

    Args:
        readout: [B, H] read-out states.
        item_states: [N, H] states of all item texts (no gradient).
        targets: [B] item ids, 1..N.
        columns: [M] ascending catalogue columns (id - 1) that compete, with every target among them;
            None is the full catalogue. A sampled catalogue is corrected by nothing: the draw is uniform.
        prior: [B, N] log-probabilities that the scores are added to.

    Returns:
        scalar.
    """
    label = targets - 1
    if columns is not None:
        item_states = item_states[columns]
        label = torch.searchsorted(columns, label)
    scores = head.scores(head.users(readout), head.items(item_states), columns)
    if prior is not None:
        scores = scores + (prior if columns is None else prior[:, columns])
    return F.cross_entropy(scores, label, reduction="sum")


def sampled_columns(
    targets: Tensor, n_items: int, negatives: int | None, rng: torch.Generator
) -> Tensor | None:
    """The columns that compete in a step: `negatives` drawn uniformly, and the batch's targets.

    Args:
        targets: [B] item ids of the whole optimizer step (CPU).
        negatives: how many to draw; None, or as many as items, is the full catalogue.
        rng: CPU generator.
    """
    if negatives is None or negatives >= n_items:
        return None
    drawn = torch.randperm(n_items, generator=rng)[:negatives]
    return torch.unique(torch.cat([drawn, targets.cpu() - 1]))
