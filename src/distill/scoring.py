"""What selection policies ask a student: sequence vectors and uncertainties, in batches, without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.selection import Selection
from src.student.architectures import ItemTables, Student
from src.student.datamodule import SampleBatch, Samples


def uncertainty(scores: Tensor, columns: Tensor, measure: str) -> Tensor:
    """[B], larger is less sure.

    Args:
        scores: [B, N] logits.
        columns: [B] column of the true next item; read by `loss` only.
        measure: `entropy` of softmax(scores) in nats; `margin`: minus the difference between the two
            largest probabilities; `least_confidence`: 1 minus the largest; `loss`: -log p of the true item.
    """
    log_p = scores.float().log_softmax(dim=1)
    if measure == "loss":
        return -log_p.gather(1, columns[:, None]).squeeze(1)
    if measure == "entropy":
        return -(log_p.exp() * log_p).sum(dim=1)
    best = log_p.topk(2, dim=1).values.exp()
    return best[:, 1] - best[:, 0] if measure == "margin" else 1.0 - best[:, 0]


class StudentScorer:
    """A student's view of samples (a `selection_policy.Scorer`); memory is bounded by the batch.

    Args:
        student: on `device`; its mode is restored after each pass.
        tables: gives the item tables at the time of the call (fused teacher vectors), or None.
    """

    def __init__(
        self,
        student: Student,
        data: InteractionData,
        device: torch.device,
        batch_size: int,
        tables: Callable[[], ItemTables | None] = lambda: None,
    ):
        self.student, self.data, self.device = student, data, device
        self.batch_size, self.tables = batch_size, tables

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, D] float32 sequence vectors."""
        return self._pass(sample_ids, lambda hidden, tables, batch: hidden)

    def uncertainty(self, sample_ids: np.ndarray, measure: str) -> np.ndarray:
        """[n] float32."""

        def score(hidden: Tensor, tables: ItemTables | None, batch: SampleBatch) -> Tensor:
            return uncertainty(self.student.score(hidden, tables, batch.history), batch.target - 1, measure)

        return self._pass(sample_ids, score)

    @torch.no_grad()
    def _pass(
        self, sample_ids: np.ndarray, of: Callable[[Tensor, ItemTables | None, SampleBatch], Tensor]
    ) -> np.ndarray:
        training = self.student.training
        self.student.eval()
        try:
            tables = self.tables()
            rows = [
                of(self.student.encode(batch.history, tables), tables, batch).float().cpu()
                for batch in self._batches(sample_ids)
            ]
        finally:
            self.student.train(training)
        return torch.cat(rows).numpy()

    def _batches(self, sample_ids: np.ndarray) -> Iterator[SampleBatch]:
        yield from Samples(self.data, Selection(sample_ids), self.device).in_order(self.batch_size)
