"""What a run of a stage computes: the fingerprint and the seed under which it is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.core.artifacts import fingerprint
from src.core.runs import find_runs
from src.exp.settings import Settings
from src.teacher.config import wants_overfit

_NO_RESULT = ("skip_if_done", "dry_run", "plan", "logger")


def identity_of(stage: str, settings: Settings, config: Mapping[str, Any]) -> tuple[str, int]:
    """(fingerprint, seed) of a stage; the fingerprint is "" for a debug run, which is nobody's result.

    A comparison is what its configuration makes of the runs that there are: another run, another comparison.

    Args:
        config: the resolved configuration.
    """
    if stage == "teacher":
        return "" if wants_overfit(settings.teacher) else settings.teacher_fp, settings.teacher.seed
    if stage == "student_baseline":
        return settings.baseline_fp, settings.seed
    if stage == "distill":
        return settings.distill_fp, settings.seed
    if stage != "eval_all":  # a part of stages (src/exp/parts.py), whose artifact has its own fingerprint
        return (
            fingerprint([stage, settings.dataset_fp if stage == "dataset" else settings.teacher_fp]),
            settings.teacher.seed,
        )
    runs = [[r.folder.name, r.fingerprint] for r in find_runs(state="completed") if r.stage != "eval_all"]
    asked = {k: v for k, v in config.items() if k not in _NO_RESULT}
    return fingerprint({"config": asked, "inputs": settings.distill_fp, "runs": runs}), settings.seed
