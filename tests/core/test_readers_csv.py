"""`dataset=csv`: anyone's own log, in the shapes that people's files have."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from src.core.data_utils import load_dataset
from src.core.datasets import tabular
from src.core.errors import UserError

ITEMS = "item,title\na,Alpha\nb,Beta\nc,Gamma\n"


@pytest.fixture
def read(tmp_path, dataset_config):
    def go(log, items=ITEMS, *overrides, name="interactions.csv", items_name="items.csv"):
        for file, content in ((name, log), (items_name, items)):
            (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        config = dataset_config(
            "csv", f"dataset.raw_dir={tmp_path}", f"dataset.csv.interactions={name}", *overrides
        )
        return tabular.read(tmp_path, config)

    return go


def seconds(log):
    return (log.timestamps // log.resolution).tolist()


@pytest.mark.parametrize(
    "times",
    [
        ["1500000000", "1500000060"],
        ["1500000000000", "1500000060000"],
        ["1500000000.25", "1500000060.75"],
        ["1.5e9", "1500000060"],
        ["2017-07-14T02:40:00Z", "2017-07-14T02:41:00Z"],
        ["2017-07-14 02:40:00", "2017-07-14 02:41:00.5"],
        ["2017-07-14T04:40:00+02:00", "2017-07-14T02:41:00Z"],
    ],
)
def test_notations_of_time(read, times):
    log = read(f"user,item,timestamp\nu,a,{times[0]}\nu,b,{times[1]}\n")
    assert (log.timestamps // log.resolution).tolist() == [1500000000, 1500000060]


def test_days_as_time(read):
    assert seconds(read("user,item,timestamp\nu,a,2017-07-14\n")) == [1499990400]


def test_names_of_columns_and_ratings(read):
    log = read(
        "who;x,rating,what,when\nu,4.5,a,7\n",
        "sku,name\na,Alpha\n",
        "dataset.csv.user='who;x'",
        "dataset.csv.item=what",
        "dataset.csv.timestamp=when",
        "dataset.csv.rating=rating",
        "dataset.csv.item_id=sku",
        "dataset.csv.title=name",
    )
    assert log.ratings.tolist() == [4.5] and log.titles["a"] == "Alpha"


def test_bom_crlf_latin_1_tabs_and_quotes(read):
    log = read(
        b'user\titem\ttimestamp\r\n"u ""1"""\tb\t7\r\n',
        "item,title\nb,Caf\xe9\n".encode("latin-1"),
        "dataset.csv.encoding=latin-1",
        name="log.tsv",
    )
    assert log.users.values.tolist() == ['u "1"'] and log.titles["b"] == "Café"
    log = read(b"\xef\xbb\xbfuser,item,timestamp\nu,a,7\n")
    assert log.users.values.tolist() == ["u"]


def test_parquet_equals_csv(tmp_path, roots, dataset_config):
    rng = np.random.default_rng(1)
    log = pd.DataFrame(
        {
            "user": rng.integers(20, size=300),
            "item": rng.integers(40, size=300),
            "timestamp": rng.integers(10**6, size=300),
        }
    )
    items = pd.DataFrame({"item": range(40), "title": [f"T {i}" for i in range(40)]})
    made = []
    for ending in ("csv", "parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        for frame, name in ((log, "interactions"), (items, "items")):
            path = folder / f"{name}.{ending}"
            frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        made.append(
            load_dataset(
                dataset_config(
                    "csv",
                    f"dataset.raw_dir={folder}",
                    f"dataset.csv.interactions=interactions.{ending}",
                    f"dataset.csv.items=items.{ending}",
                )
            )
        )
    one, two = made
    assert one.fingerprint != two.fingerprint
    assert np.array_equal(one.items, two.items) and np.array_equal(one.times, two.times)
    assert one.titles == two.titles
    assert all(np.array_equal(one.splits[s], two.splits[s]) for s in one.splits)


def test_parquet_dates(tmp_path, dataset_config):
    when = pd.to_datetime(["2017-07-14 02:40:00", "2017-07-14 02:41:00"])
    pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": when}).to_parquet(
        tmp_path / "log.parquet"
    )
    (tmp_path / "items.csv").write_text(ITEMS)
    config = dataset_config("csv", f"dataset.raw_dir={tmp_path}", "dataset.csv.interactions=log.parquet")
    assert seconds(tabular.read(tmp_path, config)) == [1500000000, 1500000060]


# --- logs that are read as they are meant ---------------------------------------------------------

LOG = [("u", "a", 1500000000), ("v", "b", 1500000060), ("u", "c", 1500000120)]


def lines(rows, sep=",", header="user,item,timestamp"):
    return "\n".join([header.replace(",", sep), *(sep.join(map(str, row)) for row in rows)]) + "\n"


def packed(rows, **how):
    return gzip.compress(lines(rows, **how).encode())


def jsonl(rows, **how):
    return "".join(
        json.dumps(dict(zip(("user", "item", "timestamp"), row, strict=True))) + "\n" for row in rows
    )


