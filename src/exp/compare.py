"""Which runs belong to a comparison, each model a row: found by fingerprint or named, checked before they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import InteractionData
from src.core.errors import ConfigError, UserError
from src.core.logging import get_logger
from src.core.metrics import CONVENTIONS, Ranks, per_sample
from src.core.paths import resolve
from src.core.runs import RunRecord, completed_run, read_run
from src.exp.settings import Settings

_KINDS = {"student_baseline": "baseline", "teacher": "teacher", "distill": "distilled"}
log = get_logger(__name__)


@dataclass(frozen=True)
class Row:
    """One model of the comparison, with one run per seed.

    Attributes:
        name: as shown; says nothing about what the model is.
        kind: `baseline`, `teacher` or `distilled`.
        runs: the runs' records.
        metrics: the `metrics.json` of each run.
        ranks: [n_seeds, n] test ranks in the order of the dataset's test ids, by convention.
    """

    name: str
    kind: str
    runs: tuple[RunRecord, ...]
    metrics: tuple[Mapping[str, Any], ...]
    ranks: Mapping[str, np.ndarray]

    @property
    def teacher(self) -> str | None:
        """Identity of the teacher that this row is, or learned from."""
        return self.metrics[0].get("teacher_fingerprint")

    @property
    def control(self) -> frozenset[str]:
        """What the row's distillation shuffled, out of `rankings` and `embeddings`; empty: it is no control."""
        destroyed = {
            "shuffle_rankings": {"rankings"},
            "permute_embeddings": {"embeddings"},
            "both": {"rankings", "embeddings"},
        }
        return frozenset(destroyed.get(self.metrics[0].get("control", "none"), ()))

    @property
    def knowledge(self) -> frozenset[str]:
        """What the row's distillation reads of its teacher, out of `rankings` and `embeddings`."""
        return frozenset(self.metrics[0].get("knowledge", ("rankings", "embeddings")))

    def has(self, metric: str, convention: str) -> bool:
        """Whether every run's lists are long enough for the metric."""
        k = int(metric.partition("@")[2])
        return all(k <= m["list_lengths"].get(convention, k) for m in self.metrics)

    def values(self, metric: str, convention: str) -> np.ndarray:
        """[n_seeds, n] per-sample metric of every run."""
        return np.stack([per_sample(r, metric) for r in self.ranks[convention]])

    def times(self) -> dict[str, float]:
        """Mean over the runs of every time they carry, seconds."""
        names = [n for n in self.runs[0].times if all(n in run.times for run in self.runs)]
        return {n: float(np.mean([run.times[n] for run in self.runs])) for n in names}


def load_row(name: str, folders: Sequence[Path], data: InteractionData) -> Row:
    """Open the runs of one row.

    Raises:
        UserError: a run is not complete, was changed, is of another dataset, ranks other samples, or is there twice.
    """
    runs, key = [read_run(folder) for folder in folders], f"compare.runs.{name}"
    for run in runs:
        if run.state != "completed":
            raise UserError(f"{run.folder} is {run.state!r}", "a completed run", key)
        if run.stage not in _KINDS:
            raise UserError(f"{run.folder} is a run of {run.stage}", " or ".join(_KINDS), key)
        fields = run.metrics
        if fields.get("dataset_fingerprint") != data.fingerprint:
            raise UserError(
                f"{run.folder} is of dataset {fields.get('dataset')}/{fields.get('dataset_fingerprint')}",
                f"{data.name}/{data.fingerprint}",
                f"dataset, or {key}",
            )
        _check_validation(run)
        if not np.array_equal(ids := run.array("test_sample_ids.npy"), data.splits["test"]):
            raise UserError(
                f"{run.folder} ranks {len(ids)} other samples", "the test split's sample ids", key
            )
    _check_distinct(runs, key)
    found = [stored_ranks(run) for run in runs]
    ranks = {c: np.stack([r.of(c) for r in found]) for c in CONVENTIONS}
    return Row(name, _KINDS[runs[0].stage], tuple(runs), tuple(run.metrics for run in runs), ranks)


def _check_validation(run: RunRecord) -> None:
    """What is taken from `metrics.json` itself: metrics that another program wrote must not be averaged unseen."""
    valid = run.metrics.get("valid")
    if not isinstance(valid, dict):
        raise UserError(f"{run.folder}: metrics.json has no metrics of valid", "them", f"delete {run.folder}")
    for name, value in valid.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            found = f"{run.folder}: valid {name} is {value!r}"
            raise UserError(found, "a number from 0 to 1", f"delete {run.folder}")


