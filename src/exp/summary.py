"""One table of many runs: `python -m src.exp.summary TABLE | FOLDER ... [--by COLUMN,COLUMN] [--metric NDCG@10] ...`

TABLE is a table of experiments (its rows, found by fingerprint); FOLDER is a result folder or one that holds some. One
line per run, a second table over seeds, and with `--by strategy,samples` the metric against the last column, a line per
value of the others. Everything is read from saved configurations and metrics, never from names of folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.artifacts import read_object, write_text, writing
from src.core.data_utils import load_dataset
from src.core.errors import ConfigError, UserError
from src.core.git_info import git_info
from src.core.logging import command, get_logger
from src.core.metrics import CONVENTIONS, per_sample
from src.core.paths import resolve, result_root
from src.core.plotting import PAGE, mark, picture
from src.core.runs import RunRecord, find_runs, read_run
from src.core.seed import numpy_stream
from src.core.statistics import Resampled, resample_users
from src.exp.settings import Settings
from src.exp.table.plan import Plan, make_plan
from src.exp.table.reading import Table, read_table

_DRAWS = 1000  # intervals take only variances from them
_MODELS = ("student_baseline", "teacher", "distill")
_NOT_SHOWN = ("skip_if_done", "dry_run", "logger")
log = get_logger(__name__)


@dataclass
class Line:
    """One row of the summary.

    Attributes:
        name: of the row, or of the folder.
        cells: the table's own columns.
        run: None where the row is not complete, or is no model's; `note` says why.
        partners: runs of its teacher and its baseline, by stage.
    """

    name: str
    cells: Mapping[str, Any]
    run: RunRecord | None
    note: str = ""
    partners: dict[str, RunRecord] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The saved configuration, flat; lists as text."""
        return dict(_flat(self.run.config)) if self.run else {}

    @cached_property
    def setting(self) -> tuple:
        """What runs that differ in seeds alone have in common."""
        values = {k: v for k, v in self.values.items() if not _is_seed(k) and k not in _NOT_SHOWN}
        return (self.run.stage if self.run else self.name, *sorted((k, str(v)) for k, v in values.items()))

    @property
    def commit(self) -> str:
        file = self.run.folder / "git_info.json" if self.run else None
        fields = read_object(file) if file and file.is_file() else {}
        return f"{str(fields.get('commit'))[:12]}{'+' if fields.get('dirty') else ''}"  # +: with changes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list) else value


def _is_seed(key: str) -> bool:
    """Of the models; the seeds of data and candidates are settings like others."""
    return key == "seed" or (key.startswith("teacher.") and key.endswith(".seed"))


def lines_of_table(table: Table, plan: Plan, reasons: Mapping[str, str] | None = None) -> list[Line]:
    """A line per row, with the run that its fingerprint names; `reasons`: row name -> why it is not complete."""
    out = []
    for row in table.rows:
        cells = {c: row.cells.get(c, "") for c in table.columns if c != "name"}
        folder = plan.done.get(plan.targets[row.name][-1])
        note = "" if folder else (reasons or {}).get(row.name, "not complete")
        run = read_run(folder) if folder else None
        if run is not None and run.stage not in _MODELS:
            run, note = None, f"{folder}/metrics/comparison.md"
        out.append(Line(row.name, cells, run, note))
    return out


def lines_of_folders(folders: Iterable[Path]) -> list[Line]:
    """A line per completed run of a model among these folders and those in them; the others are named in the log."""
    here = [p for f in folders for p in ([f] if (f / "status.json").is_file() else sorted(f.glob("*/")))]
    found = dict.fromkeys(p for p in here if (p / "status.json").is_file() and not p.is_symlink())
    lines = [Line(run.folder.name, {}, run) for run in map(read_run, found) if run.stage in _MODELS]
    for line in lines:
        if line.run and line.run.state != "completed":
            log.info("%s is left out: %s: %s", line.name, line.run.state, line.run.reason)
    return [line for line in lines if line.run and line.run.state == "completed"]


