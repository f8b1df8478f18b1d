"""What a training step minimises: the student together with whatever is trained beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.core.data_utils import InteractionData
from src.core.seed import derive
from src.student import losses
from src.student.architectures import ItemTables, Student
from src.student.config import StudentConfig
from src.student.datamodule import SampleBatch, Samples
from src.student.fused_losses import CatalogueTerms, catalogue_terms, in_full_precision


class Objective(nn.Module):
    """Base of what `trainer_baseline.fit` trains; its parameters and buffers are the checkpoint.

    Distillation derives from it: projectors and the teacher's tensors are submodules and buffers
    (`persistent=False` for what is rebuilt from the store).
    """

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def start_epoch(self, epoch: int, samples: Samples) -> None:
        """Called before each epoch's first step: set random streams, prepare tensors in `samples`' order."""

    def item_tables(self) -> ItemTables | None:
        """The item tables that evaluation uses; None for the student's own."""
        return None

    def forward(self, batch: SampleBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B] before the sample weights (the trainer weighs and averages), and parts for the log (scalars,
        detached)."""
        raise NotImplementedError

    def parameter_groups(self, config: StudentConfig) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; biases, norms and position vectors are not decayed by adamw."""
        if config.optimizer == "adam":
            return [{"params": list(self.parameters()), "weight_decay": config.weight_decay}]
        decayed = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        return [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]


class RecommendationLoss(nn.Module):
    """`student.loss`, the same for baseline and distilled: [B] from sequence vectors or scores.

    Args:
        config: the loss and its settings.
        data: for catalogue size and, with dros, the items' training counts.
        seed: of the stream that draws negatives.
    """

    def __init__(self, config: StudentConfig, data: InteractionData, seed: int):
        super().__init__()
        self.config, self.n_items, self.seed = config, data.n_items, seed
        ps = torch.from_numpy(losses.propensity(data.train_counts()[1:])).float()
        self.register_buffer("propensity", ps, persistent=False)
        self._generator: torch.Generator | None = None

    @property
    def needs_log_z(self) -> bool:
        return self.config.base_loss == "ce"

    @property
    def needs_dro(self) -> bool:
        return self.config.loss == "dros"

    def start_epoch(self, epoch: int) -> None:
        self._generator = torch.Generator(self.propensity.device).manual_seed(
            derive(self.seed, "negatives", epoch)
        )

    def negatives(self, batch: SampleBatch) -> Tensor | None:
        """[B, K] fresh negatives for the base loss (K = 1 for bce); None for ce, which needs none."""
        if self.config.base_loss == "ce":
            return None
        count = 1 if self.config.base_loss == "bce" else self.config.negatives
        return draw_negatives(batch, self.n_items, count, self._generator)

    def columns(self, batch: SampleBatch, negatives: Tensor | None) -> Tensor:
        """[B, M] the columns it reads: the target, then its negatives."""
        target = batch.target.unsqueeze(1)
        return (target if negatives is None else torch.cat([target, negatives], dim=1)) - 1

    def forward(
        self,
        student: Student,
        hidden: Tensor,
        batch: SampleBatch,
        negatives: Tensor | None,
        tables: ItemTables | None = None,
    ) -> Tensor:
        """[B] losses before sample weights.

        Args:
            hidden: [B, D] sequence vectors.
            negatives: of `negatives(batch)`.
            tables: as in `student.score`.
        """
        c, columns = self.config, self.columns(batch, negatives)
        if not (self.needs_log_z or self.needs_dro):  # only the items that it reads are scored
            values = student.score_items(hidden, columns + 1, tables, batch.history)
            return self.from_terms(None, CatalogueTerms(values, None, None), columns.shape[1])
        scores = student.score(hidden, tables, batch.history)
        if not self.needs_dro:
            return losses.ce(scores, columns[:, 0], c.label_smoothing)
        scores = in_full_precision(scores)
        terms = catalogue_terms(
            scores, columns, log_z=self.needs_log_z, propensity=self.propensity, beta=c.dros_beta
        )
        return self.from_terms(scores, terms, columns.shape[1])

    def from_terms(self, scores: Tensor | None, terms: CatalogueTerms, count: int) -> Tensor:
        """[B] losses from terms that the distillation shares.

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


def draw_negatives(batch: SampleBatch, n_items: int, count: int, generator: torch.Generator | None) -> Tensor:
    """[B, count] items that stand neither in a sample's history nor are its target; with windows nowhere in its window,
    as in SASRec's own code, which takes no item of a user for a negative."""
    columns = 1 if batch.places is None else batch.inputs.shape[1]
    drawn = losses.sample_negatives(batch.forbidden(), n_items, count * columns, generator)
    return drawn if batch.places is None else drawn.view(-1, count)[batch.places]


class BaselineObjective(Objective):
    """The student with its own recommendation loss alone."""

    def __init__(self, student: Student, config: StudentConfig, data: InteractionData, seed: int):
        super().__init__(student)
        self.recommendation = RecommendationLoss(config, data, seed)

    def start_epoch(self, epoch: int, samples: Samples) -> None:
        self.recommendation.start_epoch(epoch)

    def forward(self, batch: SampleBatch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.student.encode_at(batch.inputs, batch.places)
        return self.recommendation(self.student, hidden, batch, self.recommendation.negatives(batch)), {}
