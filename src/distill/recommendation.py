"""`student.loss` from catalogue terms that the distillation shares with it."""

from __future__ import annotations

import torch
from torch import Tensor

from src.distill.catalogue import CatalogueTerms
from src.student import losses
from src.student.datamodule import Batch
from src.student.objective import RecommendationLoss


class SharedRecommendation(RecommendationLoss):
    """The baseline's loss, put together from `catalogue_terms` instead of passes of its own.

    The parent's `forward` stays for steps that need no score matrix; both give equal losses (tested).
    """

    @property
    def needs_log_z(self) -> bool:
        return self.config.base_loss == "ce"

    @property
    def needs_dro(self) -> bool:
        return self.config.loss == "dros"

    def columns(self, batch: Batch, negatives: Tensor | None) -> Tensor:
        """[B, M] the columns it reads: the target, then its negatives."""
        target = batch.target.unsqueeze(1)
        return (target if negatives is None else torch.cat([target, negatives], dim=1)) - 1

    def from_terms(self, scores: Tensor, terms: CatalogueTerms, count: int) -> Tensor:
        """[B] losses, as `forward` gives them.

        Args:
            scores: [B, N], read with label smoothing only.
            terms: at least of `columns`, which are the first `count` of them.
        """
        c = self.config
        values = terms.values[:, :count]
        if c.base_loss == "ce":
            loss = terms.log_z - values[:, 0]
            if c.label_smoothing > 0:  # (1 - e) of the target's and e of the mean over the catalogue
                loss = loss + c.label_smoothing * (values[:, 0] - scores.mean(dim=1))
        elif c.base_loss == "bce":
            loss = losses.bce(values[:, 0], values[:, 1])
        else:
            loss = losses.gbce(values[:, 0], values[:, 1:], self.n_items, c.gbce_t)
        return loss + c.dros_alpha * terms.dro[:, 0] if self.needs_dro else loss
