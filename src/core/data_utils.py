"""Prepared datasets: item ids, canonical interaction table, splits, histories by sample id.

Conventions (DESIGN): items are 1..N in sorted raw-id order, 0 is padding; a sample id is the row of
the target interaction in the table sorted by (user, time, original order); the newest item of a
history is the last column and short histories are padded on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.artifacts import (
    artifact_folder,
    fingerprint,
    is_complete,
    load_manifest,
    load_npy,
    lock,
    save_npy,
    sha256_file,
    write_manifest,
)
from src.core.config import determining, setting
from src.core.datasets import READERS, RawLog, reader
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import processed_dir, raw_dir, resolve
from src.core.splits import PROTOCOLS, check_no_leaks, split_samples

FORMAT_VERSION = 1
log = get_logger(__name__)


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the generated dataset (`dataset.demo`)."""

    users: int = setting("number of users", ge=2)
    items: int = setting("number of items", ge=30)
    groups: int = setting("latent item groups, visible in the titles' words", ge=2, le=16)
    interactions_per_user: int = setting("mean length of a user's log", ge=4)
    seed: int = setting("seed of the generator", ge=0)


@dataclass(frozen=True)
class DatasetConfig:
    """`conf/dataset/*.yaml`: where a log comes from and how samples are cut from it."""

    name: str = setting("name in paths and tables")
    reader: str = setting("raw format", choices=tuple(READERS))
    raw_dir: str | None = setting("folder of the raw files; null: data/raw/<name>", in_fingerprint=False)
    download: bool = setting("fetch the raw files when they are missing", in_fingerprint=False)
    min_rating: float | None = setting("keep interactions rated at least so; null: every rating")
    min_history: int = setting("fewest earlier interactions of a sample", ge=1)
    max_history: int = setting("history items a model sees (the newest)", ge=1)
    split: str = setting("which samples are train, valid, test", choices=tuple(PROTOCOLS))
    split_ratio: tuple[float, ...] = setting("shares of train, valid, test (global_time)", ge=0.0, le=1.0)
    demo: DemoConfig | None = setting("sizes of the generated dataset; null for real data")

    def problems(self) -> list[str]:
        out = []
        if len(self.split_ratio) != 3 or abs(sum(self.split_ratio) - 1.0) > 1e-9:
            out.append(f"split_ratio: found {list(self.split_ratio)}, expected three shares that sum to 1")
        if (self.reader == "demo") != (self.demo is not None):
            out.append(f"demo: found {'sizes' if self.demo else 'null'} with reader={self.reader}")
        return out


