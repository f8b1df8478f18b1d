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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """A log and its items.

    Attributes:
        log, items: file names; of the user's own files also folders and patterns.
        columns: of the log, by their names in the file; user and item come first.
        roles: what the columns are, in the same order.
        item_columns: id and title.
        log_form, items_form: how the files are written.
        clean: makes a title of what the file has.
        unit: of times that are numbers; None: told by their size.
    """

    log: str
    items: str
    columns: Mapping[str, type]
    roles: Sequence[str]
    item_columns: Mapping[str, type]
    log_form: Form
    items_form: Form
    clean: Callable[[str], str] = str
    unit: str | None = None


_ROLES = ("user", "item", "rating", "timestamp")
_RATINGS: dict[str, type] = {"userId": int, "movieId": int, "rating": float, "timestamp": int}
_PLAIN = ("user", "item", "rating", "time")  # what messages call the columns of a file without a header
_ITEMS: dict[str, type] = {"movieId": int, "title": str}


def _movielens(
    log: str, items: str, log_form: Form, items_form: Form, clean: Callable[[str], str] = clean_title
) -> _Source:
    named = _RATINGS if log_form.header else dict(zip(_PLAIN, _RATINGS.values(), strict=True))
    return _Source(log, items, named, _ROLES, _ITEMS, log_form, items_form, clean)


_DAT = ("ratings.dat", "movies.dat", Form("::"))
_CSV = _movielens("ratings.csv", "movies.csv", Form(header=True), Form(header=True, quoted=True))
_SOURCES = {
    "movielens_100k": _movielens("u.data", "u.item", Form("\t"), Form("|", encoding="latin-1", width=24)),
    "movielens_1m": _movielens(*_DAT, Form("::", encoding="latin-1", width=3)),
    "movielens_10m": _movielens(*_DAT, Form("::", width=3)),
    "movielens_20m": _CSV,
    "movielens_32m": _CSV,
    "movietweetings": _movielens(*_DAT, Form("::", width=3), clean=str),
    "lastfm_hetrec": _Source(
        "user_taggedartists-timestamps.dat",
        "artists.dat",
        {"userID": int, "artistID": int, "tagID": int, "timestamp": int},
        ("user", "item", "tag", "timestamp"),
        {"id": int, "name": str},
        Form("\t", header=True),
        Form("\t", header=True),
        unit="ms",
    ),
}


def _own(csv: CsvConfig) -> _Source:
    """The user's own files as their settings describe them."""
    kinds = {"user": Id, "item": Id, "timestamp": Time, "rating": float}
    names = {role: name for role in kinds if (name := getattr(csv, role)) is not None}

    def form(names: Mapping[str, str]) -> Form:
        keys = {name: f"dataset.csv.{role}" for role, name in names.items()}
        if "timestamp" in names:
            keys[names["timestamp"]] += " (null: no times, the file's order counts)"
        keys |= {key: f"dataset.csv.{key}" for key in ("separator", "quoting", "encoding")}
        return Form(csv.sep, quoted=csv.quoting, encoding=csv.codec, keys=keys)

    return _Source(
        csv.interactions,
        csv.items,
        {name: kinds[role] for role, name in names.items()},
        tuple(names),
        {csv.item_id: Id, csv.title: str},
        form(names),
        form({"item_id": csv.item_id, "title": csv.title}),
        lambda title: "" if title in NO_TEXT else title,
        csv.time_unit,
    )


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    log, items = _paths(raw_dir, config)
    return [*log, *items]


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    source = _SOURCES[config.reader] if config.csv is None else _own(config.csv)
    read_one = read_table if config.csv is None else read_any
    paths, items_paths = _paths(raw_dir, config)
    table, parts = _join(paths, [read_one(path, source.columns, source.log_form) for path in paths])
    columns = dict(zip(source.roles, table.columns, strict=True))

    def at(row: int) -> str:
        return place(parts, row)

    times, resolution = np.zeros(table.num_rows, np.int64), 1
    if "timestamp" in columns:
        key = str(paths[0]) if config.csv is None else "dataset.csv.timestamp"
        times, resolution = ticks(columns["timestamp"], at, source.unit, key)
    users, items = (
        encode(tidy_ids(columns[role], at, f"the {role} id", f"dataset.csv.{role}"))
        for role in ("user", "item")
    )
    if config.reader == "lastfm_hetrec":  # pictures are missing in some rows, with or without their tab
        rows = read_lines(items_paths[0], "\t", least=2, header=True)
        ids, titles = [row[0] for row in rows], [row[1] for row in rows]
    else:
        tables = [read_one(path, source.item_columns, source.items_form) for path in items_paths]
        ids, titles = (column.to_pylist() for column in _join(items_paths, tables)[0].columns)
    return RawLog(
        users=users,
        items=items,
        timestamps=times,
        ratings=columns["rating"].to_numpy().astype(np.float32) if "rating" in columns else None,
        titles=title_series(ids, [source.clean(title) for title in titles], items_paths[0]),
        path=paths[0],
        resolution=resolution,
        parts=parts,
    )


def _join(paths: list[Path], tables: list[pa.Table]) -> tuple[pa.Table, tuple[tuple[Path, int], ...]]:
    """The rows of all parts, one after the other, and how many each has."""
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as e:
        found = f"{paths[0].parent}: parts differ: {e}"
        raise UserError(found, "columns of the same types", "dataset.csv") from None
    return table, tuple((path, t.num_rows) for path, t in zip(paths, tables, strict=True))


def _paths(raw_dir: Path, config: DatasetConfig) -> tuple[list[Path], list[Path]]:
    """Files of the log and of the items."""
    if config.csv is not None:
        return _parts(raw_dir, config.csv.interactions), _parts(raw_dir, config.csv.items)
    source = _SOURCES[config.reader]
    log, items = require_files(raw_dir, [source.log, source.items])
    return [log], [items]


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
