"""`dry_run=true`: what a stage would do, read and write, without doing it."""

from __future__ import annotations

import shutil
from pathlib import Path

from src.core.artifacts import is_complete, read_object
from src.core.errors import UserError
from src.core.paths import data_root, processed_dir, result_root, work_dir
from src.core.run import completed_run
from src.exp.forecast import memory_lines
from src.exp.settings import Settings
from src.teacher.config import IloraConfig
from src.teacher.overfit import wants_overfit

_GIB = 2**30


def plan(settings: Settings, stage: str) -> list[str]:
    """One line per fact: identity, inputs, what is reused, disk.

    Raises:
        UserError: raw files are missing, or an input that another stage makes is not there.
    """
    dataset = processed_dir(settings.dataset.name, settings.dataset_fp)
    lines = [f"dataset {settings.dataset.name}/{settings.dataset_fp}: {_state(dataset)}"]
    fingerprint = {
        "teacher": settings.teacher_fp,
        "student_baseline": settings.baseline_fp,
        "distill": settings.distill_fp,
    }.get(stage)
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
        if stage == "teacher" and is_complete(dataset):
            lines.append(_store_size(settings, dataset))
        if stage == "teacher" and isinstance(settings.teacher, IloraConfig):
            lines += memory_lines(settings.teacher, settings.dataset.max_history)
    if stage == "eval_all":
        from src.exp.compare import check_variants

        check_variants(settings)
    lines.append(_time(stage))
    for root in sorted({data_root(), result_root()}):
        existing = next(p for p in (root, *root.parents) if p.exists())
        lines.append(f"{root}: {shutil.disk_usage(existing).free / _GIB:.1f} GiB free")
    return lines


def _state(folder: Path) -> str:
    return f"reused from {folder}" if is_complete(folder) else f"to be written to {folder}"


def _time(stage: str) -> str:
    """What the newest completed run of this stage took; sizes may differ, so it is only a hint."""
    for status in sorted(result_root().glob("*/status.json"), reverse=True):
        fields = read_object(status)
        times = status.parent / "metrics" / "time.json"
        if (fields.get("stage"), fields.get("state")) == (stage, "completed") and times.is_file():
            seconds = sum(v for v in read_object(times).values() if type(v) in (int, float))
            return f"time: the latest completed {stage} run took {seconds:.0f} s ({status.parent.name})"
    return f"time: no completed {stage} run to go by; the log gives rate and time left"


def _store_size(settings: Settings, dataset: Path) -> str:
    """Bytes of rankings, scores, ids and target scores (embeddings come on top)."""
    samples = read_object(dataset / "manifest.json")["n_samples"]
    export = settings.teacher.export
    rows = round(samples["train"] * export.train_share) + samples["valid"] + samples["test"]
    return f"export of {rows} samples, K={export.top_k}: {rows * (export.top_k * 8 + 12) / _GIB:.3f} GiB"
