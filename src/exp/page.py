"""A comparison as one self-contained HTML page (`metrics/report.html`): opens from a disk, needs no server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.artifacts import read_object, write_text
from src.core.data_utils import InteractionData
from src.core.paths import processed_dir
from src.core.runs import TIMES
from src.exp.compare import Row
from src.exp.examples import examples
from src.exp.report import Comparison, texts
from src.exp.settings import Settings
from src.exp.tables import metric_table, slice_table

_ITEMS = 5000  # of the item table; the most popular ones
_PLOTS = {
    "comparison": "Every model, with the 95 % interval of its difference to the baseline",
    "differences": "Students against their teachers and against each other, 95 % interval over users and seeds",
    "by_k": "Metrics by list length",
    "slices": "By popularity of the true item and length of the history",
    "cost": "Against the time for one user on this machine's CPU (a teacher: of its export) and the size of the weights",
}


def write_page(folder: Path, found: Comparison, data: InteractionData, settings: Settings) -> None:
    """`folder`/metrics/report.html, from what `report.write_report` left in `folder`/plots."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    shown = examples(found.rows, data, found.convention, settings.compare.users, settings.seed)
    titles = [f"{title} [{raw}]" for title, raw in zip(data.titles, data.raw_items, strict=True)]
    counts = data.train_counts()
    popular = np.argsort(-counts[1:], kind="stable")[:_ITEMS] + 1
    times = metric_table(found.long, found.convention)
    html = templates.get_template("page.html.j2").render(
        data=data,
        found=found,
        figures=_figures(found),
        conditions=_conditions(found),
        pairs=_texts(found.pairs[found.pairs.history == found.convention].drop(columns="history")),
        slices={m: _texts(slice_table(found.long, m, found.convention)) for m in found.metrics},
        candidates=None if found.candidates is None else _texts(found.candidates.table),
        plots=[(text, _svg(folder / "plots" / f"{name}.svg")) for name, text in _PLOTS.items()],
        differences=_texts(_differing(found.rows)),
        times=_texts(times[["model", "seeds", *(t for t in TIMES if t in times)]], 1),
        statistics=_statistics(data),
        examples=shown,
        titles=titles,
        items=[(titles[i], int(counts[i])) for i in popular],
    )
    write_text(folder / "metrics" / "report.html", html)


def _conditions(found: Comparison) -> str:
    seeds = sorted({len(row.runs) for row in found.rows})
    return f"{found.convention.replace('_', ' ')}; runs per model: {', '.join(map(str, seeds))}"


def _figures(found: Comparison) -> list[list[str]]:
    """Head and a line per model: each metric with its sd over seeds, and its difference to the baseline."""
    table = metric_table(found.long, found.convention).set_index("model")
    base = next((r.name for r in found.rows if r.kind == "baseline"), None)
    around = found.pairs[(found.pairs.history == found.convention) & (found.pairs.a == base)]
    around = around.set_index(["b", "metric"])
    lines = [["model", "kind", "seeds", *(c for m in found.metrics for c in (m, "minus baseline"))]]
    for model, line in table.iterrows():
        cells = [str(model), line["kind"], str(line["seeds"])]
        for metric in found.metrics:
            sd = line.get(f"{metric} sd", np.nan)
            value = line.get(metric, np.nan)
            cells.append("–" if pd.isna(value) else f"{value:.4f}" + ("" if pd.isna(sd) else f" ± {sd:.4f}"))
            has = (model, metric) in around.index
            d = around.loc[(model, metric)] if has else None
            cells.append("" if d is None else f"{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})")
        lines.append(cells)
    return lines


def _texts(table: pd.DataFrame, digits: int = 4) -> list[list[str]]:
    """Head and lines as text."""
    return [[*map(str, table.columns)], *texts(table, digits).to_numpy().tolist()]


def _differing(rows: Sequence[Row]) -> pd.DataFrame:
    """Settings that are not equal in all rows, a column per model; what only other stages read is left out."""
    groups = {
        "baseline": ("student",),
        "teacher": ("teacher",),
        "distilled": ("student", "teacher", "distill", "active"),
    }
    flat = {}
    for row in rows:
        config = row.runs[0].config
        flat[row.name] = dict(p for g in groups[row.kind] for p in _leaves(config.get(g), g))
    keys = sorted({k for values in flat.values() for k in values})
    lines = [{"setting": k, **{name: str(values.get(k, "")) for name, values in flat.items()}} for k in keys]
    return pd.DataFrame(
        [line for line in lines if len({v for n, v in line.items() if n != "setting" and v}) > 1]
    )


def _leaves(value: Any, key: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(key, value)]
    return [leaf for k, v in value.items() for leaf in _leaves(v, f"{key}.{k}")]


def _statistics(data: InteractionData) -> list[tuple[str, str]]:
    """Plain numbers of the prepared dataset."""
    file = processed_dir(data.name, data.fingerprint) / "statistics.json"
    numbers = read_object(file) if file.is_file() else {}
    plain = [(k.replace("_", " "), f"{v:g}") for k, v in numbers.items() if type(v) in (int, float)]
    return plain + [(f"{split} samples", str(len(ids))) for split, ids in data.splits.items()]


def _svg(file: Path) -> Any:
    """The picture's element, without what a document of its own has before it; its own texts are escaped there."""
    from markupsafe import Markup

    return Markup(re.sub(r"\A.*?(?=<svg)", "", file.read_text(), flags=re.S)) if file.is_file() else ""
