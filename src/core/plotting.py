"""One style for every picture: a colour-blind-safe palette, letters legible in a paper's column, PNG and SVG.

matplotlib is imported by the first picture, without pyplot: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.artifacts import writing

COLUMN, PAGE = 3.5, 7.2  # inches: width of a paper's column, and of its text
# Okabe and Ito's colours, the yellow last: it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
KIND_COLOURS = {"baseline": "#000000", "teacher": "#0072B2", "distilled": "#D55E00"}
MARKERS = "os^Dv<>P"
_LINES = ("-", "--", ":")
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files that a reader can search
    "svg.hashsalt": "anyo",  # equal pictures are equal files
}


@contextmanager
def picture(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> Iterator[Any]:
    """`(figure, [rows, columns] axes)` to draw on; at the end `path`.png (150 dpi) and `path`.svg are written.

    Args:
        path: without a suffix.
        width, height: inches.
        grid: of `Figure.subplots`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **grid)
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            with writing(path.with_name(f"{path.name}.{suffix}")) as tmp:
                figure.savefig(tmp, format=suffix, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")  # laid out once: it takes longer than drawing


def mark(number: int) -> dict[str, str]:
    """Colour, marker and line of the n-th series: told apart without colours, too."""
    again, place = divmod(number, len(PALETTE))
    return {"color": PALETTE[place], "marker": MARKERS[place], "linestyle": _LINES[again % len(_LINES)]}
