"""From settings to a finished store: which samples, which teacher ranks them, shard by shard, the manifest.

Without folds one teacher, trained on all of train, ranks every sample. With `teacher.folds=n` the training
rows come from n teachers, each trained without the users it ranks; validation and test rows and the item
embeddings come from the teacher trained on all of train, as without folds.
"""

from __future__ import annotations

import gc
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import is_complete, now, number_in, read_json, write_json
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.git_info import git_info
from src.core.logging import get_logger
from src.core.run import Run, Stopwatch
from src.core.seed import numpy_stream
from src.core.store_writer import StoreWriter, discard_partial
from src.core.teacher_store import TeacherStore, locate
from src.teacher.config import ExportConfig, IloraExportConfig, TeacherConfig
from src.teacher.distributed import ProcessGroup
from src.teacher.factory import build_teacher
from src.teacher.interfaces import Teacher

_GIB = 2**30
log = get_logger(__name__)


def export_ids(
    config: ExportConfig, seed: int, data: InteractionData, selected: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Sample ids to rank, by exported split: a seeded share of train (or `selected`), all of valid and test.

    Raises:
        UserError: selected samples that are not training samples.
    """
    train = data.splits["train"]
    if selected is not None:
        foreign = ~np.isin(selected, train)
        if foreign.any():
            raise UserError(
                f"selected sample {selected[foreign][0]} is no training sample",
                "ids of the training split",
                "active",
            )
        train = np.sort(np.asarray(selected, np.int64))
    elif config.train_share < 1.0:
        count = max(1, round(config.train_share * len(train)))
        train = np.sort(numpy_stream(seed, "export").choice(train, size=count, replace=False))
    return {split: train if split == "train" else data.splits[split] for split in config.splits}


def split_folds(data: InteractionData, folds: int, seed: int) -> list[np.ndarray]:
    """Cross-fitting (`teacher.folds`): the training split in parts of about equally many samples, each ascending.

    A part holds whole users: a later sample's history contains the targets of its user's earlier samples, so that a
    teacher trained on any of a user's samples has read them.

    Users are shuffled by seed and dealt out one after the other, each to the part with the fewest samples.

    Raises:
        UserError: more folds than users.
    """
    train = np.asarray(data.splits["train"])
    users, samples = np.unique(data.users_of(train), return_inverse=True)
    if folds > len(users):
        raise UserError(f"teacher.folds={folds}", f"<= {len(users)} users", "teacher.folds")
    order = numpy_stream(seed, "folds", folds).permutation(len(users))
    counts = np.bincount(samples)
    fold, sizes = np.empty(len(users), np.int64), np.zeros(folds, np.int64)
    for user in order:
        fold[user] = sizes.argmin()
        sizes[fold[user]] += counts[user]
    return [train[fold[samples] == part] for part in range(folds)]


def fill_store(
    config: TeacherConfig,
    data: InteractionData,
    folder: Path,
    run: Run | None,
    selected: np.ndarray | None = None,
    tuned: np.ndarray | None = None,
    teacher: Teacher | None = None,
) -> tuple[TeacherStore, bool]:
    """The store at `folder`, and whether it was there already. Every process of a launch calls this.

    Args:
        selected: training samples that get a row (`active.use` with export); None: all.
        tuned: training samples that the LLM is trained on (`active.use` with teacher_train); None: all.
        teacher: an unprepared teacher of these settings that the caller uses afterwards; it is prepared here unless the
            store was there. With folds it stays in memory beside the folds' teachers.

    Raises:
        UserError: settings that do not fit the data, rows that break the contract, or a full disk; finished
            shards are kept.
    """
    processes = ProcessGroup.join(cpu=getattr(getattr(config, "train", None), "device", "cpu") == "cpu")
    with processes.lock(folder):
        reused = processes.agree(is_complete(folder))
        if not reused:
            _Export(config, data, folder, run, processes, selected, tuned).make(teacher)
    store = TeacherStore(folder, data.fingerprint)
    if reused:
        if processes.main:
            discard_partial(folder)
        log.info("teacher outputs with this fingerprint are there already: %s", folder)
    return store, reused


def refuse_other_weights(store: TeacherStore, teacher: Teacher) -> None:
    """Raises UserError where a prepared teacher is not the one that filled the store (trained again since)."""
    written = store.manifest.get("weights", {}).get("item_embeddings")
    if written != teacher.weights():
        raise UserError(
            f"{store.folder} was written by a teacher with the weights {written}",
            f"{teacher.weights()}, those of the present teacher",
            f"delete {store.folder} to export again, or restore the earlier weights",
        )


class _Export:
    """One store in the making.

    Attributes:
        ids: the samples to rank, by split.
        pieces: split -> {piece: its samples}; several pieces where folds rank training rows.
        held_out: piece -> the samples that its teacher does not see.
    """

    def __init__(
        self,
        config: TeacherConfig,
        data: InteractionData,
        folder: Path,
        run: Run | None,
        processes: ProcessGroup,
        selected: np.ndarray | None,
        tuned: np.ndarray | None,
    ):
        self.config, self.export, self.data, self.folder = config, config.export, data, folder
        self.run, self.processes, self.tuned = run, processes, tuned
        self.ids = export_ids(self.export, config.seed, data, selected)
        self.todo = sum(map(len, self.ids.values()))
        self.pieces: dict[str, dict[str, np.ndarray]] = {s: {s: i} for s, i in self.ids.items()}
        # Folds rank training rows and nothing else.
        self.folds = config.folds if "train" in self.ids else 1
        self.held_out: dict[str, np.ndarray] = {}
        if self.folds > 1:
            parts = split_folds(data, self.folds, config.seed)
            self.held_out = {f"train.fold{i + 1}of{self.folds}": part for i, part in enumerate(parts)}
            train = self.ids["train"]
            wanted = {piece: part[locate(train, part)[1]] for piece, part in self.held_out.items()}
            self.pieces["train"] = {piece: part for piece, part in wanted.items() if len(part)}
        self.top_k = min(self.export.top_k, data.n_items)
        if self.top_k < self.export.top_k:
            asked = self.export.top_k
            log.info("teacher.export.top_k=%d: lists of %d, the whole catalogue", asked, self.top_k)
        self.forecast_given = False

    def make(self, teacher: Teacher | None) -> None:
        teacher = teacher or build_teacher(self.config, self.data, tuned_ids=self.tuned)
        trained = dict(teacher.prepare(self.run))
        # The writer comes after the teacher: only now the kind of its scores is sure.
        self.writer = StoreWriter(self.folder, self.data.n_items, teacher.score_kind, self.export.shard_size)
        watch = Stopwatch()
        embeddings, name, weights = teacher.item_embeddings(), teacher.name, teacher.weights()
        vector_seconds = watch.seconds()
        known = np.sort(teacher.train_sample_ids())
        for split, pieces in self.pieces.items():
            if split != "train" or self.folds == 1:
                self._rank(teacher, split, split, pieces[split])
        del teacher
        if self.folds > 1:
            reports = [self._fold(piece, samples) for piece, samples in self.pieces["train"].items()]
            trained["train_seconds"] += sum(r["train_seconds"] for r in reports)
            trained["folds"] = reports
            known = np.setdiff1d(known, self.ids["train"])  # each row's own teacher did not see it
        if not self.processes.main:
            self.processes.wait_until(
                lambda: is_complete(self.folder), "the main process to finish the store"
            )
            return
        for piece, samples in ((p, s) for pieces in self.pieces.values() for p, s in pieces.items()):
            done = partial(self._is_written, piece, samples)
            self.processes.wait_until(done, f"the other processes' {piece}")
        in_sample = {split: samples[locate(known, samples)[1]] for split, samples in self.ids.items()}
        fields = self._manifest(name) | {
            "in_sample": {split: len(samples) for split, samples in in_sample.items()},
            "export_seconds": round(self.writer.seconds(self.pieces) + vector_seconds, 3),
            "trained": trained,
        }
        self.writer.finish(self.pieces, embeddings, fields, in_sample, weights)

    def _is_written(self, piece: str, samples: np.ndarray) -> bool:
        return self.writer.missing(piece, samples) == 0

    def _fold(self, piece: str, samples: np.ndarray) -> dict[str, Any]:
        """Rank a fold's samples by a teacher that was trained on the others; returns its training report."""
        note = self.writer.partial / f"{piece}.json"
        if self.processes.agree(note.is_file() and self._is_written(piece, samples)):
            log.info("%s is done already", piece)
            report = read_json(note)
            number_in(report, "train_seconds", note, f"delete {note.parent} and export again")
            return report
        learned = np.setdiff1d(self.data.splits["train"], self.held_out[piece])
        log.info("%s: a teacher trained on %d samples ranks %d", piece, len(learned), len(samples))
        gc.collect()  # one teacher in memory at a time
        teacher = build_teacher(self.config, self.data, learned, self.tuned)
        report = dict(teacher.prepare(self.run))
        if np.isin(samples, teacher.train_sample_ids()).any():
            raise RuntimeError(f"{piece}: the teacher was trained on rows that it has to rank")
        self._rank(teacher, "train", piece, samples)
        if self.processes.main:
            write_json(note, report)
        return report

    def _rank(self, teacher: Teacher, split: str, piece: str, samples: np.ndarray) -> None:
        k, part = self.top_k, (self.processes.rank, self.processes.size)
        if not self.forecast_given and not self._is_written(piece, samples):
            self._forecast(teacher, split, samples)
        log.info("%s ranks %d samples of %s", teacher.name, len(samples), piece)
        self.writer.export(
            piece, samples, lambda shard: teacher.rank(split, shard, k), part, teacher.weights()
        )

    def _forecast(self, teacher: Teacher, split: str, samples: np.ndarray) -> None:
        """Time a first batch; say what the export will take, and refuse a disk that cannot hold it."""
        self.forecast_given = True
        need = forecast_bytes(self.todo, self.top_k)
        free = shutil.disk_usage(self.writer.partial).free
        # Shards and the joined files lie side by side for a moment.
        if 2 * need > free:
            raise UserError(
                f"{free / _GIB:.2f} GiB free at {self.folder.parent}",
                f"{2 * need / _GIB:.2f} GiB for {self.todo} rows and their shards",
                "the disk, teacher.export.top_k or teacher.export.train_share",
            )
        teacher.rank(split, samples[:1], self.top_k)  # what only the first call does
        batch, watch = samples[: self.export.batch_size], Stopwatch()
        teacher.rank(split, batch, self.top_k)
        rate = len(batch) / max(watch.seconds(), 1e-9) * self.processes.size
        size = f"{self.todo} samples, K={self.top_k}: {need / _GIB:.3f} GiB on disk"
        hours = f"{self.todo / rate / 3600:.2f} hours at {rate:.1f} samples/s"
        measured = f"first batch of {len(batch)}, {self.processes.size} process(es)"
        log.info("forecast: %s, %s (%s)", size, hours, measured)

    def _manifest(self, name: str) -> dict[str, Any]:
        """The manifest's fields that are known before anything is ranked."""
        export = self.export
        return {
            "dataset": self.data.name,
            "dataset_fingerprint": self.data.fingerprint,
            "teacher": name,
            "teacher_fingerprint": self.folder.name,
            "ranking": getattr(export, "ranking", None),
            # Such lists hold no history items: their length counts for both conventions of evaluation.
            "history_excluded": isinstance(export, IloraExportConfig)
            and export.ranking == "rerank"
            and export.exclude_history,
            "folds": self.folds,
            "n_train_split": len(self.data.splits["train"]),
            "git_commit": git_info()["commit"],
            "created_at": now(),
        }


def forecast_bytes(rows: int, top_k: int) -> int:
    """Bytes of a store's rows: ids, rankings, scores, target scores and in-sample marks."""
    return rows * (8 + top_k * 8 + 4 + 1)