MEANT = {
    "packed": ({"log.csv.gz": packed(LOG)}, ["interactions=log.csv.gz"]),
    "capital ending": ({"LOG.CSV": lines(LOG)}, ["interactions=LOG.CSV"]),
    "capital packed": ({"LOG.TSV.GZ": packed(LOG, sep="\t")}, ["interactions=LOG.TSV.GZ"]),
    "semicolons": (
        {"log.csv": lines(LOG, ";")},
        ["interactions=log.csv", "separator=';'", "items=items2.csv"],
    ),
    "tabs in .csv": (
        {"log.csv": lines(LOG, "\t")},
        ["interactions=log.csv", "separator=tab", "items=items.tsv"],
    ),
    "header in capitals": ({"log.csv": lines(LOG, header="USER,Item,TimeStamp")}, ["interactions=log.csv"]),
    "blanks in header": ({"log.csv": lines(LOG, header=" user, item ,timestamp ")}, ["interactions=log.csv"]),
    "blanks around ids": (
        {"log.csv": lines([(f" {u}", f"{i} ", t) for u, i, t in LOG])},
        ["interactions=log.csv"],
    ),
    "ids in quotes": ({"log.csv": lines([(f'"{u}"', i, t) for u, i, t in LOG])}, ["interactions=log.csv"]),
    "a folder of parts": (
        {
            "log/part-2.csv": lines(LOG[1:2]),
            "log/part-10.csv": lines(LOG[2:]),
            "log/part-1.csv": lines(LOG[:1]),
        },
        ["interactions=log"],
    ),
    "a folder with marks": (
        {"log/a.csv": lines(LOG[:2]), "log/b.csv.gz": packed(LOG[2:]), "log/_SUCCESS": "", "log/.a.crc": "x"},
        ["interactions=log"],
    ),
    "a pattern": (
        {"log-9.csv": lines(LOG[:2]), "log-10.csv": lines(LOG[2:]), "other.csv": "x\n"},
        ["interactions='log-*.csv'"],
    ),
    "JSON lines": ({"log.jsonl": jsonl(LOG)}, ["interactions=log.jsonl"]),
    "packed JSON lines": (
        {"log.ndjson.gz": gzip.compress(jsonl(LOG).encode())},
        ["interactions=log.ndjson.gz"],
    ),
    "UTF-16": (
        {"log.csv": lines(LOG).encode("utf-16"), "i.csv": "item,title\na,Alpha\nb,Beta\n".encode("utf-16")},
        ["interactions=log.csv", "items=i.csv", "encoding=utf-16"],
    ),
    "old Mac line ends": ({"log.csv": lines(LOG).replace("\n", "\r")}, ["interactions=log.csv"]),
    "blank lines": ({"log.csv": lines(LOG).replace("\n", "\n\n")}, ["interactions=log.csv"]),
    "small times in ms": (
        {"log.csv": lines([(u, i, t * 1000) for u, i, t in LOG])},
        ["interactions=log.csv", "time_unit=ms"],
    ),
}


@pytest.mark.parametrize("case", list(MEANT))
def test_read_as_meant(case, tmp_path, dataset_config):
    files, keys = MEANT[case]
    more = {"items.csv": ITEMS, "items2.csv": ITEMS.replace(",", ";"), "items.tsv": ITEMS.replace(",", "\t")}
    for name, content in {**more, **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    overrides = [f"dataset.csv.{key}" for key in keys]
    log = tabular.read(tmp_path, dataset_config("csv", f"dataset.raw_dir={tmp_path}", *overrides))
    users, items = log.users.values[log.users.codes], log.items.values[log.items.codes]
    assert list(zip(users, items, seconds(log), strict=True)) == LOG
    assert log.titles["a"] == "Alpha"


def table(tmp_path, dataset_config, frame, *overrides):
    """The canonical table of a log in parquet: raw items per user, and the times."""
    (tmp_path / "raw").mkdir()
    frame.to_parquet(tmp_path / "raw" / "log.parquet")
    items = pd.DataFrame({"item": range(20), "title": [f"T {i}" for i in range(20)]})
    items.to_csv(tmp_path / "raw" / "items.csv", index=False)
    keys = ("dataset.csv.interactions=log.parquet", "dataset.split=leave_one_out", *overrides)
    data = load_dataset(dataset_config("csv", f"dataset.raw_dir={tmp_path / 'raw'}", *keys))
    return [int(data.raw_items[i]) for i in data.items], data.times.tolist()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "America/New_York", "Asia/Tokyo"])
def test_parquet_times_of_every_resolution(unit, zone, tmp_path, roots, dataset_config):
    # The hour from 1:00 comes twice on 2020-11-01 in New York: 01:30, 01:50, 01:00 (again), 01:20, 02:10.
    minutes = [0, 20, 30, 50, 100]
    at = pd.to_datetime([1604208600 + 60 * m for m in minutes], unit="s", utc=True)
    at = at.tz_convert(zone) if zone else at.tz_localize(None)
    frame = pd.DataFrame({"user": "u", "item": range(5), "timestamp": at.as_unit(unit)}).iloc[[3, 0, 4, 2, 1]]
    items, times = table(tmp_path, dataset_config, frame)
    assert items == [0, 1, 2, 3, 4] and times == [1604208600 + 60 * m for m in minutes]


