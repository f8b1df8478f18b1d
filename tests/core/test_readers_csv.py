"""`dataset=csv`: anyone's own log, in the shapes that people's files have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.core.data_utils import load_dataset
from src.core.datasets import tabular
from src.core.errors import UserError

ITEMS = "item,title\na,Alpha\nb,Beta\nc,Gamma\n"


@pytest.fixture
def read(tmp_path, dataset_config):
    def go(log, items=ITEMS, *overrides, name="interactions.csv"):
        for file, content in ((name, log), ("items.csv", items)):
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


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("user,item,timestamp\nu,a,1\nu,b,soon\n", "interactions.csv row 2: time 'soon'"),
        ("user,item,timestamp\nu,a,\n", "interactions.csv row 1: time ''"),
        ("user,item,timestamp\nu,a,5\nu,b,2017-07-14\n", "times are partly numbers, partly dates"),
        (
            "user,item,timestamp\nu,a,1500000000\nu,b,1500000000\nu,c,1500000000000\n",
            "row 3: time .* another unit",
        ),
        ("user,item\nu,a\n", "expected a column timestamp"),
        ("user,item,timestamp\n", "has no rows"),
        ("user,item,timestamp\nu,a,1,9\n", "line 2: 4 columns"),
        ("", "is empty"),
    ],
)
def test_refuses(read, log, message):
    with pytest.raises(UserError, match=message):
        read(log)


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


def test_other_endings_are_refused(read):
    with pytest.raises(UserError, match="'.xlsx'; expected .csv, .tsv, .parquet or .jsonl"):
        read("x", name="log.xlsx")


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
