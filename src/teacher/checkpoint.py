"""The trained parts of the teacher on disk: adapter as a plain peft folder, the rest as safetensors.

The adapter is ordinary LoRA: stock peft loads it, with the uniform gate. It is never merged into the base weights: that
would fix one gate for all users.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.core.artifacts import artifact_folder, load_manifest, number_in, write_manifest
from src.core.errors import UserError
from src.teacher.ilora_model import IloraModel

FORMAT_VERSION = 1
_PARTS = ("router", "projector", "head")


def trained_state(model: IloraModel) -> dict[str, dict[str, Tensor]]:
    """Copies of all trained tensors, by part."""
    adapter = get_peft_model_state_dict(model.llm)
    parts = {"adapter": adapter} | {name: getattr(model, name).state_dict() for name in _PARTS}
    return {part: {k: v.detach().cpu().clone() for k, v in state.items()} for part, state in parts.items()}


def load_trained_state(model: IloraModel, parts: dict[str, dict[str, Tensor]], where: str) -> None:
    """Load what `trained_state` returned, strictly.

    Raises:
        UserError: a missing, foreign or differently shaped tensor.
    """
    fix = "the settings it was trained with, or train again"
    for part, state in trained_state(model).items():
        found = parts.get(part, {})
        for name in sorted(state.keys() ^ found.keys()):
            fault = "lacks" if name in state else "has an unknown"
            raise UserError(f"{where}: {part} {fault} {name}", "", fix)
        for name, tensor in state.items():
            if (shape := tuple(found[name].shape)) != tuple(tensor.shape):
                raise UserError(f"{where}: {part} {name} is {shape}", str(tuple(tensor.shape)), fix)
    set_peft_model_state_dict(model.llm, parts["adapter"])
    for name in _PARTS:
        getattr(model, name).load_state_dict(parts[name], strict=True)


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where a field that determines results differs from the checkpoint's."""
    for name in sorted(found.keys() | expected.keys()):
        if (was := found.get(name)) != (now := expected.get(name)):
            fix = f"back what it was, or delete {path.parent} to train anew"
            raise UserError(f"{path} was made with {name} {was!r}", f"{now!r}, as in this run", fix)


def save_teacher(folder: Path, model: IloraModel, fields: dict[str, Any]) -> None:
    """Write the trained parts to `folder`, atomically; `IloraTeacher.prepare` reads them back and compares answers.

    Args:
        fields: identity for the manifest (fingerprint, dataset, LLM, ...).
    """
    state = trained_state(model)
    with artifact_folder(folder) as tmp:
        model.llm.save_pretrained(tmp / "adapter", save_embedding_layers=False)
        for name in _PARTS:
            save_file({k: v.contiguous() for k, v in state[name].items()}, tmp / f"{name}.safetensors")
        count = sum(t.numel() for part in state.values() for t in part.values())
        write_manifest(tmp, {"format_version": FORMAT_VERSION, "trained_parameters": count, **fields})


@torch.no_grad()
def reset_trained(model: IloraModel) -> None:
    """Set all trained tensors to NaN: only a complete load makes the model usable again."""
    for tensor in (*(p for group in model.parts().values() for p in group), *model.router.buffers()):
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))


def _read_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    parts = {"adapter": load_file(folder / "adapter" / "adapter_model.safetensors")}
    return parts | {name: load_file(folder / f"{name}.safetensors") for name in _PARTS}


def load_teacher(folder: Path, model: IloraModel, **expect: Any) -> dict[str, Any]:
    """Load the trained parts from `folder` into `model`; returns the manifest.

    Args:
        expect: manifest fields that must have these values.

    Raises:
        UserError: incomplete, changed, or of another dataset, LLM or rank (both values are named).
    """
    fix = f"delete {folder}, or the settings it was trained with"
    manifest = load_manifest(folder, {"format_version": FORMAT_VERSION, **expect}, fix)
    number_in(manifest.get("training", {}), "train_seconds", folder, fix)
    load_trained_state(model, _read_parts(folder), str(folder))
    return manifest
