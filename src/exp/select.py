"""The selection of training samples before any training: made once per fingerprint, shared by all places it acts in."""

from __future__ import annotations

from typing import Any

import numpy as np

from src.core.artifacts import is_complete, lock, now
from src.core.config import determining
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import resolve, selection_dir
from src.core.runs import completed_run
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows, TeacherStore, locate
from src.distill.scoring import StudentScorer
from src.distill.selection import read_selection, write_selection
from src.distill.selection_policy import POLICIES, SelectionContext
from src.distill.strategies import make_policy
from src.exp.settings import Settings
from src.student.checkpoint import load_student_model
from src.teacher.encoder import frozen_encoder
from src.teacher.factory import build_teacher

_BATCH = 1024
log = get_logger(__name__)


def selection_for(place: str, settings: Settings, data: InteractionData) -> Selection | None:
    """The selection that acts in `place`; None where all samples count there, or the distillation chooses while it
    trains.

    Args:
        place: teacher_train, export or distill.

    Raises:
        UserError: the strategy looks at a student that is not there, or asks for too many samples.
    """
    if not settings.selects(place) or (place == "distill" and settings.selects_while_training):
        return None
    folder = selection_dir(settings.dataset.name, settings.selection_fp)
    with lock(folder, log.info):
        if not is_complete(folder):
            selection = make_policy(settings.active, _context(settings, data)).select(0)
            write_selection(folder, selection, _provenance(settings, data))
    selection = read_selection(folder, data.fingerprint, data.splits["train"])
    log.info(
        "active=%s selects %d of %d training samples for %s: %s",
        settings.active.policy,
        len(selection.sample_ids),
        len(data.splits["train"]),
        ", ".join(settings.active.use),
        folder,
    )
    return selection


def selected_ids(place: str, settings: Settings, data: InteractionData) -> np.ndarray | None:
    """[m] ids of `selection_for`; None where all samples count."""
    selection = selection_for(place, settings, data)
    return None if selection is None else selection.sample_ids


def _provenance(settings: Settings, data: InteractionData) -> dict[str, Any]:
    return {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "active": determining(settings.active),
        "seed": settings.selection_seed,
        "sources": settings.selection_sources,
        "created_at": now(),
    }


def _context(settings: Settings, data: InteractionData) -> SelectionContext:
    train, needs = data.splits["train"], POLICIES[settings.active.policy].needs
    rows = TeacherStore(settings.teacher_dir, data.fingerprint) if "teacher" in needs else None
    return SelectionContext(
        sample_ids=np.asarray(train),
        targets=data.targets(train),
        item_counts=data.train_counts(),
        seed=settings.selection_seed,
        users=data.users_of(train),
        histories=data.histories,
        title_vectors=lambda: _title_vectors(settings, data),
        teacher=None if rows is None else lambda ids: _rows_of(rows, ids),
        score_kind=None if rows is None else rows.score_kind,
        scorer=_scorer(settings, data) if "student" in needs else None,
    )


def _rows_of(store: TeacherStore, sample_ids: np.ndarray) -> TeacherRows:
    rows = store.rows("train")
    position, found = locate(np.asarray(rows.sample_ids), sample_ids)
    if not found.all():
        raise UserError(
            f"{store.folder}: no row for sample {sample_ids[~found][0]}",
            "rows of all training samples",
            "teacher.export",
        )
    return TeacherRows(**{name: np.asarray(values)[position] for name, values in vars(rows).items()})


def _scorer(settings: Settings, data: InteractionData) -> StudentScorer:
    """The student that the strategy asks: a named run's, the teacher's frozen encoder, or the baseline's."""
    if settings.active.student is None and settings.teacher.encoder is not None:
        student = frozen_encoder(settings.teacher.encoder, data, settings.teacher.seed).student
    else:
        folder = resolve(settings.active.student) if settings.active.student else None
        if folder is None:
            found = completed_run("student_baseline", settings.baseline_fp)
            if found is None:
                raise UserError(
                    f"active={settings.active.policy} with teacher={settings.teacher.name}, which has no SASRec, and no baseline",
                    "a student to ask",
                    "active.student, or run run_student_baseline first",
                )
            folder = found
        student, _ = load_student_model(folder / "models" / "student", dataset_fingerprint=data.fingerprint)
    return StudentScorer(student, data, student.item_table().device, _BATCH)


def _title_vectors(settings: Settings, data: InteractionData) -> np.ndarray:
    """[N+1, D] TF-IDF vectors of the titles."""
    teacher = build_teacher(settings.variant(["teacher=tfidf"]).teacher, data)
    teacher.prepare(None)
    return teacher.item_embeddings()
