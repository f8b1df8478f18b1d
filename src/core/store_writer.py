"""Writing the teacher-output store (`teacher_store` has its layout): shards first, then one folder.

Rows are written in shards, each named by its sample-id range; a writer that was killed goes on with
the shards that are missing, and the finished files do not depend on who wrote which shard. A split may
be written in pieces (the folds of a cross-fitted teacher). Memory is bounded by the shard.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import (
    MANIFEST,
    is_complete,
    load_manifest,
    load_npy,
    number_in,
    publish,
    read_json,
    read_object,
    save_npy,
    write_manifest,
    writing,
)
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.run import Stopwatch
from src.core.signals import check_stop
from src.core.teacher_store import (
    ARRAYS,
    FORMAT_VERSION,
    SCORE_KINDS,
    TeacherRows,
    TeacherStore,
    check_embeddings,
    locate,
)

Pieces = Mapping[str, np.ndarray | Mapping[str, np.ndarray]]  # split -> ids, or {piece: ids}
log = get_logger(__name__)


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
        piece: str,
        sample_ids: np.ndarray,
        rank: Callable[[np.ndarray], TeacherRows],
        part: tuple[int, int] = (0, 1),
        weights: str | None = None,
    ) -> int:
        """Rank the shards that are missing; returns the number of samples ranked now.

        Args:
            piece: a split, or the name of a part of one.
            rank: sample ids of one shard -> its rows.
            part: (this process, number of processes): shard i belongs to process i mod number.
            weights: hash of the weights that rank; None where rows come from files.

        Raises:
            UserError: shards are there that other weights ranked.
        """
        shards = self.shards(sample_ids)[part[0] :: part[1]]
        for shard in (s for ids in shards if is_complete(s := self._shard(piece, ids))):
            self._check_weights(read_object(shard / MANIFEST), shard, weights)
        missing = [ids for ids in shards if not is_complete(self._shard(piece, ids))]
        if len(missing) < len(shards):
            log.info("%s: %d of %d shards are there already", piece, len(shards) - len(missing), len(shards))
        for ids in progress(missing, f"export {piece}", unit="sample", size=len):
            watch = Stopwatch()
            self._write_shard(piece, rank(ids), ids, watch, weights)
            check_stop()
        return sum(map(len, missing))

    def missing(self, piece: str, sample_ids: np.ndarray) -> int:
        """How many samples of a piece have no finished shard yet."""
        return sum(len(s) for s in self.shards(sample_ids) if not is_complete(self._shard(piece, s)))

    def seconds(self, splits: Pieces) -> float:
        """Seconds that the finished shards took, over all runs and processes that worked on them."""
        shards = [
            self._shard(piece, ids)
            for split, given in splits.items()
            for piece, samples in _pieces(split, given).items()
            for ids in self.shards(samples)
        ]
        fix = "delete this shard and export again"
        return sum(number_in(read_json(shard / MANIFEST), "seconds", shard, fix) for shard in shards)

    def _check_weights(self, manifest: Mapping[str, Any], shard: Path, weights: str | None) -> None:
        if (found := manifest.get("weights")) != weights:
            raise UserError(
                f"{shard} was ranked by a teacher with the weights {found}",
                f"{weights}, those of the teacher that ranks now: one store, one teacher",
                f"delete {self.partial} to export again, or restore the earlier weights",
            )

    def _shard(self, piece: str, ids: np.ndarray) -> Path:
        return self.partial / piece / f"{ids[0]:012d}-{ids[-1]:012d}"

    def _write_shard(
        self, piece: str, rows: TeacherRows, ids: np.ndarray, watch: Stopwatch, weights: str | None
    ) -> None:
        shard = self._shard(piece, ids)
        if not np.array_equal(rows.sample_ids, ids):
            raise RuntimeError(f"{shard}: the teacher returned rows of other samples")
        rows.check(self.n_items, self.score_kind, f"teacher rows of {piece}")
        tmp = shard.with_name("." + shard.name)
        shutil.rmtree(tmp, ignore_errors=True)
        try:
            for name in ARRAYS:
                save_npy(tmp / f"{name}.npy", getattr(rows, name))
            seconds = round(watch.seconds(), 4)
            write_manifest(tmp, {"n_samples": len(ids), "seconds": seconds, "weights": weights})
            publish(tmp, shard)
        except OSError as e:
            shutil.rmtree(tmp, ignore_errors=True)  # gives back what the unfinished shard took
            raise full_disk(e, shard) from e

    def _checked_shards(
        self, pieces: Mapping[str, np.ndarray], weights: dict[str, str | None]
    ) -> list[tuple[np.ndarray, Path]]:
        """Ids and folder of every shard; `weights` gets, by piece, the hash of the weights that ranked it."""
        found = []
        for piece, samples in pieces.items():
            for ids in self.shards(samples):
                shard = self._shard(piece, ids)
                manifest = load_manifest(shard, {"n_samples": len(ids)}, f"delete {shard} and export again")
                self._check_weights(manifest, shard, weights.setdefault(piece, manifest.get("weights")))
                found.append((ids, shard))
        return found

    def finish(
        self,
        splits: Pieces,
        item_embeddings: np.ndarray,
        fields: Mapping[str, Any],
        in_sample: Mapping[str, np.ndarray] | None = None,
        vectors_of: str | None = None,
    ) -> TeacherStore:
        """Join the shards in sample-id order, add the embeddings and the manifest, publish, reopen.

        Args:
            splits: the sample ids of every split exported, or of its pieces; none: item vectors only.
            item_embeddings: [N+1, D] float32, row 0 zeros.
            fields: what the manifest says beside shape and hashes (dataset, teacher, fingerprints, ...).
            in_sample: per split the ids of rows whose teacher was trained on them.
            vectors_of: hash of the weights that gave the item vectors.
        """
        from safetensors.numpy import save_file

        check_embeddings(item_embeddings, self.n_items, "teacher")
        tmp = self.folder.with_name(f".{self.folder.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        n_samples: dict[str, int] = {}
        weights: dict[str, str | None] = {}
        top_k = 0
        try:
            for split, given in splits.items():
                ids = np.concatenate(self.shards(np.concatenate(list(_pieces(split, given).values()))))
                shards = self._checked_shards(_pieces(split, given), weights)
                top_k = int(load_npy(shards[0][1] / "rankings.npy", mmap=True).shape[1])
                for name, dtype in ARRAYS.items():
                    width = (top_k,) if name in ("rankings", "scores") else ()
                    with writing(tmp / split / f"{name}.npy") as path:
                        _join(path, np.dtype((dtype, width)), ids, shards, name)
                if in_sample is not None:
                    save_npy(tmp / split / "in_sample.npy", locate(np.unique(in_sample[split]), ids)[1])
                n_samples[split] = len(ids)
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
                    "weights": {**weights, "item_embeddings": vectors_of},  # by what they gave
                },
            )
            publish(tmp, self.folder)
        except OSError as e:
            shutil.rmtree(tmp, ignore_errors=True)
            raise full_disk(e, self.folder) from e
        shutil.rmtree(tmp, ignore_errors=True)
        discard_partial(self.folder)
        return TeacherStore(self.folder, fields["dataset_fingerprint"])


def _join(
    path: Path, row: np.dtype, ids: np.ndarray, shards: list[tuple[np.ndarray, Path]], name: str
) -> None:
    """One array of all shards as an npy file with its rows in the order of `ids`.

    Not through a memory map: its pages would count as memory.
    """
    header = {"descr": row.base.str, "fortran_order": False, "shape": (len(ids), *row.shape)}
    with open(path, "w+b") as f:
        np.lib.format.write_array_header_1_0(f, header)
        start = f.tell()
        f.truncate(start + len(ids) * row.itemsize)
        for shard_ids, shard in shards:
            at = np.searchsorted(ids, shard_ids)
            stretch = at[-1] + 1 - at[0]  # rows of other pieces lie between these
            f.seek(start + int(at[0]) * row.itemsize)
            rows = np.frombuffer(bytearray(f.read(stretch * row.itemsize)), row.base)
            rows.reshape(stretch, *row.shape)[at - at[0]] = load_npy(shard / f"{name}.npy")
            f.seek(start + int(at[0]) * row.itemsize)
            f.write(rows.data)


def _pieces(split: str, given: np.ndarray | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return given if isinstance(given, Mapping) else {split: given}


def full_disk(error: OSError, path: Path) -> Exception:
    """The error as one that a person can act on where the disk is full; else itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(
        f"no space left for {path}",
        "room for the store and its shards (run.log has the forecast)",
        "the disk, or teacher.export.top_k; finished shards are kept, the same command goes on",
    )


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def discard_partial(folder: Path) -> None:
    """Remove the shards of a finished store (a kill after its publication leaves them)."""
    shutil.rmtree(_partial(folder), ignore_errors=True)
