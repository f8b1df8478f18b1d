"""Runs side by side: which runs belong to a comparison, their metrics, and paired differences.

Models are compared on identical sample ids; per-sample values of several seeds are averaged first,
and the intervals come from a bootstrap over users (core.metrics).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.core.artifacts import load_npy, read_object
from src.core.data_utils import InteractionData
from src.core.errors import ConfigError, UserError
from src.core.logging import get_logger
from src.core.metrics import per_sample
from src.core.paths import resolve
from src.core.runs import TIMES, completed_run
from src.core.seed import numpy_stream
from src.core.statistics import holm, paired_difference

if TYPE_CHECKING:
    from src.exp.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True)
class Row:
    """One model of the comparison, with one run per seed.

    Attributes:
        name: as shown.
        kind: `baseline`, `teacher` or `distilled`.
        runs: result folders.
        metrics: the `metrics.json` of each run.
        ranks: [n_seeds, n] test ranks in the order of the dataset's test ids, by convention.
    """

    name: str
    kind: str
    runs: tuple[Path, ...]
    metrics: tuple[Mapping[str, Any], ...]
    ranks: Mapping[str, np.ndarray]

    def values(self, metric: str, convention: str) -> np.ndarray:
        """[n] per-sample metric, averaged over seeds."""
        return np.mean([per_sample(r, metric) for r in self.ranks[convention]], axis=0)

    def times(self) -> dict[str, float]:
        """Mean over the runs of every time they carry, seconds."""
        found = [read_object(run / "metrics" / "time.json") for run in self.runs]
        return {k: float(np.mean([t[k] for t in found])) for k in TIMES if all(k in t for t in found)}


CONVENTIONS = {"history_ranked": "test_ranks.npy", "history_excluded": "test_ranks_history_excluded.npy"}
TEACHER = "teacher "  # before a teacher's name: the teacher and the student may both be a SASRec
_KINDS = {"student_baseline": "baseline", "teacher": "teacher", "distill": "distilled"}


def load_row(name: str, runs: list[Path], data: InteractionData) -> Row:
    """Open the runs of one row.

    Raises:
        UserError: a run is not complete, is of another dataset, or ranks other samples.
    """
    metrics, ranks = [], {c: [] for c in CONVENTIONS}
    for run in runs:
        if (state := read_object(run / "status.json").get("state")) != "completed":
            raise UserError(f"{run} is {state!r}", "a completed run", f"compare.runs.{name}")
        fields = read_object(run / "metrics" / "metrics.json")
        if fields.get("dataset_fingerprint") != data.fingerprint:
            raise UserError(
                f"{run} is of dataset {fields.get('dataset')}/{fields.get('dataset_fingerprint')}",
                f"{data.name}/{data.fingerprint}",
                f"dataset, or compare.runs.{name}",
            )
        if fields.get("stage") not in _KINDS:
            raise UserError(
                f"{run} is a run of {fields.get('stage')}", " or ".join(_KINDS), f"compare.runs.{name}"
            )
        ids = load_npy(run / "metrics" / "test_sample_ids.npy")
        if not np.array_equal(ids, data.splits["test"]):
            raise UserError(
                f"{run} ranks {len(ids)} other samples", "the test split's sample ids", "that run"
            )
        for convention, file in CONVENTIONS.items():
            if not isinstance(fields.get(f"test_{convention}"), dict):
                raise UserError(
                    f"{run / 'metrics' / 'metrics.json'} has no test_{convention}", "metrics", f"delete {run}"
                )
            ranks[convention].append(_ranks(run / "metrics" / file, len(ids)))
        metrics.append(fields)
    kind = _KINDS[metrics[0]["stage"]]
    return Row(name, kind, tuple(runs), tuple(metrics), {c: np.stack(r) for c, r in ranks.items()})


def _ranks(file: Path, n: int) -> np.ndarray:
    """[n] ranks, checked: a file of another run's samples must not be averaged with this one's."""
    ranks = load_npy(file)
    if ranks.shape != (n,) or ranks.dtype.kind not in "iu" or ranks.min(initial=1) < 1:
        raise UserError(
            f"{file}: {ranks.dtype} {ranks.shape}", f"{n} ranks from 1 on", f"delete {file.parents[1]}"
        )
    return ranks


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
    named = settings.compare.runs
    if named:
        runs = {
            name: [resolve(p) for p in ([paths] if isinstance(paths, str) else paths)]
            for name, paths in named.items()
        }
        return [load_row(name, folders, data) for name, folders in runs.items()]
    seeds = settings.compare.seeds or (settings.seed,)
    student = settings.student.name

    def distilled(name: str, variant: Settings, required: bool = False) -> list[Row]:
        runs = _runs("distill", [variant.with_seed(s).distill_fp for s in seeds], required)
        return [load_row(name, runs, data)] if runs else []

    rows = [
        load_row(student, _runs("student_baseline", [settings.with_seed(s).baseline_fp for s in seeds]), data)
    ]
    others = [settings.variant([f"teacher={name}"]) for name in settings.compare.teachers]
    for variant in [settings, *(o for o in others if o.teacher_fp != settings.teacher_fp)]:
        own = variant is settings
        if teacher := _runs("teacher", [variant.teacher_fp], required=own):
            rows.append(load_row(f"{TEACHER}{variant.teacher.name}", teacher, data))
        rows += distilled(f"{student} <- {variant.teacher.name}", variant, required=own)
    for name, overrides in settings.compare.variants.items():
        rows += distilled(name, settings.variant(overrides))
    return rows


def _runs(stage: str, fingerprints: list[str], required: bool = True) -> list[Path]:
    runs = [completed_run(stage, fp) for fp in fingerprints]
    if required and None in runs:
        raise UserError(
            f"no completed {stage} run with fingerprint {fingerprints[runs.index(None)]}",
            "one run per stage and seed of this configuration",
            f"nothing here: run src.exp.run_{stage} with the same overrides first (or name runs in compare.runs)",
        )
    if None in runs:
        log.info("no completed %s run with fingerprint %s: not shown", stage, fingerprints[runs.index(None)])
        return []
    return runs


def metric_table(rows: list[Row], convention: str) -> pd.DataFrame:
    """One line per model: every metric (mean over seeds, `± sd` columns with several), and times."""
    lines = []
    for row in rows:
        found = [m[f"test_{convention}"] for m in row.metrics]
        line: dict[str, Any] = {"model": row.name, "kind": row.kind, "seeds": len(row.runs)}
        for name in found[0]:
            values = [f[name] for f in found]
            line[name] = float(np.mean(values))
            if len(values) > 1:
                line[f"{name} sd"] = float(np.std(values, ddof=1))
        lines.append({**line, **row.times()})
    return pd.DataFrame(lines)


def differences(rows: list[Row], data: InteractionData, settings: Settings) -> pd.DataFrame:
    """Paired differences on the test split: each model against the baseline, students against their
    teachers, and the first distilled student (the configuration's own) against every other.

    Metrics beyond the length of a teacher's lists are left out. `p_holm` is adjusted over the family:
    all comparisons and metrics of one convention.
    """
    users = data.users_of(data.splits["test"])
    baseline = [r for r in rows if r.kind == "baseline"][:1]
    pairs = [(a, b) for a in baseline for b in rows if b is not a]
    teachers = {r.name.removeprefix(TEACHER): r for r in rows if r.kind == "teacher"}
    pairs += [(teachers[t], r) for r in rows if (t := r.name.partition(" <- ")[2]) in teachers]
    distilled = [r for r in rows if r.kind == "distilled"]
    pairs += [(other, distilled[0]) for other in distilled[1:]]
    tables = []
    for convention in CONVENTIONS:
        lines = []
        for a, b in pairs:
            for metric in settings.compare.metrics:
                if any(metric not in m[f"test_{convention}"] for r in (a, b) for m in r.metrics):
                    continue
                left, right = a.values(metric, convention), b.values(metric, convention)
                rng = numpy_stream(settings.seed, "compare", a.name, b.name, metric, convention)
                d = paired_difference(left, right, users, rng, settings.compare.draws)
                mean = float(left.mean())
                lines.append(
                    {
                        "history": convention,
                        "a": a.name,
                        "b": b.name,
                        "metric": metric,
                        "mean_a": mean,
                        "difference": d.mean,
                        "low": d.low,
                        "high": d.high,
                        "relative": d.mean / mean if mean else float("nan"),
                        "p": d.p_value,
                    }
                )
        table = pd.DataFrame(lines)
        if len(table):
            table["p_holm"] = holm(table["p"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def slices(data: InteractionData) -> dict[str, np.ndarray]:
    """[n_test] masks: head and tail items, users seen in training or not, history lengths.

    Head items are the most popular ones that together hold half of the training targets.
    """
    test = data.splits["test"]
    counts = data.train_counts()
    order = np.argsort(-counts, kind="stable")
    head_items = order[: int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)) + 1]
    head = np.isin(data.targets(test), head_items)
    seen = np.isin(data.users_of(test), data.users_of(data.splits["train"]))
    full = data.history_lengths(test) >= data.max_history
    masks = {
        "head items": head,
        "tail items": ~head,
        "items without training targets": counts[data.targets(test)] == 0,
        "users seen in training": seen,
        "users not seen in training": ~seen,
        f"history of {data.max_history}": full,
        f"history below {data.max_history}": ~full,
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def slice_table(rows: list[Row], data: InteractionData, metric: str, convention: str) -> pd.DataFrame:
    """One line per slice: its number of samples and the metric of every model that has it."""
    have = [r for r in rows if all(metric in m[f"test_{convention}"] for m in r.metrics)]
    values = {r.name: r.values(metric, convention) for r in have}
    return pd.DataFrame(
        [
            {
                "slice": name,
                "samples": int(mask.sum()),
                **{n: float(v[mask].mean()) for n, v in values.items()},
            }
            for name, mask in slices(data).items()
        ]
    )
