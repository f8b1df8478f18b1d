"""Prepared datasets: item ids, canonical interaction table, splits, histories by sample id.

Conventions (DESIGN): items are 1..N in sorted raw-id order, 0 is padding; a sample id is the row of
the target interaction in the table sorted by (user, time, original order), or the row of the split
files for data that comes split; the newest item of a history is the last column and short histories
are padded on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import fingerprint, is_complete, load_manifest, load_npy, lock
from src.core.config import determining
from src.core.datasets.config import FORMAT_VERSION, DatasetConfig
from src.core.datasets.download import fetch_missing
from src.core.datasets.hashes import FileHashes
from src.core.datasets.readers import reader
from src.core.errors import UserError
from src.core.leaks import check_no_leaks
from src.core.logging import get_logger
from src.core.paths import processed_dir, raw_dir, resolve
from src.core.splits import NAMES

log = get_logger(__name__)

__all__ = ["DatasetConfig", "InteractionData", "dataset_fingerprint", "load_dataset", "raw_folder"]


@dataclass(frozen=True)
class InteractionData:
    """A prepared dataset. Large arrays are memory-mapped; histories are cut on demand.

    Attributes:
        name, fingerprint: identity of the dataset.
        items: [M] int32 item ids of the canonical table (users one after the other, in time order).
        times: [M] int64 seconds; 0 where the source has no times.
        offsets: [U+1] int64; user u owns the rows offsets[u]..offsets[u+1]-1. In split files each row
            is a user of its own: its history and then its target.
        splits: sample ids of `train`, `valid`, `test`, each ascending.
        titles: [N+1] item titles, entry 0 empty.
        raw_items: [N+1] raw item ids as text, entry 0 empty.
        max_history: L.
        info: the manifest.
        own_rows: sample ids count rows of split files, not rows of the canonical table.
    """

    name: str
    fingerprint: str
    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    splits: Mapping[str, np.ndarray]
    titles: list[str]
    raw_items: list[str]
    max_history: int
    info: Mapping[str, Any]
    own_rows: bool = False

    @property
    def n_items(self) -> int:
        """Catalogue size N; item ids are 1..N."""
        return len(self.titles) - 1

    @property
    def n_ids(self) -> int:
        """Sample ids are below this number."""
        return len(self.offsets) - 1 if self.own_rows else len(self.items)

    def rows(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] the row of each sample's target in the canonical table."""
        return self.offsets[np.asarray(sample_ids) + 1] - 1 if self.own_rows else np.asarray(sample_ids)

    def users_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] the user (0-based) of every sample."""
        if self.own_rows:
            return np.asarray(sample_ids)
        return np.searchsorted(self.offsets, sample_ids, side="right") - 1

    def targets(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] int32 true next items."""
        return np.asarray(self.items[self.rows(sample_ids)])

    def history_lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] number of history items a model sees, 1..L."""
        start = self.offsets[self.users_of(sample_ids)]
        return np.minimum(self.rows(sample_ids) - start, self.max_history)

    def histories(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, L] int32 histories, newest last, padded on the left with 0."""
        return self._before(sample_ids, self.max_history)

    def pasts(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, P] int32, like `histories` but all that the user had before the target; P is the longest here."""
        rows = self.rows(sample_ids) - self.offsets[self.users_of(sample_ids)]
        return self._before(sample_ids, int(rows.max(initial=0)))

    def _before(self, sample_ids: np.ndarray, length: int) -> np.ndarray:
        back = np.arange(length, 0, -1)
        rows = self.rows(sample_ids)[:, None] - back[None, :]
        same_user = rows >= self.offsets[self.users_of(sample_ids)][:, None]
        return np.where(same_user, self.items[np.maximum(rows, 0)], 0).astype(np.int32)

    def train_counts(self) -> np.ndarray:
        """[N+1] int64, how often each item is a training target (entry 0 is 0)."""
        return np.bincount(self.targets(self.splits["train"]), minlength=self.n_items + 1)

    def check_no_leaks(self, config: DatasetConfig) -> None:
        """Raise UserError if the splits leak (see `src.core.leaks.check_no_leaks`)."""
        rows = {name: self.rows(ids) for name, ids in self.splits.items()}
        check_no_leaks(self.items, self.times, self.offsets, rows, config)


def raw_folder(config: DatasetConfig) -> Path:
    return resolve(config.raw_dir) if config.raw_dir else raw_dir(config.name)


def dataset_fingerprint(config: DatasetConfig) -> str:
    """Hash of the raw files and the settings that determine the prepared dataset.

    Raises UserError when a raw file is missing (or cannot be downloaded).
    """
    folder = raw_folder(config)
    if config.download:
        fetch_missing(config, folder)
    hashes = FileHashes().sha256(reader(config.reader).files(folder, config))
    return fingerprint({"version": FORMAT_VERSION, "raw": hashes, "config": determining(config)})


def load_dataset(config: DatasetConfig) -> InteractionData:
    """The prepared dataset of `config`, prepared now if its fingerprint is new.

    Hashes, arrays and leaks are checked when a folder is new to this machine or has changed; else opening it takes
    no time that grows with the log.
    """
    fp = dataset_fingerprint(config)
    folder = processed_dir(config.name, fp)
    if not is_complete(folder):
        with lock(folder, log.info):
            if not is_complete(folder):
                from src.core.datasets.prepare import prepare  # pandas

                prepare(config, raw_folder(config), fp, folder)
                FileHashes().remember(_files(folder))
    data = _open(config, fp, folder)
    sizes = ", ".join(f"{len(ids)} {split}" for split, ids in data.splits.items())
    users = len(data.offsets) - 1
    log.info("dataset %s/%s: %d items, %d users, samples: %s", data.name, fp, data.n_items, users, sizes)
    return data


def _open(config: DatasetConfig, fp: str, folder: Path) -> InteractionData:
    known = FileHashes()
    checked = is_complete(folder) and known.unchanged(_files(folder))
    expect = {"format_version": FORMAT_VERSION, "dataset_fingerprint": fp}
    info = load_manifest(folder, expect, f"delete {folder}", hashed=not checked)
    data = _read(config.name, config.max_history, config.split == "official", info, folder)
    if not checked:
        _check_arrays(data, folder)
        data.check_no_leaks(config)
        known.remember(_files(folder))
    return data


def open_dataset(folder: Path) -> InteractionData:
    """A prepared dataset by its folder, without its configuration; hashes and arrays are checked.

    Raises:
        UserError: no prepared dataset, or one that was changed.
    """
    info = load_manifest(folder, {"format_version": FORMAT_VERSION}, "the folder of a prepared dataset")
    try:
        config = info["config"]
        data = _read(info["dataset"], config["max_history"], config["split"] == "official", info, folder)
    except (KeyError, TypeError):
        raise UserError(f"{folder} has no settings", "a prepared dataset", "the folder") from None
    _check_arrays(data, folder)
    return data


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _read(
    name: str, max_history: int, own_rows: bool, info: Mapping[str, Any], folder: Path
) -> InteractionData:
    return InteractionData(
        name=name,
        fingerprint=info["dataset_fingerprint"],
        items=load_npy(folder / "items.npy", mmap=True),
        times=load_npy(folder / "times.npy", mmap=True),
        offsets=load_npy(folder / "offsets.npy", mmap=True),
        splits={split: load_npy(folder / f"split_{split}.npy", mmap=True) for split in NAMES},
        **_catalogue(folder / "catalogue.parquet"),
        max_history=max_history,
        info=info,
        own_rows=own_rows,
    )


def _catalogue(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["raw_id", "title"])
        ids, titles = (table.column(name).to_numpy().tolist() for name in ("raw_id", "title"))
    except (OSError, pa.ArrowException, KeyError) as e:
        raise UserError(
            f"{path} cannot be read: {e}", "columns raw_id and title", f"delete {path.parent}"
        ) from None
    return {"titles": ["", *titles], "raw_items": ["", *ids]}


def _check_arrays(data: InteractionData, folder: Path) -> None:
    """Raise UserError unless types, shapes and ranges are those of a prepared dataset."""

    def refuse(file: str, found: str, expected: str) -> None:
        raise UserError(f"{folder / file}: {found}", expected, f"delete {folder}")

    items, times, offsets = data.items, data.times, data.offsets
    splits = {f"split_{name}.npy": ids for name, ids in data.splits.items()}
    arrays = {"items.npy": items, "times.npy": times, "offsets.npy": offsets, **splits}
    for file, array in arrays.items():
        kind = np.dtype(np.int32 if array is items else np.int64)
        if array.ndim != 1 or array.dtype != kind or not len(array):
            refuse(file, f"{array.dtype} {array.shape}", f"{kind} (n,)")
    if items.min() < 1 or items.max() > data.n_items:
        refuse("items.npy", f"ids {items.min()}..{items.max()}", f"1..{data.n_items}")
    if len(times) != len(items):
        refuse("times.npy", f"{len(times)} rows", f"{len(items)} as items.npy")
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 1).any():
        refuse("offsets.npy", f"does not cut {len(items)} rows", "the first row of every user")
    for file, ids in splits.items():
        if ids.min() < 0 or ids.max() >= data.n_ids:
            refuse(file, f"sample ids {ids.min()}..{ids.max()}", f"0..{data.n_ids - 1}")
