"""Steam reviews and games (`steam_reviews.json.gz`, `steam_games.json.gz`): Python literals, days as times.

W.-C. Kang, J. McAuley: Self-Attentive Sequential Recommendation. ICDM 2018. No licence is stated;
research use with citation. A user is a `username`, as in that paper; hours and texts are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from src.core.datasets import RawLog, encode, title_series
from src.core.datasets.jsonl import existing, read_literals
from src.core.datasets.tables import require_files
from src.core.errors import UserError

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

_CHUNK = 1_000_000


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    names = ("steam_reviews.json.gz", "steam_games.json.gz")
    return require_files(raw_dir, [existing(raw_dir, name) for name in names])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    path, items_path = files(raw_dir, config)
    users, items, days = _columns(path)
    games = [
        (i, t or name)
        for i, t, name in read_literals(items_path, ("id", "title", "app_name"))
        if i is not None
    ]
    return RawLog(
        users=encode(users),
        items=encode(items),
        timestamps=_seconds(days, path),
        ratings=None,
        titles=title_series([i for i, _ in games], [t for _, t in games], items_path),
        path=path,
    )


def _columns(path: Path) -> list[pa.ChunkedArray]:
    """User, item, day of every review, packed every million rows (Python texts are ten times as large)."""
    names = ("username", "product_id", "date")
    waiting: list[tuple] = []
    chunks: list[list[pa.Array]] = [[], [], []]

    def pack() -> None:
        for chunk, column in zip(chunks, zip(*waiting, strict=True), strict=True):
            chunk.append(pa.array(column, pa.string()).dictionary_encode())
        waiting.clear()

    for row, record in enumerate(read_literals(path, names), start=1):
        if None in record:
            name = names[record.index(None)]
            raise UserError(f"{path} review {row}: no {name}", "a username, product_id and date", str(path))
        waiting.append(record)
        if len(waiting) == _CHUNK:
            pack()
    if waiting:
        pack()
    if not chunks[0]:
        raise UserError(f"{path} has no rows", "reviews", str(path))
    return [pa.chunked_array(chunk) for chunk in chunks]


def _seconds(days: pa.ChunkedArray, path: Path) -> np.ndarray:
    coded = encode(days)
    try:
        values = np.array(coded.values.astype(str), dtype="datetime64[D]")
    except ValueError as e:
        raise UserError(f"{path}: a date is unreadable ({e})", "YYYY-MM-DD", str(path)) from None
    return values.astype("datetime64[s]").astype(np.int64)[coded.codes]
