"""What strategies ask a student: vectors, gradients and one number per sample, in batches, without autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.selection import Selection, chunks
from src.student.architectures import ItemTables, Student
from src.student.datamodule import SampleBatch, Samples

MEASURES = (
    "entropy",
    "margin",
    "least_confidence",
    "loss",
    "rank",
    "best_item",
    "target_logit",
    "gradient_norm",
)


def measure(name: str, scores: Tensor, columns: Tensor, hidden: Tensor) -> Tensor:
    """[B], one number per sample.

    Args:
        name: `entropy` of softmax(scores), nats; `margin`: minus the difference of the two largest probabilities;
            `least_confidence`: 1 minus the largest; `loss`: -log p of the true item; `rank` of the true item, from
            1, ties against it; `best_item`: its id; `target_logit`: score of the true item; `gradient_norm`: of the
            cross-entropy at the output vectors, |p - onehot| |hidden|.
        scores: [B, N] logits.
        columns: [B] column of the true next item.
        hidden: [B, D] sequence vectors.
    """
    scores = scores.float()
    target = scores.gather(1, columns[:, None]).squeeze(1)
    if name == "rank":
        return (scores >= target[:, None]).sum(dim=1)
    if name == "best_item":
        return scores.argmax(dim=1) + 1
    if name == "target_logit":
        return target
    log_p = scores.log_softmax(dim=1)
    target_log_p = log_p.gather(1, columns[:, None]).squeeze(1)
    if name == "loss":
        return -target_log_p
    p = log_p.exp()
    if name == "entropy":
        return -(p * log_p).sum(dim=1)
    if name == "gradient_norm":
        residual = (p.square().sum(dim=1) - 2 * target_log_p.exp() + 1).clamp(min=0).sqrt()
        return residual * hidden.float().norm(dim=1)
    best = p.topk(2, dim=1).values
    return best[:, 1] - best[:, 0] if name == "margin" else 1.0 - best[:, 0]


class StudentScorer:
    """A student's view of samples (`selection_policy.Scorer`); beside the answer, memory is bounded by a chunk.

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
        return self._pass(sample_ids, lambda hidden, tables, batch, positions: hidden)

    def measure(self, sample_ids: np.ndarray, name: str) -> np.ndarray:
        return self._pass(
            sample_ids,
            lambda hidden, tables, batch, positions: measure(
                name, self.student.score(hidden, tables, batch.history), batch.target - 1, hidden
            ),
        )

    def gradients(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, D]: sum over items of (p - onehot of the best item) times the item's output vector."""

        def gradient(
            hidden: Tensor, tables: ItemTables | None, batch: SampleBatch, positions: slice
        ) -> Tensor:
            vectors = (tables or self.student.tables()).outputs
            scores = self.student.score(hidden, tables, batch.history)
            return scores.softmax(dim=1) @ vectors - vectors[scores.argmax(dim=1)]

        return self._pass(sample_ids, gradient)

    def log_probabilities(self, sample_ids: np.ndarray, items: np.ndarray) -> np.ndarray:
        def chosen(hidden: Tensor, tables: ItemTables | None, batch: SampleBatch, positions: slice) -> Tensor:
            columns = torch.from_numpy(np.asarray(items[positions], np.int64) - 1).to(self.device)
            log_p = self.student.score(hidden, tables, batch.history).float().log_softmax(dim=1)
            return log_p.gather(1, columns)

        return self._pass(sample_ids, chosen)

    @torch.no_grad()
    def _pass(
        self,
        sample_ids: np.ndarray,
        compute: Callable[[Tensor, ItemTables | None, SampleBatch, slice], Tensor],
    ) -> np.ndarray:
        """`compute` of every batch (hidden, tables, batch, its positions in `sample_ids`), one below the other."""
        training, out = self.student.training, None
        self.student.eval()
        try:
            tables, start = self.tables(), 0
            for batch in self._batches(sample_ids):
                positions = slice(start, start := start + len(batch))
                rows = compute(self.student.encode(batch.history, tables), tables, batch, positions)
                if out is None:
                    out = np.empty((len(sample_ids), *rows.shape[1:]), np.float32)
                out[positions] = rows.float().cpu().numpy()
        finally:
            self.student.train(training)
        return np.empty(0, np.float32) if out is None else out

    def _batches(self, sample_ids: np.ndarray) -> Iterator[SampleBatch]:
        for chunk in chunks(len(sample_ids)):
            yield from Samples(self.data, Selection(sample_ids[chunk]), self.device).in_order(self.batch_size)
