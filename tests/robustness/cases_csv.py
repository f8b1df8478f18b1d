"""The user's own logs that are not what they seem: each is refused with the file, the row and the key."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from src.core.data_utils import load_dataset
from tests.conftest import make_dataset_config
from tests.robustness.cases import Box, Case

START = 1_500_000_000
ROWS = [(f"u{u}", f"i{(u * 2 + n) % 9}", START + u * 1000 + n * 60) for u in range(8) for n in range(6)]
TITLES = {f"i{i}": f"Title {i}" for i in range(9)}
Table = list[tuple]


def text(rows: Table, header: str = "user,item,timestamp", sep: str = ",") -> str:
    return "\n".join([header.replace(",", sep), *(sep.join(map(str, row)) for row in rows)]) + "\n"


LOG, ITEMS = text(ROWS), text(list(TITLES.items()), "item,title")


def with_row(*values: object) -> str:
    """The log with another second row (line 3)."""
    return text([ROWS[0], values, *ROWS[2:]])


def column(number: int, change: Callable[[object], object]) -> str:
    return text([tuple(change(v) if i == number else v for i, v in enumerate(row)) for row in ROWS])


def csv_case(
    name: str,
    log: str | bytes | None,
    *says: str,
    items: str | bytes = ITEMS,
    over: tuple[str, ...] = (),
    files: dict[str, str | bytes] | None = None,
    **config: object,
) -> Case:
    """A log (None: not written) and items that `dataset=csv` with these overrides must refuse."""

    def run(box: Box) -> None:
        raw = box.folder / "raw"
        for path, content in {"interactions.csv": log, "items.csv": items, **(files or {})}.items():
            if content is not None:
                target = raw / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content if isinstance(content, bytes) else content.encode())
        overrides = (f"dataset.raw_dir={raw}", "dataset.split=leave_one_out", *over)
        load_dataset(replace(make_dataset_config("csv", *overrides), **config))

    return Case(f"own log: {name}", run, says)


def _ids() -> Iterator[Case]:
    user, item = "dataset.csv.user", "dataset.csv.item"
    yield csv_case(
        "a blank user", with_row("", "i3", START), "interactions.csv row 2", "user id is blank", user
    )
    yield csv_case("a user of blanks", with_row("  ", "i3", START), "row 2: the user id is blank", user)
    yield csv_case("a no-break space as user", with_row("\u00a0", "i3", START), "row 2: the user id is blank")
    yield csv_case("a blank item", with_row("u1", "", START), "row 2: the item id is blank", item)
    for word in ("nan", "NaN", "None", "null", "NULL", "<NA>", "\\N"):
        yield csv_case(f"{word} as user", with_row(word, "i3", START), "row 2", "a missing value", user)
    yield csv_case("null as item", with_row("u1", "null", START), "row 2: the item id is 'null'", item)
    blank = ITEMS.replace("i4,Title 4", " ,Title 4")
    yield csv_case("a blank id of an item", LOG, "items.csv row 5: the item id is blank", items=blank)
    numbers = column(1, lambda v: str(v)[1:])
    numbered = text([(i, f"Title {i}") for i in range(9)], "item,title")
    for name, change, left in (
        ("decimals in the log", lambda v: f"{str(v)[1:]}.0", "'0.0'"),
        ("zeros in the log", lambda v: f"000{str(v)[1:]}", "'0000'"),
    ):
        for titles in ("drop", "id", "error"):
            yield csv_case(
                f"{name}, missing_titles={titles}",
                column(1, change),
                *("interactions.csv", left, "'0' in the items file", "dataset.csv.item_id"),
                items=numbered,
                missing_titles=titles,
            )
    padded = text([(f"{i:03}", f"Title {i}") for i in range(9)], "item,title")
    yield csv_case("zeros in the items", numbers, "'0' stands in the log", "'000' in the items", items=padded)
    decimal = text([(f"{i}.0", f"Title {i}") for i in range(9)], "item,title")
    yield csv_case("decimals in the items", numbers, "'0.0' in the items file", items=decimal)
    some = LOG.replace(",i4,", ",I4,")
    yield csv_case("one id in another case", some, "'I4' stands in the log", "'i4' in the items file")
    wide = LOG.replace(",i4,", ",ｉ4,")
    yield csv_case("one id in full width", wide, "stands in the log, 'i4' in the items file")
    other = text([(f"x{i}", "T") for i in range(9)], "item,title")
    yield csv_case("ids that never meet", LOG, "'i0' stands in the log", "'x0' in the items", items=other)
    yield csv_case(
        "12 and 12.0", with_row("u1", "7", START).replace("i3,", "7.0,"), "7.0", "one notation", item
    )
    few = text(list(TITLES.items())[:3], "item,title")
    share = ("items have no title", "% of the interactions", "at most 10.0%", "dataset.max_untitled")
    yield csv_case("six of nine items without a title", LOG, *share, items=few)
    empty = text([(i, "" if i > "i2" else t) for i, t in TITLES.items()], "item,title")
    yield csv_case("six of nine titles blank", LOG, *share, items=empty)
    missing = text([(i, "nan" if i > "i2" else t) for i, t in TITLES.items()], "item,title")
    yield csv_case("six of nine titles nan", LOG, *share, items=missing)
    yield csv_case("a third, with a smaller share", LOG, "at most 1.0%", items=few, max_untitled=0.01)


def _times() -> Iterator[Case]:
    key = "dataset.csv.timestamp"
    unit = ("row 2", "another unit", "dataset.csv.time_unit")
    yield csv_case("a time in ms", with_row("u0", "i1", START * 1000), *unit, key)
    yield csv_case("a time in ns", with_row("u0", "i1", START * 10**9), *unit)
    millis = column(2, lambda v: int(str(v)) * 1000)
    yield csv_case("a time in s among ms", millis.replace(f"{START}000", str(START), 1), "row 1", *unit[1:])
    yield csv_case("a zero among ms", millis.replace(f"{START}000", "0", 1), "row 1: time 0", *unit[1:])
    halves = column(2, lambda v: f"{int(str(v)) * 1000}.5")
    yield csv_case("decimals in two units", halves.replace(f"{START}000.5", f"{START}.5"), *unit[1:])
    yield csv_case("ms said to be s", millis, "row 1", "another unit", over=("dataset.csv.time_unit=s",))
    yield csv_case("days as numbers", column(2, lambda v: 20200101), "reads like a date", key)
    yield csv_case("moments as numbers", column(2, lambda v: 20200101123000), "reads like a date", key)
    yield csv_case("no time", with_row("u0", "i1", ""), "row 2: time ''", "a number or ISO 8601", key)
    yield csv_case("nan as time", with_row("u0", "i1", "nan"), "row 2: time 'nan'", key)
    iso = column(2, lambda v: "2020-01-01T00:00:00")
    for name, value in (
        ("the 30th of February", "2020-02-30T00:00:00"),
        ("an American date", "01/31/2020"),
        ("a month in words", "Jan 31 2020"),
        ("the 25th hour", "2020-01-01T25:00:00"),
        ("a year alone with a dash", "2020-"),
    ):
        bad = iso.replace("2020-01-01T00:00:00", value, 1)
        yield csv_case(f"{name} as time", bad, f"row 1: time '{value}'", "ISO 8601", key)
    zoned = iso.replace("00:00\n", "00:00Z\n", 1)
    yield csv_case("one time with a zone", zoned, "partly without a zone", "one notation", key)
    same, cut = column(2, lambda v: START), {"split": "global_time"}
    yield csv_case("all times equal", same, "all 40 samples have the same time", key, **cut)
    none = text([row[:2] for row in ROWS], "user,item")
    yield csv_case("no column of times", none, "the columns user, item", f"{key} (null: no times")
    null = ("dataset.csv.timestamp=null", "dataset.split=global_time")
    yield csv_case(
        "a cut by time without times", none, "split: found global_time", "leave_one_out", over=null
    )


def _columns() -> Iterator[Case]:
    for role, name in (("user", "item"), ("timestamp", "item"), ("rating", "user"), ("user", "ITEM ")):
        over = (f"dataset.csv.{role}='{name}'",)
        yield csv_case(f"{role}={name}", LOG, "the column of", "a column of its own", over=over)
    over = ("dataset.csv.title=item",)
    yield csv_case("ids as titles", LOG, "title: found 'item'", "a column of its own", over=over)
    twice = LOG.replace("user,item,timestamp", "user,user,timestamp")
    yield csv_case("a column twice", twice, "has the column user 2 times", "dataset.csv.user")
    cases = LOG.replace("user,item,timestamp", "User,USER,timestamp")
    yield csv_case("a column in two cases", cases, "has the column user 2 times", "dataset.csv.user")
    semicolons = text(ROWS, sep=";")
    yield csv_case("semicolons", semicolons, "the columns user;item;timestamp", "dataset.csv.separator (';'")
    yield csv_case("no header", text(ROWS[1:], "u0,i0,5"), "the columns u0, i0, 5", "dataset.csv.user")
    over = ("dataset.csv.separator=';;'",)
    yield csv_case("a separator of two", LOG, "separator: found ';;'", "one character", over=over)
    over = ("dataset.csv.separator='\"'",)
    yield csv_case("a quote as separator", LOG, "separator: found", "one character", over=over)
    over = ("dataset.csv.rating=stars",)
    comma = text([(*row, "4,5") for row in ROWS], "user,item,timestamp,stars", ";")
    yield csv_case(
        "a decimal comma",
        comma,
        *("line 2", "stars is '4,5'", "dataset.csv.rating"),
        items=ITEMS.replace(",", ";"),
        over=(*over, "dataset.csv.separator=';'"),
    )


def _text() -> Iterator[Case]:
    quoting = "dataset.csv.quoting"
    weird = ITEMS.replace("Title 3", '"Weird" title')
    yield csv_case("text after a quote", LOG, "items.csv line 5", "well-formed quotes", quoting, items=weird)
    opened = ITEMS.replace("Title 3", '"Title 3')
    yield csv_case("a quote left open", LOG, "items.csv line 5", quoting, items=opened)
    swallowed = LOG.replace("u1,i2", '"u1,i2', 1).replace(",i5,", '",i5,', 1)
    yield csv_case("a quote that swallows a row", swallowed, "interactions.csv line", quoting)
    broken = LOG.replace("u1,i2", '"u1\nx",i2', 1)
    yield csv_case("an id over two lines", broken, "user holds a line break", quoting)
    latin = ITEMS.replace("Title 3", "Täter").encode("latin-1")
    yield csv_case("Latin-1", LOG, "items.csv line 5: byte 0xe4", "dataset.csv.encoding", items=latin)
    over = ("dataset.csv.encoding=latin-1",)
    utf8 = ITEMS.replace("Title 3", "Täter")
    yield csv_case("UTF-8 read as Latin-1", LOG, "line 5: the text is UTF-8", over=over, items=utf8)
    over = ("dataset.csv.encoding=cp932",)
    half = ITEMS.encode() + b"i9,\x81"
    yield csv_case("half a character", LOG, "items.csv line 11: byte 0x81", over=over, items=half)
    over = ("dataset.csv.encoding=utf-16",)
    yield csv_case("no UTF-16", LOG, "interactions.csv", "text in utf-16", over=over)
    header = LOG.replace("user", "usér").encode("latin-1")
    yield csv_case("a header in Latin-1", header, "interactions.csv has the columns", "a column user")
    escape = with_row("\x1b[31mred\x07", "i3", "soon")
    yield csv_case("control bytes", escape.replace("soon", "\x1b]0;x\x07"), r"time '\x1b]0;x\x07'")


def _files() -> Iterator[Case]:
    over = ("dataset.csv.interactions=log",)
    packed = gzip.compress(LOG.encode())
    yield csv_case("an empty folder", None, "log names no file", over=over, files={"log/.x": ""})
    yield csv_case(
        "a folder with a text", None, "log holds readme.md", over=over, files={"log/readme.md": "x"}
    )
    parts = {"log/a.csv": LOG, "log/b.csv": text(ROWS, "who,item,timestamp")}
    yield csv_case("a part with other columns", None, "b.csv has the columns who", over=over, files=parts)
    parts = {"log/a.csv": LOG, "log/b.csv": with_row("u9", "i1", "soon")}
    yield csv_case("a bad time in the second part", None, "b.csv row 2: time 'soon'", over=over, files=parts)
    parts = {"log/a.csv": LOG, "log/b.csv": with_row("", "i1", START)}
    yield csv_case("a blank user in the second part", None, "b.csv row 2: the user", over=over, files=parts)
    over = ("dataset.csv.interactions='part-*.csv'",)
    yield csv_case("a pattern of nothing", None, "part-*.csv names no file", "dataset.raw_dir", over=over)
    over = ("dataset.csv.interactions=log.csv.gz",)
    cut = {"log.csv.gz": packed[: len(packed) // 2]}
    yield csv_case("half a packed log", None, "log.csv.gz cannot be read", over=over, files=cut)
    yield csv_case("a packed log that is none", None, "log.csv.gz", over=over, files={"log.csv.gz": LOG})
    gz = {"interactions.csv.gz": packed}
    yield csv_case("only a packed log", None, "(interactions.csv.gz is there)", "dataset.raw_dir", files=gz)
    over = ("dataset.csv.interactions=log.jsonl",)
    good = '{"user": "a", "item": "i1", "timestamp": 5}\n'
    for name, line, says in (
        ("no JSON", "{user: 1}", ("line 2", "JSON")),
        ("a list", "[1]", ("line 2", "no record")),
        ("no time", '{"user": "a", "item": "i1"}', ("row 2: timestamp is null", "dataset.csv.timestamp")),
        ("another type", '{"user": 7, "item": "i1", "timestamp": 5}', ("log.jsonl cannot be read",)),
    ):
        jsonl = {"log.jsonl": good + line + "\n"}
        yield csv_case(f"JSON lines: {name}", None, *says, over=over, files=jsonl)
    for name, table, says in (
        (
            "half an id",
            {"user": [1.5], "item": ["i1"], "timestamp": [1]},
            ("column user", "dataset.csv.user"),
        ),
        ("a null time", {"user": ["a"], "item": ["i1"], "timestamp": [None]}, ("row 1: timestamp is null",)),
        ("nan as time", {"user": ["a"], "item": ["i1"], "timestamp": [float("nan")]}, ("row 1: time nan",)),
        ("truth as time", {"user": ["a"], "item": ["i1"], "timestamp": [True]}, ("of the type bool",)),
        ("a blank id", {"user": [" "], "item": ["i1"], "timestamp": [1]}, ("row 1: the user id is blank",)),
    ):
        yield csv_case(
            f"parquet: {name}",
            None,
            *says,
            over=("dataset.csv.interactions=log.parquet",),
            files={"log.parquet": _parquet(table)},
        )
    hetrec = "userID\tartistID\ttagID\tday\tmonth\tyear\n2\t52\t13\t1\t4\t2009\n"

    def tags(box: Box) -> None:
        (box.folder / "raw").mkdir()
        (box.folder / "raw" / "user_taggedartists-timestamps.dat").write_text(hetrec)
        (box.folder / "raw" / "artists.dat").write_text("id\tname\n52\tMorcheeba\n")
        over = (f"dataset.raw_dir={box.folder / 'raw'}", "dataset.download=false")
        load_dataset(make_dataset_config("lastfm_hetrec", *over))

    yield Case("HetRec: tags by day", tags, ("timestamps.dat", "day, month, year", "a column timestamp"))


def _parquet(table: dict) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


def csv_cases() -> Iterator[Case]:
    for part in (_ids, _times, _columns, _text, _files):
        yield from part()
