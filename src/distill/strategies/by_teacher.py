"""Strategies that look at the teacher's rows: where it is sure, and where the student differs from it."""

from __future__ import annotations

import numpy as np

from src.core.config import config_group, setting
from src.distill.selection_policy import ScoredPolicy, register


@register("teacher_confidence")
class TeacherConfidence(ScoredPolicy):
    """The samples whose true next item the teacher scores best (or worst)."""

    needs = frozenset({"teacher"})

    @config_group
    class Options:
        prefer: str = setting("which end of the scale", choices=("confident", "unsure"))

    def scores(self) -> np.ndarray:
        good = np.concatenate([rows.target_scores for rows in self.teacher_rows()]).astype(float)
        signed = good * (-1 if self.context.score_kind == "distance" else 1)
        signed = signed if self.options.prefer == "confident" else -signed
        # Ranks, because scores have no common unit: 1/n the last, 1 the first; equal scores share theirs.
        _, place, counts = np.unique(signed, return_inverse=True, return_counts=True)
        return np.cumsum(counts)[place] / len(signed)


@register("teacher_disagreement")
class TeacherDisagreement(ScoredPolicy):
    """Samples with KL(student || teacher) over the teacher's candidates at or above a threshold (by chance), then
    the largest of the others. Both distributions are renormalised over the row's K candidates."""

    refreshable = True
    needs = frozenset({"teacher", "student"})

    @config_group
    class Options:
        at_least: float = setting("threshold of the divergence, in nats", ge=0)

    def scores(self) -> np.ndarray:
        sign = -1.0 if self.context.score_kind == "distance" else 1.0
        out = []
        for rows in self.teacher_rows():
            teacher = _log_softmax(sign * rows.scores.astype(np.float64))
            asked = self.student().log_probabilities(rows.sample_ids, rows.rankings)
            student = _log_softmax(asked.astype(np.float64))
            out.append((np.exp(student) * (student - teacher)).sum(axis=1))
        return np.minimum(np.concatenate(out), self.options.at_least)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
