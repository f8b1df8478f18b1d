"""From settings to a teacher; imports only what the chosen kind needs."""

from __future__ import annotations

import numpy as np

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.teacher.config import FusedConfig, IloraConfig, TeacherConfig
from src.teacher.interfaces import Teacher

FILLERS = {
    "popularity": "PopularityFiller",
    "knn": "KnnFiller",
    "markov": "MarkovFiller",
    "sasrec": "SasrecFiller",
}


def build_teacher(
    config: TeacherConfig, data: InteractionData, train_ids: np.ndarray | None = None
) -> Teacher:
    """The teacher of these settings, untrained: call `prepare` next.

    Args:
        train_ids: the samples it may learn from (a fold leaves some out); None: the training split.

    Raises:
        UserError: a kind that no class implements.
    """
    if isinstance(config, IloraConfig):
        from src.teacher.ilora_teacher import IloraTeacher

        return IloraTeacher(config, data, train_ids)
    if isinstance(config, FusedConfig):
        from src.teacher.fused import FusedTeacher

        return FusedTeacher(config, data, train_ids)
    from src.teacher import classical

    made = getattr(classical, FILLERS.get(config.kind, ""), None)
    if made is None:
        raise UserError(f"teacher.kind={config.kind}", f"ilora, fused, {', '.join(FILLERS)}", "teacher.kind")
    return made(config, data, train_ids)
