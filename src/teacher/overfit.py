"""`teacher.overfit=n`, a debug help: a teacher that cannot learn n rows by heart has something broken.

The rows are training and validation at once, the rate stays at its peak, and what works against learning by heart
is off: dropout, weight decay, the curriculum and new item states. Everything else is the teacher's own: prompts, gate, projector,
objectives. Nothing is kept: no model, no store.

A frozen LLM's last norm and output head bound how sure it can be of a token (`answer_floor`). Where that floor lies
above the bound, no adapter reaches the bound: the run stops at the floor, and fails with the floor as the reason.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import work_dir
from src.core.run import Run
from src.core.seed import numpy_stream
from src.teacher.config import IloraConfig, TeacherConfig

if TYPE_CHECKING:
    from src.teacher.ilora_teacher import IloraTeacher

BOUND = 0.05
_SLACK = 1.05  # of the floor: an optimizer comes near it, not to it
_STEPS = 1000
log = get_logger(__name__)


def wants_overfit(config: TeacherConfig) -> bool:
    """Whether this teacher is only to be debugged."""
    return isinstance(config, IloraConfig) and config.overfit is not None


def refuse_debug(config: TeacherConfig) -> None:
    """Raise UserError where a teacher is asked for that would have seen a few rows only."""
    if wants_overfit(config):
        raise UserError(
            f"a teacher with teacher.overfit={config.overfit}", "null: it is no result", "teacher.overfit"
        )


def rows_of(config: IloraConfig, data: InteractionData) -> np.ndarray:
    """The sample ids to learn by heart, drawn by seed."""
    rows, count = data.splits["train"], config.overfit
    if count is None or count > len(rows):
        raise UserError(f"teacher.overfit={count}", f"1 to {len(rows)} training rows", "teacher.overfit")
    return np.sort(numpy_stream(config.seed, "overfit").choice(rows, count, replace=False))


def learn_by_heart(config: IloraConfig, data: InteractionData, run: Run | None) -> float:
    """Train on `config.overfit` rows until each loss is below the bound; returns the larger of the last step's.

    Raises:
        UserError: fewer training rows, or a loss that stayed above the bound.
    """
    from src.teacher.ilora_teacher import IloraTeacher
    from src.teacher.trainer import TeacherTrainer

    ids, train = rows_of(config, data), config.train
    count = len(ids)
    eased = replace(
        config,
        lora=replace(config.lora, dropout=0.0),
        # No gradient flows through the item states: renewed ones are another task, and the loss jumps.
        objective=replace(config.objective, refresh_steps=_STEPS),
        train=replace(
            train, batch_size=count, epochs=_STEPS, lr_floor=1.0, weight_decay=0.0, curriculum="none"
        ),
    )
    teacher = IloraTeacher(eased, data)
    teacher.open()
    folder = work_dir("overfit", teacher.fingerprint)  # never written to
    trainer = TeacherTrainer(
        eased, teacher.model, teacher.source, ids, ids, folder, teacher.fingerprint, teacher.accelerator, run
    )
    floor = answer_floor(teacher, ids) if config.objective.lm > 0 else 0.0
    started = time.monotonic()
    steps, loss = trainer.learn_by_heart(max(BOUND, _SLACK * floor))
    found = f"overfit: the loss on {count} rows is {loss:.4f} after {steps} steps, {time.monotonic() - started:.0f} s"
    if floor > 0:
        found += f" (the LLM's frozen last norm and output head allow {floor:.4f} at best)"
    if loss >= BOUND:
        fix = "teacher.train.lr, teacher.lora or teacher.objective; the gradient norms are in TensorBoard"
        raise UserError(found, f"below {BOUND}", fix if floor < BOUND else "teacher.llm to a surer one")
    log.info("%s: below %s as it should be; nothing is kept or exported", found, BOUND)
    return loss


def answer_floor(teacher: IloraTeacher, sample_ids: np.ndarray, steps: int = 500) -> float:
    """Least mean cross-entropy per answer token that any final state gives: the states are chosen freely, the
    LLM's last norm and output head are as they are. 0 for families whose last norm is not found."""
    import torch
    from torch.nn import functional as F

    from src.teacher.llm import backbone, token_logits

    llm, builder = teacher.model.llm, teacher.builder
    norm = getattr(backbone(llm), "norm", None)
    if norm is None:
        return 0.0
    answers = np.concatenate([builder.answer_ids(int(i)) for i in teacher.data.targets(sample_ids)])
    tokens, counts = (
        torch.from_numpy(a).to(teacher.model.device) for a in np.unique(answers, return_counts=True)
    )
    head = llm.get_base_model().get_output_embeddings().weight
    free = head[tokens].detach().float().clone().requires_grad_()  # [M, H], from the tokens' own directions
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(steps):
        logits = token_logits(llm, norm(free.to(head.dtype)))
        loss = (F.cross_entropy(logits, tokens, reduction="none") * counts).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
