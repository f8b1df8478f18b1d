"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.plotting import KIND_COLOURS, PAGE, mark, picture
from src.exp.model_plots import plot_slices


def plot_comparison(
    folder: Path,
    long: pd.DataFrame,
    pairs: pd.DataFrame,
    costs: pd.DataFrame,
    metrics: Sequence[str],
    convention: str,
) -> None:
    """`comparison`, `differences`, `by_k`, `slices` and `cost` of the reported convention."""
    test = long[(long.split == "test") & (long.history == convention)]
    pairs = pairs[pairs.history == convention]
    whole = test[test.slice == "all"]
    _plot_models(folder / "comparison", whole, pairs, metrics)
    _plot_by_k(folder / "by_k", whole)
    base = whole[whole.kind == "baseline"].model.head(1)
    if len(others := pairs[~pairs.a.isin(base)]):  # differences to the baseline are in `comparison`
        _plot_differences(folder / "differences", others, metrics)
    plot_slices(folder / "slices", test, metrics[0])
    _plot_costs(folder / "cost", whole[whole.metric == metrics[0]], costs, metrics[0])


def _plot_models(path: Path, whole: pd.DataFrame, pairs: pd.DataFrame, metrics: Sequence[str]) -> None:
    """A panel per metric, a line per model: its value, and the interval of its difference to the baseline.

    The axis shows where the students are; a model far away is an arrow at its edge with its value.
    """
    models = whole.drop_duplicates("model")[["model", "kind"]]
    size = (1.2 + 2.0 * len(metrics), 0.9 + 0.2 * len(models))
    with picture(path, *size, columns=len(metrics), sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            means = whole[whole.metric == metric].groupby("model").value.mean()
            base = next((m for m, k in models.itertuples(index=False) if k == "baseline"), None)
            around = pairs[(pairs.a == base) & (pairs.metric == metric)].set_index("b")
            left, right = _span(means, around, models[models.kind != "teacher"].model)
            for place, (model, kind) in enumerate(models.itertuples(index=False)):
                if model not in means:
                    continue
                value, colour = means[model], KIND_COLOURS[kind]
                ends = (
                    around.loc[model, ["low", "high"]] + means[base] if model in around.index else [value] * 2
                )
                inside = left <= value <= right
                if inside:
                    axis.plot(np.clip(ends, left, right), [place] * 2, color=colour, linewidth=1.5)
                shape = "o" if inside else ">" if value > right else "<"
                axis.plot(np.clip(value, left, right), place, shape, color=colour, clip_on=False)
                axis.annotate(
                    f"{value:.4f}", (1.0, place), xycoords=("axes fraction", "data"), fontsize=6, va="center"
                )
            if base in means:
                axis.axvline(means[base], color="black", linewidth=0.8, linestyle="--")
            axis.set(xlim=(left, right), title=metric, yticks=range(len(models)), yticklabels=models.model)
            axis.locator_params(axis="x", nbins=3)
        axes[0, 0].invert_yaxis()
        figure.supxlabel("line: 95 % interval of the difference to the baseline (dashed)", fontsize=7)


def _span(means: pd.Series, around: pd.DataFrame, students: pd.Series) -> tuple[float, float]:
    """Limits of the axis: the middle of the students, not the farthest model."""
    values = means[means.index.isin(students)]
    centre, spread = values.median(), max((values - values.median()).abs().median(), 1e-4)
    near = means[(means - centre).abs() <= 6 * spread]
    half = (around.high - around.low).clip(upper=20 * spread).max() / 2 if len(around) else 0.0
    half = 0.0 if not np.isfinite(half) else half
    low, high = near.min() - half - spread, near.max() + half + spread
    return float(low), float(high)


def _plot_by_k(path: Path, whole: pd.DataFrame) -> None:
    """NDCG@K and Recall@K over K, a line per model, the legend beside them."""
    with picture(path, PAGE, 2.6, columns=2) as (figure, axes):
        for axis, name in zip(axes[0], ("NDCG", "Recall"), strict=True):
            part = whole[whole.metric.str.startswith(f"{name}@")]
            ks = part.metric.str.partition("@")[2].astype(int)
            values = part.assign(k=ks).pivot_table(index="k", columns="model", values="value", sort=False)
            for number, model in enumerate(whole.model.unique()):
                if model in values:
                    axis.plot(values.index, values[model], label=model, **mark(number))
            axis.set(xscale="log", xlabel="K", ylabel=f"{name}@K")
            axis.set_xticks(values.index, labels=[str(k) for k in values.index])
            axis.minorticks_off()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")


def _plot_differences(path: Path, pairs: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Every pair's difference with its interval, a colour per metric; the line at 0 is "no difference"."""
    names = list(dict.fromkeys(zip(pairs.a, pairs.b, strict=True)))
    with picture(path, PAGE, 0.9 + (0.12 + 0.1 * len(metrics)) * len(names)) as (_, axes):
        axis = axes[0, 0]
        for number, metric in enumerate(metrics):
            part = pairs[(pairs.metric == metric) & np.isfinite(pairs.high)]
            places = [
                names.index(pair) + 0.2 * (number - (len(metrics) - 1) / 2)
                for pair in zip(part.a, part.b, strict=True)
            ]
            around = [part.difference - part.low, part.high - part.difference]
            axis.errorbar(
                part.difference,
                places,
                xerr=around,
                fmt=mark(number)["marker"],
                color=mark(number)["color"],
                label=metric,
            )
        axis.axvline(0.0, color="black", linewidth=0.8)
        axis.set(yticks=range(len(names)), yticklabels=[f"{b} − {a}" for a, b in names])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlabel("difference, 95 % interval over users and seeds")
        axis.invert_yaxis()
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plot_costs(path: Path, whole: pd.DataFrame, costs: pd.DataFrame, metric: str) -> None:
    """The metric against the time for one user, and against the size of the weights, where they are known."""
    table = costs.assign(value=costs.model.map(whole.groupby("model").value.mean()))
    panels = [(c, table.dropna(subset=[c, "value"])) for c in ("ms per user", "MiB")]
    panels = [(column, part) for column, part in panels if len(part)]
    if not panels:
        return
    from matplotlib.ticker import LogLocator

    numbers = {model: number for number, model in enumerate(whole.model.unique())}
    with picture(path, PAGE, 2.8, columns=len(panels), sharey=True) as (figure, axes):
        for axis, (column, part) in zip(axes[0], panels, strict=True):
            for model, x, y in zip(part.model, part[column], part.value, strict=True):
                axis.plot(x, y, label=model, **{**mark(numbers[model]), "linestyle": ""})
            axis.set(xscale="log", xlabel=column, ylabel=metric)
            axis.margins(x=0.15)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        handles, labels = max(
            (a.get_legend_handles_labels() for a in axes[0]), key=lambda found: len(found[1])
        )
        figure.legend(handles, labels, loc="outside right upper")
