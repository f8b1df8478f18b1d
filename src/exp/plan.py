"""`dry_run=true`: what a stage would do, read and write, without doing it."""

from __future__ import annotations

import shutil
from pathlib import Path

from src.core.artifacts import is_complete, load_manifest
from src.core.data_utils import raw_folder
from src.core.datasets.download import missing_files
from src.core.errors import UserError
from src.core.paths import data_root, processed_dir, result_root, work_dir
from src.core.runs import completed_run, find_runs
from src.exp import costs
from src.exp.settings import Settings
from src.teacher.config import IloraConfig, members_of, wants_overfit

_HASHED_AT_ONCE = 4 * costs.GIB  # a plan has seconds; larger artifacts are checked when they are read


def plan(settings: Settings, stage: str) -> list[str]:
    """One line per fact: identity, inputs, what is reused, time, bytes, memory, disk.

    Raises:
        UserError: raw files are missing, an artifact to be reused is damaged, an input that another stage makes
            is not there, or the disk is too small.
    """
    if fetched := missing_files(settings.dataset, raw_folder(settings.dataset)):
        return [f"dataset {settings.dataset.name}: would be fetched first: {name}" for name in fetched]
    dataset = processed_dir(settings.dataset.name, settings.dataset_fp)
    lines = [f"dataset {settings.dataset.name}/{settings.dataset_fp}: {_state(dataset)}"]
    lines += {"teacher": _teacher, "student_baseline": _baseline, "distill": _distill, "eval_all": _compare}[
        stage
    ](settings)
    if (last := _last_run(settings, stage)) is not None:
        lines.append(last)
    return lines


def _teacher(settings: Settings) -> list[str]:
    from src.teacher.llm_loading import check_llms  # seconds of imports

    check_llms(settings.teacher)
    memory = _memory(settings)
    if wants_overfit(settings.teacher):
        asked = settings.teacher.overfit
        return [f"teacher.overfit={asked}: a debug run that keeps and exports nothing", *memory, *_room(0)]
    lines = _run(settings.teacher_fp, "teacher")
    lines.append(
        f"teacher outputs {settings.teacher.name}/{settings.teacher_fp}: {_state(settings.teacher_dir)}"
    )
    if is_complete(settings.teacher_dir):
        return [*lines, *memory, *_room(0)]
    sizes = costs.sizes_of(settings)
    seconds = costs.teacher_seconds(settings, sizes, settings.plan.device)
    if seconds is None:
        lines.append("time of the LLM: not known before its configuration is on this machine")
    elif seconds:
        told = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
        lines.append(f"time: about {told}; {_basis(settings, sizes)}")
    else:
        lines.append("time: seconds to minutes, nothing is trained by gradient")
    return [*lines, *memory, *_room(costs.export_bytes(settings, sizes))]


def _baseline(settings: Settings) -> list[str]:
    return [*_run(settings.baseline_fp, "student_baseline"), *_student(settings, distilled=False)]


def _distill(settings: Settings) -> list[str]:
    store = settings.teacher_dir
    if not is_complete(store):
        raise UserError(
            f"no teacher outputs at {store}", "a completed run_teacher", "teacher, or run it first"
        )
    state = f"teacher outputs {settings.teacher.name}/{settings.teacher_fp}: {_state(store)}"
    return [*_run(settings.distill_fp, "distill"), state, *_student(settings, distilled=True)]


def _compare(settings: Settings) -> list[str]:
    from src.exp.compare import check_variants

    check_variants(settings)
    return ["time: seconds, nothing is trained", *_room(0)]


def _student(settings: Settings, distilled: bool) -> list[str]:
    sizes, epochs = costs.sizes_of(settings), settings.student.max_epochs
    seconds = costs.student_seconds(settings, settings.student, sizes, distilled)
    time = f"time: at most {_duration(seconds)} of training, {epochs} epochs of {_duration(seconds / epochs)}"
    counted = (
        f"{sizes.train} training samples and {sizes.n_items} items ({sizes.how}), measured on this machine"
    )
    return [f"{time}; {counted}", *_room(costs.student_bytes(settings.student, sizes))]


