"""Logs in two tables, the interactions and the titles: each source is a line of `_SOURCES`, the user's own of settings.

MovieLens (GroupLens terms: research use, acknowledge, do not redistribute): F. M. Harper, J. A. Konstan: The
MovieLens Datasets: History and Context. ACM TiiS 5, 4 (2015).
MovieTweetings (MIT): S. Dooms, T. De Pessemier, L. Martens: MovieTweetings: a Movie Rating Dataset Collected
From Twitter. CrowdRec at RecSys 2013. Ratings 0-10.
Last.fm of HetRec 2011 (non-commercial): I. Cantador, P. Brusilovsky, T. Kuflik. HetRec at RecSys 2011. Tag
assignments in the order of their times (milliseconds, by month; some lie before 1970); a user tags an artist with
several tags at once: `dataset.repeats=first` keeps one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from src.core.datasets.columns import Id, Time, require_files
from src.core.datasets.config import CsvConfig, DatasetConfig
from src.core.datasets.raw_log import NO_TEXT, RawLog, encode, place, tidy_ids, title_series
from src.core.datasets.tables import ENDINGS, READABLE, ending, read_any
from src.core.datasets.text_table import Form, read_lines, read_table
from src.core.datasets.times import ticks
from src.core.errors import UserError

_ARTICLE = re.compile(r"^(?P<name>.+), (?P<article>The|A|An)(?P<year> \(\d{4}\))?$")


def clean_title(title: str) -> str:
    """Move a trailing article to the front: "Usual Suspects, The (1995)" -> "The Usual Suspects (1995)"."""
    match = _ARTICLE.match(title.strip())
    if not match:
        return title.strip()
    return f"{match['article']} {match['name']}{match['year'] or ''}"


@dataclass(frozen=True)
class _Source:
    """Two files of fixed form; columns: `user`, `item`, and where it has them `rating`, `time`, `title`."""

    log: str
    items: str
    columns: Mapping[str, type]
    log_form: Form
    items_form: Form
    names: Mapping[str, str] = field(default_factory=dict)  # column -> its name in the files
    clean: Callable[[str], str] = str
    unit: str | None = None


_RATINGS: dict[str, type] = {"user": int, "item": int, "rating": float, "time": int}
_ML = {"user": "userId", "item": "movieId", "time": "timestamp"}


def _movielens(log: str, items: str, sep: str, items_form: Form, header: bool = False) -> _Source:
    return _Source(log, items, _RATINGS, Form(sep, header), items_form, _ML, clean_title)


_DAT = ("ratings.dat", "movies.dat", "::")
_CSV = _movielens("ratings.csv", "movies.csv", ",", Form(",", header=True, quoted=True), header=True)
_SOURCES = {
    "movielens_100k": _movielens("u.data", "u.item", "\t", Form("|", encoding="latin-1", width=24)),
    "movielens_1m": _movielens(*_DAT, Form("::", encoding="latin-1", width=3)),
    "movielens_10m": _movielens(*_DAT, Form("::", width=3)),
    "movielens_20m": _CSV,
    "movielens_32m": _CSV,
    "movietweetings": _Source(*_DAT[:2], _RATINGS, Form("::"), Form("::", width=3)),
    "lastfm_hetrec": _Source(
        "user_taggedartists-timestamps.dat",
        "artists.dat",
        {"user": int, "item": int, "tag": int, "time": int},
        Form("\t", header=True),
        Form("\t", header=True),
        {"user": "userID", "item": "artistID", "tag": "tagID", "time": "timestamp"},
        unit="ms",
    ),
}


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    if config.csv is not None:
        return [
            p for pattern in (config.csv.interactions, config.csv.items) for p in _parts(raw_dir, pattern)
        ]
    source = _SOURCES[config.reader]
    return require_files(raw_dir, [source.log, source.items])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    if config.csv is not None:
        return _read_own(raw_dir, config.csv)
    source = _SOURCES[config.reader]
    path, items_path = files(raw_dir, config)
    wanted = {source.names.get(name, name): kind for name, kind in source.columns.items()}
    table = read_table(path, wanted, source.log_form).rename_columns(list(source.columns))
    if config.reader == "lastfm_hetrec":  # pictures are missing in some rows, with or without their tab
        rows = read_lines(items_path, "\t", least=2, header=True)
        ids, titles = [row[0] for row in rows], [row[1] for row in rows]
    else:
        item = source.names.get("item", "item")
        items = read_table(items_path, {item: int, "title": str}, source.items_form)
        ids, titles = items.column(item).to_pylist(), [
            source.clean(t) for t in items.column("title").to_pylist()
        ]
    parts = ((path, table.num_rows),)
    times, resolution = ticks(table["time"].to_numpy(), lambda row: place(parts, row), source.unit, str(path))
    rating = table["rating"].to_numpy().astype(np.float32) if "rating" in source.columns else None
    return RawLog(
        users=encode(table["user"].to_numpy()),
        items=encode(table["item"].to_numpy()),
        timestamps=times,
        ratings=rating,
        titles=title_series(ids, titles, items_path),
        path=path,
        resolution=resolution,
    )


# -- the user's own files --------------------------------------------------------------------------------


def _parts(folder: Path, pattern: str) -> list[Path]:
    """The files that a setting names: one, those of a folder, or those that a pattern (`part-*.csv`) finds.

    Numbers in names count as numbers: part-2 comes before part-10.
    """
    path = folder / pattern
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file() and p.name[0] not in "._"]
        if unread := sorted(p.name for p in found if ending(p) not in READABLE):
            raise UserError(f"{path} holds {unread[0]}", f"only tables ({ENDINGS})", "dataset.csv")
    elif any(sign in pattern for sign in "*?["):
        found = [p for p in folder.glob(pattern) if p.is_file()]
    else:
        return require_files(folder, [pattern])
    if not found:
        raise UserError(f"{path} names no file", f"tables ({ENDINGS})", "dataset.csv or dataset.raw_dir")
    names = [str(p.relative_to(folder)) for p in found]
    return require_files(folder, sorted(names, key=lambda n: [(len(d), d) for d in re.split(r"(\d+)", n)]))


def _read_own(raw_dir: Path, form: CsvConfig) -> RawLog:
    columns: dict[str, type] = {form.user: Id, form.item: Id}
    keys = {form.user: "dataset.csv.user", form.item: "dataset.csv.item"}
    if form.timestamp is not None:
        columns[form.timestamp] = Time
        keys[form.timestamp] = "dataset.csv.timestamp (null: no times, the file's order counts)"
    if form.rating is not None:
        columns[form.rating] = float
        keys[form.rating] = "dataset.csv.rating"
    paths = _parts(raw_dir, form.interactions)
    table, parts = _table(paths, columns, form, keys)

    def at(row: int) -> str:
        return place(parts, row)

    times, resolution = np.zeros(table.num_rows, np.int64), 1
    if form.timestamp is not None:
        times, resolution = ticks(table[form.timestamp], at, form.time_unit, "dataset.csv.timestamp")
    users, items = (
        encode(tidy_ids(table[name], at, f"the {what} id", keys[name]))
        for name, what in ((form.user, "user"), (form.item, "item"))
    )
    item_keys = {form.item_id: "dataset.csv.item_id", form.title: "dataset.csv.title"}
    items_paths = _parts(raw_dir, form.items)
    names, _ = _table(items_paths, {form.item_id: Id, form.title: str}, form, item_keys)
    titles = [None if t in NO_TEXT else t for t in names[form.title].to_pylist()]
    return RawLog(
        users=users,
        items=items,
        timestamps=times,
        ratings=None if form.rating is None else table[form.rating].to_numpy().astype(np.float32),
        titles=title_series(names[form.item_id].to_pylist(), titles, items_paths[0]),
        path=paths[0],
        resolution=resolution,
        parts=parts,
    )


def _table(
    paths: list[Path], columns: Mapping[str, type], form: CsvConfig, keys: Mapping[str, str]
) -> tuple[pa.Table, tuple[tuple[Path, int], ...]]:
    """The rows of all parts, one after the other, and how many each has."""
    keys = {**keys, **{key: f"dataset.csv.{key}" for key in ("separator", "quoting", "encoding")}}
    text = Form(form.sep, quoted=form.quoting, encoding=form.codec, keys=keys)
    tables = [read_any(path, columns, text) for path in paths]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as e:
        raise UserError(
            f"{paths[0].parent}: parts differ: {e}", "columns of the same types", "dataset.csv"
        ) from None
    return table, tuple((path, t.num_rows) for path, t in zip(paths, tables, strict=True))
