"""A context whose right choices are known, for the tests of selections."""

from __future__ import annotations

import numpy as np

from src.core.teacher_store import TeacherRows
from src.distill.config import ActiveConfig
from src.distill.selection_policy import SelectionContext
from tests.distill.conftest import make_settings

N_ITEMS = 20


class KnownScorer:
    """Vectors in three far-apart groups; every measure rises with the sample id, except the student's best item,
    which is always item 1."""

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        centre = np.where(sample_ids % 10 == 0, 0, np.where(sample_ids % 10 == 1, 1, 2))
        return (centre[:, None] * 100 + rng.normal(size=(len(sample_ids), 4))).astype(np.float32)

    gradients = vectors

    def measure(self, sample_ids: np.ndarray, name: str) -> np.ndarray:
        if name == "best_item":
            return np.ones(len(sample_ids), np.float32)
        if name == "least_confidence":
            return (sample_ids / 1e6).astype(np.float32)
        return sample_ids.astype(np.float32)

    def log_probabilities(self, sample_ids: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.zeros(items.shape, np.float32)


def context(n: int = 200, seed: int = 1) -> SelectionContext:
    """Samples with ids 5, 10, ...; item 1 is the target of every second of them; the teacher scores the true
    item with minus the sample id."""
    ids = np.arange(1, n + 1) * 5
    targets = np.where(np.arange(n) % 2 == 0, 1, np.arange(n) % (N_ITEMS - 1) + 2)

    def teacher(sample_ids: np.ndarray) -> TeacherRows:
        columns = np.tile(np.arange(1, 4, dtype=np.int32), (len(sample_ids), 1))
        scores = -np.arange(3)[None, :] * sample_ids[:, None] / 1e3
        return TeacherRows(sample_ids, columns, scores.astype(np.float32), -sample_ids.astype(np.float32))

    def histories(sample_ids: np.ndarray) -> np.ndarray:
        return np.stack([sample_ids % N_ITEMS + 1, np.zeros_like(sample_ids)], axis=1)

    return SelectionContext(
        sample_ids=ids,
        targets=targets,
        item_counts=np.bincount(targets, minlength=N_ITEMS + 1),
        seed=seed,
        users=np.arange(n) // 4,
        histories=histories,
        title_vectors=lambda: np.eye(N_ITEMS + 1, 8, dtype=np.float32),
        teacher=teacher,
        score_kind="log_likelihood",
        scorer=KnownScorer(),
    )


def active(policy: str, **changes: object) -> ActiveConfig:
    defaults = {} if policy == "all" else {"share": None, "count": 40}
    return make_settings("active", policy, **{**defaults, "refresh_every": None, **changes})
