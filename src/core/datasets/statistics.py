"""What a prepared dataset looks like: `statistics.json` and `statistics.md` in its folder (`plots.py` draws it)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.artifacts import write_json, write_text
from src.core.datasets.config import DatasetConfig
from src.core.datasets.filters import plain_title
from src.core.splits import Splits

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Prepared:
    """The canonical table.

    Attributes:
        items: [M] int32 item ids 1..N. times: [M] int64 seconds (0 for split files).
        offsets: [U+1] int64 rows of each user (of each row of the split files).
        splits: sample ids.  rows: the row of each sample's target, in the same order.
        raw_items: [N], titles: [N], raw_users: [U].
        filters: what each filter removed.
    """

    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    splits: Splits
    rows: Splits
    raw_items: list[str]
    titles: list[str]
    raw_users: list[str]
    filters: list[dict[str, Any]]


def write_statistics(folder: Path, data: Prepared, config: DatasetConfig) -> None:
    numbers = describe(data, config)
    write_json(folder / "statistics.json", numbers)
    write_text(folder / "statistics.md", markdown(numbers))


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
            "shared_titles": items - len({plain_title(title) for title in data.titles}),
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
    pages = [f"# {numbers['dataset']} ({numbers['protocol']})"]
    if numbers["protocol"] == "official":
        pages += ["Each row of the split files counts as a user of its own: histories repeat interactions."]
    whole = {key: numbers[key] for key in ("users", "items", "interactions", "density")} | numbers[
        "popularity"
    ]
    whole |= {key: numbers["titles"][key] for key in ("distinct_words", "shared_titles")}
    spreads = {key: numbers[key] for key in ("interactions_per_user", "interactions_per_item")}
    spreads |= {f"title_{key}": numbers["titles"][key] for key in ("words", "characters")}
    splits = {name: dict(split) for name, split in numbers["splits"].items()}
    spreads |= {f"history_length_{name}": split.pop("history_length") for name, split in splits.items()}
    tables = [{key: {"": value} for key, value in whole.items()}, spreads, splits]
    tables += [
        {entry["filter"]: {k: v for k, v in entry.items() if k != "filter"} for entry in numbers["filters"]}
    ]
    for table in filter(None, tables):
        frame = pd.DataFrame.from_dict(table, orient="index").astype(object).fillna("–")
        frame = frame.map(_short).rename(columns=_words, index=_words)
        pages.append(frame.to_markdown(disable_numparse=True))
    return "\n\n".join(pages) + "\n"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}" if isinstance(value, (int, float)) else value
    )
