"""MovieLens 100K, 1M, 10M, 20M, 32M as GroupLens ships them.

GroupLens terms: research use, acknowledge, do not redistribute. F. M. Harper, J. A. Konstan: The
MovieLens Datasets: History and Context. ACM TiiS 5, 4 (2015).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.datasets import RawLog, encode, seconds, title_series
from src.core.datasets.tables import read_table, require_files

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

_ARTICLE = re.compile(r"^(?P<name>.+), (?P<article>The|A|An)(?P<year> \(\d{4}\))?$")


@dataclass(frozen=True)
class _Format:
    log: str
    items: str
    sep: str
    items_sep: str
    items_width: int
    encoding: str
    header: bool = False


_FORMATS = {
    "movielens_100k": _Format("u.data", "u.item", "\t", "|", 24, "latin-1"),
    "movielens_1m": _Format("ratings.dat", "movies.dat", "::", "::", 3, "latin-1"),
    "movielens_10m": _Format("ratings.dat", "movies.dat", "::", "::", 3, "utf8"),
    "movielens_20m": _Format("ratings.csv", "movies.csv", ",", ",", 3, "utf8", header=True),
    "movielens_32m": _Format("ratings.csv", "movies.csv", ",", ",", 3, "utf8", header=True),
}


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    form = _FORMATS[config.reader]
    return require_files(raw_dir, [form.log, form.items])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    form = _FORMATS[config.reader]
    path, items_path = files(raw_dir, config)
    names = ("userId", "movieId", "rating", "timestamp")
    columns = dict(zip(names, (int, int, float, int), strict=True))
    log = read_table(path, form.sep, columns, header=form.header)
    items = read_table(
        items_path,
        form.items_sep,
        {"movieId": int, "title": str},
        n_columns=form.items_width,
        encoding=form.encoding,
        header=form.header,
        quoted=form.header,
    )
    user, item, rating, time = (log.column(name).to_numpy() for name in names)
    titles = [clean_title(t) for t in items.column("title").to_pylist()]
    return RawLog(
        users=encode(user),
        items=encode(item),
        timestamps=seconds(time, path),
        ratings=rating.astype(np.float32),
        titles=title_series(items.column("movieId").to_pylist(), titles, items_path),
        path=path,
    )


def clean_title(title: str) -> str:
    """Move a trailing article to the front: "Usual Suspects, The (1995)" -> "The Usual Suspects (1995)"."""
    match = _ARTICLE.match(title.strip())
    if not match:
        return title.strip()
    return f"{match['article']} {match['name']}{match['year'] or ''}"
