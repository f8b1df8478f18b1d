"""What a teacher is: anything that ranks the catalogue for samples and has one vector per item.

`exp.run_teacher` calls `prepare`, then `rank` shard by shard through `core.store_writer.StoreWriter`,
then `item_embeddings`. A teacher owns its training and its artifacts; it never writes the store itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from src.core.candidates import CandidateSet, Choices
from src.core.run import Run
from src.core.teacher_store import TeacherRows


@runtime_checkable
class Teacher(Protocol):
    """One small protocol for iLoRA, the text teachers and the classical baselines.

    Attributes:
        name: folder name below `data/teacher_outputs/<dataset>/`.
        score_kind: `distance` (smaller is better) or `log_likelihood` (larger is better).
    """

    name: str
    score_kind: str

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        """Train, or open what an earlier run of the same fingerprint trained.

        Returns:
            What `run_teacher` records: `train_seconds` (of the run that trained it), `reused` (bool) and
            anything else worth a line in the manifest, as plain JSON values.
        """

    def weights(self) -> str:
        """After `prepare`: a short hash of all it answers from that the settings do not determine bit for bit
        (a second training on a GPU may end elsewhere). Equal hashes, equal rows."""

    def rank(self, split: str, sample_ids: np.ndarray, k: int) -> TeacherRows:
        """The k best items of the whole catalogue for every sample, rows in the order of `sample_ids`.

        The rows of a sample do not depend on which other samples are asked for with it.

        Args:
            split: the split that the samples come from.
            sample_ids: [n] int64.
            k: list length, <= number of items.
        """

    def choose(self, candidates: CandidateSet) -> Mapping[str, Choices]:
        """Which of few candidates it takes, by every way there is to ask it (`src/teacher/candidate_eval.py`)."""

    def item_embeddings(self) -> np.ndarray:
        """[N+1, D] float32, row 0 zeros: the vectors that embedding distillation draws on."""

    def train_sample_ids(self) -> np.ndarray:
        """Ascending sample ids the teacher was trained on (empty when nothing was fitted to targets)."""
