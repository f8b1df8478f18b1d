"""MovieTweetings: ratings 0-10 from tweets (`ratings.dat`, `movies.dat`). MIT licence.

S. Dooms, T. De Pessemier, L. Martens: MovieTweetings: a Movie Rating Dataset Collected From
Twitter. CrowdRec at RecSys 2013.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.datasets import RawLog, encode, seconds, title_series
from src.core.datasets.tables import read_table, require_files

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    return require_files(raw_dir, ["ratings.dat", "movies.dat"])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    path, items_path = files(raw_dir, config)
    log = read_table(path, "::", {"user": int, "item": int, "rating": float, "time": int})
    items = read_table(items_path, "::", {"item": int, "title": str}, n_columns=3)
    user, item, rating, time = (log.column(name).to_numpy() for name in log.column_names)
    return RawLog(
        users=encode(user),
        items=encode(item),
        timestamps=seconds(time, path),
        ratings=rating.astype(np.float32),
        titles=title_series(items.column("item").to_pylist(), items.column("title").to_pylist(), items_path),
        path=path,
    )
