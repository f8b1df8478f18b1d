"""The teacher-output store: rankings, scores and embeddings, keyed by sample id.

Layout (`data/teacher_outputs/<dataset>/<teacher>/<fp>/`)::

    manifest.json
    item_embeddings.safetensors          item_embeddings [N+1, D] float32, row 0 zeros
    train/ valid/ test/                  sample_ids.npy [n] int64 ascending, rankings.npy [n, K] int32 best first,
                                         scores.npy [n, K] float32, target_scores.npy [n] float32

Rows are written in shards, each named by its sample-id range; a writer that was killed goes on with
the shards that are missing, and the finished files do not depend on who wrote which shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import (
    MANIFEST,
    is_complete,
    load_manifest,
    load_npy,
    publish,
    read_json,
    save_npy,
    write_manifest,
    writing,
)
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.run import Stopwatch, check_stop

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
SCORE_KINDS = ("distance", "log_likelihood")
_ARRAYS = {"sample_ids": np.int64, "rankings": np.int32, "scores": np.float32, "target_scores": np.float32}
_CHECKED_AT_ONCE = 65_536  # rows: the copies that checking makes stay small whatever the store's size
log = get_logger(__name__)


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
        for name, dtype in _ARRAYS.items():
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
            rows = TeacherRows(**{name: np.asarray(getattr(self, name)[part]) for name in _ARRAYS})
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
        wrong = wrong.any(axis=1)
        if wrong.any():
            raise UserError(
                f"{where}: scores of sample {self.sample_ids[wrong][0]} are not best first for score_kind={score_kind}",
                "distances rising or log-likelihoods falling along a ranking",
                "score_kind, or " + fix,
            )


class StoreWriter:
    """Fills the store at `folder`; work in progress lies in `<fp>.partial` beside it.

    Args:
        folder: final place of the store.
        n_items: catalogue size N.
        score_kind: see SCORE_KINDS.
        shard_size: samples per shard; memory is bounded by it.
    """

    def __init__(self, folder: Path, n_items: int, score_kind: str, shard_size: int):
        if score_kind not in SCORE_KINDS:
            raise UserError(f"score_kind={score_kind}", " or ".join(SCORE_KINDS), "the teacher")
        self.folder, self.n_items, self.score_kind, self.shard_size = folder, n_items, score_kind, shard_size
        self.partial = _partial(folder)
        self.partial.mkdir(parents=True, exist_ok=True)

    def shards(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        """The shards of a split: its sample ids in ascending order, `shard_size` at a time."""
        ids = np.unique(sample_ids)
        if len(ids) != len(sample_ids):
            raise UserError("sample ids repeat", "each sample once", "the selection policy")
        if len(ids) == 0:
            raise UserError("no samples to rank", "at least one sample per split", "teacher.export or active")
        return [ids[i : i + self.shard_size] for i in range(0, len(ids), self.shard_size)]

    def export(
        self,
        split: str,
        sample_ids: np.ndarray,
        rank: Callable[[np.ndarray], TeacherRows],
        part: tuple[int, int] = (0, 1),
    ) -> int:
        """Rank the shards that are missing; returns the number of samples ranked now.

        Args:
            rank: sample ids of one shard -> its rows.
            part: (this process, number of processes): shard i belongs to process i mod number.
        """
        own = self.shards(sample_ids)[part[0] :: part[1]]
        missing = [ids for ids in own if not is_complete(self._shard(split, ids))]
        if len(missing) < len(own):
            log.info("%s: %d of %d shards are there already", split, len(own) - len(missing), len(own))
        for ids in progress(missing, f"export {split}", unit="shard"):
            watch = Stopwatch()
            self._write_shard(split, rank(ids), ids, watch)
            check_stop()
        return sum(map(len, missing))

    def seconds(self, splits: Mapping[str, np.ndarray]) -> float:
        """Seconds that the finished shards took, over all runs and processes that worked on them."""
        shards = [
            self._shard(split, ids) for split, samples in splits.items() for ids in self.shards(samples)
        ]
        return sum(read_json(shard / MANIFEST)["seconds"] for shard in shards)

    def _shard(self, split: str, ids: np.ndarray) -> Path:
        return self.partial / split / f"{ids[0]:012d}-{ids[-1]:012d}"

    def _write_shard(self, split: str, rows: TeacherRows, ids: np.ndarray, watch: Stopwatch) -> None:
        shard = self._shard(split, ids)
        if not np.array_equal(rows.sample_ids, ids):
            raise RuntimeError(f"{shard}: the teacher returned rows of other samples")
        rows.check(self.n_items, self.score_kind, f"teacher rows of {split}")
        tmp = shard.with_name("." + shard.name)
        shutil.rmtree(tmp, ignore_errors=True)
        for name in _ARRAYS:
            save_npy(tmp / f"{name}.npy", getattr(rows, name))
        write_manifest(tmp, {"n_samples": len(ids), "seconds": round(watch.seconds(), 4)})
        publish(tmp, shard)

    def finish(
        self, splits: Mapping[str, np.ndarray], item_embeddings: np.ndarray, fields: Mapping[str, Any]
    ) -> TeacherStore:
        """Join the shards in sample-id order, add the embeddings and the manifest, publish, reopen.

        Args:
            splits: the sample ids of every split exported.
            item_embeddings: [N+1, D] float32, row 0 zeros.
            fields: what the manifest says beside shape and hashes (dataset, teacher, fingerprints, ...).
        """
        from safetensors.numpy import save_file

        check_embeddings(item_embeddings, self.n_items, "teacher")
        tmp = self.folder.with_name(f".{self.folder.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        n_samples = {}
        for split, sample_ids in splits.items():
            shards = self.shards(sample_ids)
            for ids in shards:
                shard = self._shard(split, ids)
                load_manifest(shard, {"n_samples": len(ids)}, f"delete {shard} and export again")
            for name, dtype in _ARRAYS.items():
                first = load_npy(self._shard(split, shards[0]) / f"{name}.npy")
                shape = (len(sample_ids), *first.shape[1:])
                with writing(tmp / split / f"{name}.npy") as path:
                    joined = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                    at = 0
                    for ids in shards:
                        joined[at : at + len(ids)] = load_npy(self._shard(split, ids) / f"{name}.npy")
                        at += len(ids)
                    joined.flush()
                    del joined
            n_samples[split] = len(sample_ids)
            top_k = int(load_npy(tmp / split / "rankings.npy", mmap=True).shape[1])
        with writing(tmp / "item_embeddings.safetensors") as path:
            save_file({"item_embeddings": np.ascontiguousarray(item_embeddings)}, path)
        write_manifest(
            tmp,
            {
                "format_version": FORMAT_VERSION,
                **fields,
                "n_items": self.n_items,
                "n_samples": n_samples,
                "top_k": top_k,
                "embedding_dim": int(item_embeddings.shape[1]),
                "score_kind": self.score_kind,
            },
        )
        publish(tmp, self.folder)
        shutil.rmtree(tmp, ignore_errors=True)
        discard_partial(self.folder)
        return TeacherStore(self.folder, fields["dataset_fingerprint"])


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def discard_partial(folder: Path) -> None:
    """Remove the shards of a finished store (a kill after its publication leaves them)."""
    shutil.rmtree(_partial(folder), ignore_errors=True)


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
        for key in ("top_k", "n_items", "embedding_dim"):
            if type(value := self.manifest.get(key)) is not int or value < 1:
                raise UserError(f"{folder / MANIFEST}: {key} is {value!r}", "a teacher-output store's", fix)
        if (kind := self.manifest.get("score_kind")) not in SCORE_KINDS:
            raise UserError(
                f"{folder / MANIFEST}: score_kind is {kind!r}", f"one of {', '.join(SCORE_KINDS)}", fix
            )

    @property
    def top_k(self) -> int:
        return int(self.manifest["top_k"])

    @property
    def score_kind(self) -> str:
        return str(self.manifest["score_kind"])

    def item_embeddings(self) -> np.ndarray:
        """[N+1, D] float32, row 0 zeros."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = self.folder / "item_embeddings.safetensors"
        fix = "the teacher that wrote it, and export again"
        try:
            table = load_file(file)["item_embeddings"]
        except (OSError, SafetensorError, KeyError) as e:
            raise UserError(f"{file} cannot be read: {e}", "a tensor item_embeddings", fix) from None
        check_embeddings(table, int(self.manifest["n_items"]), str(self.folder))
        if table.shape[1] != self.manifest["embedding_dim"]:
            raise UserError(
                f"{file} has width {table.shape[1]}",
                f"embedding_dim {self.manifest['embedding_dim']} of its manifest",
                fix,
            )
        return table

    def rows(self, split: str) -> TeacherRows:
        """All rows of a split, checked against the contract."""
        rows = TeacherRows(
            **{name: load_npy(self.folder / split / f"{name}.npy", mmap=True) for name in _ARRAYS}
        )
        where = f"{self.folder}/{split}"
        rows.check(int(self.manifest["n_items"]), self.score_kind, where)
        fix = "the teacher that wrote it, and export again"
        if rows.rankings.shape[1] != self.top_k:
            raise UserError(f"{where} has {rows.rankings.shape[1]} items per row", f"top_k {self.top_k}", fix)
        if (np.diff(rows.sample_ids) < 0).any():
            raise UserError(f"{where}: sample ids are not ascending", "rows in the order of sample ids", fix)
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
                "teacher.export.samples or active, and export again",
            )
        return TeacherRows(**{name: getattr(rows, name)[position] for name in _ARRAYS})


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
