"""What every stage writes about a model: `metrics.json` and per-sample test ranks, one form for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from src.core.artifacts import save_npy, write_json, write_text
from src.core.candidates import CandidateSet, Choices, Written
from src.core.data_utils import InteractionData
from src.core.logging import get_logger
from src.core.metrics import EvalConfig, ranking_metrics, ranks_in_lists
from src.core.run import Run
from src.core.teacher_store import TeacherStore

if TYPE_CHECKING:
    from src.exp.settings import Settings
    from src.student.architectures import Student
    from src.student.trainer_baseline import FitResult

log = get_logger(__name__)


class Ranks(Protocol):
    """Ranks of the true items under both conventions, [n] each."""

    ranked: np.ndarray
    history_excluded: np.ndarray


def record(
    run: Run,
    data: InteractionData,
    eval_config: EvalConfig,
    seed: int,
    valid: Ranks,
    test: Ranks,
    list_lengths: tuple[int | None, int | None] = (None, None),
    extra: Mapping[str, Any] | None = None,
) -> float | None:
    """Write the metrics and ranks of a model; returns the validation metric that selects.

    Args:
        valid, test: ranks on `data.splits["valid"]` and `["test"]`, in that order of samples.
        list_lengths: length of the model's rankings with the history ranked and excluded; None for
            a model that ranks the whole catalogue.
        extra: further fields of `metrics.json`.
    """

    def metrics(ranks: Ranks, exclude: bool) -> dict[str, float]:
        values = ranks.history_excluded if exclude else ranks.ranked
        return ranking_metrics(values, eval_config.ks, list_lengths[exclude])

    exclude = eval_config.exclude_history
    fields = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "seed": seed,
        "n_valid": len(data.splits["valid"]),
        "n_test": len(data.splits["test"]),
        "exclude_history": exclude,
        "valid": metrics(valid, exclude),
        "test": metrics(test, exclude),
        "test_history_ranked": metrics(test, False),
        "test_history_excluded": metrics(test, True),
        **(extra or {}),
    }
    run.write_metrics(fields)
    run.write_ranks(data.splits["test"], test.ranked, test.history_excluded)
    for name, value in fields["test"].items():
        run.scalar(f"test/{name}", value, 0)
    shown = [
        f"{n} {fields['test'][n]:.4f}" for n in ("NDCG@10", "NDCG@20", "HitRatio@10") if n in fields["test"]
    ]
    log.info("test: %s", ", ".join(shown))
    return fields["valid"].get(eval_config.select_metric)


def record_choices(
    run: Run, data: InteractionData, candidates: CandidateSet, choices: Mapping[str, Choices]
) -> None:
    """Write what a model chose among the candidates: `candidates.json` with the figures of every way of asking it,
    per-sample hits, and generated answers to look at.

    Args:
        choices: by way of asking, which names the files: `candidate_hits_<way>.npy` [D, n].
    """
    if not run.main:
        return
    draws, n, count = candidates.items.shape
    folder, ways = run.dir / "metrics", {way: c.figures() for way, c in choices.items()}
    fields = {"dataset": data.name, "dataset_fingerprint": data.fingerprint}
    fields |= {"candidates": candidates.fingerprint, "n": n, "count": count, "draws": draws, "ways": ways}
    for way, c in choices.items():
        save_npy(folder / f"candidate_hits_{way}.npy", c.hits)
        for name, figure in ways[way].items():
            run.scalar(f"candidates/{way}/{name}", figure["mean"], 0)
        if c.written:
            text = written_markdown(c.written)
            write_text(folder / "generated.md", text)
            run.text(f"candidates/{way}", text, 0)
    save_npy(folder / "candidate_sample_ids.npy", candidates.sample_ids)
    write_json(folder / "candidates.json", fields)
    shown = [f"{way} {f['HitRatio@1']['mean']:.4f}" for way, f in ways.items()]
    log.info("HitRatio@1 among %d candidates (%d samples x %d draws): %s", count, n, draws, ", ".join(shown))


def written_markdown(written: Sequence[Written]) -> str:
    """Generated answers for people (`metrics/generated.md`, TensorBoard)."""
    lines = ["# Generated answers\n"]
    for w in written:
        lines += [
            f"## sample {w.sample_id}: {w.verdict}\n",
            f"- written: `{w.text.strip()}`",
            f"- chosen: {w.chosen or '–'}",
            f"- target: {w.target}\n",
            f"```\n{w.prompt}\n```\n",
        ]
    return "\n".join(lines)


class StoreRanks:
    """Ranks of the true items in a teacher's top-K lists; MISSED where a list does not hold them."""

    def __init__(self, store: TeacherStore, data: InteractionData, split: str):
        ids = data.splits[split]
        rows = store.rows_of(split, ids)
        targets, histories = data.targets(ids), data.histories(ids)
        self.ranked = ranks_in_lists(rows.rankings, rows.scores, targets)
        self.history_excluded = ranks_in_lists(rows.rankings, rows.scores, targets, histories)


def record_student(
    run: Run,
    data: InteractionData,
    settings: Settings,
    student: Student,
    result: FitResult,
    candidates: CandidateSet | None,
    **extra: Any,
) -> float | None:
    """Evaluate a trained student on validation and (once) test, and write it with its metrics.

    Args:
        candidates: test samples with few candidates each, where that is asked for.
        extra: further fields of `metrics.json`.
    """
    from src.student.checkpoint import save_student
    from src.student.evaluator import choose, rank_samples

    device = next(student.parameters()).device
    size = settings.eval.batch_size
    valid, test = (rank_samples(student, data, data.splits[s], size, device) for s in ("valid", "test"))
    if candidates is not None:
        chosen = choose(student, data, candidates, size, device)
        record_choices(run, data, candidates, {"scores": chosen})
    fields = {"seed": settings.seed, "fingerprint": run.fingerprint}
    save_student(run.dir / "models" / "student", student, settings.student, data, fields)
    # Beside metrics.json, which is equal for equal seeds: the history holds rates.
    if run.main:
        write_json(run.dir / "metrics" / "history.json", result.history)
    trained = {"best_epoch": result.best_epoch, "epochs": result.epochs, **extra}
    return record(run, data, settings.eval, settings.seed, valid, test, extra=trained)


def store_note(store: TeacherStore, data: InteractionData) -> str | None:
    """One line for the table where a teacher saw or ranked only some of the training samples."""
    m, n = store.manifest, len(data.splits["train"])
    trained, exported = m.get("trained", {}).get("train_samples", n), m["n_samples"]["train"]
    if trained == exported == n:
        return None
    return f"{m['teacher']} was trained on {trained} and exported for {exported} of {n} training samples"
