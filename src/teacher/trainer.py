"""The teacher's training loop.

One optimizer step sees `batch_size` samples, whatever the micro-batch and the number of processes:
a loss is the sum over its terms divided by their number in the whole effective batch. Resume is
exact: order, wordings, curriculum and dropout of a step follow from seed and step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from src.core.logging import get_logger, progress
from src.core.run import Run, Stopwatch
from src.core.seed import derive, numpy_stream, torch_stream
from src.core.signals import check_stop, stop_requested
from src.student.checkpoint import load_checkpoint, save_checkpoint
from src.teacher.checkpoint import check_same, load_trained_state, trained_state
from src.teacher.config import IloraConfig
from src.teacher.diagnostics import (
    StepSums,
    check_adapter,
    check_gradients,
    check_loss,
    gradient_norms,
    step_scalars,
)
from src.teacher.distributed import sum_over_processes
from src.teacher.ilora_model import IloraModel
from src.teacher.item_head import item_loss, sampled_columns
from src.teacher.oom import MOST, Halving
from src.teacher.samples import Micro, SampleSource
from src.teacher.schedule import hybrid_probability, learning_rate
from src.teacher.validation import show_answers, validation_value

_LOG_EVERY = 10
_CHECK_GRADIENTS_AT = 2  # B starts at zero, so A and the gate get their first gradient in the second step
log = get_logger(__name__)


@dataclass
class Progress:
    """How far training has come."""

    step: int = 0  # optimizer steps done
    best_step: int = 0
    best_value: float = -math.inf
    without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class TeacherTrainer:
    """Trains a model in place; it ends with the best validation's weights.

    Args:
        config: the teacher's settings.
        model: on its device.
        source: of samples.
        train_ids, valid_ids: sample ids to train on and to choose the best step by.
        folder: place of the checkpoint; training goes on from the one that lies there.
        fingerprint: what this training computes; a checkpoint of another one is refused.
        same: what else a checkpoint must have been made with, such as weights that no fingerprint holds.
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
        self.config, self.train, self.model, self.source = config, config.train, model, source
        self.train_ids, self.valid_ids, self.run = train_ids, valid_ids, run
        self.path, self.fingerprint, self.accelerator = folder / "checkpoint.pt", fingerprint, accelerator
        self.same: dict[str, Any] = dict(same or {})
        if config.batch_norm:  # each process normalises its own micro-batches and averages the statistics
            self.same["number of processes"] = accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(train_ids) / self.train.batch_size)
        self.total = self.train.epochs * self.steps_per_epoch
        self.eval_every = max(1, self.steps_per_epoch // self.train.evals_per_epoch)
        self.hybrid = config.prompt.mode == "hybrid"
        self.parts = model.parts()
        self.optimizer = self._optimizer()
        # Where the size counts (BatchNorm in the gate) or the processes share out the passes, it stays.
        most = MOST if accelerator.num_processes == 1 and not config.batch_norm else 0
        self.micro = Halving(self.train.micro_batch_size, "teacher.train.micro_batch_size", most)
        passes = MOST if accelerator.num_processes == 1 else 0
        self.pass_size = Halving(config.export.batch_size, "teacher.export.batch_size", passes)
        self.done = Progress()
        self.gradients_seen = self.adapter_seen = False  # what is checked once
        # The rate has reached its peak: an adapter that does nothing now never will.
        self.adapter_due = min(
            self.total - 1, max(_CHECK_GRADIENTS_AT, int(self.total * self.train.warmup_share))
        )
        self.best: dict[str, dict[str, Tensor]] | None = None
        self.items: Tensor | None = None  # [N, H] LLM states of the item texts
        self.since: list[tuple[float, float]] = []  # losses (item, lm) since the last validation

    def fit(self) -> Progress:
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
        log.info("teacher: best step %d of %d, validation %.4f", done.best_step, done.step, done.best_value)
        return done

    # -- one optimizer step ---------------------------------------------------------------------------

    def step(self, step: int) -> StepSums:
        """The optimizer step number `step`, from 0: its losses and what else TensorBoard shows of it."""
        started = time.monotonic()
        config, model, objective = self.config, self.model, self.config.objective
        epoch, at = divmod(step, self.steps_per_epoch)
        order = numpy_stream(config.seed, "teacher_order", epoch).permutation(len(self.train_ids))
        chosen = order[at * self.train.batch_size : (at + 1) * self.train.batch_size]
        ids = self.train_ids[np.sort(chosen)]
        hybrid = self.hybrid and self._coin(step) < hybrid_probability(
            step, self.total, self.train.curriculum
        )
        if objective.item > 0 and (self.items is None or step % objective.refresh_steps == 0):
            self.items = self.source.item_states(model, self.hybrid)
        sums = self.micro.run(
            lambda size: self._gradients(step, ids, hybrid, size),
            lambda: self.optimizer.zero_grad(set_to_none=True),
        )
        check_loss(sums, step)
        if hybrid and not self.gradients_seen and step >= _CHECK_GRADIENTS_AT:
            check_gradients(self.parts, step)
            self.gradients_seen = True
        if self.train.grad_clip is not None:
            nn.utils.clip_grad_norm_([p for g in self.parts.values() for p in g], self.train.grad_clip)
        rate = learning_rate(step, self.total, 1.0, self.train.lr_floor, self.train.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.norms = gradient_norms(self.parts)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.adapter_seen and step >= self.adapter_due:
            self._check_adapter(ids)
        self._report(step, sums, time.monotonic() - started)
        return sums

    def _gradients(self, step: int, ids: np.ndarray, hybrid: bool, size: int) -> StepSums:
        """Forward and backward of the effective batch `ids`, `size` samples at a time."""
        config, model, objective = self.config, self.model, self.config.objective
        torch.manual_seed(derive(config.seed, "teacher_dropout", step, self.accelerator.process_index))
        micros = list(
            self.source.micro_batches(
                ids,
                size,
                epoch=step // self.steps_per_epoch,
                answers=objective.lm > 0,
                candidates=config.prompt.candidates if objective.lm > 0 else 0,
            )
        )
        columns = sampled_columns(
            torch.cat([m.targets for m in micros]),
            model.n_items,
            objective.negatives,
            torch_stream(config.seed, "teacher_negatives", step),
        )
        tokens = sum(int((m.prompts.labels != -100).sum()) for m in micros)
        sums = StepSums()
        for micro in micros[self.accelerator.process_index :: self.accelerator.num_processes]:
            self._micro(micro.to(model.device), hybrid, len(ids), max(tokens, 1), columns, sums)
        if self.accelerator.num_processes > 1:
            # The projector has no gradient in a text-only step, and so no step of Adam; a zero would be one.
            trained = [
                p for name, group in self.parts.items() if hybrid or name != "projector" for p in group
            ]
            sum_over_processes(self.accelerator, trained, model.router.buffers(), sums, model.experts)
        return sums

    def _micro(
        self,
        micro: Micro,
        hybrid: bool,
        n_samples: int,
        n_tokens: int,
        columns: Tensor | None,
        sums: StepSums,
    ) -> None:
        """Forward and backward of one micro-batch; the gate stays set until backward has ended."""
        model, objective, batch = self.model, self.config.objective, micro.prompts
        with self.accelerator.autocast():
            gate = model.gate(micro.h_seq)
            with model.gates.use(gate):
                states = model.states(batch, hybrid)
                loss = states.new_zeros((), dtype=torch.float32)
                if objective.item > 0:
                    columns = None if columns is None else columns.to(states.device)
                    readout = model.readout(states, batch)
                    item = item_loss(model.head, readout, self.items, micro.targets, columns, micro.prior)
                    loss = loss + objective.item * item / n_samples
                    sums.item += float(item.detach()) / n_samples
                if objective.lm > 0:
                    lm = model.answer_losses(states, batch).sum()
                    loss = loss + objective.lm * lm / n_tokens
                    sums.lm += float(lm.detach()) / n_tokens
                loss.backward()
        sums.tokens += int(batch.mask.sum())
        sums.add_gate(gate)

    def _coin(self, step: int) -> float:
        return float(numpy_stream(self.config.seed, "teacher_curriculum", step).random())

    def _check_adapter(self, ids: np.ndarray) -> None:
        self.model.eval()
        micro = next(self.source.micro_batches(ids[:1], 1)).to(self.model.device)
        check_adapter(self.model, micro.prompts, micro.h_seq, self.hybrid)
        self.model.train()
        self.adapter_seen = True

    def _optimizer(self) -> torch.optim.Optimizer:
        lr, decay = self.train.lr, self.train.weight_decay
        settings = {"lora": (lr, 0.0), "gate": (lr * self.train.gate_lr_ratio, decay)}
        groups = []
        for name, params in self.parts.items():
            peak, weight_decay = settings.get(name, (lr, decay))
            if params:
                groups.append({"params": params, "lr": peak, "peak": peak, "weight_decay": weight_decay})
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.train.optimizer](groups)

    # -- validation, reports, checkpoints ---------------------------------------------------------------

    def _validate(self, last: bool) -> None:
        done = self.done
        value = validation_value(self.config, self.model, self.source, self.valid_ids, self.pass_size)
        show_answers(self.run, self.config, self.model, self.source, self.valid_ids, done.step)
        item, lm = np.mean(self.since, axis=0).tolist()
        self.since.clear()
        done.history.append({"step": done.step, "valid": value, "item": item, "lm": lm})
        if self.run is not None:
            self.run.scalar("teacher/valid", value, done.step)
        if value > done.best_value:
            done.best_value, done.best_step, done.without_gain = value, done.step, 0
            self.best = trained_state(self.model)
        else:
            done.without_gain += 1
        done.finished = last or done.without_gain >= self.train.patience
        log.info(
            "teacher step %d/%d: loss item %.3f, lm %.3f; validation %.4f (best %.4f at %d)",
            done.step,
            self.total,
            item,
            lm,
            value,
            done.best_value,
            done.best_step,
        )

    def _report(self, step: int, sums: StepSums, seconds: float) -> None:
        if self.run is None or (step % _LOG_EVERY and step + 1 != self.total):
            return
        lr, model = self.optimizer.param_groups[0]["lr"], self.model
        scalars = step_scalars(sums, self.norms, lr, seconds, model.experts, model.device)
        for name, value in scalars.items():
            self.run.scalar(f"teacher/{name}", value, step + 1)

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
        self.done, self.best = Progress(**state["progress"]), state["best"]
        self.items = None if state["items"] is None else state["items"].to(self.model.device)
        log.info("going on after step %d of %s", self.done.step, self.path)