def _check_distinct(runs: Sequence[RunRecord], key: str) -> None:
    """Three seeds are three runs of one stage: a run that is there twice has no chance of its own."""
    if len(stages := {run.stage for run in runs}) > 1:
        raise UserError(f"runs of {' and '.join(sorted(stages))} in one row", "runs of one stage", key)
    for what, values in (
        ("fingerprint", [run.fingerprint for run in runs]),
        ("seed", [run.metrics.get("seed") for run in runs]),
    ):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} runs with {what} {value}", "different runs, one per seed", key)


def stored_ranks(run: RunRecord) -> Ranks:
    """The test ranks of a completed run.

    Raises:
        UserError: a file is missing, was changed, or holds no ranks.
    """
    ids, lengths, ranks = run.array("test_sample_ids.npy"), run.metrics.get("list_lengths"), []
    if not isinstance(lengths, dict):
        raise UserError(f"{run.folder}: metrics.json has no list_lengths", "them", f"delete {run.folder}")
    for file in CONVENTIONS.values():
        found = run.array(file)
        if found.shape != ids.shape or found.dtype.kind not in "iu" or found.min(initial=1) < 1:
            path = run.folder / "metrics" / file
            raise UserError(
                f"{path}: {found.dtype} {found.shape}", f"{len(ids)} ranks from 1 on", f"delete {run.folder}"
            )
        ranks.append(found)
    ranked, excluded, past = ranks
    return Ranks(ids, ranked, excluded, past, lengths)


def check_variants(settings: Settings) -> None:
    """Raise ConfigError, before data is read, for teachers and variants whose configuration is wrong."""
    problems: list[str] = []
    named = {f"compare.teachers: {t}": [f"teacher={t}"] for t in settings.compare.teachers}
    named |= {f"compare.variants.{name}": o for name, o in settings.compare.variants.items()}
    for where, overrides in named.items():
        try:
            settings.variant(overrides)
        except ConfigError as e:
            problems += [f"{where}: {p}" for p in e.problems]
    if problems:
        raise ConfigError(problems)


def find_rows(settings: Settings, data: InteractionData) -> list[Row]:
    """The rows of `compare`: named runs, or those of this configuration, found by fingerprint.

    Raises:
        UserError: a run that the configuration itself asks for (baseline, teacher, distilled) is missing.
    """
    if named := settings.compare.runs:
        folders = {n: [p] if isinstance(p, str) else p for n, p in named.items()}
        return [load_row(name, [resolve(p) for p in paths], data) for name, paths in folders.items()]
    seeds = settings.compare.seeds or (settings.seed,)
    student = settings.student.name

    def distilled(name: str, variant: Settings, required: bool = False) -> list[Row]:
        runs = _runs("distill", [variant.with_seed(s).distill_fp for s in seeds], required)
        return [load_row(name, runs, data)] if runs else []

    baseline = _runs("student_baseline", [settings.with_seed(s).baseline_fp for s in seeds])
    rows = [load_row(student, baseline, data)]
    others = [settings.variant([f"teacher={name}"]) for name in settings.compare.teachers]
    for variant in [settings, *(o for o in others if o.teacher_fp != settings.teacher_fp)]:
        own = variant is settings
        if "test" not in variant.teacher.export.splits:
            log.info("teacher %s ranks no test sample: not shown", variant.teacher.name)
        elif teacher := _runs("teacher", [variant.teacher_fp], required=own):
            rows.append(load_row(f"teacher {variant.teacher.name}", teacher, data))
        rows += distilled(f"{student} <- {variant.teacher.name}", variant, required=own)
    for name, overrides in settings.compare.variants.items():
        variant = settings.variant(overrides)
        # An override of the student alone (`student.loss=…`) names another baseline as well.
        rows += distilled(name, variant)
        if variant.baseline_fp != settings.baseline_fp:
            runs = _runs(
                "student_baseline", [variant.with_seed(s).baseline_fp for s in seeds], required=False
            )
            rows += [load_row(f"{name}, no distillation", runs, data)] if runs else []
    return rows


def _runs(stage: str, fingerprints: list[str], required: bool = True) -> list[Path]:
    runs = [completed_run(stage, fp) for fp in fingerprints]
    if None not in runs:
        return [run for run in runs if run is not None]
    missing = fingerprints[runs.index(None)]
    if required:
        raise UserError(
            f"no completed {stage} run with fingerprint {missing}",
            "one run per stage and seed of this configuration",
            f"nothing here: run src.exp.run_{stage} with the same overrides first (or name runs in compare.runs)",
        )
    log.info("no completed %s run with fingerprint %s: not shown", stage, missing)
    return []
