"""The artifact of a selection of training samples: `sample_ids.npy`, `weights.npy`, `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import artifact_folder, fingerprint, load_manifest, load_npy, save_npy, write_manifest
from src.core.config import determining
from src.core.errors import UserError
from src.core.selection import Selection
from src.distill.config import ActiveConfig

FORMAT_VERSION = 2


def selection_fingerprint(
    config: ActiveConfig, dataset_fingerprint: str, seed: int, sources: Mapping[str, str] | None = None
) -> str:
    """Identity of a selection made before training.

    Args:
        sources: fingerprints of what the strategy looks at (the scoring student, the teacher's store).
    """
    identity = {"version": FORMAT_VERSION, "active": determining(config), "dataset": dataset_fingerprint}
    return fingerprint({**identity, "seed": seed, "sources": dict(sources or {})})


def write_selection(folder: Path, selection: Selection, fields: Mapping[str, Any]) -> None:
    """Publish a selection.

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
    """The selection at `folder`.

    Args:
        train_ids: ascending sample ids of the training split.

    Raises:
        UserError: it is of another dataset, damaged, or holds ids or weights that cannot be.
    """
    fix = f"active, or delete {folder}"
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
    if len(foreign := ids[~np.isin(ids, train_ids)]):
        raise UserError(f"{folder}: sample {foreign[0]} is no training sample", "ids of the train split", fix)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"{folder}: weights {weights.min()}..{weights.max()}", "finite weights > 0", fix)
    return Selection(ids, weights, manifest)
