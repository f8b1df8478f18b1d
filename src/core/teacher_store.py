"""The teacher-output store: rankings, scores and embeddings, keyed by sample id.

Layout (`data/teacher_outputs/<dataset>/<teacher>/<fp>/`)::

    manifest.json
    item_embeddings.safetensors          item_embeddings [N+1, D] float32, row 0 zeros
    train/ valid/ test/                  sample_ids.npy [n] int64 ascending, rankings.npy [n, K] int32 best first,
                                         scores.npy [n, K] float32, target_scores.npy [n] float32;
                                         in_sample.npy [n] bool where the writer knows it

A split that was not asked for (`teacher.export.splits`) has no folder; without any, `top_k` is 0.

`store_writer` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.artifacts import MANIFEST, load_manifest, load_npy, number_in
from src.core.errors import UserError

FORMAT_VERSION = 1
SCORE_KINDS = ("distance", "log_likelihood")
ARRAYS = {"sample_ids": np.int64, "rankings": np.int32, "scores": np.float32, "target_scores": np.float32}
_CHECKED_AT_ONCE = 65_536  # rows: the copies that checking makes stay small whatever the store's size
_REPAIR = "the teacher that wrote it, and export again"


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
        for name, dtype in ARRAYS.items():
            array = getattr(self, name)
            shape = (n, k) if name in ("rankings", "scores") else (n,)
            if array.dtype != dtype or array.shape != shape:
                raise UserError(
                    f"{where}: {name} is {array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}", _REPAIR
                )
        ids, counts = np.unique(self.sample_ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"{where}: sample {ids[counts > 1][0]} stands {counts.max()} times", "once", _REPAIR
            )
        for at in range(0, n, _CHECKED_AT_ONCE):
            part = slice(at, at + _CHECKED_AT_ONCE)
            rows = TeacherRows(**{name: np.asarray(getattr(self, name)[part]) for name in ARRAYS})
            rows._check_values(n_items, score_kind, where)

    def _check_values(self, n_items: int, score_kind: str, where: str) -> None:
        for name in ("scores", "target_scores"):
            bad = ~np.isfinite(getattr(self, name)).reshape(len(self.sample_ids), -1).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{where}: {name} of sample {self.sample_ids[bad][0]} are not finite",
                    "finite scores",
                    _REPAIR,
                )
        if self.rankings.size and (self.rankings.min() < 1 or self.rankings.max() > n_items):
            raise UserError(
                f"{where}: item ids {self.rankings.min()}..{self.rankings.max()}", f"1..{n_items}", _REPAIR
            )
        ordered = np.sort(self.rankings, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            raise UserError(
                f"{where}: sample {self.sample_ids[twice][0]} ranks an item twice", "unique items", _REPAIR
            )
        wrong = self.scores[:, 1:] < self.scores[:, :-1]
        if score_kind == "log_likelihood":
            wrong = self.scores[:, 1:] > self.scores[:, :-1]
        wrong = np.any(wrong, axis=1)
        if wrong.any():
            raise UserError(
                f"{where}: scores of sample {self.sample_ids[wrong][0]} are not best first for score_kind={score_kind}",
                "distances rising or log-likelihoods falling along a ranking",
                "score_kind, or " + _REPAIR,
            )


class TeacherStore:
    """A finished store, opened for reading; rows come by sample id.

    Args:
        folder: the store.
        dataset_fingerprint: the dataset that the reader works on.

    Raises:
        UserError: not a complete store, another dataset's, or changed since it was written.
    """

    def __init__(self, folder: Path, dataset_fingerprint: str):
        self.folder = folder
        fix = "teacher, or run src.exp.run_teacher with these settings"
        self.manifest = load_manifest(
            folder, {"format_version": FORMAT_VERSION, "dataset_fingerprint": dataset_fingerprint}, fix
        )
        written_for = self.manifest.get("teacher_fingerprint", folder.name)
        if written_for != folder.name:  # copied or renamed: its rows answer another configuration
            raise UserError(f"{folder}: teacher_fingerprint is {written_for!r}", repr(folder.name), fix)
        counts = self.manifest.get("n_samples")
        if not isinstance(counts, dict) or any(type(n) is not int or n < 1 for n in counts.values()):
            raise UserError(f"{folder / MANIFEST}: n_samples is {counts!r}", "rows by split", fix)
        for key in ("top_k", "n_items", "embedding_dim"):
            value, least = self.manifest.get(key), 0 if key == "top_k" and not counts else 1
            if type(value) is not int or value < least:
                raise UserError(f"{folder / MANIFEST}: {key} is {value!r}", "a teacher-output store's", fix)
        for key in ("trained", "weights"):
            if not isinstance(value := self.manifest.get(key, {}), dict):
                raise UserError(f"{folder / MANIFEST}: {key} is {value!r}", "values by name", fix)
        if (kind := self.manifest.get("score_kind")) not in SCORE_KINDS:
            raise UserError(
                f"{folder / MANIFEST}: score_kind is {kind!r}", f"one of {', '.join(SCORE_KINDS)}", fix
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rankings; none in a store of item vectors only."""
        return tuple(self.manifest["n_samples"])

    @property
    def top_k(self) -> int:
        """Items per ranking K; 0 where there are no rankings."""
        return int(self.manifest["top_k"])

    def seconds(self, key: str, within: str | None = None) -> float:
        """A time of the manifest, or of its part `within`; raises UserError where there is none."""
        fields = self.manifest if within is None else self.manifest.get(within, {})
        return number_in(fields, key, self.folder / MANIFEST, _REPAIR)

    @property
    def score_kind(self) -> str:
        return str(self.manifest["score_kind"])

    def item_embeddings(self) -> np.ndarray:
        """[N+1, D] float32, row 0 zeros."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = self.folder / "item_embeddings.safetensors"
        try:
            table = load_file(file)["item_embeddings"]
        except (OSError, SafetensorError, KeyError) as e:
            raise UserError(f"{file} cannot be read: {e}", "a tensor item_embeddings", _REPAIR) from None
        check_embeddings(table, int(self.manifest["n_items"]), str(self.folder))
        if table.shape[1] != self.manifest["embedding_dim"]:
            raise UserError(
                f"{file} has width {table.shape[1]}",
                f"embedding_dim {self.manifest['embedding_dim']} of its manifest",
                _REPAIR,
            )
        return table

    def in_sample_ids(self) -> np.ndarray:
        """Ascending ids of all rows whose teacher was trained on them.

        Raises:
            UserError: the store does not say which rows these are.
        """
        found = [np.empty(0, np.int64)]
        for split in self.splits:
            known, ids = (load_npy(self.folder / split / f"{n}.npy") for n in ("in_sample", "sample_ids"))
            if known.dtype != np.bool_ or known.shape != ids.shape:
                raise UserError(
                    f"{self.folder}/{split}: in_sample is {known.dtype} {known.shape}",
                    f"bool {ids.shape}",
                    _REPAIR,
                )
            found.append(ids[known])
        return np.sort(np.concatenate(found))

    def rows(self, split: str) -> TeacherRows:
        """All rows of a split, checked against the contract; raises UserError where it was not exported."""
        if split not in self.splits:
            raise UserError(
                f"{self.folder} has no rankings of {split} (it has {', '.join(self.splits) or 'item vectors only'})",
                f"rankings of {split}",
                f"teacher.export.splits to hold {split}; distill.lam=0 needs none of train",
            )
        rows = TeacherRows(
            **{name: load_npy(self.folder / split / f"{name}.npy", mmap=True) for name in ARRAYS}
        )
        where = f"{self.folder}/{split}"
        rows.check(int(self.manifest["n_items"]), self.score_kind, where)
        if rows.rankings.shape[1] != self.top_k:
            raise UserError(
                f"{where} has {rows.rankings.shape[1]} items per row", f"top_k {self.top_k}", _REPAIR
            )
        if (np.diff(rows.sample_ids) < 0).any():
            raise UserError(
                f"{where}: sample ids are not ascending", "rows in the order of sample ids", _REPAIR
            )
        return rows

    def rows_of(self, split: str, sample_ids: np.ndarray) -> TeacherRows:
        """The rows of exactly `sample_ids`, in their order.

        Raises:
            UserError: a sample has no row (the first missing id is named).
        """
        rows = self.rows(split)
        position, found = locate(rows.sample_ids, sample_ids)
        if not found.all():
            raise UserError(
                f"{self.folder}/{split} has no row for sample {np.asarray(sample_ids)[~found][0]} "
                f"({int((~found).sum())} of {len(sample_ids)} missing)",
                "one row per sample",
                "active, and export again",
            )
        return TeacherRows(**{name: getattr(rows, name)[position] for name in ARRAYS})


def locate(sorted_ids: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `ids` in the ascending array `sorted_ids`, and which of them are there."""
    position = np.minimum(np.searchsorted(sorted_ids, ids), max(len(sorted_ids) - 1, 0))
    found = sorted_ids[position] == ids if len(sorted_ids) else np.zeros(len(ids), bool)
    return position, found


def check_embeddings(table: np.ndarray, n_items: int, where: str) -> None:
    """Raises UserError unless `table` is [N+1, D] float32, finite, with a zero row 0."""
    if table.ndim != 2 or len(table) != n_items + 1 or table.dtype != np.float32:
        raise UserError(
            f"{where}: item embeddings {table.dtype} {table.shape}", f"float32 ({n_items + 1}, D)", _REPAIR
        )
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise UserError(f"{where}: the embedding of item {bad} is not finite", "finite values", _REPAIR)
    if table[0].any():
        raise UserError(f"{where}: row 0 of the item embeddings is not zero", "zeros for padding", _REPAIR)
