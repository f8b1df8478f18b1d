"""What several stages share, made by a job of its own where several rows of a table wait for it.

The language model's libraries are imported where they are needed: a student's process does without their seconds.
"""

from __future__ import annotations

from src.core.data_utils import load_dataset
from src.core.run import Run
from src.exp.settings import Settings
from src.teacher.config import members_of
from src.teacher.encoder import frozen_encoder
from src.teacher.factory import build_teacher


def run_dataset(settings: Settings, run: Run) -> None:
    """Prepare the dataset."""
    load_dataset(settings.dataset)


def run_encoder(settings: Settings, run: Run) -> None:
    """Train the frozen SASRec of the teacher, or of each of its members that has one."""
    data = load_dataset(settings.dataset)
    for member in members_of(settings.teacher):
        if member.encoder is not None and getattr(member, "encoder_run", None) is None:
            frozen_encoder(member.encoder, data, member.seed, run=run)


def run_llm(settings: Settings, run: Run) -> None:
    """Pre-train the embedded LLM of the teacher, or of each of its members that has one."""
    from src.teacher.ilora_teacher import IloraTeacher

    data = load_dataset(settings.dataset)
    for member in members_of(settings.teacher):
        if isinstance(teacher := build_teacher(member, data), IloraTeacher):
            teacher.embedded_llm()


def run_training(settings: Settings, run: Run) -> None:
    """Train the teacher without exporting."""
    build_teacher(settings.teacher, load_dataset(settings.dataset)).prepare(run)


PARTS = {"dataset": run_dataset, "encoder": run_encoder, "llm": run_llm, "training": run_training}
