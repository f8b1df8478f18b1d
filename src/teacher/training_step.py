"""The teacher's optimizer steps, one at a time.

One step sees `batch_size` samples, whatever the micro-batch and the number of processes: a loss is the sum over its
terms divided by their number in the whole effective batch. Order, wordings, curriculum and dropout of a step follow
from seed and step alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.run import Run
from src.core.seed import derive, numpy_stream, torch_stream
from src.teacher.config import IloraConfig
from src.teacher.diagnostics import (
    StepSums,
    check_adapter,
    check_gradients,
    check_loss,
    gradient_norms,
    step_scalars,
)
from src.teacher.find_batch_size import MOST, BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.losses import answer_losses, item_loss, sampled_columns
from src.teacher.prompts import IGNORE
from src.teacher.samples import MicroBatch, SampleSource

_LOG_EVERY = 10
_CHECK_GRADIENTS_AT = 2  # B starts at zero, so A and the gate get their first gradient in the second step


class TrainingSteps:
    """Changes a model in place, step by step.

    Args:
        config: the teacher's settings.
        model: on its device, in train mode.
        source: of samples.
        train_ids: sample ids to train on.
        run: its TensorBoard shows every tenth step.
    """

    def __init__(
        self,
        config: IloraConfig,
        model: IloraModel,
        source: SampleSource,
        train_ids: np.ndarray,
        accelerator: Accelerator,
        run: Run | None = None,
    ):
        self.config, self.train, self.model, self.source = config, config.train, model, source
        self.train_ids, self.accelerator, self.run = train_ids, accelerator, run
        self.steps_per_epoch = math.ceil(len(train_ids) / self.train.batch_size)
        self.total = self.train.epochs * self.steps_per_epoch
        self.hybrid = config.prompt.mode == "hybrid"
        self.parts = model.parts()
        self.optimizer = self._optimizer()
        # Where the size counts (BatchNorm in the gate) or the processes share out the passes, it stays.
        most = MOST if accelerator.num_processes == 1 and not config.batch_norm else 0
        if (size := self.train.micro_batch_size) is None:
            size, most = self.train.batch_size, self.train.batch_size.bit_length()
            if accelerator.num_processes > 1:
                found = f"teacher.train.micro_batch_size=auto with {accelerator.num_processes} processes"
                raise UserError(
                    found, "a number: one process alone cannot halve", "teacher.train.micro_batch_size"
                )
        self.micro = BatchSizeFinder(size, "teacher.train.micro_batch_size", most)
        self.gradients_seen = self.adapter_seen = False  # what is checked once
        # The rate has reached its peak: an adapter that does nothing now never will.
        self.adapter_due = min(
            self.total - 1, max(_CHECK_GRADIENTS_AT, int(self.total * self.train.warmup_share))
        )
        self.items: Tensor | None = None  # [N, H] LLM states of the item texts

    def step(self, step: int) -> StepSums:
        """The optimizer step number `step`, from 0: its losses and what else TensorBoard shows of it."""
        started = time.monotonic()
        config, model, objective = self.config, self.model, self.config.objective
        epoch, at = divmod(step, self.steps_per_epoch)
        order = numpy_stream(config.seed, "teacher_order", epoch).permutation(len(self.train_ids))
        chosen = order[at * self.train.batch_size : (at + 1) * self.train.batch_size]
        ids = self.train_ids[np.sort(chosen)]
        coin = float(numpy_stream(config.seed, "teacher_curriculum", step).random())
        hybrid = self.hybrid and coin < hybrid_probability(step, self.total, self.train.curriculum)
        refresh = objective.refresh_steps or self.steps_per_epoch
        if objective.item > 0 and (self.items is None or step % refresh == 0):
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
        tokens = sum(int((m.prompts.labels != IGNORE).sum()) for m in micros)
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
        micro: MicroBatch,
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
                    lm = answer_losses(model.llm, states, batch.labels).sum()
                    loss = loss + objective.lm * lm / n_tokens
                    sums.lm += float(lm.detach()) / n_tokens
                loss.backward()
        sums.tokens += int(batch.mask.sum())
        sums.add_gate(gate)

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
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.train.optimizer](
            groups, fused=True
        )

    def _report(self, step: int, sums: StepSums, seconds: float) -> None:
        if self.run is None or (step % _LOG_EVERY and step + 1 != self.total):
            return
        lr, model = self.optimizer.param_groups[0]["lr"], self.model
        scalars = step_scalars(sums, self.norms, lr, seconds, model.experts, model.device)
        for name, value in scalars.items():
            self.run.scalar(f"teacher/{name}", value, step + 1)


def sum_over_processes(
    accelerator: Accelerator,
    trained: Iterable[nn.Parameter],
    buffers: Iterable[Tensor],
    sums: StepSums,
    experts: int,
) -> None:
    """Add up gradients and sums of one optimizer step over all processes.

    Args:
        trained: few, one call each; one without gradient counts as zeros.
        buffers: averaged (BatchNorm's statistics: one gate in all processes).
    """
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad.copy_(accelerator.reduce(p.grad, "sum"))
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, "mean"))
    load = torch.zeros(experts) if sums.load is None else sums.load
    packed = torch.tensor([sums.item, sums.lm, sums.tokens, sums.entropy, sums.samples, *load.tolist()])
    packed = accelerator.reduce(packed.to(accelerator.device), "sum").tolist()
    sums.item, sums.lm, tokens, sums.entropy, samples, *loads = packed
    sums.tokens, sums.samples, sums.load = int(tokens), int(samples), torch.tensor(loads)


def learning_rate(step: int, total: int, peak: float, floor: float, warmup_share: float) -> float:
    """Linear from `floor * peak` to `peak` over the first w steps, then cosine to the floor.

    w = floor(total * warmup_share); iLoRA: share 0.05, floor 0.01 (reference/ilora.md).

    Args:
        step: optimizer steps done, 0..total - 1.
        total: optimizer steps of the whole training.
    """
    low, warmup = floor * peak, int(total * warmup_share)
    if step < warmup:
        return low + (peak - low) * step / warmup
    return low + 0.5 * (peak - low) * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def hybrid_probability(step: int, total: int, curriculum: str) -> float:
    """Probability that a step's prompts carry projected item vectors: 1, or rising from 0 to 1."""
    return 1.0 if curriculum == "none" else step / max(1, total)
