"""Bad raw data: every reader with every kind of damage its format can have."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from src.core.data_utils import DatasetConfig, load_dataset
from tests.robustness.cases import Box, Case
from tests.robustness.raw_files import (
    SOURCES,
    Change,
    bad_byte,
    empty,
    line,
    only_header,
    swap,
    without_last_line,
    write,
)

_TEXT = [name for name in SOURCES if name not in ("steam", "amazon_2014", "amazon_2018")]
_RECORDS = ["steam", "amazon_2014", "amazon_2018"]
_UTF8 = [name for name in _TEXT if name not in ("movielens_100k", "movielens_1m")]


def _case(
    name: str,
    reader: str,
    changes: dict[str, Change | None],
    *says: str,
    more: dict | None = None,
) -> Case:
    def run(box: Box) -> None:
        config = write(reader, box.folder / "raw", changes)
        load_dataset(replace(config, **(more or {})))

    return Case(f"{reader}: {name}", run, says)


def raw_cases() -> Iterator[Case]:
    for reader, s in SOURCES.items():
        yield _case("no log", reader, {s.log: None}, s.log, "is missing", "dataset.raw_dir")
        yield _case("no titles", reader, {s.items: None}, s.items, "is missing", "dataset.raw_dir")
        yield _case("empty log", reader, {s.log: empty}, f"{s.log} is empty", "a table with rows")
        yield _case("empty titles", reader, {s.items: empty}, f"{s.items} is empty")
        yield _case("a value that is none", reader, {s.log: line(s.row, s.wrong)}, s.log, s.what)
        missing = "lists ids" if reader == "ilora" else "title"
        if reader == "ilora":  # the catalogue is the list of titles: one less is a gap in the ids
            change: Change = swap(b"4::", b"40::")
        else:
            change = without_last_line
        yield _case("an item without title", reader, {s.items: change}, missing)
    for reader in _TEXT:
        s = SOURCES[reader]
        good = s.files[s.log].split(b"\n")[s.row - 1]
        sep = b"::" if b"::" in good else b"\t" if b"\t" in good else b","
        cut = good.rsplit(sep, 1)[0]
        yield _case("a short line", reader, {s.log: line(s.row, cut)}, s.log, "columns")
        yield _case("a long line", reader, {s.log: line(s.row, good + sep + b"1")}, s.log, "columns")
        yield _case("a byte that is no text", reader, {s.log: bad_byte(s.row + 1)}, s.log)
    for reader in _UTF8:
        s = SOURCES[reader]
        change = swap(b"Movie 2", b"Movie \xff2")
        yield _case("titles in another encoding", reader, {s.items: change}, s.items, "0xff is not utf")
    for reader in _RECORDS:
        s = SOURCES[reader]
        yield _case("a line cut in two", reader, {s.log: swap(b"}\n", b"\n")}, s.log, "line 1")
        yield _case("a list instead of a record", reader, {s.log: line(2, b"[1, 2]")}, s.log, "line 2")
        yield _case("code instead of a record", reader, {s.items: line(1, b"exit(3)")}, s.items, "line 1")
        yield _case("deep nesting", reader, {s.items: line(1, b"[" * 100_000)}, s.items, "line 1")
        for file in (s.log, s.items):
            yield _gzip_case(reader, file)
    yield from _times_and_filters()
    yield from _columns()
    yield from _ilora()
    yield from _places()


def _gzip_case(reader: str, file: str) -> Case:
    def run(box: Box) -> None:
        config = write(reader, box.folder / "raw", {})
        path = box.folder / "raw" / file
        # Stored, not packed: half of the archive is not half of a block.
        packed = gzip.compress(path.read_bytes(), compresslevel=0)
        path.with_name(file + ".gz").write_bytes(packed[: len(packed) // 2])
        load_dataset(config)

    return Case(f"{reader}: half of {file}.gz", run, (f"{file}.gz", "complete file"))


def _times_and_filters() -> Iterator[Case]:
    s = SOURCES["movielens_100k"]
    before = line(1, b"1\t3\t4\t-5")
    yield _case("a time before 1970", "movielens_100k", {s.log: before}, "1970", "dataset.bad_times")
    unit = line(1, b"1\t3\t4\t1500000000000")
    yield _case("one time in milliseconds", "movielens_100k", {s.log: unit}, "another unit", "row 1")
    for name, more, says in (
        ("a rating no one gave", {"min_rating": 9.0}, ("min_rating", "leaves no interaction")),
        ("a core too large", {"k_core_users": 50, "k_core_items": 50}, ("k_core", "leaves no interaction")),
        ("histories too long", {"min_history": 100}, ("split", "is empty", "dataset.min_history")),
        ("no target stars", {"min_target_rating": 9.0}, ("split", "is empty")),
        ("no test share", {"split": "global_time", "split_ratio": (0.9, 0.1, 0.0)}, ("test split", "empty")),
        (
            "times after the log",
            {"split": "global_time", "split_times": ("2030-01-01", "2031-01-01")},
            ("split", "is empty", "dataset.split_times"),
        ),
    ):
        yield _case(name, "movielens_100k", {}, *says, more=more)
    for reader, key in (
        ("csv", "min_rating"),
        ("steam", "min_target_rating"),
        ("lastfm_hetrec", "min_rating"),
    ):
        yield _case(f"{key} without ratings", reader, {}, "rating", f"dataset.{key}", more={key: 2.0})


def _columns() -> Iterator[Case]:
    log, items = SOURCES["csv"].log, SOURCES["csv"].items
    yield _case("another header of items", "csv", {items: swap(b"title", b"name")}, items, "a column title")
    yield _case("header only", "csv", {log: only_header}, log, "no rows")
    yield _case("numbers and dates", "csv", {log: line(2, b"1,3,2017-01-01")}, log, "partly")
    yield _case("an infinite time", "csv", {log: line(2, b"1,3,inf")}, log, "time 'inf'")
    yield _case("a 400 digit time", "csv", {log: line(2, b"1,3," + b"9" * 400)}, log, "time")
    yield _case("NUL bytes", "csv", {log: line(2, b"\0" * 40)}, log, "columns")
    yield _case("UTF-16", "csv", {log: lambda b: b.decode().encode("utf-16")}, log)
    header = swap(b"userId", b"user")
    yield _case("another header", "movielens_20m", {"ratings.csv": header}, "ratings.csv", "a column userId")

    def ending(config: DatasetConfig) -> DatasetConfig:
        assert config.csv is not None
        return replace(config, csv=replace(config.csv, interactions="interactions.xlsx"))

    def excel(box: Box) -> None:
        config = ending(write("csv", box.folder / "raw", {}))
        (box.folder / "raw" / "interactions.xlsx").write_bytes(b"PK\3\4")
        load_dataset(config)

    yield Case(
        "csv: a spreadsheet", excel, ("interactions.xlsx", ".csv, .tsv, .parquet or .jsonl", "dataset.csv")
    )

    for name, content, says in (
        ("not parquet", b"user,item\n", ("interactions.parquet cannot be read",)),
        ("a null", {"user": ["a", None], "item": ["1", "2"], "timestamp": [1, 2]}, ("row 2: user is null",)),
        ("a column less", {"user": ["a"], "item": ["1"]}, ("a column timestamp",)),
        ("no rows", {"user": [], "item": [], "timestamp": []}, ("no rows",)),
        (
            "lists as ids",
            {"user": [[1]], "item": ["1"], "timestamp": [1]},
            ("interactions.parquet", "column user"),
        ),
    ):
        yield _parquet_case(name, content, says)


def _parquet_case(name: str, content: bytes | dict, says: tuple[str, ...]) -> Case:
    def run(box: Box) -> None:
        config = write("csv", box.folder / "raw", {})
        path = box.folder / "raw" / "interactions.parquet"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(pa.table(content), path)
        assert config.csv is not None
        load_dataset(replace(config, csv=replace(config.csv, interactions=path.name)))

    return Case(f"parquet: {name}", run, says)


def _ilora() -> Iterator[Case]:
    log, names = "train_data.csv", "id2name.txt"
    for name, row, says in (
        ("an item outside the catalogue", b'"[1, 2, 99, 9, 9, 9]",3,3', "row 2: an item id is outside 0..8"),
        ("a target outside the catalogue", b'"[1, 2, 3, 9, 9, 9]",3,9', "row 2: an item id is outside 0..8"),
        ("a negative id", b'"[1, -2, 3, 9, 9, 9]",3,4', "row 2: an item id is outside 0..8"),
        ("an item after the padding", b'"[1, 9, 3, 9, 9, 9]",3,4', "row 2: an item follows the padding"),
        ("another width", b'"[1, 2]",2,4', "row 2: seq has not 6 entries as in the first row"),
        ("an empty list", b'"[]",0,4', "row 2: seq is not a list of integers"),
        ("code for a list", b'"[__import__(1)]",2,3', "row 2: seq is not a list of integers"),
        ("a word as target", b'"[1, 2, 3, 9, 9, 9]",3,x', "line 3: next is 'x'"),
        ("the target as newest item", b'"[1, 2, 3, 9, 9, 9]",3,3', "target as the newest history item"),
    ):
        yield _case(name, "ilora", {log: line(3, row)}, says)
    yield _case("no numbers as ids", "ilora", {names: swap(b"0::", b"zero::")}, names, "'zero'")
    yield _case("an id twice", "ilora", {names: swap(b"1::", b"0::")}, names, "each id once")
    yield _case("no test file", "ilora", {"Test_data.csv": None}, "Test_data.csv is missing")
    train = SOURCES["ilora"].files[log]
    copied = {"Test_data.csv": lambda _: b"\n".join(train.split(b"\n")[:4]) + b"\n"}
    yield _case("test rows out of training", "ilora", copied, "row stands in", more={"min_history": 4})


def _places() -> Iterator[Case]:
    def nowhere(box: Box) -> None:
        load_dataset(write("movielens_100k", box.folder / "raw", dict.fromkeys(("u.data", "u.item"))))

    yield Case("an empty raw folder", nowhere, ("u.data is missing", "dataset.raw_dir"))

    def a_file(box: Box) -> None:
        config = write("movielens_100k", box.folder / "raw", {})
        load_dataset(replace(config, raw_dir=str(Path(str(config.raw_dir)) / "u.data")))

    yield Case("a file as raw folder", a_file, ("u.data is missing", "dataset.raw_dir"))

    def a_folder(box: Box) -> None:
        config = write("movielens_100k", box.folder / "raw", {"u.data": None})
        (box.folder / "raw" / "u.data").mkdir()
        load_dataset(config)

    yield Case("a folder instead of a file", a_folder, ("u.data is missing",))

    def unreadable(box: Box) -> None:
        config = write("movielens_100k", box.folder / "raw", {})
        loop = box.folder / "raw" / "u.data"
        loop.unlink()
        loop.symlink_to(loop)
        load_dataset(config)

    yield Case("a link to itself", unreadable, ("u.data is missing",))
