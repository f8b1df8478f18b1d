"""The pictures of one model: learning curves, quality by slice, what its gate does, its item vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.plotting import COLUMN, PAGE, mark, picture
from src.core.seed import numpy_stream
from src.core.tracking import Series

_SHOWN = 6  # series in one panel; more cannot be told apart
_PARTS = ("encoder/", "without_rankings/")
_ROWS, _POINTS = 200, 3000  # users of a heat map, items of a map


def plot_training(folder: Path, series: Series) -> None:
    """`learning_curves` (losses and validation) and, where experts were mixed, `gates`; nothing without curves."""
    curves = {tag: s for tag, s in series.items() if len(s[0]) > 1}
    panels = []
    for part in ("", "encoder", "without_rankings"):  # each with its own steps
        tags = [t for t in curves if t.startswith(f"{part}/") or not (part or t.startswith(_PARTS))]
        losses, valid = [t for t in tags if "loss" in t], [t for t in tags if "valid" in t]
        valid = [t for t in valid if "@" not in t or "valid/NDCG" in t] or valid
        named = (("loss", losses), ("validation", valid))
        panels += [(f"{part} {name}".strip().replace("_", " "), shown) for name, shown in named if shown]
    if panels:
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        with picture(folder / "learning_curves", PAGE * columns / 2, 2.3 * rows, rows, columns) as (_, axes):
            for axis, (name, tags) in zip(axes.flat, panels, strict=False):
                for number, tag in enumerate(tags[:_SHOWN]):
                    many = len(curves[tag][0]) >= 40
                    axis.plot(*curves[tag], label=tag, **{**mark(number), **({"marker": ""} if many else {})})
                axis.set(title=name, xlabel="epoch or step")
                axis.legend()
            for axis in axes.flat[len(panels) :]:
                axis.set_axis_off()
    loads = sorted((t for t in curves if "gate/load_" in t), key=lambda t: int(t.rpartition("_")[2]))
    if len(loads) > 1:
        shares, steps = np.stack([curves[t][1] for t in loads]), curves[loads[0]][0]
        with picture(folder / "gates", COLUMN, 0.8 + 0.25 * len(loads)) as (figure, axes):
            axis, extent = axes[0, 0], (steps[0], steps[-1], len(loads) - 0.5, -0.5)
            image = axis.imshow(shares, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest")
            axis.set(xlabel="step", ylabel="expert", yticks=range(len(loads)), title="mean gate weight")
            axis.grid(False)
            figure.colorbar(image)


def plot_slices(path: Path, test: pd.DataFrame, metric: str) -> None:
    """The metric by popularity of the target and by length of the history, a line per model."""
    part = test[(test.metric == metric) & (test.slice != "all")]
    groups = [
        g
        for g in part.group.unique()
        if part[part.group == g].slice.nunique() > 1 and g not in ("items", "users")
    ]
    if not groups:
        return
    with picture(path, PAGE, 2.8, columns=len(groups)) as (figure, axes):
        for axis, group in zip(axes[0], groups, strict=True):
            own = part[part.group == group]
            values = own.pivot_table(index="slice", columns="model", values="value", sort=False)
            sizes = own.drop_duplicates("slice").set_index("slice").samples
            for number, model in enumerate(test.model.unique()):
                if model in values:
                    axis.plot(range(len(values)), values[model], label=model, **mark(number))
            ticks = [f"{name}\n{sizes[name]:,}" for name in values.index]
            axis.set_xticks(range(len(values)), labels=ticks)
            axis.set(xlabel=f"{group} (below: samples)", ylabel=metric, ylim=(0, 1.08 * axis.dataLim.y1 or 1))
        if test.model.nunique() > 1:
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")


def plot_gates(path: Path, gates: np.ndarray, vectors: np.ndarray, lengths: Mapping[str, np.ndarray]) -> None:
    """Expert weights user by user, and the mean use of each expert by group of users.

    Args:
        gates: [n, K] of the test samples.
        vectors: [n, E] sequence vectors, whose clusters (k-means) are groups, and order the users of the heat map.
        lengths: {slice of the history length: [n] mask}.
    """
    from scipy.cluster.vq import kmeans2

    count = min(5, len(gates))
    _, cluster = kmeans2(vectors.astype(np.float64), count, minit="++", rng=numpy_stream(0, "gate clusters"))
    groups = {f"history {name}": mask for name, mask in lengths.items()}
    groups |= {f"cluster {c + 1}": cluster == c for c in range(count)}
    groups = {f"{name} (n {mask.sum():,})": mask for name, mask in groups.items() if mask.any()}
    use = np.stack([gates[mask].mean(axis=0) for mask in groups.values()])
    order = np.lexsort((gates.argmax(axis=1), cluster))
    drawn = order[np.linspace(0, len(order) - 1, min(_ROWS, len(order))).astype(int)]
    experts = np.arange(gates.shape[1])
    with picture(path, PAGE, 1.0 + 0.22 * len(groups), columns=2, width_ratios=(1, 1.3)) as (figure, axes):
        left, right = axes[0]
        image = left.imshow(gates[drawn], aspect="auto", cmap="cividis", interpolation="nearest")
        figure.colorbar(image, ax=left, label="weight")
        left.set(title="gate, user by user", ylabel=f"{len(drawn)} of {len(gates):,} users, by cluster")
        right.imshow(use, aspect="auto", cmap="cividis", vmin=image.norm.vmin, vmax=image.norm.vmax)
        for (row, k), share in np.ndenumerate(use):
            dark = image.norm(share) < 0.5
            right.text(
                k, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color="w" if dark else "k"
            )
        right.set(title="mean use by group of users", yticks=range(len(groups)), yticklabels=groups)
        for axis in axes[0]:
            axis.set(xlabel="expert", xticks=experts, xticklabels=experts + 1)
            axis.grid(False)


def plot_items(path: Path, tables: Mapping[str, np.ndarray], counts: np.ndarray) -> None:
    """Item vectors on their two main axes (PCA), coloured by popularity, a panel per model.

    Args:
        tables: {model: [N, D]}.
        counts: [N] training targets.
    """
    drawn = np.sort(numpy_stream(0, "item map").permutation(len(counts))[:_POINTS])
    drawn = drawn[np.argsort(counts[drawn], kind="stable")]  # popular items on top
    with picture(path, PAGE, 3.0, columns=len(tables)) as (figure, axes):
        for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
            places, share = _main_axes(table)
            points = axis.scatter(
                *places[drawn].T, c=np.log1p(counts[drawn]), s=5, cmap="cividis", linewidths=0
            )
            axis.set(title=f"{name}: {share:.0%} of the variance", xticks=[], yticks=[])
        bar = figure.colorbar(points, ax=axes[0].tolist(), label="training targets of the item")
        ticks = [t for t in (0, 1, 3, 10, 30, 100, 300, 1000, 10_000, 100_000) if t <= counts.max()]
        bar.set_ticks(np.log1p(ticks), labels=[f"{t:,}" for t in ticks])


def _main_axes(table: np.ndarray) -> tuple[np.ndarray, float]:
    """[N, D] -> [N, 2] on the two main axes, and their share of the variance."""
    centred = np.asarray(table, np.float64) - table.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, :-3:-1], float(values[-2:].sum() / max(values.sum(), 1e-12))
