"""A small valid log in the raw format of every reader, and the ways in which files come damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from src.core.data_utils import DatasetConfig
from tests.conftest import make_dataset_config

USERS, ITEMS, PER_USER = 8, 9, 6
START = 1_500_000_000
Change = Callable[[bytes], bytes]

# (user, item, stars, seconds), each user in time order.
LOG = [
    (u, (u * 2 + j) % ITEMS + 1, 3 + j % 3, START + u * 1000 + j * 60)
    for u in range(1, USERS + 1)
    for j in range(PER_USER)
]
TITLES = {i: f"Movie {i} (199{i})" for i in range(1, ITEMS + 1)}


@dataclass(frozen=True)
class Source:
    """The files of one reader.

    Attributes:
        group: `conf/dataset/<group>.yaml`.
        log, items: file names.
        files: their good content.
        row: number of a line of the log that holds an interaction; `wrong` replaces it.
        wrong: a line with an id or time that is none. what: what the error names.
    """

    group: str
    log: str
    items: str
    files: dict[str, bytes]
    row: int
    wrong: bytes
    what: str


def _table(sep: str, header: str | None = None, last: Callable[[int], str] = str) -> bytes:
    lines = [header] if header else []
    lines += [sep.join((str(u), str(i), str(r), last(t))) for u, i, r, t in LOG]
    return ("\n".join(lines) + "\n").encode()


def _titles(sep: str, after: str = "", header: str | None = None) -> bytes:
    lines = [header] if header else []
    lines += [f"{i}{sep}{title}{after}" for i, title in TITLES.items()]
    return ("\n".join(lines) + "\n").encode()


def _records(rows: list[dict], python: bool = False) -> bytes:
    return "".join((repr(r) if python else json.dumps(r)) + "\n" for r in rows).encode()


def _ilora(rows: list[tuple[list[int], int]]) -> bytes:
    lines = ["seq,len_seq,next"]
    lines += [f'"{[*h, *[ITEMS] * (6 - len(h))]}",{len(h)},{t}' for h, t in rows]
    return ("\n".join(lines) + "\n").encode()


def _sources() -> dict[str, Source]:
    csv20 = "userId,movieId,rating,timestamp"
    out = {
        "csv": Source(
            "csv",
            "interactions.csv",
            "items.csv",
            {
                "interactions.csv": "".join(
                    ["user,item,timestamp\n", *(f"{u},{i},{t}\n" for u, i, _, t in LOG)]
                ).encode(),
                "items.csv": _titles(",", header="item,title"),
            },
            2,
            b"1,3,yesterday",
            "time 'yesterday'",
        ),
        "movielens_100k": Source(
            "movielens",
            "u.data",
            "u.item",
            {"u.data": _table("\t"), "u.item": _titles("|", "|" * 22)},
            1,
            b"1\t3\tfour\t1500000000",
            "line 1: rating is 'four'",
        ),
        "movietweetings": Source(
            "movietweetings",
            "ratings.dat",
            "movies.dat",
            {"ratings.dat": _table("::"), "movies.dat": _titles("::", "::Drama")},
            1,
            b"x::3::4::1500000000",
            "line 1: user is 'x'",
        ),
        "lastfm_hetrec": Source(
            "lastfm_hetrec",
            "user_taggedartists-timestamps.dat",
            "artists.dat",
            {
                "user_taggedartists-timestamps.dat": _table(
                    "\t", "userID\tartistID\ttagID\ttimestamp", lambda t: str(t * 1000)
                ),
                "artists.dat": _titles("\t", "\thttp://x\thttp://y", "id\tname\turl\tpictureURL"),
            },
            2,
            b"1\t3\t4\tnever",
            "line 2: timestamp is 'never'",
        ),
        "steam": Source(
            "steam",
            "steam_reviews.json",
            "steam_games.json",
            {
                "steam_reviews.json": _records(
                    [
                        {"username": f"u{u}", "product_id": str(i), "date": f"2017-{u:02}-{1 + n % 6:02}"}
                        for n, (u, i, _, _) in enumerate(LOG)
                    ],
                    python=True,
                ),
                "steam_games.json": _records(
                    [{"id": str(i), "title": t} for i, t in TITLES.items()], python=True
                ),
            },
            1,
            b"{'username': 'u1', 'product_id': '3', 'date': 'Monday'}",
            "a date is unreadable",
        ),
    }
    for name, group, encoding in (
        ("movielens_1m", "movielens_1m", "latin-1"),
        ("movielens_10m", "movielens_dllm2rec", "utf8"),
    ):
        titles = _titles("::", "::Drama").decode().replace("Movie 1 ", "Cité 1 ").encode(encoding)
        files = {"ratings.dat": _table("::"), "movies.dat": titles}
        out[name] = Source(
            group,
            "ratings.dat",
            "movies.dat",
            files,
            1,
            b"1::3::nan::1500000000",
            "line 1: rating is 'nan'",
        )
    for size in ("20m", "32m"):
        files = {
            "ratings.csv": _table(",", csv20),
            "movies.csv": _titles(",", ",Drama", "movieId,title,genres"),
        }
        out[f"movielens_{size}"] = Source(
            f"movielens_{size}",
            "ratings.csv",
            "movies.csv",
            files,
            2,
            b"1,99999999999999999999,4,1500000000",
            "line 2: movieId is '99999999999999999999'",
        )
    for year, prefix in (("2014", "reviews_"), ("2018", "")):
        log, items = f"{prefix}Video_Games_5.json", "meta_Video_Games.json"
        reviews = [
            {"reviewerID": f"A{u}", "asin": str(i), "overall": float(r), "unixReviewTime": t}
            for u, i, r, t in LOG
        ]
        meta = [{"asin": str(i), "title": t} for i, t in TITLES.items()]
        out[f"amazon_{year}"] = Source(
            f"amazon_games_{year}",
            log,
            items,
            {log: _records(reviews), items: _records(meta, python=year == "2014")},
            1,
            b'{"reviewerID": "A1", "asin": "3", "overall": 4.0, "unixReviewTime": "soon"}',
            "line 1: unixReviewTime is 'soon'",
        )
    histories = {u: [i - 1 for v, i, _, _ in LOG if v == u] for u in range(1, USERS + 1)}
    rows = [(h[:k], h[k]) for h in histories.values() for k in (4, 5)]
    out["ilora"] = Source(
        "lastfm_ilora",
        "train_data.csv",
        "id2name.txt",
        {
            "train_data.csv": _ilora(rows[:12]),
            "Val_data.csv": _ilora(rows[12:14]),
            "Test_data.csv": _ilora(rows[14:]),
            "id2name.txt": "".join(f"{i - 1}::{t}\n" for i, t in TITLES.items()).encode(),
        },
        2,
        b"\"[1, 2, __import__('os')]\",2,3",
        "row 1: seq is not a list of integers",
    )
    return out


SOURCES = _sources()


@cache
def _composed(group: str) -> DatasetConfig:
    return make_dataset_config(group)


def config_of(reader: str, folder: Path) -> DatasetConfig:
    """The shipped settings of the reader, with filters that a log of this size passes."""
    config = replace(
        _composed(SOURCES[reader].group),
        raw_dir=str(folder),
        download=False,
        min_history=1,
        k_core_users=None,
        k_core_items=None,
        missing_titles="error",
        bad_times="error",
    )
    return config if reader == "ilora" else replace(config, split="leave_one_out", repeats="keep")


def write(reader: str, folder: Path, changes: dict[str, Change | None]) -> DatasetConfig:
    """The reader's files in `folder`, some of them changed (None: left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in SOURCES[reader].files.items():
        change = changes.get(name, lambda b: b)
        if change is not None:
            (folder / name).write_bytes(change(content))
    return config_of(reader, folder)


# -- ways to damage a file -------------------------------------------------------------------------------


def line(number: int, text: bytes) -> Change:
    """Replace a line (from 1)."""

    def change(content: bytes) -> bytes:
        lines = content.split(b"\n")
        lines[number - 1] = text
        return b"\n".join(lines)

    return change


def swap(old: bytes, new: bytes, count: int = 1) -> Change:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, count)

    return change


def empty(content: bytes) -> bytes:
    return b""


def only_header(content: bytes) -> bytes:
    return content.split(b"\n")[0] + b"\n"


def without_last_line(content: bytes) -> bytes:
    return b"\n".join(content.rstrip(b"\n").split(b"\n")[:-1]) + b"\n"


def bad_byte(number: int) -> Change:
    """A byte that is no UTF-8, in a line (from 1)."""

    def change(content: bytes) -> bytes:
        lines = content.split(b"\n")
        lines[number - 1] = lines[number - 1][:-1] + b"\xff" + lines[number - 1][-1:]
        return b"\n".join(lines)

    return change
