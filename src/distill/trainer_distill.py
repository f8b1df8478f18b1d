"""Training a student with a teacher's rankings and item vectors: DLLM2Rec's objective in the one training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.metrics import EvalConfig
from src.core.run import Run
from src.core.seed import numpy_stream, seed_everything
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows, TeacherStore, locate
from src.distill.config import ActiveConfig, DistillConfig
from src.distill.data_bridge import join_rows, ranking_signals, teacher_item_vectors
from src.distill.kd_losses import weight_entropy
from src.distill.meta_weights import LearnedWeights
from src.distill.objective import DistillObjective
from src.distill.ranking_gate import ranking_gate, why_unused
from src.distill.scoring import StudentScorer
from src.distill.selection_policy import SelectionContext, SelectionPolicy
from src.distill.strategies import make_policy
from src.student.architectures import Student
from src.student.config import StudentConfig
from src.student.evaluator import rank_samples
from src.student.models import build_student, device_of, fold_item_tables
from src.student.objective import Objective
from src.student.trainer_baseline import FitResult, fit

log = get_logger(__name__)
_Settings = tuple[StudentConfig, DistillConfig, ActiveConfig, InteractionData, TeacherStore, EvalConfig]


class Reselect:
    """Asks the policy before an epoch and puts its answer into the objective (`fit`'s `refresh`).

    All training samples keep their recommendation loss; the selection decides which are distilled. The
    policy's memory is a buffer of the objective, so that checkpoints hold it.
    """

    def __init__(self, policy: SelectionPolicy, train_ids: np.ndarray, objective: DistillObjective):
        self.policy, self.train_ids = policy, train_ids
        objective.register_buffer("policy_memory", torch.from_numpy(policy.memory.copy()))

    def __call__(self, epoch: int, objective: Objective, losses: np.ndarray | None) -> None:
        assert isinstance(objective, DistillObjective)
        if epoch > 0:
            self.policy.memory[:] = objective.policy_memory.cpu().numpy()
            self.policy.update(epoch - 1, self.train_ids, objective.sample_losses.cpu().numpy())
            objective.policy_memory.copy_(torch.from_numpy(self.policy.memory))
        if not self.policy.due(epoch):
            return
        selection = self.policy.select(epoch)
        apply_selection(objective, selection, self.train_ids)
        log.info(
            "epoch %d: %d of %d samples are distilled",
            epoch + 1,
            len(selection.sample_ids),
            len(self.train_ids),
        )


def apply_selection(objective: DistillObjective, selection: Selection, train_ids: np.ndarray) -> None:
    """Give the selected samples their weights and all others 0."""
    position, found = locate(train_ids, selection.sample_ids)
    if not found.all():
        raise UserError(
            f"selected sample {selection.sample_ids[~found][0]} is no training sample",
            "training samples",
            "active",
        )
    weights = torch.zeros(len(train_ids))
    weights[torch.from_numpy(position)] = torch.from_numpy(selection.weights)
    objective.sample_weights.copy_(weights)


def train_distilled(
    student_config: StudentConfig,
    config: DistillConfig,
    active: ActiveConfig,
    data: InteractionData,
    store: TeacherStore,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path,
    fingerprint: str,
    run: Run | None = None,
    selection: Selection | None = None,
) -> tuple[Student, FitResult, dict[str, Any]]:
    """A student initialised as the baseline of the same seed, trained with the teacher's outputs.

    With `gate_rankings` a student is first trained without the teacher's rankings. Where these are better than that
    student on validation rows (ranking_gate), a second one follows them there; the better of the two on validation
    is returned.

    Args:
        store: the teacher's outputs on this dataset.
        folder, fingerprint, run: as in `fit`.
        selection: of an offline policy; None asks `active` here, during training.

    Returns:
        the student with the best epoch's weights, teacher vectors folded into its item tables: a plain student
        that needs neither teacher nor projection and gives identical scores; its training; and what was done with
        the teacher's rankings: whether they were `used`, and a `note` that says it in one line.

    Raises:
        UserError: teacher outputs that do not fit (data_bridge), a policy that cannot be served.
    """
    held_out = None
    if active.meta is not None:
        data, held_out = hold_out(data, active.meta_share, seed)
    settings = (student_config, config, active, data, store, eval_config)
    trial = partial(_train_once, settings, seed=seed, fingerprint=fingerprint, run=run)
    selects = selection is not None or active.meta is not None or _selects(active)
    why = "distill.lam=0" if not config.ranks else why_unused(store) if config.gate_rankings else None
    if why and selects:  # of what selects, nothing would be left
        by = f"active.policy={active.policy}" if active.meta is None else f"active.meta={active.meta}"
        raise UserError(f"{by} with {why}", "rankings to select for", "active")
    if config.ranks and store.manifest.get("target_scores") == "listed":
        refuse_listed_targets(store, config, active)
    if why:
        report: dict[str, Any] = {"used": False, "note": f"rankings not used: {why}"}
        log.info(report["note"])
        return *trial(folder=folder), report
    rows = join_rows(store, data, config.top_k, config.history_candidates)
    if not config.gate_rankings:
        report = {"used": True, "note": "rankings followed for every sample (distill.gate_rankings=false)"}
        return *trial(rows, selection=selection, held_out=held_out, folder=folder), report
    return _gated(trial, rows, settings, seed, folder, run, selection, held_out)


def _gated(
    trial: Callable[..., tuple[Student, FitResult]],
    rows: TeacherRows,
    settings: _Settings,
    seed: int,
    folder: Path,
    run: Run | None,
    selection: Selection | None,
    held_out: np.ndarray | None,
) -> tuple[Student, FitResult, dict[str, Any]]:
    """The better on validation of a student without rankings, and one that follows them where they are better."""
    _, config, active, data, store, eval_config = settings
    inner = None if run is None else run.within("without_rankings")
    student, alone = trial(folder=folder / "without_rankings", run=inner)
    device = next(student.parameters()).device
    ranks = rank_samples(student, data, data.splits["valid"], eval_config.batch_size, device)
    shuffled = config.control in ("shuffle_rankings", "both")
    gate = ranking_gate(store, data, ranks, eval_config, seed, shuffled)
    if not gate.follow.any() and (selection is not None or active.meta is not None or _selects(active)):
        gate.report["note"] += f"; active={active.policy} had nothing to select from"
    log.info(gate.report["note"])
    if not gate.follow.any():
        return student, alone, gate.report
    ranked, result = trial(rows, gate=gate.follow, selection=selection, held_out=held_out, folder=folder)
    report = {**gate.report, "valid_without_rankings": alone.best_value, "valid_with": result.best_value}
    seconds = alone.seconds + result.seconds
    if result.best_value > alone.best_value:
        return ranked, replace(result, seconds=seconds), report
    report["used"] = False
    report["note"] += f"; no gain on validation ({alone.best_value:.4f} -> {result.best_value:.4f}), left out"
    log.info(report["note"])
    return student, replace(alone, seconds=seconds), report


def _train_once(
    settings: _Settings,
    rows: TeacherRows | None = None,
    *,
    gate: np.ndarray | None = None,
    selection: Selection | None = None,
    held_out: np.ndarray | None = None,
    seed: int,
    **keys: Any,
) -> tuple[Student, FitResult]:
    """One training, with the rankings `rows` or without (None); `keys` as in `fit`.

    Args:
        gate: [n] weights of the training samples' rankings.
        held_out: validation rows that the samples' weights are learned on.
    """
    student_config, config, active, data, store, eval_config = settings
    device, train = device_of(student_config.device), np.asarray(data.splits["train"])
    signals = ranking_signals(rows, train, store.score_kind, config, seed, device, gate) if rows else None
    if signals is not None and (run := keys.get("run")) is not None and signals.confidence.shape[1] > 1:
        run.spread("confidence/entropy", weight_entropy(signals.confidence).cpu().numpy(), 0)
    vectors = teacher_item_vectors(store, data, config, seed) if config.embedding != "none" else None
    seed_everything(seed, "student")
    student = build_student(student_config, data.n_items, data.max_history)
    seed_everything(seed, "projector")
    objective = DistillObjective(student, student_config, config, data, seed, signals, vectors).to(device)
    refresh = None
    if rows is not None and selection is not None:
        check_selected(selection, rows)
        apply_selection(objective, selection, train)
    elif rows is not None and _selects(active):
        scorer = StudentScorer(student, data, device, eval_config.batch_size, objective.item_tables)
        policy = make_policy(active, selection_context(data, rows, store.score_kind, seed, scorer, active))
        refresh = Reselect(policy, train, objective)
        objective.to(device)
    if rows is not None and held_out is not None:
        objective.learn_weights(LearnedWeights(active, data, held_out, seed, device))
        objective.to(device)
    result = fit(objective, data, student_config, eval_config, seed=seed, refresh=refresh, **keys)
    with torch.no_grad():
        tables = objective.item_tables()
    if tables is not None:
        fold_item_tables(student, tables)
    return student.eval(), result


def _selects(active: ActiveConfig) -> bool:
    """Whether `active` chooses which samples are distilled, rather than what the teacher learns from or ranks."""
    return active.policy != "all" and "distill" in active.use


def hold_out(data: InteractionData, share: float, seed: int) -> tuple[InteractionData, np.ndarray]:
    """The dataset without the validation rows of a share of the users, and those rows: what learns weights must not
    choose the epoch too."""
    valid = data.splits["valid"]
    users = data.users_of(valid)
    shuffled = numpy_stream(seed, "held_out_users").permutation(np.unique(users))
    taken = np.isin(users, shuffled[: max(1, round(share * len(shuffled)))])
    if taken.all():
        raise UserError(
            f"active.meta_share={share} takes all {len(valid)} validation rows",
            "some left",
            "active.meta_share",
        )
    log.info(
        "active.meta: weights are learned on %d validation rows, the other %d choose the epoch",
        taken.sum(),
        (~taken).sum(),
    )
    return replace(data, splits={**data.splits, "valid": valid[~taken]}), valid[taken]


def refuse_listed_targets(store: TeacherStore, config: DistillConfig, active: ActiveConfig) -> None:
    """Raises UserError where a setting needs the true items' scores, which official files do not hold."""
    for key, used in (
        ("distill.confidence=target", config.confidence == "target"),
        ("active.policy=teacher_confidence", active.policy == "teacher_confidence"),
    ):
        if used:
            raise UserError(
                f"{key} with {store.folder}", "a store with the scores of the true next items", key
            )


def selection_context(
    data: InteractionData,
    rows: TeacherRows,
    score_kind: str,
    seed: int,
    scorer: StudentScorer | None,
    active: ActiveConfig,
) -> SelectionContext:
    """What a policy sees during distillation: the samples with teacher rows, and, where it is asked again
    in later epochs, the student in training (before training that student knows nothing)."""

    def teacher(sample_ids: np.ndarray) -> TeacherRows:
        position, _ = locate(rows.sample_ids, sample_ids)
        return TeacherRows(**{name: values[position] for name, values in vars(rows).items()})

    return SelectionContext(
        sample_ids=rows.sample_ids,
        targets=data.targets(rows.sample_ids),
        item_counts=data.train_counts(),
        seed=seed,
        teacher=teacher,
        score_kind=score_kind,
        scorer=scorer if active.refresh_every is not None else None,
    )


def check_selected(selection: Selection, rows: TeacherRows) -> None:
    """Raises UserError unless every selected sample has a teacher row."""
    _, found = locate(rows.sample_ids, selection.sample_ids)
    if not found.all():
        raise UserError(
            f"selected sample {selection.sample_ids[~found][0]} has no teacher row "
            f"({int((~found).sum())} of {len(found)} missing)",
            "an export of the selected samples",
            "active or teacher.export, and export again",
        )
