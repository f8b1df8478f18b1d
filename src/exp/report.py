"""The comparison as people read it: Markdown, CSV and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd

from src.core.artifacts import write_text, writing
from src.core.data_utils import InteractionData
from src.core.runs import TIMES
from src.exp.compare import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first)


def markdown(table: pd.DataFrame, digits: int = 4) -> str:
    """A Markdown table; floats with `digits` decimals, missing values as a dash."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "–" if pd.isna(value) else f"{value:.{digits}f}"
        return str(value)

    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[cell(v) for v in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _upright(table: pd.DataFrame) -> pd.DataFrame:
    """Models as columns, metrics and times (seconds) as rows: there are many more metrics than models."""
    upright = table.set_index("model").T.rename_axis("metric").reset_index()
    upright.columns.name = None
    return upright


def headline(table: pd.DataFrame, metrics: tuple[str, ...]) -> str:
    """The short table for the terminal: compared metrics and times (seconds)."""
    times = {name: f"{name} [s]" for name in TIMES if name in table}
    shown = table[["model", "kind", "seeds", *[m for m in metrics if m in table], *times]].rename(
        columns=times
    )
    for column in times.values():
        shown[column] = [f"{v:.1f}" if pd.notna(v) else "–" for v in shown[column]]
    return markdown(shown)


def notes(rows: list[Row]) -> str:
    """What a reader must know about the teachers' rows: how many samples they cover."""
    lines = []
    for row in rows:
        for fields in row.metrics:
            if note := fields.get("note"):
                lines.append(f"- {row.name}: {note}")
    return "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""


@dataclass(frozen=True)
class Among:
    """The comparison among few candidates.

    Attributes:
        shape: (draws, samples, candidates).
        table, pairs: of `exp.candidate_table`.
    """

    shape: tuple[int, ...]
    table: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def title(self) -> str:
        draws, n, count = self.shape
        return f"Test, {count} candidates ({n} samples x {draws} draws)"


def write_report(
    folder: Path,
    rows: list[Row],
    data: InteractionData,
    tables: dict[str, pd.DataFrame],
    pairs: pd.DataFrame,
    slice_tables: dict[str, pd.DataFrame],
    among: Among | None = None,
    verdicts: Sequence[str] = (),
) -> None:
    """`metrics/comparison.md`, the same tables as CSV, and the plots.

    Args:
        tables: metric table by convention (`history_ranked`, `history_excluded`).
        pairs: paired differences.
        slice_tables: slices by metric.
        among: where models were asked about candidates.
        verdicts: of `exp.verdict`.
    """
    sizes = {split: len(ids) for split, ids in data.splits.items()}
    text = [
        f"# {data.name} ({data.fingerprint})\n",
        f"{data.n_items} items; samples: {sizes}.\n",
        notes(rows),
    ]
    if verdicts:
        text += ["\n## Does distillation help?\n", "\n".join(f"- {line}" for line in verdicts)]
    for convention, table in tables.items():
        text += [f"\n## Test, {convention.replace('_', ' ')}\n", markdown(_upright(table))]
        _csv(folder / "metrics" / f"table_{convention}.csv", table)
    text += ["\n## Paired differences (b - a), interval bootstrapped over users\n", markdown(pairs)]
    _csv(folder / "metrics" / "differences.csv", pairs)
    if among is not None:
        text += [f"\n## {among.title}\n", markdown(among.table), "\n", markdown(among.pairs)]
        _csv(folder / "metrics" / "table_candidates.csv", among.table)
        _csv(folder / "metrics" / "differences_candidates.csv", among.pairs)
    for metric, table in slice_tables.items():
        text += [f"\n## Slices, {metric}\n", markdown(table)]
        _csv(folder / "metrics" / f"slices_{metric.replace('@', '_at_')}.csv", table)
    write_text(folder / "metrics" / "comparison.md", "\n".join(text))
    _plot_metrics(folder / "plots" / "metrics.png", tables["history_ranked"])
    if len(pairs):
        _plot_differences(folder / "plots" / "differences.png", pairs)


def _csv(path: Path, table: pd.DataFrame) -> None:
    with writing(path) as tmp:
        table.to_csv(tmp, index=False)


def _save(path: Path, figure: plt.Figure) -> None:
    with writing(path) as tmp:
        figure.savefig(tmp, format="png", dpi=120)
    plt.close(figure)


def _plot_metrics(path: Path, table: pd.DataFrame) -> None:
    """NDCG@K and Recall@K over K, a line per model."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, name in zip(axes, ("NDCG", "Recall"), strict=True):
        columns = [c for c in table if c.startswith(f"{name}@") and not c.endswith(" sd")]
        ks = [int(c.partition("@")[2]) for c in columns]
        for row in table.to_dict("records"):
            sd = [row.get(f"{c} sd", 0.0) for c in columns]
            axis.errorbar(ks, [row[c] for c in columns], yerr=sd, marker="o", capsize=2, label=row["model"])
        axis.set(xscale="log", xlabel="K", ylabel=f"{name}@K", xticks=ks, xticklabels=ks)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    _save(path, figure)


def _plot_differences(path: Path, pairs: pd.DataFrame) -> None:
    """Differences with their intervals, history ranked; the line at 0 is "no difference"."""
    shown = pairs[pairs["history"] == "history_ranked"].iloc[::-1]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.32 * len(shown)), layout="constrained")
    names = [f"{r.b} − {r.a}, {r.metric}" for r in shown.itertuples()]
    around = [shown["difference"] - shown["low"], shown["high"] - shown["difference"]]
    axis.errorbar(shown["difference"], range(len(shown)), xerr=around, fmt="o", capsize=3)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set(yticks=range(len(shown)), yticklabels=names, xlabel="difference, 95 % interval over users")
    axis.grid(axis="x", alpha=0.3)
    _save(path, figure)