@pytest.mark.parametrize(
    "times",
    [
        [1600000000003, 1600000000002, 1600000000001, 1600000001000, 1600000000000],
        [1600000000.003, 1600000000.002, 1600000000.001, 1600000001.0, 1600000000.0],
        [f"2020-09-13T12:26:40.00{k}" for k in (3, 2, 1)] + ["2020-09-13T12:26:41", "2020-09-13T12:26:40"],
        [f"2020-09-13 12:26:40.00{k}456789 UTC" for k in (3, 2, 1, 9, 0)],
    ],
    ids=["milliseconds", "decimals", "ISO", "ISO with nanoseconds"],
)
def test_order_within_a_second_is_kept(times, tmp_path, roots, dataset_config):
    frame = pd.DataFrame({"user": "u", "item": range(5), "timestamp": times})
    items, seconds_ = table(tmp_path, dataset_config, frame)
    assert items == [4, 2, 1, 0, 3] and seconds_[:4] == [1600000000] * 4


def test_a_cut_by_time_sees_milliseconds(tmp_path, roots, dataset_config):
    """Of two users in one second, the later sample is the test sample, whoever comes first in the table."""
    rows = [("a", 0, 0), ("a", 1, 900), ("b", 0, 10), ("b", 2, 300), ("c", 0, 20), ("c", 3, 600)]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    frame["timestamp"] += 1600000000000
    (tmp_path / "raw").mkdir()
    frame.to_csv(tmp_path / "raw" / "interactions.csv", index=False)
    (tmp_path / "raw" / "items.csv").write_text("item,title\n" + "".join(f"{i},T{i}\n" for i in range(4)))
    config = dataset_config(
        "csv", f"dataset.raw_dir={tmp_path / 'raw'}", "dataset.split_ratio=[0.34,0.33,0.33]"
    )
    data = load_dataset(config)
    assert [data.raw_items[data.targets(data.splits[s])[0]] for s in data.splits] == ["2", "3", "1"]


def test_a_log_without_times_keeps_the_files_order(tmp_path, roots, dataset_config):
    frame = pd.DataFrame({"user": [2, 1, 2, 1, 2, 1, 1, 2], "item": [9, 8, 7, 6, 5, 9, 3, 7]})
    items, times = table(tmp_path, dataset_config, frame, "dataset.csv.timestamp=null")
    assert items == [8, 6, 9, 3, 9, 7, 5, 7] and times == [0] * 8


def test_nulls_in_parquet_titles_follow_the_setting(tmp_path, roots, dataset_config):
    frame = pd.DataFrame({"user": [1] * 12, "item": range(12), "timestamp": range(12)})
    titles = pd.DataFrame({"item": range(12), "title": [None, *(f"T {i}" for i in range(1, 12))]})
    (tmp_path / "raw").mkdir()
    titles.to_parquet(tmp_path / "raw" / "items.parquet")
    frame.to_csv(tmp_path / "raw" / "interactions.csv", index=False)
    keys = (f"dataset.raw_dir={tmp_path / 'raw'}", "dataset.csv.items=items.parquet")
    data = load_dataset(dataset_config("csv", *keys, "dataset.split=leave_one_out"))
    assert data.n_items == 11 and len(data.items) == 11
    named = load_dataset(dataset_config("csv", *keys, "dataset.missing_titles=id"))
    assert named.titles[1] == "0"


def test_quotes_as_text_and_inches(read, caplog):
    caplog.set_level("INFO")
    items = 'item\ttitle\na\t"Weird Al" song\nb\tLCD 7" screen\n'
    log = "user\titem\ttimestamp\nu\ta\t7\n"
    with pytest.raises(UserError, match="items.tsv line 2: .* dataset.csv.quoting"):
        read(log, items, "dataset.csv.items=items.tsv", name="log.tsv", items_name="items.tsv")
    found = read(
        log,
        items,
        "dataset.csv.items=items.tsv",
        "dataset.csv.quoting=false",
        name="log.tsv",
        items_name="items.tsv",
    )
    assert found.titles.tolist() == ['"Weird Al" song', 'LCD 7" screen']
    found = read("user,item,timestamp\nu,a,7\n", 'item,title\na,LCD 7" screen\nb,"x\ny"\n')
    assert found.titles.tolist() == ['LCD 7" screen', "x y"]
    assert "items.csv: 1 values of title hold line breaks, the first in row 2" in caplog.text


def test_repeated_rows_are_counted_and_kept(tmp_path, roots, dataset_config, caplog):
    caplog.set_level("INFO")
    frame = pd.DataFrame({"user": [1] * 6, "item": [1, 2, 1, 3, 1, 4], "timestamp": [5, 5, 5, 6, 7, 8]})
    items, _ = table(tmp_path, dataset_config, frame)
    assert items == [1, 2, 1, 3, 1, 4]
    assert "1 rows repeat user, item and time of another row" in caplog.text
