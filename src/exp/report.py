"""A comparison as people read it: Markdown, CSV, pictures, and one page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.core.artifacts import write_text, writing
from src.core.candidates import load_candidates
from src.core.data_utils import InteractionData
from src.core.metrics import CONVENTIONS
from src.core.runs import TIMES
from src.exp.candidate_table import CandidateReport, candidate_report
from src.exp.compare import Row
from src.exp.examples import costs
from src.exp.settings import Settings
from src.exp.tables import differences, long_table, metric_table, slice_table
from src.exp.verdict import verdicts


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        convention: of the reported figures.
        metrics: compared pairwise.
        long, pairs: of `exp.tables`.
        candidates: where models were asked about candidates.
        costs: of `exp.examples`, time and size.
        verdict: of `exp.verdict`.
    """

    rows: Sequence[Row]
    convention: str
    metrics: Sequence[str]
    long: pd.DataFrame
    pairs: pd.DataFrame
    candidates: CandidateReport | None
    costs: pd.DataFrame
    verdict: Sequence[str]

    @property
    def summary(self) -> str:
        """The short form for the terminal."""
        text = f"\n{headline(metric_table(self.long, self.convention), self.metrics)}\n{notes(self.rows)}"
        if self.candidates is not None:
            text += f"{self.candidates.title}:\n\n{markdown(self.candidates.table)}\n"
        if self.verdict:
            text += "Does distillation help?\n" + "".join(f"- {line}\n" for line in self.verdict) + "\n"
        return text


def compare_rows(rows: Sequence[Row], data: InteractionData, settings: Settings) -> Comparison:
    """All figures of the rows, from their per-sample ranks; seconds, nothing is trained."""
    asked, convention = settings.compare, settings.eval.convention
    long = long_table(rows, data, settings.eval.ks, asked.metrics)
    pairs = differences(rows, data, asked.metrics, settings.seed, asked.draws)
    candidates = load_candidates(settings.eval.candidates, data)
    among = candidate_report(rows, data, candidates, settings.seed, asked.draws)
    verdict = verdicts(rows, pairs, asked.metrics, convention)
    return Comparison(rows, convention, asked.metrics, long, pairs, among, costs(rows, data), verdict)


def texts(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """Its cells as text; floats with `digits` decimals, missing values as a dash."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "–" if pd.isna(value) else f"{value:.{digits}f}"
        return str(value)

    return table.astype(object).map(cell)


def markdown(table: pd.DataFrame, digits: int = 4) -> str:
    """A Markdown table of `texts`."""
    text = texts(table, digits).to_markdown(index=False, disable_numparse=True)
    return re.sub(r":?-{3,}:?", "---", re.sub(r" {2,}", " ", text)) + "\n"


def headline(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """The compared metrics and times (seconds)."""
    times = {name: f"{name} [s]" for name in TIMES if name in table}
    shown = table[["model", "kind", "seeds", *[m for m in metrics if m in table], *times]].rename(
        columns=times
    )
    for column in times.values():
        shown[column] = [f"{v:.1f}" if pd.notna(v) else "–" for v in shown[column]]
    return markdown(shown)


def notes(rows: Sequence[Row]) -> str:
    """What a reader must know about the teachers' rows: how many samples they cover."""
    lines = [
        f"- {row.name}: {fields['note']}" for row in rows for fields in row.metrics if fields.get("note")
    ]
    return "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""


def write_report(folder: Path, found: Comparison, data: InteractionData) -> None:
    """`metrics/comparison.md`, the tables as CSV, and `plots/`."""
    from src.exp.plots import plot_comparison

    sizes = {split: len(ids) for split, ids in data.splits.items()}
    text = [
        f"# {data.name} ({data.fingerprint})\n",
        f"{data.n_items} items; samples: {sizes}.\n",
        notes(found.rows),
    ]
    if found.verdict:
        text += ["\n## Does distillation help?\n", "\n".join(f"- {line}" for line in found.verdict)]
    tables = {"results": found.long, "differences": found.pairs}
    for convention in CONVENTIONS:
        table = tables[f"table_{convention}"] = metric_table(found.long, convention)
        # Models as columns: there are many more metrics than models.
        upright = table.set_index("model").T.rename_axis("metric").reset_index().rename_axis(columns=None)
        text += [f"\n## Test, {convention.replace('_', ' ')}\n", markdown(upright)]
    text += ["\n## Paired differences (b - a), 95 % interval over users and seeds\n"]
    text += ["Of a model with one run the interval holds users only.\n", markdown(found.pairs)]
    if (among := found.candidates) is not None:
        text += [f"\n## {among.title}\n", markdown(among.table), "\n", markdown(among.pairs)]
        tables |= {"table_candidates": among.table, "differences_candidates": among.pairs}
    for metric in found.metrics:
        table = slice_table(found.long, metric, found.convention)
        text += [f"\n## Slices, {metric}\n", markdown(table)]
        tables[f"slices_{metric.replace('@', '_at_')}"] = table
    text += ["\n## Time for one user and size\n", markdown(found.costs, 2)]
    tables["cost"] = found.costs
    for name, table in tables.items():
        with writing(folder / "metrics" / f"{name}.csv") as tmp:
            table.to_csv(tmp, index=False)
    write_text(folder / "metrics" / "comparison.md", "\n".join(text))
    plot_comparison(folder / "plots", found.long, found.pairs, found.costs, found.metrics, found.convention)