@dataclass(frozen=True)
class InteractionData:
    """A prepared dataset. Large arrays are memory-mapped; histories are cut on demand.

    Attributes:
        name, fingerprint: identity of the dataset.
        items: [M] int32 item ids of the canonical table (users one after the other, in time order).
        times: [M] int64 seconds.
        offsets: [U+1] int64; user u owns the rows offsets[u]..offsets[u+1]-1.
        splits: sample ids of `train`, `valid`, `test`, each ascending.
        titles: [N+1] item titles, entry 0 empty.
        raw_items: [N+1] raw item ids as text, entry 0 empty.
        max_history: L.
        info: the manifest.
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

    @property
    def n_items(self) -> int:
        """Catalogue size N; item ids are 1..N."""
        return len(self.titles) - 1

    def users_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] the user (0-based) of every sample."""
        return np.searchsorted(self.offsets, sample_ids, side="right") - 1

    def targets(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] int32 true next items."""
        return np.asarray(self.items[sample_ids])

    def history_lengths(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n] number of history items a model sees, 1..L."""
        start = self.offsets[self.users_of(sample_ids)]
        return np.minimum(np.asarray(sample_ids) - start, self.max_history)

    def histories(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, L] int32 histories, newest last, padded on the left with 0."""
        sample_ids = np.asarray(sample_ids)
        back = np.arange(self.max_history, 0, -1)
        rows = sample_ids[:, None] - back[None, :]
        valid = back[None, :] <= self.history_lengths(sample_ids)[:, None]
        return np.where(valid, self.items[np.maximum(rows, 0)], 0).astype(np.int32)

    def train_counts(self) -> np.ndarray:
        """[N+1] int64, how often each item is a training target (entry 0 is 0)."""
        return np.bincount(self.targets(self.splits["train"]), minlength=self.n_items + 1)


def raw_folder(config: DatasetConfig) -> Path:
    return resolve(config.raw_dir) if config.raw_dir else raw_dir(config.name)


def dataset_fingerprint(config: DatasetConfig) -> str:
    """Hash of the raw files and the settings that determine the prepared dataset.

    Raises UserError when a raw file is missing (or cannot be downloaded).
    """
    folder = raw_folder(config)
    source = reader(config.reader)
    if config.download and hasattr(source, "download"):
        source.download(folder)
    hashes = [sha256_file(f) for f in source.files(folder)]
    return fingerprint({"version": FORMAT_VERSION, "raw": hashes, "config": determining(config)})


def load_dataset(config: DatasetConfig) -> InteractionData:
    """The prepared dataset of `config`, prepared now if its fingerprint is new."""
    fp = dataset_fingerprint(config)
    folder = processed_dir(config.name, fp)
    if not is_complete(folder):
        with lock(folder, log.info):
            if not is_complete(folder):
                _prepare(config, fp, folder)
    data = _open(config, fp, folder)
    check_no_leaks(data.items, data.times, data.offsets, data.splits, config)
    sizes = ", ".join(f"{len(ids)} {split}" for split, ids in data.splits.items())
    log.info(
        "dataset %s/%s: %d items, %d users, samples: %s",
        data.name,
        fp,
        data.n_items,
        len(data.offsets) - 1,
        sizes,
    )
    return data


def _prepare(config: DatasetConfig, fp: str, folder: Path) -> None:
    raw = reader(config.reader).read(raw_folder(config), config)
    raw = _filter(raw, config)
    items, raw_items = _number(raw.items)
    users, raw_users = _number(raw.users)
    titles = raw.titles.reindex(raw_items)
    if titles.isna().any():
        raise UserError(
            f"item {titles.index[titles.isna()][0]} has no title", "a title per item", "the items file"
        )
    # A stable sort keeps the file's order among equal seconds.
    order = np.lexsort((raw.timestamps, users))
    users, items, times = users[order], items[order] + 1, raw.timestamps[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    splits = split_samples(times, offsets, config)
    with artifact_folder(folder) as tmp:
        save_npy(tmp / "items.npy", items.astype(np.int32))
        save_npy(tmp / "times.npy", times.astype(np.int64))
        save_npy(tmp / "offsets.npy", offsets)
        for split, ids in splits.items():
            save_npy(tmp / f"split_{split}.npy", ids)
        catalogue = pd.DataFrame(
            {"raw_id": [str(i) for i in raw_items], "title": titles.astype(str).to_list()}
        )
        catalogue.to_parquet(tmp / "catalogue.parquet", index=False)
        pd.DataFrame({"raw_id": [str(u) for u in raw_users]}).to_parquet(tmp / "users.parquet", index=False)
        write_manifest(
            tmp,
            {
                "format_version": FORMAT_VERSION,
                "dataset": config.name,
                "dataset_fingerprint": fp,
                "config": determining(config),
                "n_items": len(raw_items),
                "n_users": len(raw_users),
                "n_interactions": len(items),
                "n_samples": {split: len(ids) for split, ids in splits.items()},
            },
        )


def _filter(raw: RawLog, config: DatasetConfig) -> RawLog:
    if config.min_rating is None:
        return raw
    if raw.ratings is None:
        raise UserError(
            f"dataset {config.name} has no ratings", "a source with ratings", "dataset.min_rating"
        )
    keep = raw.ratings >= config.min_rating
    log.info("min_rating %s keeps %d of %d interactions", config.min_rating, keep.sum(), len(keep))
    if not keep.any():
        raise UserError(
            f"no interaction is rated >= {config.min_rating}", "a lower threshold", "dataset.min_rating"
        )
    return RawLog(raw.users[keep], raw.items[keep], raw.timestamps[keep], raw.ratings[keep], raw.titles)


def _number(raw_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based numbers of raw ids in sorted order, and the sorted raw ids."""
    values, numbers = np.unique(raw_ids, return_inverse=True)
    return numbers.astype(np.int64), values


def _open(config: DatasetConfig, fp: str, folder: Path) -> InteractionData:
    info = load_manifest(
        folder, {"format_version": FORMAT_VERSION, "dataset_fingerprint": fp}, f"delete {folder}"
    )
    catalogue = pd.read_parquet(folder / "catalogue.parquet")
    return InteractionData(
        name=config.name,
        fingerprint=fp,
        items=load_npy(folder / "items.npy", mmap=True),
        times=load_npy(folder / "times.npy", mmap=True),
        offsets=load_npy(folder / "offsets.npy"),
        splits={split: load_npy(folder / f"split_{split}.npy") for split in ("train", "valid", "test")},
        titles=["", *catalogue["title"]],
        raw_items=["", *catalogue["raw_id"]],
        max_history=config.max_history,
        info=info,
    )
