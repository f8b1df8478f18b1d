"""The teacher's training: steps, validation, checkpoints. A resumed training equals one that was never stopped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from src.core.logging import get_logger, progress
from src.core.run import Run, Stopwatch
from src.core.signals import check_stop, stop_requested
from src.student.checkpoint import load_checkpoint, save_checkpoint
from src.teacher.candidate_eval import write_answers
from src.teacher.checkpoint import check_same, load_trained_state, trained_state
from src.teacher.config import IloraConfig
from src.teacher.find_batch_size import MOST, BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.losses import answer_losses
from src.teacher.ranking import ndcg
from src.teacher.samples import Context, SampleSource
from src.teacher.training_step import TrainingSteps

_GATES_SHOWN = 32  # validation rows whose expert weights TensorBoard shows
log = get_logger(__name__)


@dataclass
class TeacherProgress:
    """How far training has come."""

    step: int = 0  # optimizer steps done
    best_step: int = 0
    best_value: float = -math.inf
    without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0


class TeacherTrainer(TrainingSteps):
    """Trains a model in place; it ends with the best validation's weights.

    Args:
        config, model, source, train_ids, accelerator, run: see `TrainingSteps`.
        valid_ids: sample ids to choose the best step by.
        folder: of the checkpoint; training resumes from one that is there.
        fingerprint: what this training computes; a checkpoint of another one is refused.
        same: what else must agree with a checkpoint, such as hashes of weights that no fingerprint holds.
    """

    def __init__(
        self,
        config: IloraConfig,
        model: IloraModel,
        source: SampleSource,
        train_ids: np.ndarray,
        valid_ids: np.ndarray,
        folder: Path,
        fingerprint: str,
        accelerator: Accelerator,
        run: Run | None = None,
        same: Mapping[str, Any] | None = None,
    ):
        super().__init__(config, model, source, train_ids, accelerator, run)
        self.valid_ids, self.path, self.fingerprint = valid_ids, folder / "checkpoint.pt", fingerprint
        self.same: dict[str, Any] = dict(same or {})
        if config.batch_norm:  # each process normalises its own micro-batches and averages the statistics
            self.same["number of processes"] = accelerator.num_processes
        self.eval_every = max(1, self.steps_per_epoch // self.train.evals_per_epoch)
        passes = MOST if accelerator.num_processes == 1 else 0
        self.pass_size = BatchSizeFinder(config.export.batch_size, "teacher.export.batch_size", passes)
        self.context = Context(model, source, config.export, self.hybrid, config.seed)
        self.done = TeacherProgress()
        self.best: dict[str, dict[str, Tensor]] | None = None
        self.since: list[tuple[float, float]] = []  # losses (item, lm) since the last validation

    def fit(self) -> TeacherProgress:
        """Train to the end or until validation stops improving.

        Raises:
            UserError: a loss is not finite, a part gets no gradient, or the adapter changes nothing.
            Interrupted: a signal came; the checkpoint holds this very step.
        """
        self._resume()
        done, model = self.done, self.model
        watch, saved_at = Stopwatch(done.seconds), time.monotonic()
        model.train()
        steps = () if done.finished else range(done.step, self.total)
        for step in progress(steps, "teacher", unit="step"):
            sums = self.step(step)
            done.step = step + 1
            self.since.append((sums.item, sums.lm))
            last = done.step == self.total
            if done.step % self.eval_every == 0 or last:
                self._validate(last)
            done.seconds = watch.seconds()
            due = time.monotonic() - saved_at > 60 * self.train.checkpoint_minutes
            if due or stop_requested() or done.finished:
                self._save()
                saved_at = time.monotonic()
            check_stop()
            if done.finished:
                break
        assert self.best is not None
        load_trained_state(model, self.best, "the best step")
        model.eval()
        return done

    def _validate(self, last: bool) -> None:
        done = self.done
        value = self._validation_value()
        self._show_answers()
        self._show_gates()
        item, lm = np.mean(self.since, axis=0).tolist()
        self.since.clear()
        if self.run is not None:
            self.run.scalar("teacher/valid", value, done.step)
        if value > done.best_value:
            done.best_value, done.best_step, done.without_gain = value, done.step, 0
            self.best = trained_state(self.model)
        else:
            done.without_gain += 1
        done.finished = last or done.without_gain >= self.train.patience
        log.log(
            logging.INFO if done.finished or done.without_gain == 0 else logging.DEBUG,
            "teacher step %d/%d: loss item %.3f, lm %.3f; validation %.4f (best %.4f at %d)",
            done.step,
            self.total,
            item,
            lm,
            value,
            done.best_value,
            done.best_step,
        )

    def _validation_value(self) -> float:
        """NDCG@10 by the catalogue ranking, or minus the answers' loss where there is no item objective."""
        if self.config.objective.item > 0:
            return self.pass_size.run(lambda size: ndcg(self.context.with_batch(size), self.valid_ids))
        return -self.pass_size.run(self._answer_loss)

    @torch.no_grad()
    def _answer_loss(self, batch_size: int) -> float:
        """Mean cross-entropy of the answers' tokens."""
        model, losses = self.model, []
        model.eval()
        count = self.config.prompt.candidates
        for micro in self.source.micro_batches(self.valid_ids, batch_size, answers=True, candidates=count):
            m = micro.to(model.device)
            with model.gates.use(model.gate(m.h_seq)):
                states = model.states(m.prompts, self.hybrid)
                losses.append(answer_losses(model.llm, states, m.prompts.labels))
        model.train()
        return float(torch.cat(losses).mean())

    def _show_answers(self) -> None:
        """The answers to the first `train.show_answers` rows in TensorBoard (main process only).

        Costs one prefill and at most as many short passes as the longest title has tokens.
        """
        rows = self.valid_ids[: self.train.show_answers]
        if self.run is None or not self.run.main or len(rows) == 0 or self.config.objective.lm == 0:
            return
        self.model.eval()
        lines = ["| sample | prompt | written | title |", "|---|---|---|---|"]
        for w in write_answers(self.context, rows):
            cells = (str(w.sample_id), w.prompt, w.text.strip(), w.target)
            lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
        self.model.train()
        self.run.text("teacher/answers", "\n".join(lines), self.done.step)

    def _show_gates(self) -> None:
        """The expert weights of the same validation rows in TensorBoard, validation by validation."""
        if self.run is None or not self.run.main or self.model.experts < 2:
            return
        self.model.eval()
        self.run.gates(
            "teacher", gates_of(self.model, self.source, self.valid_ids[:_GATES_SHOWN]), self.done.step
        )
        self.model.train()

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "fingerprint": self.fingerprint,
            "same": self.same,
            "progress": asdict(self.done),
            "model": trained_state(self.model),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "items": self.items,
        }
        save_checkpoint(self.path, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.path, self.fingerprint)
        if state is None:
            return
        check_same(state.get("same", {}), self.same, self.path)
        load_trained_state(self.model, state["model"], str(self.path))
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.best = TeacherProgress(**state["progress"]), state["best"]
        self.items = None if state["items"] is None else state["items"].to(self.model.device)
        log.info("resuming after step %d of %s", self.done.step, self.path)
        if self.run is not None:
            self.run.continue_curves("teacher/", self.done.step)


@torch.no_grad()
def gates_of(model: IloraModel, source: SampleSource, sample_ids: np.ndarray) -> np.ndarray:
    """[n, K] expert weights of the samples; the model is in eval mode."""
    h_seq = source.encoder.h_seq(source.data.histories(sample_ids))
    return model.gate(h_seq.to(model.device)).float().cpu().numpy()
