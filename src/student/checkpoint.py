"""Checkpoints of a running training, and the finished student's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from src.core.artifacts import (
    artifact_folder,
    load_manifest,
    read_object,
    write_json,
    write_manifest,
    writing,
)
from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.student.architectures import Student
from src.student.config import StudentConfig
from src.student.models import build_student

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically: after a crash the file is the old or the new one.

    The SHA-256 of what follows stands first: `torch.load` does not notice a flipped byte of a tensor.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    payload = buffer.getbuffer()
    with writing(path) as tmp, open(tmp, "wb") as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint at `path`, on CPU; None where there is none.

    Raises:
        UserError: it cannot be read, was changed, or belongs to another training (both fingerprints are named).
    """
    if not path.is_file():
        return None
    fix = f"delete {path.parent} to train anew"
    content = path.read_bytes()
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise UserError(f"{path} is damaged ({len(content)} bytes)", "the hash that it starts with", fix)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many types for what it refuses
        raise UserError(f"{path} cannot be read: {type(e).__name__}", "tensors and values", fix) from e
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is no checkpoint of format {FORMAT_VERSION}", "one of this version", fix)
    if (found := state.get("fingerprint")) != fingerprint:
        raise UserError(f"{path} has the fingerprint {found}", fingerprint, fix)
    return state


def save_student(
    folder: Path, student: Student, config: StudentConfig, data: InteractionData, fields: dict[str, Any]
) -> None:
    """Write the finished student: `model.safetensors`, `student.json`, `catalogue.json`, manifest.

    Fused item tables are folded in first (`models.fold_item_tables`): the folder needs nothing else.

    Args:
        fields: what the manifest says beside dataset and hashes (fingerprint, seed, ...).
    """
    with artifact_folder(folder) as tmp:
        weights = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
        with writing(tmp / "model.safetensors") as path:
            save_file(weights, path)
        shape = {"n_items": student.n_items, "max_history": student.max_history}
        write_json(tmp / "student.json", {**shape, "config": dataclasses.asdict(config)})
        write_json(tmp / "catalogue.json", {"raw_ids": data.raw_items[1:], "titles": data.titles[1:]})
        identity = {"dataset": data.name, "dataset_fingerprint": data.fingerprint}
        write_manifest(tmp, {"format_version": FORMAT_VERSION, **identity, **fields})


def load_student_model(
    folder: Path, device: torch.device | str = "cpu", **expect: Any
) -> tuple[Student, StudentConfig]:
    """The student of `save_student` in eval mode, its weights loaded strictly.

    Args:
        expect: manifest fields that must have these values (`dataset_fingerprint`, `fingerprint`).

    Raises:
        UserError: not a complete folder, changed bytes, another dataset, or weights that do not fit.
    """
    fix = f"train the student of {folder} again"
    load_manifest(folder, {"format_version": FORMAT_VERSION, **expect}, fix)
    file = folder / "student.json"
    description = read_object(file)
    for key in ("n_items", "max_history"):
        if type(value := description.get(key)) is not int or value < 1:
            raise UserError(f"{file}: {key} is {value!r}", "a number from 1 on", fix)
    config = build_or_raise(StudentConfig, description.get("config"), f"{file}: config")
    student = build_student(config, description["n_items"], description["max_history"])
    try:
        student.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (RuntimeError, OSError, SafetensorError) as e:
        raise UserError(
            f"{folder / 'model.safetensors'} does not fit its config: {str(e)[:300]}", "its weights", fix
        ) from e
    return student.to(device).eval(), config
