"""What every stage writes about a model: `metrics.json` and per-sample test ranks, one form for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.artifacts import read_object, save_npy, write_json, write_text
from src.core.candidates import CandidateSet, Choices, Written
from src.core.data_utils import InteractionData
from src.core.logging import get_logger
from src.core.metrics import CONVENTIONS, EvalConfig, Ranks, per_sample, ranks_in_lists, shortest_list
from src.core.run import Run
from src.core.runs import read_run
from src.core.teacher_store import TeacherStore
from src.core.tracking import logged
from src.exp.compare import stored_ranks
from src.exp.model_plots import plot_gates, plot_slices, plot_training
from src.exp.settings import Settings
from src.exp.tables import slices
from src.student.architectures import Student
from src.student.checkpoint import save_student
from src.student.evaluator import choose, rank_samples
from src.student.trainer_baseline import FitResult
from src.teacher.ilora_teacher import IloraTeacher

log = get_logger(__name__)


def record(
    run: Run,
    data: InteractionData,
    eval_config: EvalConfig,
    seed: int,
    valid: Ranks | None,
    test: Ranks | None,
    extra: Mapping[str, Any] | None = None,
) -> float | None:
    """Write the metrics and ranks of a model, its curves and what runs are sorted by; returns the validation metric
    that selects.

    Args:
        valid, test: ranks on `data.splits["valid"]` and `["test"]`, in that order of samples; None: a teacher that
            ranks no sample of the split, about which nothing is written.
        extra: further fields of `metrics.json`.
    """
    ks, convention = eval_config.ks, eval_config.convention
    fields: dict[str, Any] = {"dataset": data.name, "dataset_fingerprint": data.fingerprint, "seed": seed}
    fields |= {"convention": convention, **(extra or {})}
    if valid is not None:
        fields |= {"n_valid": len(valid.sample_ids), "valid": valid.metrics(ks, convention)}
    if test is not None:
        fields |= {"n_test": len(test.sample_ids), "list_lengths": dict(test.list_lengths)}
        fields |= {"test": test.metrics(ks, convention)}
        fields |= {f"test_{c}": test.metrics(ks, c) for c in CONVENTIONS}
        run.write_ranks(test)
        log.info("test: %s", _shown(fields["test"]))
    run.write_metrics(fields)
    value = fields.get("valid", {}).get(eval_config.select_metric)
    if run.main:
        run.hparams(_hparams(run, fields), _finals(fields, eval_config.select_metric, run))
        run.close()  # the curves are read from what was logged
        plot_training(run.dir / "plots", logged(run.dir / "tensorboard"))
        if test is not None and eval_config.select_metric in fields["test"]:
            _plot_quality(run.dir / "plots", test, data, eval_config)
    return value


def _plot_quality(folder: Path, test: Ranks, data: InteractionData, eval_config: EvalConfig) -> None:
    """`slices`: the selecting metric by popularity of the target and by length of the history."""
    metric = eval_config.select_metric
    values = per_sample(test.of(eval_config.convention), metric)
    lines = [
        ("this model", metric, group, name, int(mask.sum()), values[mask].mean())
        for (group, name), mask in slices(data).items()
    ]
    columns = ["model", "metric", "group", "slice", "samples", "value"]
    plot_slices(folder / "slices", pd.DataFrame(lines, columns=columns), metric)


def record_gates(run: Run, data: InteractionData, teacher: IloraTeacher) -> None:
    """`metrics/gate_weights.npy` [n_test, K] in the order of the test split, and `plots/gate_users`."""
    if (found := teacher.gates(data.splits["test"])) is not None:
        gates, vectors = found
        save_npy(run.dir / "metrics" / "gate_weights.npy", gates)
        lengths = {name: mask for (group, name), mask in slices(data).items() if group == "history length"}
        plot_gates(run.dir / "plots" / "gate_users", gates, vectors, lengths)


def _shown(test: Mapping[str, float]) -> str:
    """The figures that the log names: those of K 10 and 20, else of the smallest K."""
    names = [n for n in ("NDCG@10", "NDCG@20", "HitRatio@10") if n in test] or list(test)[:3]
    return ", ".join(f"{name} {test[name]:.4f}" for name in names)


def _hparams(run: Run, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard's table of runs shows of this one: identity, and the settings of student and distillation."""
    names = ("dataset", "student", "teacher", "seed", "control")
    out = {"stage": run.stage, **{n: fields[n] for n in names if fields.get(n) is not None}}
    config = read_run(run.dir).config
    groups = {"teacher": ("teacher",), "student_baseline": ("student",), "distill": ("student", "distill")}
    for group in groups.get(run.stage, ()):
        for key, value in config.get(group, {}).items():
            if isinstance(value, (bool, int, float, str)):
                out[f"{group}.{key}"] = value
    return out


