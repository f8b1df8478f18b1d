"""The one training loop of all students: baseline, distilled, and the teacher's frozen encoder.

Resume is exact: each epoch's order, dropout and negatives come from streams that seed and epoch
determine, and the checkpoint after an epoch holds the rest (weights, optimizer, selection, best so
far). A run that was stopped in the middle of an epoch repeats that epoch, with the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.memory import keep_freed_memory, peak_memory
from src.core.metrics import EvalConfig, ranking_metrics
from src.core.run import Run, Stopwatch
from src.core.seed import seed_everything
from src.core.selection import Selection
from src.core.signals import check_stop
from src.student.architectures import Student
from src.student.checkpoint import load_checkpoint, save_checkpoint
from src.student.config import StudentConfig
from src.student.datamodule import SampleBatch, Samples, SequenceSamples
from src.student.ema import Ema
from src.student.evaluator import rank_prepared
from src.student.models import build_student, device_of
from src.student.objective import BaselineObjective, Objective

# (epoch, objective, [n] mean losses of the last epoch's samples, in the selection's order; None before
# the first epoch) -> the samples of this epoch, or None to go on with the last ones.
Refresh = Callable[[int, Objective, np.ndarray | None], Selection | None]
_LINE_EVERY = 50  # epochs between two lines of the terminal
log = get_logger(__name__)


@dataclass
class FitState:
    """How far a training has come; everything that a resumed run must know beside tensors."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0
    best_value: float = float("-inf")
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def add(
        self, parts: dict[str, float], valid: dict[str, float], metric: str, config: StudentConfig
    ) -> bool:
        """Note an epoch, and whether it was the last; returns whether it is the best so far."""
        self.epoch += 1
        self.history.append({"epoch": self.epoch, **parts, **{f"valid/{k}": v for k, v in valid.items()}})
        if is_best := valid[metric] > self.best_value:
            self.best_epoch, self.best_value = self.epoch, valid[metric]
        self.finished = self.epoch >= config.max_epochs or self.epoch - self.best_epoch >= config.patience
        return is_best


@dataclass(frozen=True)
class FitResult:
    """What `fit` reports: epochs count from 1, `history` has one entry per epoch."""

    best_epoch: int
    best_value: float
    epochs: int
    seconds: float
    history: list[dict[str, float]]


