"""From a kind to its settings and its class: to add a teacher, add a line to `KINDS`. Classes are imported when built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from src.core.config import build, did_you_mean
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.teacher.config import (
    FusedConfig,
    IloraConfig,
    KnnConfig,
    MarkovConfig,
    OfficialFilesConfig,
    PopularityConfig,
    SasrecConfig,
    TeacherConfig,
    TextConfig,
    TfidfConfig,
)
from src.teacher.interfaces import Teacher

# kind -> (settings, module:class)
KINDS: dict[str, tuple[type[TeacherConfig], str]] = {
    "ilora": (IloraConfig, "src.teacher.ilora_teacher:IloraTeacher"),
    "fused": (FusedConfig, "src.teacher.fused:FusedTeacher"),
    "sasrec": (SasrecConfig, "src.teacher.classical:SasrecTeacher"),
    "knn": (KnnConfig, "src.teacher.classical:KnnTeacher"),
    "markov": (MarkovConfig, "src.teacher.classical:MarkovTeacher"),
    "popularity": (PopularityConfig, "src.teacher.classical:PopularityTeacher"),
    "tfidf": (TfidfConfig, "src.teacher.text:TfidfTeacher"),
    "text": (TextConfig, "src.teacher.text:TextTeacher"),
    "official_files": (OfficialFilesConfig, "src.teacher.factory:no_rows"),
}


def build_teacher_config(
    values: Mapping[str, Any] | None, where: str, problems: list[str]
) -> TeacherConfig | None:
    """The settings of the teacher named by `kind`; problems are appended with their full keys."""
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if values is None or kind not in KINDS:
        close = did_you_mean(str(kind), KINDS)
        problems.append(f"{where}.kind: found {kind!r}, expected one of {', '.join(KINDS)}{close}")
        return None
    before = len(problems)
    if kind == "fused" and isinstance(members := values.get("members"), Mapping):
        built = {n: build_teacher_config(v, f"{where}.members.{n}", problems) for n, v in members.items()}
        values = {**values, "members": built}
    return build(KINDS[kind][0], values, where, problems) if len(problems) == before else None


def build_teacher(
    config: TeacherConfig,
    data: InteractionData,
    train_ids: np.ndarray | None = None,
    tuned_ids: np.ndarray | None = None,
) -> Teacher:
    """The teacher of these settings, untrained: call `prepare` next.

    Args:
        train_ids: the samples it may learn from (a fold leaves some out); None: the training split.
        tuned_ids: of these, the samples that an iLoRA adapter is trained on (`active`); None: all.
    """
    module, name = KINDS[config.kind][1].split(":")
    teacher = getattr(import_module(module), name)
    if isinstance(config, FusedConfig):
        members = {name: build_teacher(c, data, train_ids) for name, c in config.members.items()}
        return teacher(config, data, train_ids, members)
    if isinstance(config, IloraConfig):
        return teacher(config, data, train_ids, tuned_ids)
    return teacher(config, data, train_ids)


def no_rows(config: TeacherConfig, data: InteractionData, train_ids: np.ndarray | None = None) -> Teacher:
    """Rows of official files come by import only; raises UserError."""
    raise UserError(f"no rows of teacher {config.name}", "imported ones", "run src.exp.official_files import")
