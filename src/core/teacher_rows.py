"""Rows of a teacher's output and what they must keep: the contract that writer and readers share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.core.errors import UserError

SCORE_KINDS = ("distance", "log_likelihood")
ARRAYS = {"sample_ids": np.int64, "rankings": np.int32, "scores": np.float32, "target_scores": np.float32}
_CHECKED_AT_ONCE = 65_536  # rows: the copies that checking makes stay small whatever the store's size


@dataclass(frozen=True)
class TeacherRows:
    """Rankings of some samples: row i belongs to `sample_ids[i]`.

    Attributes:
        sample_ids: [n] int64.
        rankings: [n, K] int32 item ids, best first, no item twice.
        scores: [n, K] float32 in the order of the ranking.
        target_scores: [n] float32, the score of the true next item.
    """

    sample_ids: np.ndarray
    rankings: np.ndarray
    scores: np.ndarray
    target_scores: np.ndarray

    def check(self, n_items: int, score_kind: str, where: str) -> None:
        """Raises UserError unless shapes, dtypes, ids, order and finiteness keep the contract."""
        n, k = self.sample_ids.size, self.rankings.shape[1] if self.rankings.ndim == 2 else 0
        fix = "the teacher that wrote them, and export again"
        for name, dtype in ARRAYS.items():
            array = getattr(self, name)
            shape = (n, k) if name in ("rankings", "scores") else (n,)
            if array.dtype != dtype or array.shape != shape:
                raise UserError(
                    f"{where}: {name} is {array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}", fix
                )
        ids, counts = np.unique(self.sample_ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(f"{where}: sample {ids[counts > 1][0]} stands {counts.max()} times", "once", fix)
        for at in range(0, n, _CHECKED_AT_ONCE):
            part = slice(at, at + _CHECKED_AT_ONCE)
            rows = TeacherRows(**{name: np.asarray(getattr(self, name)[part]) for name in ARRAYS})
            rows._check_values(n_items, score_kind, where, fix)

    def _check_values(self, n_items: int, score_kind: str, where: str, fix: str) -> None:
        for name in ("scores", "target_scores"):
            bad = ~np.isfinite(getattr(self, name)).reshape(len(self.sample_ids), -1).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{where}: {name} of sample {self.sample_ids[bad][0]} are not finite",
                    "finite scores",
                    fix,
                )
        if self.rankings.size and (self.rankings.min() < 1 or self.rankings.max() > n_items):
            raise UserError(
                f"{where}: item ids {self.rankings.min()}..{self.rankings.max()}", f"1..{n_items}", fix
            )
        ordered = np.sort(self.rankings, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            raise UserError(
                f"{where}: sample {self.sample_ids[twice][0]} ranks an item twice", "unique items", fix
            )
        wrong = self.scores[:, 1:] < self.scores[:, :-1]
        if score_kind == "log_likelihood":
            wrong = self.scores[:, 1:] > self.scores[:, :-1]
        wrong = np.any(wrong, axis=1)
        if wrong.any():
            raise UserError(
                f"{where}: scores of sample {self.sample_ids[wrong][0]} are not best first for score_kind={score_kind}",
                "distances rising or log-likelihoods falling along a ranking",
                "score_kind, or " + fix,
            )


def locate(sorted_ids: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `ids` in the ascending array `sorted_ids`, and which of them are there."""
    position = np.minimum(np.searchsorted(sorted_ids, ids), max(len(sorted_ids) - 1, 0))
    found = sorted_ids[position] == ids if len(sorted_ids) else np.zeros(len(ids), bool)
    return position, found


def check_embeddings(table: np.ndarray, n_items: int, where: str) -> None:
    """Raises UserError unless `table` is [N+1, D] float32, finite, with a zero row 0."""
    fix = "the teacher that wrote it, and export again"
    if table.ndim != 2 or len(table) != n_items + 1 or table.dtype != np.float32:
        raise UserError(
            f"{where}: item embeddings {table.dtype} {table.shape}", f"float32 ({n_items + 1}, D)", fix
        )
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise UserError(f"{where}: the embedding of item {bad} is not finite", "finite values", fix)
    if table[0].any():
        raise UserError(f"{where}: row 0 of the item embeddings is not zero", "zeros for padding", fix)