def fit(
    objective: Objective,
    data: InteractionData,
    config: StudentConfig,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path,
    fingerprint: str,
    run: Run | None = None,
    selection: Selection | None = None,
    refresh: Refresh | None = None,
) -> FitResult:
    """Train until validation stops improving; the objective ends with the best epoch's weights.

    Args:
        objective: on `config.device`; its student is evaluated after every epoch.
        seed: of all random streams.
        folder: place of the checkpoint; training goes on from the one that lies there.
        fingerprint: what this training computes; a checkpoint of another one is refused.
        run: for TensorBoard.
        selection: the training samples; None takes the whole training split.
        refresh: asked before every epoch for new samples.

    Raises:
        UserError: a loss or score is not finite, or the checkpoint does not belong here.
        Interrupted: a signal came; the checkpoint of the last whole epoch lies in `folder`.
    """
    device = next(objective.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    path, metric = folder / "checkpoint.pt", eval_config.select_metric
    optimizer, ema = make_optimizer(objective, config), Ema(objective, config.ema)
    valid = Samples(data, Selection(data.splits["valid"]), device)
    done, best, losses, kept = _start(path, fingerprint, objective, optimizer, ema)
    for entry in done.history:
        _show(entry, run)
    samples = _arranged(config, data, kept or selection or Selection(data.splits["train"]), device)
    compute = torch.compile(objective, dynamic=False) if config.compile else objective
    watch = Stopwatch(done.seconds)

    while not done.finished:
        epoch = done.epoch
        if refresh is not None and (new := refresh(epoch, objective, losses)) is not None:
            samples = _arranged(config, data, new, device)
        seed_everything(seed, "epoch", epoch)
        objective.start_epoch(epoch, samples)
        objective.train()
        started = watch.seconds()
        losses, parts = _train_epoch(compute, samples, config, optimizer, ema, seed, epoch)
        trained = watch.seconds()
        parts |= {"loss": float(losses.mean()), "samples_per_s": len(samples) / (trained - started)}
        parts |= {"lr": config.lr, "peak_memory_gib": peak_memory(device) / 2**30}
        with ema.in_place():
            metrics = validate(objective, valid, eval_config)
            if done.add(parts, metrics, metric, config):
                best = {name: tensor.detach().clone() for name, tensor in objective.state_dict().items()}
        done.seconds = watch.seconds()
        _report(done, config, metric, run)
        save_checkpoint(path, _state(fingerprint, done, objective, optimizer, ema, best, losses, samples))
        check_stop()
    objective.load_state_dict(best)
    return FitResult(done.best_epoch, done.best_value, done.epoch, done.seconds, done.history)


def _arranged(
    config: StudentConfig, data: InteractionData, selection: Selection, device: torch.device
) -> Samples:
    return (SequenceSamples if config.batching == "sequences" else Samples)(data, selection, device)


def _train_epoch(
    compute: Callable[[SampleBatch], tuple[Tensor, dict[str, Tensor]]],
    samples: Samples,
    config: StudentConfig,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, dict[str, float]]:
    """One pass; returns the samples' losses [n] and the mean of each part of the loss."""
    device, steps = samples.device, samples.steps(config.batch_size)
    losses = torch.empty(len(samples), device=device)
    finite = torch.empty(steps, dtype=torch.bool, device=device)
    sums: dict[str, Tensor] = {}
    batches = progress(samples.shuffled(config.batch_size, seed, epoch), f"epoch {epoch + 1}", total=steps)
    for step, batch in enumerate(batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, parts = compute(batch)
        total = (loss * batch.weight).mean()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        ema.update()
        losses[batch.rows] = loss.detach().float()
        finite[step] = total.detach().isfinite()
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.detach() * len(batch)
        # A GPU is asked now and then only: every question makes it wait.
        if device.type == "cpu" or step % 64 == 63 or step == steps - 1:
            _check_finite(finite[: step + 1], epoch)
        check_stop()
    return losses.cpu().numpy(), {name: float(value) / len(samples) for name, value in sums.items()}


def _check_finite(finite: Tensor, epoch: int) -> None:
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        raise UserError(
            f"the loss is not finite at step {step} of epoch {epoch + 1}",
            "a finite loss",
            "student.lr, student.precision or the loss's settings",
        )


def validate(objective: Objective, valid: Samples, eval_config: EvalConfig) -> dict[str, float]:
    """Metrics of the student as it stands, history items ranked: what is only reported never chooses an epoch."""
    with torch.no_grad():
        tables = objective.item_tables()
    ranks = rank_prepared(objective.student, valid, eval_config.batch_size, tables)
    return ranking_metrics(ranks, eval_config.ks)


def make_optimizer(objective: Objective, config: StudentConfig) -> torch.optim.Optimizer:
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return made(objective.parameter_groups(config), lr=config.lr, fused=True)


def _state(
    fingerprint: str,
    done: FitState,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    best: dict[str, Tensor] | None,
    losses: np.ndarray,
    samples: Samples,
) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "progress": asdict(done),
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": {"weights": ema.state(), "steps": ema.steps},
        "best": best,
        "losses": torch.from_numpy(losses),
        "sample_ids": torch.from_numpy(samples.selection.sample_ids),
        "weights": torch.from_numpy(samples.selection.weights),
    }


def _start(
    path: Path, fingerprint: str, objective: Objective, optimizer: torch.optim.Optimizer, ema: Ema
) -> tuple[FitState, dict[str, Tensor] | None, np.ndarray | None, Selection | None]:
    """Where the checkpoint left off (best weights, losses and samples of the last epoch), or the beginning."""
    if (state := load_checkpoint(path, fingerprint)) is None:
        return FitState(), None, None, None
    try:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"]["weights"], state["ema"]["steps"])
        selection = Selection(state["sample_ids"].numpy(), state["weights"].numpy())
        done, losses = FitState(**state["progress"]), state["losses"].numpy()
        best = state["best"]
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UserError(
            f"{path} does not fit this training: {type(e).__name__}: {str(e)[:300]}",
            "the state that this version writes",
            f"delete {path.parent} to train anew",
        ) from e
    log.info("going on after epoch %d of %s", done.epoch, path)
    return done, best, losses, selection


def _report(done: FitState, config: StudentConfig, metric: str, run: Run | None) -> None:
    entry = done.history[-1]
    reported = done.finished or done.epoch == 1 or done.epoch % _LINE_EVERY == 0  # TensorBoard has all
    log.log(
        logging.INFO if reported else logging.DEBUG,
        "epoch %d/%d: loss %.4f, valid %s %.4f (best %.4f at %d), %.0f samples/s",
        done.epoch,
        config.max_epochs,
        entry["loss"],
        metric,
        entry[f"valid/{metric}"],
        done.best_value,
        done.best_epoch,
        entry["samples_per_s"],
    )
    _show(entry, run)


def _show(entry: Mapping[str, float], run: Run | None) -> None:
    """The epoch's curves; of a resumed training also those before."""
    for name, value in entry.items():
        if run is not None and name != "epoch":
            run.scalar(name if "/" in name else f"train/{name}", value, int(entry["epoch"]))


def train_student(
    config: StudentConfig,
    data: InteractionData,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path,
    fingerprint: str,
    run: Run | None = None,
    selection: Selection | None = None,
) -> tuple[Student, FitResult]:
    """A freshly initialised student trained with its own loss alone; arguments as in `fit`."""
    device = device_of(config.device)
    seed_everything(seed, "student")
    student = build_student(config, data.n_items, data.max_history)
    objective = BaselineObjective(student, config, data, seed).to(device)
    result = fit(
        objective,
        data,
        config,
        eval_config,
        seed=seed,
        folder=folder,
        fingerprint=fingerprint,
        run=run,
        selection=selection,
    )
    return student.eval(), result
