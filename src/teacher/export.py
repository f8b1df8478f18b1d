"""From a prepared teacher to a finished store: which samples, shard by shard, then the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import now
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.git_info import git_info
from src.core.logging import get_logger
from src.core.seed import numpy_stream
from src.core.teacher_store import StoreWriter, TeacherStore
from src.teacher.config import ExportConfig
from src.teacher.interfaces import Teacher

log = get_logger(__name__)


def export_ids(config: ExportConfig, seed: int, data: InteractionData) -> dict[str, np.ndarray]:
    """Sample ids to rank, by split: a seeded share of train, all of valid and test."""
    train = data.splits["train"]
    if config.train_share < 1.0:
        count = max(1, round(config.train_share * len(train)))
        train = np.sort(numpy_stream(seed, "export").choice(train, size=count, replace=False))
    return {"train": train, "valid": data.splits["valid"], "test": data.splits["test"]}


def export_store(
    teacher: Teacher,
    data: InteractionData,
    config: ExportConfig,
    seed: int,
    folder: Path,
    trained: Mapping[str, Any],
) -> TeacherStore:
    """Rank every sample of `export_ids` and publish the store at `folder`.

    Args:
        trained: what `Teacher.prepare` returned; `train_seconds` and the rest go into the manifest.

    Raises:
        UserError: `top_k` exceeds the catalogue.
    """
    if config.top_k > data.n_items:
        raise UserError(
            f"teacher.export.top_k={config.top_k}", f"<= {data.n_items} items", "teacher.export.top_k"
        )
    ids = export_ids(config, seed, data)
    writer = StoreWriter(folder, data.n_items, teacher.score_kind, config.shard_size)
    for split, samples in ids.items():
        log.info("%s ranks %d samples of %s", teacher.name, len(samples), split)
        writer.export(split, samples, lambda shard, split=split: teacher.rank(split, shard, config.top_k))
    train = teacher.train_sample_ids()
    in_sample = {split: int(np.isin(samples, train).sum()) for split, samples in ids.items()}
    fields = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "teacher": teacher.name,
        "teacher_fingerprint": folder.name,
        "n_train_split": len(data.splits["train"]),
        "in_sample": in_sample,
        "git_commit": git_info()["commit"],
        "created_at": now(),
        "export_seconds": round(writer.seconds(ids), 3),
        "trained": dict(trained),
    }
    return writer.finish(ids, teacher.item_embeddings(), fields)
