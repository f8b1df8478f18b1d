"""Plain teachers of the same store: popularity, transition-kNN, a Markov chain, and SASRec.

They answer what every reader of a table with an LLM in it asks: does the LLM matter? Each gives
log-probabilities over the catalogue for a history, and one vector per item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from src.core.candidates import CandidateSet, Choices, choose_by_scores
from src.core.data_utils import InteractionData
from src.core.run import Run, Stopwatch
from src.core.teacher_store import TeacherRows, locate
from src.teacher.config import KnnConfig, MarkovConfig, PopularityConfig, SasrecConfig, TeacherConfig
from src.teacher.rows import rank_scores

Own = tuple[np.ndarray, np.ndarray]  # rows [o] and columns [o] of a [B, N] table of scores
NONE: Own = (np.empty(0, np.int64), np.empty(0, np.int64))
_SCORES_AT_ONCE = 8_000_000  # elements of a [B, N] block: 64 MB in float64


class ClassicalTeacher:
    """What teachers without a trained LLM share: batches and rankings. See `interfaces.Teacher`.

    Args:
        config: the teacher's settings.
        data: the dataset.
        train_ids: the samples it learns from; None: the training split (a fold leaves some out).
    """

    score_kind = "log_likelihood"

    def __init__(self, config: TeacherConfig, data: InteractionData, train_ids: np.ndarray | None = None):
        self.config, self.data, self.name = config, data, config.name
        # A training sample is scored without what it added to the counts.
        self.leave_one_out = bool(getattr(config, "leave_one_out", False))
        self._train_ids = np.sort(data.splits["train"] if train_ids is None else train_ids)

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        watch = Stopwatch()
        self._fit(run)
        return {"train_seconds": round(watch.seconds(), 3), "reused": False}

    def _fit(self, run: Run | None) -> None:
        raise NotImplementedError

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        """[B, L] histories -> [B, N] float32; column c scores item c + 1.

        Args:
            own: rows that are training samples, with the columns of their targets, to score without themselves.
        """
        raise NotImplementedError

    def item_embeddings(self) -> np.ndarray:
        raise NotImplementedError

    def fitted(self) -> list[np.ndarray]:
        """All that `_fit` computed."""
        raise NotImplementedError

    def weights(self) -> str:
        digest = hashlib.sha256()
        for values in self.fitted():
            # The rows are float32; the last bit of a float64 may depend on the processor.
            exact = np.issubdtype(values.dtype, np.integer)
            digest.update(np.ascontiguousarray(values, values.dtype if exact else np.float32).data)
        return digest.hexdigest()[:12]

    def train_sample_ids(self) -> np.ndarray:
        """Samples that `rank` and `score_all` treat in sample: none where each is scored without itself."""
        return self._train_ids[:0] if self.leave_one_out else self._train_ids

    def score_all(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, N] float32 log-probabilities of the whole catalogue; the caller bounds n."""
        histories, own = self.data.histories(sample_ids), NONE
        if self.leave_one_out:
            rows = np.flatnonzero(locate(self._train_ids, sample_ids)[1])
            own = rows, self.data.targets(sample_ids[rows]) - 1
        return self.log_probabilities(histories, own)

    def rank(self, split: str, sample_ids: np.ndarray, k: int) -> TeacherRows:
        batches = ((rows, self.score_all(sample_ids[rows])) for rows in self._batches(len(sample_ids)))
        return rank_scores(sample_ids, self.data.targets(sample_ids), batches, k, "the teacher's settings")

    def choose(self, candidates: CandidateSet) -> dict[str, Choices]:
        size = self._batches(len(candidates.sample_ids))[0].stop
        return {"scores": choose_by_scores(candidates, self.score_all, size)}

    def _batches(self, n: int) -> list[slice]:
        size = max(1, min(self.config.export.batch_size, _SCORES_AT_ONCE // self.data.n_items))
        return [slice(i, i + size) for i in range(0, n, size)]

    def _popularity(self) -> np.ndarray:
        """[N] share of every item among the training targets, each counted once more than it occurs."""
        counts = np.bincount(self.data.targets(self._train_ids) - 1, minlength=self.data.n_items) + 1.0
        return counts / counts.sum()


class PopularityTeacher(ClassicalTeacher):
    """Every history gets the items in order of their training counts."""

    config: PopularityConfig

    def _fit(self, run: Run | None) -> None:
        self._log_p = np.log(self._popularity()).astype(np.float32)

    def fitted(self) -> list[np.ndarray]:
        return [self._log_p]

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        return np.broadcast_to(self._log_p, (len(histories), len(self._log_p)))

    def item_embeddings(self) -> np.ndarray:
        """One column: log(1 + training count)."""
        counts = np.bincount(self.data.targets(self._train_ids), minlength=self.data.n_items + 1)
        return np.log1p(counts).astype(np.float32)[:, None]


class KnnTeacher(ClassicalTeacher):
    """Transition-kNN: `C[h, t] += decay^age` over training windows, `S = C / (pop_h pop_t)^damping`.

    A history scores `s_t = sum_h decay^age(h) S[h, t]` (age 0 is the newest item; pop counts training
    targets, plus one). Probabilities are `(1 - floor) s / sum(s) + floor * popularity`.
    """

    config: KnnConfig

    def _fit(self, run: Run | None) -> None:
        histories = self.data.histories(self._train_ids)
        targets = self.data.targets(self._train_ids)
        # [n, N]^T [n, N]: rows are history items, columns targets.
        seen = self._weighted(histories)
        hit = sp.csr_array((np.ones(len(targets)), (np.arange(len(targets)), targets - 1)), shape=seen.shape)
        self._pop = self._popularity()
        self._damp = (self._pop * (len(targets) + self.data.n_items)) ** -self.config.damping
        self._similar = sp.csr_array(sp.diags_array(self._damp) @ (seen.T @ hit) @ sp.diags_array(self._damp))

    def fitted(self) -> list[np.ndarray]:
        return [*_arrays(self._similar), self._pop, self._damp]

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        history, (rows, columns) = self._weighted(histories), own
        scores = (history @ self._similar).toarray()
        # The sample added its history's weights to its target's column, so they come back squared.
        added = (history[rows].power(2) @ self._damp) * self._damp[columns]
        scores[rows, columns] = np.maximum(scores[rows, columns] - added, 0.0)
        total = scores.sum(axis=1, keepdims=True)
        # A history without any neighbour leaves all to popularity.
        known = np.divide(scores, total, out=np.repeat(self._pop[None], len(scores), axis=0), where=total > 0)
        return np.log((1 - self.config.floor) * known + self.config.floor * self._pop).astype(np.float32)

    def item_embeddings(self) -> np.ndarray:
        return spectral_embeddings(self._similar, self.config.dim)

    def _weighted(self, histories: np.ndarray) -> sp.csr_array:
        """[n, L] -> sparse [n, N]: decay^age of every history item (repeated items add up)."""
        row, column = np.nonzero(histories)
        weight = self.config.decay ** (histories.shape[1] - 1.0 - column)
        shape = (len(histories), self.data.n_items)
        return sp.csr_array((weight, (row, histories[row, column] - 1)), shape=shape)


class MarkovTeacher(ClassicalTeacher):
    """`p(t | newest item h) = (C[h, t] + smoothing * popularity_t) / (C[h] + smoothing)`.

    C counts the pairs of consecutive items that lie inside some training window, each once.
    """

    config: MarkovConfig

    def _fit(self, run: Run | None) -> None:
        ids, n = self._train_ids, self.data.n_items
        # In split files one interaction stands in many rows: there only the targets' pairs count.
        reach = np.arange(1 if self.data.own_rows else self.data.max_history)
        inside = reach[None, :] < self.data.history_lengths(ids)[:, None]
        later = np.unique((self.data.rows(ids)[:, None] - reach[None, :])[inside])
        # A window may hold the target of a training sample that a fold leaves out.
        left_out = self.data.rows(np.setdiff1d(self.data.splits["train"], ids))
        later = np.setdiff1d(later, left_out)
        pairs = (self.data.items[later - 1] - 1, self.data.items[later] - 1)
        self._counts = sp.csr_array((np.ones(len(later)), pairs), shape=(n, n))
        self._totals = self._counts.sum(axis=1)
        self._pop = self._popularity()

    def fitted(self) -> list[np.ndarray]:
        return [*_arrays(self._counts), self._pop]

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        newest, prior = histories[:, -1] - 1, self.config.smoothing
        counts, totals = self._counts[newest].toarray(), self._totals[newest]
        counts[own] -= 1.0
        totals[own[0]] -= 1.0
        return np.log((counts + prior * self._pop) / (totals + prior)[:, None]).astype(np.float32)

    def item_embeddings(self) -> np.ndarray:
        rows = sp.diags_array(1.0 / np.maximum(self._totals, 1.0))
        return spectral_embeddings(sp.csr_array(rows @ self._counts), self.config.dim)


class SasrecTeacher(ClassicalTeacher):
    """A SASRec trained on the same samples: iLoRA's frozen encoder with the same settings is this model."""

    config: SasrecConfig

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        from src.teacher.encoder import encoder_of_finished_run, frozen_encoder

        if (finished := self.config.encoder_run) is not None:
            self._encoder = encoder_of_finished_run(finished, self.data)
            return {"train_seconds": 0.0, "reused": True}
        whole = np.array_equal(self._train_ids, self.data.splits["train"])
        subset = None if whole else self._train_ids
        curves = run if whole else None  # one curve per tag: not of a fold's
        self._encoder = frozen_encoder(self.config.encoder, self.data, self.config.seed, subset, curves)
        return {"train_seconds": round(self._encoder.seconds, 3), "reused": self._encoder.reused}

    def weights(self) -> str:
        return self._encoder.weights[:12]

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        return self._encoder.log_probabilities(histories).numpy()

    def item_embeddings(self) -> np.ndarray:
        """[N+1, H] the input item table."""
        return self._encoder.item_table().cpu().numpy().astype(np.float32)


def _arrays(table: sp.csr_array) -> list[np.ndarray]:
    return [table.data, table.indices, table.indptr]


def spectral_embeddings(transitions: sp.csr_array, dim: int) -> np.ndarray:
    """[N+1, min(dim, N)] float32: left singular vectors of [N, N] transitions times sqrt(singular value).

    Items with similar followers get similar vectors.
    """
    left, values = truncated_svd(transitions, dim)
    table = np.zeros((len(left) + 1, len(values)), np.float32)
    table[1:] = left * np.sqrt(values)
    return table


def truncated_svd(matrix: sp.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [N, d] and singular values [d] of a sparse [N, M], largest first; d = min(dim, N, M).

    Signs are fixed (the largest entry of a vector is positive) and the solver starts from a fixed vector, so equal
    input gives equal bytes. Values within rounding of 0 are 0.
    """
    least = min(matrix.shape)
    dim = min(dim, least)
    if dim > least - 2 or least <= 300:  # too small for the iterative solver
        left, values, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.full(least, least**-0.5)
        left, values, _ = sp.linalg.svds(matrix, k=dim, v0=start, solver="arpack")
        left, values = left[:, ::-1], values[::-1]
    left, values = left[:, :dim], values[:dim]
    left = left * np.sign(left[np.abs(left).argmax(axis=0), np.arange(dim)])
    return left, np.where(values > 1e-9 * values[0], values, 0.0)