def _run(fingerprint: str, stage: str) -> list[str]:
    """What there is of a run already."""
    earlier = completed_run(stage, fingerprint)
    lines = [f"{stage} {fingerprint}: {f'done already in {earlier}' if earlier else 'to be run'}"]
    if work_dir(stage, fingerprint).is_dir():
        lines.append(f"goes on from the checkpoint in {work_dir(stage, fingerprint)}")
    return lines


def _memory(settings: Settings) -> list[str]:
    """One line per LLM: its parameters, the memory of its training, beside what the device has."""
    lines = []
    for config in members_of(settings.teacher):
        if not isinstance(config, IloraConfig):
            continue
        if (model := costs.language_model(config.llm)) is None:
            lines.append(
                f"memory of {config.llm.path}: not known before its configuration is on this machine"
            )
            continue
        size = costs.llm_size(model, config.lora.rank)
        parts = costs.memory(config, size, settings.dataset.max_history)
        told = ", ".join(f"{name} {value / costs.GIB:.2f}" for name, value in parts.items())
        total, have = sum(parts.values()) / costs.GIB, _device_memory(settings.plan.device)
        line = f"LLM of {size.parameters / 1e6:.1f} M parameters, about {total:.2f} GiB ({told}); {have}"
        lines.append(f"{line}; where it does not fit, the micro-batch is halved up to three times")
    return lines


def _device_memory(name: str) -> str:
    if name in costs.DEVICES:
        return f"{name}: {costs.DEVICES[name].memory_gib} GiB"
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}: {free / costs.GIB:.1f} of {total / costs.GIB:.1f} GiB free"


def _basis(settings: Settings, sizes: costs.Sizes) -> str:
    """What an estimate rests on."""
    name = settings.plan.device
    speed = "steps measured on this machine"
    if name in costs.DEVICES:
        speed = f"{name} at {costs.UTILISATION:.0%} of its peak, students as measured on this machine"
    return f"{sizes.train} training samples and {sizes.n_items} items ({sizes.how}), {speed}"


def _room(need: int) -> list[str]:
    """The bytes that a stage writes, beside those that are free."""
    lines = [f"bytes: about {_size(need)}"] if need else []
    for root in sorted({data_root(), result_root()}):
        existing = next(p for p in (root, *root.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if need > free:
            raise UserError(f"{_size(free)} free at {root}", f"about {_size(need)}", "the disk")
        lines.append(f"{root}: {_size(free)} free")
    return lines


def _size(count: float) -> str:
    return f"{count / costs.GIB:.2f} GiB" if count >= costs.GIB / 10 else f"{count / 2**20:.2f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _state(folder: Path) -> str:
    """Whether an artifact is there; the hashes of its files are checked.

    Raises:
        UserError: it is there and damaged.
    """
    if not is_complete(folder):
        return f"to be written to {folder}"
    if sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) > _HASHED_AT_ONCE:
        return f"reused from {folder} (too large to check its hashes now)"
    load_manifest(folder, {}, "delete it")
    return f"reused from {folder}, hashes checked"


def _last_run(settings: Settings, stage: str) -> str | None:
    """What the newest completed run of this stage, dataset, teacher and student took."""
    alike = {"dataset.name": settings.dataset.name, "teacher.name": settings.teacher.name}
    if stage != "teacher":
        alike["student.name"] = settings.student.name
    for run in reversed(find_runs(stage, state="completed")):
        try:
            if all(run.setting(k) == v for k, v in alike.items()) and (spent := sum(run.times.values())) > 0:
                return f"time: the latest such run took {_duration(spent)} ({run.folder.name})"
        except UserError:  # another run's folder is no matter of this one
            continue
    return None