def find_partners(lines: Sequence[Line]) -> list[str]:
    """Teacher and baseline of every line, by fingerprint; returns a note per foreign commit."""
    runs = {(r.stage, r.fingerprint): r for r in reversed(find_runs(state="completed"))}
    here, commits = str(git_info()["commit"])[:12], dict[str, list[str]]()
    for line in lines:
        if line.run is None:
            continue
        commits.setdefault(line.commit.rstrip("+"), []).append(line.name)
        try:
            settings = _settings(line.run)
            wanted = {"teacher": settings.teacher_fp} if line.run.stage == "distill" else {}
            if line.run.stage != "student_baseline":
                wanted["student_baseline"] = settings.baseline_fp
        except UserError as e:
            line.note = f"saved by another version: {e}"
            continue
        line.partners = {s: runs[(s, fp)] for s, fp in wanted.items() if (s, fp) in runs}
    return [
        f"{len(names)} rows were run at commit {commit}, the tree is at {here}: {', '.join(names[:3])}"
        for commit, names in commits.items()
        if commit != here
    ]


def _settings(run: RunRecord) -> Settings:
    """Of a saved configuration; its dataset is the one that the run had, whatever became of the raw files."""
    if not run.config:
        raise ConfigError([f"{run.folder} has no saved configuration"])
    settings = Settings.load(dict(run.config))
    settings.__dict__["dataset_fp"] = run.metrics["dataset_fingerprint"]  # else the raw files are hashed anew
    return settings


class Differences:
    """Per-sample test values of one metric, resampled once for all runs of a dataset; `notes` tell what has none."""

    def __init__(self, lines: Sequence[Line], metric: str, convention: str):
        self.metric, self.file = metric, CONVENTIONS[convention]
        self.notes: list[str] = []
        self.at: dict[Path, tuple[Resampled, int]] = {}
        groups: dict[str, dict[Path, RunRecord]] = {}
        for run in (r for line in lines if line.run for r in (line.run, *line.partners.values())):
            if metric in run.metrics[f"test_{convention}"]:
                groups.setdefault(run.metrics["dataset_fingerprint"], {})[run.folder] = run
        for runs in groups.values():
            try:
                self._resample([*runs.values()])
            except UserError as e:
                self.notes.append(f"no intervals for {next(iter(runs.values())).metrics['dataset']}: {e}")

    def _resample(self, runs: list[RunRecord]) -> None:
        data = load_dataset(_settings(runs[0]).dataset)
        test, rows = data.splits["test"], []
        for run in runs:
            if not np.array_equal(run.array("test_sample_ids.npy"), test):
                raise UserError(
                    f"{run.folder} ranks other samples", "the test split's", f"delete {run.folder}"
                )
            rows.append(per_sample(run.array(self.file), self.metric))
        rng = numpy_stream(0, "summary", data.fingerprint, self.metric)
        # The last row is 0 everywhere: a difference from it is a mean with its interval.
        found = resample_users(np.stack([*rows, np.zeros(len(test))]), data.users_of(test), rng, _DRAWS)
        self.at |= {run.folder: (found, column) for column, run in enumerate(runs)}

    def of(self, a: Iterable[Path], b: Iterable[Path]) -> dict[str, float]:
        """Mean of the runs `b` minus mean of the runs `a` (none: of `b` alone); nothing across datasets."""
        sides = [[self.at[p] for p in dict.fromkeys(side) if p in self.at] for side in (a, b)]
        found = {id(resampled): resampled for side in sides for resampled, _ in side}
        if not sides[1] or len(found) != 1:
            return {}
        (resampled,) = found.values()
        left, right = ([column for _, column in side] for side in sides)
        d = resampled.difference(left or [len(resampled.means) - 1], right)
        return {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p_value}


