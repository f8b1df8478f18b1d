"""From raw files to the prepared dataset: the canonical table, its splits, and its statistics."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.artifacts import artifact_folder, save_npy, write_manifest
from src.core.config import determining
from src.core.datasets.config import FORMAT_VERSION, DatasetConfig
from src.core.datasets.filters import Filters
from src.core.datasets.raw_log import RawLog, RawSplits
from src.core.datasets.readers import reader
from src.core.datasets.statistics import Prepared, write_statistics
from src.core.errors import UserError
from src.core.leaks import check_no_leaks
from src.core.logging import get_logger
from src.core.signals import check_stop
from src.core.splits import NAMES, require_samples, split_samples

log = get_logger(__name__)


def prepare(config: DatasetConfig, raw_folder: Path, fp: str, folder: Path) -> None:
    """Read, filter, split, check, describe, and write everything to `folder` (an artifact)."""
    log.info("preparing dataset %s in %s", config.name, folder)
    raw = reader(config.reader).read(raw_folder, config)
    check_stop()
    if isinstance(raw, RawSplits):
        made = _from_splits(raw, config)
    else:
        log.info("%s: %d interactions read", raw.path.name, len(raw.timestamps))
        made = _from_log(raw, config)
    check_no_leaks(made.items, made.times, made.offsets, made.rows, config)
    check_stop()
    with artifact_folder(folder) as tmp:
        save_npy(tmp / "items.npy", made.items)
        save_npy(tmp / "times.npy", made.times)
        save_npy(tmp / "offsets.npy", made.offsets)
        for split, ids in made.splits.items():
            save_npy(tmp / f"split_{split}.npy", ids)
        catalogue = pd.DataFrame({"raw_id": made.raw_items, "title": made.titles})
        catalogue.to_parquet(tmp / "catalogue.parquet", index=False)
        pd.DataFrame({"raw_id": made.raw_users}).to_parquet(tmp / "users.parquet", index=False)
        write_statistics(tmp, made, config)
        write_manifest(
            tmp,
            {
                "format_version": FORMAT_VERSION,
                "dataset": config.name,
                "dataset_fingerprint": fp,
                "config": determining(config),
                "n_items": len(made.raw_items),
                "n_users": len(made.offsets) - 1,
                "n_interactions": len(made.items),
                "n_samples": {split: len(ids) for split, ids in made.splits.items()},
            },
        )


def _from_log(raw: RawLog, config: DatasetConfig) -> Prepared:
    low, high = (int(t) // raw.resolution for t in (raw.timestamps.min(), raw.timestamps.max()))
    if low != high:
        log.info("%s: times from %s to %s", raw.path.name, *map(_date, (low, high)))
    filters = Filters(config)
    table, titles = filters(raw)
    items, kept_items = _compact(table.items, len(raw.items.values))
    users, kept_users = _compact(table.users, len(raw.users.values))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    allowed = None
    if config.min_target_rating is not None:
        assert table.ratings is not None  # Filters
        allowed = table.ratings >= config.min_target_rating
    splits = split_samples(table.times, offsets, config, allowed, raw.resolution)
    return Prepared(
        items=items + np.int32(1),
        times=table.times // raw.resolution,
        offsets=offsets,
        splits=splits,
        rows=splits,
        raw_items=[str(i) for i in raw.items.values[kept_items]],
        titles=[titles[i] for i in kept_items],
        raw_users=[str(u) for u in raw.users.values[kept_users]],
        filters=filters.report,
    )


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"second {seconds}"


def _compact(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes without gaps, and the codes that are left, in the same order."""
    used = np.bincount(codes, minlength=n) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[codes], np.flatnonzero(used)


def _from_splits(raw: RawSplits, config: DatasetConfig) -> Prepared:
    """Every listed item stays in the catalogue; rows with a short history keep their id but are no samples."""
    ids = [str(i) for i in raw.raw_items]
    titles = raw.titles.reindex(ids).fillna("").to_list()
    missing = [i for i, title in zip(ids, titles, strict=True) if not title]
    if missing and config.missing_titles != "id":
        raise UserError(
            f"{len(missing)} items have no title, the first is {missing[0]}",
            "a title per item",
            f"{raw.path}, or dataset.missing_titles=id",
        )
    titles = [title or i for i, title in zip(ids, titles, strict=True)]
    long_enough = np.diff(raw.offsets) > config.min_history
    log.info(
        "filter min_history %d: %d of %d rows are samples",
        config.min_history,
        long_enough.sum(),
        len(raw.split),
    )
    splits = {name: np.flatnonzero(long_enough & (raw.split == i)) for i, name in enumerate(NAMES)}
    require_samples(splits, config)
    removed = {"filter": f"min_history {config.min_history}", "removed_samples": int((~long_enough).sum())}
    return Prepared(
        items=(raw.items + 1).astype(np.int32),
        times=np.zeros(len(raw.items), dtype=np.int64),
        offsets=raw.offsets.astype(np.int64),
        splits=splits,
        rows={name: raw.offsets[sample_ids + 1] - 1 for name, sample_ids in splits.items()},
        raw_items=ids,
        titles=titles,
        raw_users=[f"row {r}" for r in range(len(raw.split))],
        filters=[removed],
    )
