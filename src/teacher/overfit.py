"""`teacher.overfit=n`, a debug run: a teacher that cannot memorise n rows is broken.

The rows are training and validation at once, the rate stays at its peak, and what works against memorising is
off (`overfit_config`). All else is the teacher's own: prompts, gate, projector, objectives. Nothing is kept.

A frozen LLM's last norm and output head bound how sure it can be of a token (`answer_floor`). Where that floor lies
above the bound, no adapter reaches the bound: the run stops at the floor, and fails with the floor as the reason.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.run import Run
from src.core.seed import numpy_stream
from src.core.signals import check_stop
from src.teacher.config import IloraConfig
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.llm import backbone, token_logits
from src.teacher.training_step import TrainingSteps

BOUND = 0.05
_SURE = 0.2 * BOUND  # a floor below it is not looked for any further
_SLACK = 1.05  # of the floor: an optimizer comes near it, not to it
_STEPS = 1000
log = get_logger(__name__)


def overfit_config(config: IloraConfig) -> IloraConfig:
    """The settings of the debug run: one batch of all rows, constant rate, no dropout, decay or curriculum."""
    assert config.overfit is not None
    return replace(
        config,
        lora=replace(config.lora, dropout=0.0),
        # No gradient flows through the item states: new ones are another task, and the loss jumps.
        objective=replace(config.objective, refresh_steps=_STEPS),
        train=replace(
            config.train,
            batch_size=config.overfit or 1,
            epochs=_STEPS,
            lr_floor=1.0,
            weight_decay=0.0,
            curriculum="none",
        ),
    )


def overfit_rows(config: IloraConfig, data: InteractionData) -> np.ndarray:
    """The sample ids to memorise, drawn by seed."""
    rows, count = data.splits["train"], config.overfit
    if count is None or count > len(rows):
        raise UserError(f"teacher.overfit={count}", f"1 to {len(rows)} training rows", "teacher.overfit")
    return np.sort(numpy_stream(config.seed, "overfit").choice(rows, count, replace=False))


def overfit(config: IloraConfig, data: InteractionData, run: Run | None) -> float:
    """Train on `config.overfit` rows until each loss is below the bound; returns the larger of the last step's.

    Raises:
        UserError: fewer training rows, or a loss that stayed above the bound.
        Interrupted: a signal came.
    """
    ids, config = overfit_rows(config, data), overfit_config(config)
    teacher = IloraTeacher(config, data)
    teacher.open()
    steps = TrainingSteps(config, teacher.model, teacher.source, ids, teacher.accelerator, run)
    floor = answer_floor(teacher, ids) if config.objective.lm > 0 else 0.0
    bound, started = max(BOUND, _SLACK * floor), time.monotonic()
    teacher.model.train()
    for step in progress(range(steps.total), "overfit", unit="step"):
        sums = steps.step(step)
        check_stop()
        if (loss := max(sums.item, sums.lm)) < bound:
            break
    seconds = time.monotonic() - started
    found = f"overfit: the loss on {len(ids)} rows is {loss:.4f} after {step + 1} steps, {seconds:.0f} s"
    if floor >= _SURE:
        found += f" (the LLM's frozen last norm and output head allow {floor:.4f} at best)"
    if loss >= BOUND:
        fix = "teacher.train.lr, teacher.lora or teacher.objective; the gradient norms are in TensorBoard"
        raise UserError(
            found,
            f"below {BOUND}",
            fix if floor < BOUND else "teacher.llm to a model that can be more certain",
        )
    log.info("%s: below %s as it should be; nothing is kept or exported", found, BOUND)
    return loss


def answer_floor(teacher: IloraTeacher, sample_ids: np.ndarray, steps: int = 500) -> float:
    """Least mean cross-entropy per answer token that any final states [M, H] give, chosen freely, with the LLM's last
    norm and output head as they are. The search ends at a floor that is low enough (`_SURE`).

    Returns:
        the floor; 0 for families whose last norm is not found.

    Raises:
        Interrupted: a signal came.
    """
    llm, builder = teacher.model.llm, teacher.builder
    norm = getattr(backbone(llm), "norm", None)
    if norm is None:
        return 0.0
    answers = np.concatenate([builder.answers[i] for i in teacher.data.targets(sample_ids)])
    tokens, counts = (
        torch.from_numpy(a).to(teacher.model.device) for a in np.unique(answers, return_counts=True)
    )
    head = llm.get_base_model().get_output_embeddings().weight
    free = head[tokens].detach().float().clone().requires_grad_()  # from the tokens' own directions
    optimizer = torch.optim.Adam([free], lr=0.05)
    log.info("overfit: looking for the least loss that %d tokens of %d can have", len(tokens), len(head))
    for _ in progress(range(steps), "floor of the loss", unit="step"):
        logits = token_logits(llm, norm(free.to(head.dtype)))
        loss = (F.cross_entropy(logits, tokens, reduction="none") * counts).sum() / counts.sum()
        check_stop()
        if float(loss.detach()) < _SURE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
