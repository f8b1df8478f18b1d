"""MovieLens-100K (`u.data`, `u.item`); GroupLens terms: research use, acknowledge, do not redistribute.

F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. ACM TiiS 5, 4 (2015).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from src.core.datasets import RawLog
from src.core.datasets.files import read_table, require_files

if TYPE_CHECKING:
    from src.core.data_utils import DatasetConfig

_ARTICLE = re.compile(r"^(?P<name>.+), (?P<article>The|A|An)(?P<year> \(\d{4}\))?$")


def files(raw_dir: Path) -> list[Path]:
    return require_files(raw_dir, ["u.data", "u.item"])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    ratings = read_table(raw_dir / "u.data", "\t", {"user": int, "item": int, "rating": float, "time": int})
    items = read_table(raw_dir / "u.item", "|", {"item": int, "title": str}, n_columns=24, encoding="latin-1")
    titles = pd.Series([clean_title(t) for t in items["title"]], index=items["item"].to_numpy())
    return RawLog(
        users=ratings["user"].to_numpy(),
        items=ratings["item"].to_numpy(),
        timestamps=ratings["time"].to_numpy(),
        ratings=ratings["rating"].to_numpy(dtype=np.float32),
        titles=titles,
    )


def clean_title(title: str) -> str:
    """Move a trailing article to the front: "Usual Suspects, The (1995)" -> "The Usual Suspects (1995)"."""
    match = _ARTICLE.match(title.strip())
    if not match:
        return title.strip()
    return f"{match['article']} {match['name']}{match['year'] or ''}"
