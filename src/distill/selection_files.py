"""Selections made before any training: ids and weights with a manifest, for the export and the distillation.

`sample_ids.npy` [m] int64 ascending, `weights.npy` [m] float32, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import (
    artifact_folder,
    fingerprint,
    is_complete,
    load_manifest,
    load_npy,
    now,
    save_npy,
    write_manifest,
)
from src.core.config import determining
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.selection import Selection
from src.distill.config import ActiveConfig
from src.distill.selection_policy import SelectionContext, make_policy

FORMAT_VERSION = 1


def offline_selection(
    config: ActiveConfig,
    data: InteractionData,
    seed: int,
    folder: Path,
    sources: Mapping[str, str] | None = None,
    **sees: Any,
) -> Selection:
    """The selection of all training samples that `config` makes before any training: read from `folder`, or
    made now and published there. The export ranks its ids; distillation takes it as `selection`.

    Args:
        sources: as in `selection_fingerprint`.
        sees: `teacher`, `score_kind`, `scorer` of `SelectionContext`, where there are any.

    Raises:
        UserError: the policy is refreshed during training, lacks what it looks at, or asks for too many.
    """
    train = np.asarray(data.splits["train"])
    if is_complete(folder):
        return read_selection(folder, data.fingerprint, train)
    if config.refresh_every is not None:
        raise UserError(
            f"active.refresh_every={config.refresh_every} before the training",
            "null for a selection that the export can use",
            "active.refresh_every",
        )
    context = SelectionContext(train, data.targets(train), data.train_counts(), seed, **sees)
    selection = make_policy(config, context).select(0)
    fields = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "active": determining(config),
        "seed": seed,
        "sources": dict(sources or {}),
        "created_at": now(),
    }
    write_selection(folder, selection, fields)
    return selection


def selection_fingerprint(
    config: ActiveConfig, dataset_fingerprint: str, seed: int, sources: Mapping[str, str] | None = None
) -> str:
    """Identity of an offline selection.

    Args:
        sources: fingerprints of what the policy looked at (the scoring student, the teacher's store).
    """
    return fingerprint(
        {
            "version": FORMAT_VERSION,
            "active": determining(config),
            "dataset": dataset_fingerprint,
            "seed": seed,
            "sources": dict(sources or {}),
        }
    )


def write_selection(folder: Path, selection: Selection, fields: Mapping[str, Any]) -> None:
    """Publish an offline selection: `sample_ids.npy`, `weights.npy`, `manifest.json`.

    Args:
        fields: what the manifest says beside hashes; must hold `dataset_fingerprint`.
    """
    with artifact_folder(folder) as tmp:
        save_npy(tmp / "sample_ids.npy", selection.sample_ids)
        save_npy(tmp / "weights.npy", np.asarray(selection.weights))
        write_manifest(
            tmp, {"format_version": FORMAT_VERSION, **fields, "n_samples": len(selection.sample_ids)}
        )


def read_selection(folder: Path, dataset_fingerprint: str, train_ids: np.ndarray) -> Selection:
    """The selection at `folder`, checked: of this dataset, ids of training samples, each once.

    Args:
        train_ids: ascending sample ids of the training split.
    """
    fix = "active, or delete the folder"
    expect = {"format_version": FORMAT_VERSION, "dataset_fingerprint": dataset_fingerprint}
    manifest = load_manifest(folder, expect, fix)
    ids, weights = load_npy(folder / "sample_ids.npy"), load_npy(folder / "weights.npy")
    if ids.shape != (manifest["n_samples"],) or weights.shape != ids.shape or ids.dtype != np.int64:
        raise UserError(
            f"{folder}: {ids.dtype} ids {ids.shape}, weights {weights.shape}",
            f"int64 ({manifest['n_samples']},) and as many weights",
            fix,
        )
    if (np.diff(ids) <= 0).any():
        raise UserError(f"{folder}: sample ids are not rising", "ascending ids, each once", fix)
    foreign = ~np.isin(ids, train_ids)
    if foreign.any():
        raise UserError(
            f"{folder}: sample {ids[foreign][0]} is no training sample", "ids of the train split", fix
        )
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"{folder}: weights {weights.min()}..{weights.max()}", "finite weights > 0", fix)
    return Selection(ids, weights)
