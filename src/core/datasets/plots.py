"""Plots of a prepared dataset, drawn on demand.

python -m src.core.datasets.plots data/processed/<dataset>/<fp> [--out folder]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import InteractionData, open_dataset
from src.core.logging import command, get_logger

log = get_logger(__name__)
_YEAR_S = 365.2425 * 86_400


def draw(data: InteractionData, folder: Path) -> list[Path]:
    """Popularity, lengths of users and titles, and where there are times, interactions over time."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def save(name: str, xlabel: str, ylabel: str, content: Any) -> None:
        figure = Figure(figsize=(6, 4), layout="constrained")
        content(figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=data.name))
        figure.savefig(folder / f"{name}.png", dpi=100)
        made.append(folder / f"{name}.png")

    lengths = np.diff(data.offsets)
    counts = np.sort(np.bincount(data.items, minlength=data.n_items + 1)[1:])[::-1]

    def popularity(axes: Any) -> None:
        # The curve is smooth in the logarithm: a few hundred ranks show all of it.
        ranks = np.unique(np.geomspace(1, len(counts), 400).astype(int))
        axes.loglog(ranks, np.maximum(counts[ranks - 1], 0.5))

    def user_lengths(axes: Any) -> None:
        axes.hist(lengths, bins=np.unique(np.geomspace(1, lengths.max() + 1, 40).astype(int)))
        axes.set_xscale("log")

    def over_time(axes: Any) -> None:
        heights, edges = np.histogram(1970 + data.times / _YEAR_S, bins=80)
        axes.stairs(heights, edges, fill=True, alpha=0.5)
        for name, color in (("valid", "grey"), ("test", "black")):
            first = 1970 + data.times[data.rows(data.splits[name])].min() / _YEAR_S
            axes.axvline(first, linestyle="--", color=color, label=f"first {name} target")
        axes.legend()

    words = [len(title.split()) for title in data.titles[1:]]
    save("popularity", "item rank", "interactions", popularity)
    save("user_lengths", "interactions of a user", "users", user_lengths)
    save("title_words", "words of a title", "items", lambda axes: axes.hist(words, bins=30))
    if data.times.any():
        save("time", "year", "interactions", over_time)
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("dataset", type=Path, help="a prepared dataset's folder")
    parser.add_argument("--out", type=Path, help="folder of the plots (default: plots in that folder)")
    options = parser.parse_args(arguments)

    def act() -> None:
        for path in draw(open_dataset(options.dataset), options.out or options.dataset / "plots"):
            log.info("%s", path)

    return command(act)


if __name__ == "__main__":
    sys.exit(main())
