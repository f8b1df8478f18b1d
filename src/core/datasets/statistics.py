"""What a prepared dataset looks like: `statistics.json`, `statistics.md`, `plots/*.png` in its folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.artifacts import write_json, write_text
from src.core.datasets.config import DatasetConfig

if TYPE_CHECKING:
    from src.core.datasets.prepare import Prepared

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def write_statistics(folder: Path, data: Prepared, config: DatasetConfig) -> None:
    numbers = describe(data, config)
    write_json(folder / "statistics.json", numbers)
    write_text(folder / "statistics.md", markdown(numbers))
    _plots(folder / "plots", data, config)


def describe(data: Prepared, config: DatasetConfig) -> dict[str, Any]:
    """Users, items, interactions, density, lengths, titles, popularity, splits; plain JSON types."""
    users, items, rows = len(data.offsets) - 1, len(data.raw_items), len(data.items)
    counts = np.bincount(data.items, minlength=items + 1)[1:]
    descending = np.sort(counts)[::-1]
    shares = np.cumsum(descending) / rows
    words = np.array([len(title.split()) for title in data.titles])
    in_train = np.bincount(data.items[data.rows["train"]], minlength=items + 1) > 0
    return {
        "dataset": config.name,
        "protocol": config.split,
        "users": users,
        "items": items,
        "interactions": rows,
        "density": rows / (users * items),
        "interactions_per_user": _spread(np.diff(data.offsets)),
        "interactions_per_item": _spread(counts),
        "popularity": {
            "gini": float(2 * shares.mean() - 1 - 1 / items),
            "share_of_top_1_percent": float(shares[max(1, items // 100) - 1]),
            "share_of_top_10_percent": float(shares[max(1, items // 10) - 1]),
            "items_never_a_training_target": int((~in_train[1:]).sum()),
        },
        "titles": {
            "words": _spread(words),
            "characters": _spread(np.array([len(title) for title in data.titles])),
            "distinct_words": len({word.lower() for title in data.titles for word in title.split()}),
            "shared_titles": items - len(set(data.titles)),
        },
        "filters": data.filters,
        "splits": {name: _split(data, name, in_train, config) for name in data.splits},
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(values, list(_QUANTILES.values()))
    return {"mean": float(values.mean()), **dict(zip(_QUANTILES, map(float, quantiles), strict=True))}


def _split(data: Prepared, name: str, in_train: np.ndarray, config: DatasetConfig) -> dict[str, Any]:
    rows = data.rows[name]
    users = np.searchsorted(data.offsets, rows, side="right") - 1
    length = np.minimum(rows - data.offsets[users], config.max_history)
    out: dict[str, Any] = {
        "samples": len(rows),
        "users": len(np.unique(users)),
        "history_length": _spread(length),
        "targets_never_seen_in_training": int((~in_train[data.items[rows]]).sum()),
    }
    times = data.times[rows]
    if times.any():
        out["first_target"], out["last_target"] = (
            datetime.fromtimestamp(int(t), UTC).isoformat() for t in (times.min(), times.max())
        )
    return out


def markdown(numbers: dict[str, Any]) -> str:
    """The numbers as a page with tables."""
    lines = [f"# {numbers['dataset']} ({numbers['protocol']})", ""]
    if numbers["protocol"] == "official":
        lines += [
            "Each row of the split files counts as a user of its own: histories repeat interactions.",
            "",
        ]
    lines += ["| | |", "|---|---|"]
    for key in ("users", "items", "interactions"):
        lines.append(f"| {key} | {numbers[key]:,} |")
    lines.append(f"| density | {numbers['density']:.4%} |")
    lines += [
        f"| {key.replace('_', ' ')} | {_short(value)} |" for key, value in numbers["popularity"].items()
    ]
    for key in ("distinct_words", "shared_titles"):
        lines.append(f"| {key.replace('_', ' ')} | {numbers['titles'][key]:,} |")
    lines += ["", f"| | mean | {' | '.join(_QUANTILES)} |", "|---" * (len(_QUANTILES) + 2) + "|"]
    spreads = {key: numbers[key] for key in ("interactions_per_user", "interactions_per_item")}
    spreads |= {f"title_{key}": numbers["titles"][key] for key in ("words", "characters")}
    spreads |= {
        f"history_length_{name}": split["history_length"] for name, split in numbers["splits"].items()
    }
    for key, spread in spreads.items():
        lines.append(f"| {key.replace('_', ' ')} | {' | '.join(_short(v) for v in spread.values())} |")
    lines += [
        "",
        "| split | samples | users | unseen targets | first target | last target |",
        "|---" * 6 + "|",
    ]
    for name, split in numbers["splits"].items():
        cells = [split["samples"], split["users"], split["targets_never_seen_in_training"]]
        when = [split.get("first_target", "–"), split.get("last_target", "–")]
        lines.append(f"| {name} | {' | '.join(f'{c:,}' for c in cells)} | {' | '.join(when)} |")
    lines += ["", "| filter | |", "|---|---|"]
    for entry in numbers["filters"]:
        rest = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in entry.items() if k != "filter")
        lines.append(f"| {entry['filter']} | {rest} |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    )


def _plots(folder: Path, data: Prepared, config: DatasetConfig) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    folder.mkdir()

    def save(name: str, xlabel: str, ylabel: str, draw: Any) -> None:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=config.name)
        draw(axes)
        figure.savefig(folder / f"{name}.png", dpi=100)

    lengths = np.diff(data.offsets)
    counts = np.sort(np.bincount(data.items, minlength=len(data.raw_items) + 1)[1:])[::-1]
    bins = np.unique(np.geomspace(1, lengths.max() + 1, 40).astype(int))

    def popularity(axes: Any) -> None:
        # The curve is smooth in the logarithm: a few hundred ranks show all of it.
        ranks = np.unique(np.geomspace(1, len(counts), 400).astype(int))
        axes.loglog(ranks, np.maximum(counts[ranks - 1], 0.5))

    def log_histogram(axes: Any) -> None:
        axes.hist(lengths, bins=bins)
        axes.set_xscale("log")

    def over_time(axes: Any) -> None:
        years = 1970 + data.times / (365.2425 * 86_400)
        heights, edges = np.histogram(years, bins=80)
        axes.stairs(heights, edges, fill=True, alpha=0.5)
        for name in ("valid", "test"):
            first = 1970 + data.times[data.rows[name]].min() / (365.2425 * 86_400)
            axes.axvline(
                first,
                linestyle="--",
                color="black" if name == "test" else "grey",
                label=f"first {name} target",
            )
        axes.legend()

    save("popularity", "item rank", "interactions", popularity)
    save("user_lengths", "interactions of a user", "users", log_histogram)
    save(
        "title_words",
        "words of a title",
        "items",
        lambda a: a.hist([len(t.split()) for t in data.titles], bins=30),
    )
    if data.times.any():
        save("time", "year", "interactions", over_time)
