"""The selection that export and distillation share (`teacher.export.samples=active`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.paths import work_dir
from src.exp.settings import Settings

if TYPE_CHECKING:
    from src.core.selection import Selection

_BATCH = 1024


def selected_samples(settings: Settings, data: InteractionData, distilling: bool = False) -> Selection | None:
    """The training samples that `active` selects before any training; None where all are exported and distilled,
    or chosen during the distillation.

    A policy that looks at a student gets the teacher's frozen encoder; one that looks at the teacher's rows
    cannot choose which rows the teacher makes.

    Args:
        distilling: for the distillation, whose student knows nothing yet where a policy looks at it only once.

    Raises:
        UserError: the policy needs what does not exist before the export.
    """
    from src.distill.selection_files import offline_selection
    from src.distill.selection_policy import POLICIES

    active, sees = settings.active, dict[str, Any]()
    looks_once = POLICIES[active.policy].by_student and active.refresh_every is None
    exported = settings.teacher.export.samples == "active"
    if not exported and not (distilling and looks_once and settings.distill.ranks):
        return None
    if active.policy == "teacher_confidence":
        raise UserError(
            "active.policy=teacher_confidence with teacher.export.samples=active",
            "a policy that does not need the teacher's rows",
            "active, or teacher.export.samples=all",
        )
    if looks_once:
        encoder = settings.teacher.encoder
        if encoder is None:
            raise UserError(
                f"active.policy={active.policy} with teacher={settings.teacher.name}, which has no SASRec",
                "a policy that looks at no student, or active.refresh_every=5 (the student in training)",
                "active",
            )
        from src.distill.scoring import StudentScorer
        from src.teacher.encoder import frozen_encoder

        student = frozen_encoder(encoder, data, settings.teacher.seed).student
        sees["scorer"] = StudentScorer(student, data, student.item_table().device, _BATCH)
    folder = work_dir("selection", settings.selection_fp)
    return offline_selection(active, data, settings.teacher.seed, folder, settings.selection_sources, **sees)
