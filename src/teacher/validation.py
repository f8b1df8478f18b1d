"""Validation while the teacher trains: one value that chooses the best step, and some generated answers to read."""

from __future__ import annotations

import numpy as np
import torch

from src.core.run import Run
from src.teacher.candidate_eval import write_answers
from src.teacher.config import IloraConfig
from src.teacher.find_batch_size import BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.losses import answer_losses
from src.teacher.ranking import item_vectors, ndcg
from src.teacher.ranking.base import Context
from src.teacher.samples import SampleSource


def validation_value(
    config: IloraConfig,
    model: IloraModel,
    source: SampleSource,
    sample_ids: np.ndarray,
    passes: BatchSizeFinder,
) -> float:
    """NDCG@10 by the catalogue ranking, or minus the answers' loss where there is no item objective.

    Args:
        passes: size of a forward pass.
    """
    hybrid = config.prompt.mode == "hybrid"
    if config.objective.item > 0:
        items = item_vectors(model, source, hybrid)
        return passes.run(lambda size: ndcg(model, source, sample_ids, items, hybrid=hybrid, batch_size=size))
    return -passes.run(
        lambda size: answer_loss(model, source, sample_ids, config.prompt.candidates, hybrid, size)
    )


@torch.no_grad()
def answer_loss(
    model: IloraModel,
    source: SampleSource,
    sample_ids: np.ndarray,
    candidates: int,
    hybrid: bool,
    batch_size: int,
) -> float:
    """Mean cross-entropy of the answers' tokens; the model is left in training mode."""
    total, count = 0.0, 0
    model.eval()
    for micro in source.micro_batches(sample_ids, batch_size, answers=True, candidates=candidates):
        m = micro.to(model.device)
        with model.gates.use(model.gate(m.h_seq)):
            losses = answer_losses(model.llm, model.states(m.prompts, hybrid), m.prompts.labels)
        total, count = total + float(losses.sum()), count + len(losses)
    model.train()
    return total / count


def show_answers(
    run: Run | None,
    config: IloraConfig,
    model: IloraModel,
    source: SampleSource,
    sample_ids: np.ndarray,
    step: int,
) -> None:
    """Show the answers to the first `train.show_answers` of these rows in TensorBoard (main process only).

    Costs one prefill and at most as many short passes as the longest title has tokens.
    """
    rows = sample_ids[: config.train.show_answers]
    if run is None or not run.main or len(rows) == 0 or config.objective.lm == 0:
        return
    model.eval()
    context = Context(model, source, config.export, config.prompt.mode == "hybrid", config.seed)
    written = write_answers(context, rows)
    model.train()
    lines = ["| sample | prompt | written | title |", "|---|---|---|---|"]
    for w in written:
        cells = (str(w.sample_id), w.prompt, w.text.strip(), w.target)
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    run.text("teacher/answers", "\n".join(lines), step)
