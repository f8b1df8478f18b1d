"""Filters on logs worked by hand; one log line and one entry for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.candidates import normal_title
from src.core.datasets.filters import Filters, canonical_order
from src.core.datasets.raw_log import RawLog, encode
from src.core.errors import UserError


@pytest.fixture(scope="module")
def base(dataset_config):
    return replace(dataset_config("csv"), missing_titles="id")


def run(config, rows, titles=None):
    """Filter (user, item, time[, rating]) rows; returns the (user, item, time) left, and the report."""
    columns = list(zip(*rows, strict=True))
    raw = RawLog(
        users=encode(np.array(columns[0])),
        items=encode(np.array(columns[1])),
        timestamps=np.array(columns[2], dtype=np.int64),
        ratings=np.array(columns[3], dtype=np.float32) if len(columns) > 3 else None,
        titles=pd.Series(titles or {}, dtype=object),
        path=Path("log.csv"),
    )
    filters = Filters(config)
    table, names = filters(raw)
    left = zip(raw.users.values[table.users], raw.items.values[table.items], table.times, strict=True)
    return [tuple(map(int, row)) for row in left], filters.report, names


ROWS = [(1, 10, 5), (1, 11, 6), (2, 10, 1), (1, 10, 7), (2, 12, 2), (2, 12, 3)]


def test_without_filters_only_the_order_changes(base):
    left, report, _ = run(base, ROWS)
    assert left == [(1, 10, 5), (1, 11, 6), (1, 10, 7), (2, 10, 1), (2, 12, 2), (2, 12, 3)]
    assert report == []


@pytest.mark.parametrize(
    ("repeats", "expected"),
    [
        ("first", [(1, 10, 5), (1, 11, 6), (2, 10, 1), (2, 12, 2)]),
        ("last", [(1, 11, 6), (1, 10, 7), (2, 10, 1), (2, 12, 3)]),
        ("consecutive", [(1, 10, 5), (1, 11, 6), (1, 10, 7), (2, 10, 1), (2, 12, 2)]),
    ],
)
def test_repeats(base, repeats, expected, caplog):
    caplog.set_level("INFO")
    left, report, _ = run(replace(base, repeats=repeats), ROWS)
    assert left == expected
    removed = len(ROWS) - len(expected)
    assert report == [
        {"filter": f"repeats ({repeats})", "removed_interactions": removed, "left": len(expected)}
    ]
    assert caplog.text.count(f"filter repeats ({repeats}): removed {removed} of 6 interactions") == 1


def test_min_rating(base):
    rows = [(1, 1, 1, 3.0), (1, 2, 2, 2.5), (1, 3, 3, 5.0)]
    left, _, _ = run(replace(base, min_rating=3.0), rows)
    assert left == [(1, 1, 1), (1, 3, 3)]
    with pytest.raises(
        UserError, match="filter min_rating >= 6 leaves no interaction; .* change dataset.min_rating"
    ):
        run(replace(base, min_rating=6.0), rows)
    with pytest.raises(UserError, match="has no ratings; .* change dataset.min_target_rating"):
        run(replace(base, min_target_rating=3.0), ROWS)


def test_k_core_by_hand(base):
    # Item 3 has one interaction; without it user 3 has one; without it item 2 has two, still enough.
    rows = [(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 4), (3, 2, 5), (3, 3, 6)]
    left, report, _ = run(replace(base, k_core_users=2, k_core_items=2), rows)
    assert left == rows[:4]
    assert report[0]["filter"] == "k_core_users 2, k_core_items 2 (2 rounds)"
    with pytest.raises(UserError, match="leaves no interaction.* change dataset.k_core_users"):
        run(replace(base, k_core_users=3), rows)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 9)), min_size=1, max_size=60
    ),
    users=st.integers(1, 4),
    items=st.integers(1, 4),
)
def test_k_core_is_the_largest_core(base, rows, users, items):
    """Against the textbook loop that removes one user or item at a time."""
    left = sorted(rows)
    while True:
        bad_user = next((u for u, _, _ in left if sum(r[0] == u for r in left) < users), None)
        bad_item = next((i for _, i, _ in left if sum(r[1] == i for r in left) < items), None)
        if bad_user is None and bad_item is None:
            break
        left = (
            [r for r in left if r[0] != bad_user]
            if bad_user is not None
            else [r for r in left if r[1] != bad_item]
        )
    config = replace(base, k_core_users=users, k_core_items=items)
    if left:
        assert sorted(run(config, rows)[0]) == left
    else:
        with pytest.raises(UserError):
            run(config, rows)


def test_missing_titles(base, caplog):
    caplog.set_level("INFO")
    titles = {"10": "Ten", "11": "", "12": "Twelve"}
    with pytest.raises(UserError, match="1 items have no title, the first is 11"):
        run(replace(base, missing_titles="error"), ROWS, titles)
    with pytest.raises(UserError, match="11; 16.7% of the interactions .* 10.0%; .*dataset.max_untitled"):
        run(replace(base, missing_titles="drop"), ROWS, titles)
    left, report, _ = run(replace(base, missing_titles="drop", max_untitled=0.2), ROWS, titles)
    assert 11 not in [item for _, item, _ in left] and report[0]["removed_interactions"] == 1
    left, report, names = run(replace(base, missing_titles="id"), ROWS, titles)
    assert len(left) == 6 and names == ["Ten", "11", "Twelve"] and report == []
    assert "1 items have no title, the first is 11: the id takes its place" in caplog.text


def test_items_outside_the_log_need_no_title(base):
    left, _, _ = run(replace(base, missing_titles="error"), ROWS, {"10": "A", "11": "B", "12": "C", "99": ""})
    assert len(left) == 6


def test_duplicate_titles(base):
    titles = {"10": "Same", "11": "Other", "12": "Same"}
    assert len(run(base, ROWS, titles)[0]) == 6
    left, report, _ = run(replace(base, duplicate_titles="drop"), ROWS, titles)
    assert left == [(1, 10, 5), (1, 11, 6), (1, 10, 7), (2, 10, 1)] and report[0]["removed_interactions"] == 2
    left, report, _ = run(replace(base, duplicate_titles="merge"), ROWS, titles)
    assert left == [(1, 10, 5), (1, 11, 6), (1, 10, 7), (2, 10, 1), (2, 10, 2), (2, 10, 3)]
    assert report == [{"filter": "duplicate_titles (merge)", "merged_items": 1}]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Caf\u00e9", "Cafe\u0301"),
        ("Ｔｈｅ Ｗｉｒｅ", "The Wire"),
        ("カﾞンダム", "ガンダム"),
        ("a\u00a0 b", "a b"),
    ],
)
def test_forms_of_one_title_are_duplicates(base, one, two):
    left, report, _ = run(replace(base, duplicate_titles="merge"), ROWS, {"10": one, "11": "x", "12": two})
    assert {item for _, item, _ in left} == {10, 11} and report[0]["merged_items"] == 1
    assert normal_title(one) == normal_title(two)


def test_times_before_1970(base):
    rows = [(1, 1, 5), (1, 2, -7), (1, 3, 6)]
    with pytest.raises(UserError, match="log.csv row 2: time -7 is before 1970.*dataset.bad_times=drop"):
        run(base, rows)
    assert run(replace(base, bad_times="drop"), rows)[0] == [(1, 1, 5), (1, 3, 6)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=50))
def test_canonical_order_is_a_stable_sort(rows):
    users = np.array([u for u, _ in rows], dtype=np.int32)
    times = np.array([t for _, t in rows], dtype=np.int64)
    expected = sorted(range(len(rows)), key=lambda i: rows[i])  # Python's sort is stable
    assert canonical_order(users, times).tolist() == expected
