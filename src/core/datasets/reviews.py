"""Reviews with one record per line: Amazon (5-core of 2014 and 2018) and Steam, with the titles of their products.

Amazon 2014: R. He, J. McAuley: Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class
Collaborative Filtering. WWW 2016. 2018: J. Ni, J. Li, J. McAuley: Justifying Recommendations using
Distantly-Labeled Reviews and Fine-Grained Aspects. EMNLP 2019. Steam: W.-C. Kang, J. McAuley: Self-Attentive
Sequential Recommendation. ICDM 2018; Python literals, days as times, a user is a `username` as in that paper.
No licence is stated; research use with citation.
"""

from __future__ import annotations

import ast
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from src.core.datasets.columns import Id, require_files
from src.core.datasets.config import DatasetConfig
from src.core.datasets.raw_log import RawLog, encode, place, title_series
from src.core.datasets.sources import amazon_files
from src.core.datasets.tables import existing, read_json, records
from src.core.datasets.times import ticks
from src.core.errors import UserError
from src.core.logging import progress

_MARKUP = ("<span", "<div", "var aPageStart")  # pages that the crawl of 2018 took for a title
_CHUNK = 1_000_000
_REVIEW: dict[str, type] = {"reviewerID": Id, "asin": Id, "overall": float, "unixReviewTime": int}
_STEAM = ("username", "product_id", "date")


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    names = ("steam_reviews.json.gz", "steam_games.json.gz")
    if config.amazon is not None:
        names = amazon_files(config.reader, config.amazon.category)
    return require_files(raw_dir, [existing(raw_dir, name) for name in names])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    path, items_path = files(raw_dir, config)
    ratings = None
    if config.reader == "steam":
        users, items, days = _packed(path)
        times, resolution = _days(days, path), 1
        ids, titles = _titles(items_path, "id", ("title", "app_name"), ast.literal_eval)
    else:
        log = _reviews(path)
        users, items = log["reviewerID"], log["asin"]
        parts = ((path, log.num_rows),)
        times, resolution = ticks(log["unixReviewTime"], lambda row: place(parts, row), key=str(path))
        ratings = log["overall"].to_numpy().astype(np.float32)
        parse = ast.literal_eval if config.reader == "amazon_2014" else json.loads
        ids, found = _titles(items_path, "asin", ("title",), parse)
        titles = [clean_title(t) for t in found]
    return RawLog(
        users=encode(users),
        items=encode(items),
        timestamps=times,
        ratings=ratings,
        titles=title_series(ids, titles, items_path),
        path=path,
        resolution=resolution,
    )


def clean_title(title: str | None) -> str | None:
    """Decode HTML entities; no title where the page's code stands in its place, or a single character (BIGRec)."""
    if title is None or len(title) <= 1 or any(mark in title for mark in _MARKUP):
        return None
    return html.unescape(title)


def _reviews(path: Path) -> pa.Table:
    try:
        return read_json(path, _REVIEW)
    except UserError:
        allowed: Any = {int: int, float: (int, float), Id: str}
        for number, record in records(path, json.loads, "JSON"):  # where it stands
            for name, kind in _REVIEW.items():
                value = record.get(name)
                if not isinstance(value, allowed[kind]) or isinstance(value, bool):
                    raise UserError(
                        f"{path} line {number}: {name} is {value!r}", f"a {name} in every record", str(path)
                    ) from None
        raise


def _titles(
    path: Path, key: str, fields: tuple[str, ...], parse: Callable[[str], Any]
) -> tuple[list[str], list[str | None]]:
    """Ids and titles of products; the first field that is a text is the title. Steam lists some without an id."""
    what = "JSON" if parse is json.loads else "a Python literal"
    ids, titles = [], []
    for number, record in progress(records(path, parse, what), path.name, unit="line"):
        found = record.get(key)
        if not isinstance(found, str):
            if key == "id" and found is None:
                continue
            raise UserError(f"{path} line {number}: {key} is {found!r}", f"an {key}", str(path))
        ids.append(found)
        titles.append(next((t for f in fields if isinstance(t := record.get(f), str) and t), None))
    return ids, titles


def _packed(path: Path) -> list[pa.ChunkedArray]:
    """User, item, day of every review, packed every million rows (Python texts are ten times as large)."""
    waiting: list[tuple] = []
    chunks: list[list[pa.Array]] = [[], [], []]

    def pack() -> None:
        for chunk, column in zip(chunks, zip(*waiting, strict=True), strict=True):
            chunk.append(pa.array(column, pa.string()).dictionary_encode())
        waiting.clear()

    rows = progress(records(path, ast.literal_eval, "a Python literal"), path.name, unit="line")
    for row, (_, record) in enumerate(rows, start=1):
        values = tuple(record.get(name) for name in _STEAM)
        for name, value in zip(_STEAM, values, strict=True):
            if not isinstance(value, str):
                found = f"no {name}" if value is None else f"{name} is {value!r}"
                raise UserError(f"{path} review {row}: {found}", "a username, product_id and date", str(path))
        waiting.append(values)
        if len(waiting) == _CHUNK:
            pack()
    if waiting:
        pack()
    if not chunks[0]:
        raise UserError(f"{path} has no rows", "reviews", str(path))
    return [pa.chunked_array(chunk) for chunk in chunks]


def _days(days: pa.ChunkedArray, path: Path) -> np.ndarray:
    coded = encode(days)
    try:
        values = np.array(coded.values.astype(str), dtype="datetime64[D]")
    except ValueError as e:
        raise UserError(f"{path}: a date is unreadable ({e})", "YYYY-MM-DD", str(path)) from None
    return values.astype("datetime64[s]").astype(np.int64)[coded.codes]