def _finals(fields: Mapping[str, Any], selects: str, run: Run) -> dict[str, float]:
    """Final figures: validation that selects, test, and the choices among candidates."""
    out = {f"test {name}": value for name, value in fields.get("test", {}).items() if name.startswith("NDCG")}
    if selects in fields.get("valid", {}):
        out[f"valid {selects}"] = fields["valid"][selects]
    file = run.dir / "metrics" / "candidates.json"
    for way, figures in read_object(file)["ways"].items() if file.is_file() else ():
        out |= {f"candidates {way} {name}": f["mean"] for name, f in figures.items()}
    return out


def report_again(folder: Path, eval_config: EvalConfig) -> None:
    """Log a completed run's test metrics as `eval` asks for them now; seconds, nothing is trained.

    Raises:
        UserError: as `stored_ranks`.
    """
    run = read_run(folder)
    if "test" not in run.metrics:  # a teacher that ranks no test sample
        return
    metrics = stored_ranks(run).metrics(eval_config.ks, eval_config.convention)
    log.info("test, %s: %s", eval_config.convention.replace("_", " "), _shown(metrics))


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
    fields: dict[str, Any] = {"dataset": data.name, "dataset_fingerprint": data.fingerprint}
    fields |= {"candidates": candidates.fingerprint, "n": n, "count": count, "draws": draws, "ways": ways}
    for way, c in choices.items():
        save_npy(folder / f"candidate_hits_{way}.npy", c.hits)
        if c.written:
            text = written_markdown(c.written)
            write_text(folder / "generated.md", text)
            run.text(f"candidates/{way}", text, 0)
    save_npy(folder / "candidate_sample_ids.npy", candidates.sample_ids)
    write_json(folder / "candidates.json", fields)
    shown = [f"{way} {f['HitRatio@1']['mean']:.4f}" for way, f in ways.items()]
    get_logger("src.exp.choices").info(
        "HitRatio@1 among %d candidates (%d samples x %d draws): %s", count, n, draws, ", ".join(shown)
    )


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


def store_ranks(store: TeacherStore, data: InteractionData, split: str) -> Ranks:
    """Ranks of the true items in a teacher's top-K lists; MISSED where a list does not hold them."""
    ids = data.splits[split]
    rows, targets = store.rows_of(split, ids), data.targets(ids)
    ranks, lengths = [ranks_in_lists(rows.rankings, rows.scores, targets)], {"history_ranked": store.top_k}
    for convention, excluded in (
        ("history_excluded", data.histories(ids)),
        ("past_excluded", data.pasts(ids)),
    ):
        ranks.append(ranks_in_lists(rows.rankings, rows.scores, targets, excluded))
        lengths[convention] = shortest_list(rows.rankings, excluded)
    ranked, without_history, without_past = ranks
    return Ranks(ids, ranked, without_history, without_past, lengths)


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
    trained = {
        "student": settings.student.name,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        **extra,
    }
    return record(run, data, settings.eval, settings.seed, valid, test, extra=trained)


def store_note(store: TeacherStore, data: InteractionData) -> str | None:
    """One line for the table where a teacher saw or ranked only some of the training samples."""
    m, n = store.manifest, len(data.splits["train"])
    trained, exported = m.get("trained", {}).get("train_samples", n), m["n_samples"].get("train", 0)
    if exported == 0:
        return f"{m['teacher']} was trained on {trained} of {n} training samples and gives item vectors only"
    if trained == exported == n:
        return None
    return f"{m['teacher']} was trained on {trained} and exported for {exported} of {n} training samples"
