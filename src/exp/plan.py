"""`dry_run=true`: what a stage would do, read and write, without doing it."""

from __future__ import annotations

import shutil
from pathlib import Path

from src.core.artifacts import is_complete, load_manifest, read_object
from src.core.data_utils import raw_folder
from src.core.datasets.download import missing_files
from src.core.errors import UserError
from src.core.paths import data_root, processed_dir, result_root, work_dir
from src.core.runs import completed_run
from src.exp.duration import export_bytes, sizes_of, student_bytes, student_line, teacher_line
from src.exp.forecast import memory_lines
from src.exp.settings import Settings
from src.teacher.config import IloraConfig, members_of, wants_overfit

_GIB = 2**30
_HASHED_AT_ONCE = 4 * _GIB  # a plan has seconds; larger artifacts are checked when they are read


def plan(settings: Settings, stage: str) -> list[str]:
    """One line per fact: identity, inputs, what is reused, time, bytes, disk.

    Raises:
        UserError: raw files are missing, an artifact to be reused is damaged, an input that another stage makes
            is not there, or the disk is too small.
    """
    if fetched := missing_files(settings.dataset, raw_folder(settings.dataset)):
        return [f"dataset {settings.dataset.name}: would be fetched first: {name}" for name in fetched]
    dataset = processed_dir(settings.dataset.name, settings.dataset_fp)
    lines = [f"dataset {settings.dataset.name}/{settings.dataset_fp}: {_state(dataset)}"]
    fingerprint = {
        "teacher": settings.teacher_fp,
        "student_baseline": settings.baseline_fp,
        "distill": settings.distill_fp,
    }.get(stage)
    if stage == "teacher":
        from src.teacher.llm_loading import check_llms  # seconds of imports

        check_llms(settings.teacher)
    if stage == "teacher" and wants_overfit(settings.teacher):
        lines.append(
            f"teacher.overfit={settings.teacher.overfit}: a debug run that keeps and exports nothing"
        )
        lines += memory_lines(settings.teacher, settings.dataset.max_history)
    elif fingerprint is not None:
        earlier = completed_run(stage, fingerprint)
        lines.append(f"{stage} {fingerprint}: {f'done already in {earlier}' if earlier else 'to be run'}")
        if work_dir(stage, fingerprint).is_dir():
            lines.append(f"goes on from the checkpoint in {work_dir(stage, fingerprint)}")
    if stage == "distill" or (stage == "teacher" and not wants_overfit(settings.teacher)):
        store = settings.teacher_dir
        if stage == "distill" and not is_complete(store):
            raise UserError(
                f"no teacher outputs at {store}", "a completed run_teacher", "teacher, or run it first"
            )
        lines.append(f"teacher outputs {settings.teacher.name}/{settings.teacher_fp}: {_state(store)}")
        for config in members_of(settings.teacher):
            if stage == "teacher" and isinstance(config, IloraConfig):
                lines += memory_lines(config, settings.dataset.max_history)
    if stage == "eval_all":
        from src.exp.compare import check_variants

        check_variants(settings)
    return [*lines, *_costs(settings, stage), _time(stage)]


def _costs(settings: Settings, stage: str) -> list[str]:
    """Estimated time and bytes, beside the room that there is."""
    sizes, lines, need = sizes_of(settings), [], 0
    if stage == "teacher" and not is_complete(settings.teacher_dir):
        need = export_bytes(settings, sizes)
        lines.append(teacher_line(settings, sizes))
    elif stage in ("student_baseline", "distill"):
        need = student_bytes(settings.student, sizes)
        lines.append(student_line(settings, sizes, stage == "distill"))
    elif stage == "eval_all":
        lines.append("time: seconds, nothing is trained")
    if need:
        lines.append(f"bytes: about {_size(need)}{'' if sizes.known else ', for as many samples'}")
    for root in sorted({data_root(), result_root()}):
        existing = next(p for p in (root, *root.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if need > free:
            raise UserError(f"{_size(free)} free at {root}", f"about {_size(need)}", "the disk")
        lines.append(f"{root}: {_size(free)} free")
    return lines


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.2f} MiB"


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


def _time(stage: str) -> str:
    """What the newest completed run of this stage took; its sizes may differ."""
    for status in sorted(result_root().glob("*/status.json"), reverse=True):
        times = status.parent / "metrics" / "time.json"
        try:
            fields, spent = read_object(status), read_object(times) if times.is_file() else {}
        except UserError:  # another run's folder is no matter of this one
            continue
        if (fields.get("stage"), fields.get("state")) == (stage, "completed") and spent:
            seconds = sum(v for v in spent.values() if type(v) in (int, float))
            return f"time: the latest completed {stage} run took {seconds:.0f} s ({status.parent.name})"
    return f"time: no completed {stage} run yet; the log of the run gives rate and time left"