def tabulate(
    lines: Sequence[Line], metric: str, split: str, found: Differences | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(a line per run, a line per setting with mean and sd over its runs); differences are from the own baselines.

    Args:
        split: `valid`, or `test_` with a convention.
    """
    columns = {c for line in lines for c in line.cells}
    chosen = tuple(f"{c.replace('/', '.')}." for c in columns)  # what a group's column says already
    values = [line.values for line in lines if line.run]
    keys = [
        key
        for key in dict.fromkeys(k for v in values for k in v)
        if len({str(v.get(key)) for v in values}) > 1
        and not key.startswith(chosen)
        and key not in (*_NOT_SHOWN, *columns)
    ]
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.setting, []).append(line)

    def compared(group: Sequence[Line]) -> dict[str, Any]:
        bases = {b.folder: b for line in group if (b := line.partners.get("student_baseline"))}
        if found is None or not bases:
            return {}
        mean = np.mean([b.metrics[split].get(metric, np.nan) for b in bases.values()])
        return {f"baseline {metric}": mean, **found.of(bases, [m.run.folder for m in group if m.run])}

    rows, over = [], []
    for line in lines:
        row = {"row": line.name, **line.cells, **{k: line.values.get(k) for k in keys}}
        if (run := line.run) is not None:
            row |= {"stage": run.stage, **run.metrics[split]}
            group = pd.DataFrame([m.run.metrics[split] for m in groups[line.setting] if m.run])
            if len(group) > 1:
                row |= group.mean().add_suffix(" mean").to_dict() | group.std().add_suffix(" sd").to_dict()
            row |= {"seeds": len(group), **compared([line])}
            for source in (*line.partners.values(), run):
                row |= source.times
            row |= {**run.usage, "commit": line.commit, "folder": str(run.folder)}
        rows.append(row | {"note": line.note})
    for group in groups.values():
        if (run := group[0].run) is not None:
            common = {**group[0].cells, **{k: group[0].values.get(k) for k in keys if not _is_seed(k)}}
            same = {
                k: v for k, v in common.items() if all({**m.values, **m.cells}.get(k) == v for m in group)
            }
            scores = pd.Series([m.run.metrics[split][metric] for m in group if m.run])
            shown = {metric: scores.mean(), "sd": scores.std(), "seeds": len(group)}
            over.append({"stage": run.stage, **same, **shown, **compared(group)})
    return pd.DataFrame(rows), pd.DataFrame(over).sort_values(["stage", metric], ascending=[True, False])


def grouped(lines: Sequence[Line], by: Sequence[str], metric: str, found: Differences) -> pd.DataFrame:
    """Mean of the metric with its interval over users and runs, by the values of some columns or keys.

    Raises:
        UserError: a column that no line has.
    """
    groups: dict[tuple, list[Path]] = {}
    for line in (
        line for line in lines if line.run and line.run.folder in found.at and line.run.stage == "distill"
    ):
        have = {**line.values, **line.cells}
        if missing := [c for c in by if c not in have]:
            raise UserError(
                f"--by {missing[0]}", f"a column or key, such as {', '.join([*have][-5:])}", "--by"
            )
        groups.setdefault(tuple(have[c] for c in by), []).append(line.run.folder)  # type: ignore[union-attr]
    rows = [{**dict(zip(by, k, strict=True)), "runs": len(g), **found.of([], g)} for k, g in groups.items()]
    table = pd.DataFrame(rows, columns=[*by, "runs", "difference", "low", "high"])
    numbers = pd.to_numeric(table[by[-1]], errors="coerce")
    if numbers.notna().all():
        table[by[-1]] = numbers
    return table.rename(columns={"difference": metric}).sort_values([*by]).reset_index(drop=True)


def plot(path: Path, table: pd.DataFrame, by: Sequence[str], metric: str, baseline: float | None) -> None:
    """The metric against the last column, a line per value of the others, the interval as a band.

    Args:
        path: without a suffix; PNG and SVG are written.
    """
    with picture(path, PAGE, 3.2) as (figure, axes):
        axis, parts = axes[0, 0], table.groupby([*by[:-1]], sort=False) if by[1:] else [(("all",), table)]
        for number, (name, part) in enumerate(parts):
            axis.plot(part[by[-1]], part[metric], label=", ".join(map(str, name)), **mark(number))
            axis.fill_between(part[by[-1]], part["low"], part["high"], alpha=0.2, color=mark(number)["color"])
        if baseline is not None:
            axis.axhline(baseline, color="black", linestyle="--", linewidth=1, label="baseline")
        if pd.api.types.is_numeric_dtype(table[by[-1]]) and table[by[-1]].max() > 100:
            axis.set_xscale("symlog", linthresh=10)  # 0 samples have a place
        axis.set(xlabel=by[-1], ylabel=f"{metric}, 95 % interval over users and runs")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")


def summarise(
    lines: Sequence[Line], out: Path | None, split: str = "test", metric: str | None = None, by: str = ""
) -> str:
    """The summary as Markdown; in `out` also as `summary.md`, `summary.csv` and `summary.png` and `.svg`.

    Args:
        split: `valid` reads nothing of the test split, for a choice among trials.
        by: columns, separated by commas.

    Raises:
        UserError: no completed run, an unknown metric or column, or damaged metrics.
    """
    runs = [line.run for line in lines if line.run is not None]
    if not runs:
        raise UserError(
            "found no completed run of a model", "at least one", "run the stages or the table first"
        )
    metric = metric or str(runs[0].setting("eval.select_metric", "NDCG@10"))
    convention = str(runs[0].metrics.get("convention", "history_ranked"))  # one for all
    group = "valid" if split == "valid" else f"test_{convention}"
    if not all(metric in run.metrics[group] for run in runs):
        raise UserError(f"--metric {metric}", f"one of {', '.join(runs[0].metrics[group])}", "--metric")
    notes = find_partners(lines)
    found = Differences(lines, metric, convention) if split == "test" else None
    rows, over = tabulate(lines, metric, group, found)
    shown = [c for c in rows if "@" not in c or c.removeprefix("baseline ").startswith(metric)]
    parts = [
        f"# {metric}, {group.replace('_', ' ')}",
        "## Over seeds",
        _markdown(over),
        "## Rows",
        _markdown(rows[shown]),
    ]
    if by and found is not None:
        table = grouped(lines, by.split(","), metric, found)
        parts += [f"## By {by}", _markdown(table)]
        bases = {
            b.folder: b.metrics[group][metric]
            for line in lines
            if (b := line.partners.get("student_baseline"))
        }
        if out is not None:
            plot(
                out / "summary",
                table,
                by.split(","),
                metric,
                float(np.mean([*bases.values()])) if bases else None,
            )
    notes += found.notes if found else []
    text = "\n\n".join([*parts, *(["## Notes", "\n".join(f"- {n}" for n in notes)] if notes else [])]) + "\n"
    if out is not None:
        with writing(out / "summary.csv") as tmp:
            rows.to_csv(tmp, index=False)
        write_text(out / "summary.md", text)
    return text


def _markdown(table: pd.DataFrame) -> str:
    shown = table.dropna(axis=1, how="all").astype(object)
    return shown.where(shown.notna(), None).to_markdown(index=False, floatfmt=".4f", missingval="–")


def summarise_table(
    table: Table, plan: Plan, reasons: Mapping[str, str] | None = None, **options: Any
) -> Path:
    """Write the summary of a table into `result/<table>/`; returns the path of its Markdown."""
    out, chosen = result_root() / table.name, {k: v for k, v in options.items() if v}
    summarise(lines_of_table(table, plan, reasons), out, **{**table.summary, **chosen})
    return out / "summary.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sources", nargs="+", help="a table (CSV, YAML), or result folders")
    parser.add_argument("--by", help="columns or keys; the last is the figure's x")
    parser.add_argument("--metric", help="such as NDCG@20; default: eval.select_metric")
    parser.add_argument("--split", choices=("test", "valid"), help="valid: to choose among trials")
    parser.add_argument("--out", help="folder for summary.md, .csv and .png of result folders")
    given = parser.parse_args()
    options = {k: v for k, v in vars(given).items() if k in ("by", "metric", "split") and v}

    def act() -> None:
        first = resolve(given.sources[0])
        if first.suffix.lower() in (".csv", ".yaml", ".yml"):
            table = read_table(first)
            sys.stdout.write(summarise_table(table, make_plan(table.rows), **options).read_text())
        else:
            lines = lines_of_folders(resolve(s) for s in given.sources)
            sys.stdout.write(summarise(lines, resolve(given.out) if given.out else None, **options))

    return command(act)


if __name__ == "__main__":
    sys.exit(main())
