"""Protocols on logs worked by hand, and their properties on random logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.datasets.config import DatasetConfig
from src.core.datasets.prepare import _from_log
from src.core.datasets.raw_log import RawLog, encode
from src.core.datasets.statistics import Prepared
from src.core.datasets.times import parse_time
from src.core.errors import UserError
from src.core.leaks import check_no_leaks
from src.core.splits import eligible_rows, global_time, leave_one_out, user_split

BASE = DatasetConfig(
    name="hand",
    reader="movielens_1m",
    raw_dir=None,
    download=False,
    bad_times="error",
    missing_titles="id",
    max_untitled=0.1,
    duplicate_titles="keep",
    min_rating=None,
    repeats="keep",
    k_core_users=None,
    k_core_items=None,
    min_history=1,
    short_users="drop",
    max_history=3,
    min_target_rating=None,
    split="global_time",
    split_ratio=(0.8, 0.1, 0.1),
    split_times=None,
    split_seed=0,
    demo=None,
    csv=None,
    amazon=None,
    ilora=None,
)
# Two users: rows 0-4 and 5-7.
OFFSETS = np.array([0, 5, 8])
TIMES = np.array([10, 20, 20, 30, 50, 15, 20, 60])


def lists(splits):
    return {name: np.sort(rows).tolist() for name, rows in splits.items()}


def prepared(users, items, times, config, ratings=None) -> Prepared:
    raw = RawLog(
        users=encode(np.array(users)),
        items=encode(np.array(items)),
        timestamps=np.array(times, dtype=np.int64),
        ratings=None if ratings is None else np.array(ratings, dtype=np.float32),
        titles=pd.Series(dtype=object),
        path=Path("log"),
    )
    return _from_log(raw, config)


def test_eligible_rows():
    assert eligible_rows(OFFSETS, BASE).tolist() == [1, 2, 3, 4, 6, 7]
    assert eligible_rows(OFFSETS, replace(BASE, min_history=3)).tolist() == [3, 4]
    # BIGRec: range(min(10, len - 1), len), but never an empty history
    short = replace(BASE, min_history=3, short_users="last")
    assert eligible_rows(OFFSETS, short).tolist() == [3, 4, 7]
    assert eligible_rows(np.array([0, 1, 4]), short).tolist() == [3]
    allowed = np.array([1, 0, 1, 0, 1, 0, 1, 0], dtype=bool)
    assert eligible_rows(OFFSETS, BASE, allowed).tolist() == [2, 4, 6]


@pytest.mark.parametrize("length", range(1, 15))
def test_short_users_is_bigrecs_range(length):
    config = replace(BASE, min_history=10, short_users="last")
    theirs = [i for i in range(min(10, length - 1), length) if i > 0]
    assert eligible_rows(np.array([0, length]), config).tolist() == theirs


def test_global_time_ratio():
    samples = np.array([1, 2, 3, 4, 6, 7])  # times 20 20 30 50 20 60
    config = replace(BASE, split_ratio=(0.5, 0.25, 0.25))
    # in time: 1 2 6 | 3 | 4 7
    assert lists(global_time(samples, TIMES, config)) == {
        "train": [1, 2, 6],
        "valid": [3],
        "test": [4, 7],
    }


def test_global_time_ratio_of_ten_samples_is_exact():
    # 0.8 + 0.1 is 0.9000000000000000222 or less in floating point; the papers' int() must not lose a sample
    rows = np.arange(10)
    splits = global_time(rows, rows, BASE)
    assert [len(splits[s]) for s in splits] == [8, 1, 1]


def test_global_time_timestamps():
    samples = np.array([1, 2, 3, 4, 6, 7])
    config = replace(BASE, split_times=("30", "1970-01-01T00:00:50"))
    assert lists(global_time(samples, TIMES, config)) == {
        "train": [1, 2, 6],
        "valid": [3],
        "test": [4, 7],
    }


def test_leave_one_out():
    samples = np.array([1, 2, 3, 4, 6, 7])
    assert lists(leave_one_out(samples, OFFSETS)) == {
        "train": [1, 2],
        "valid": [3, 6],
        "test": [4, 7],
    }


def test_user_split_draws_one_sample_of_each_held_out_user():
    offsets = np.arange(0, 101, 5)  # 20 users of 5 rows, samples 1..4 of each
    samples = np.flatnonzero(np.arange(100) % 5 > 0)
    splits = user_split(samples, offsets, BASE)
    assert [len(splits[s]) for s in ("train", "valid", "test")] == [16 * 4, 2, 2]
    users = {s: set((rows // 5).tolist()) for s, rows in splits.items()}
    assert not (
        users["train"] & users["valid"] or users["train"] & users["test"] or users["valid"] & users["test"]
    )
    again = user_split(samples, offsets, BASE)
    other = user_split(samples, offsets, replace(BASE, split_seed=1))
    assert lists(again) == lists(splits) != lists(other)


def test_parse_time():
    assert parse_time("86400") == parse_time("1970-01-02") == parse_time("1970-01-02T01:00+01:00") == 86400
    with pytest.raises(ValueError):
        parse_time("soon")


def test_empty_split_is_an_error():
    with pytest.raises(UserError, match="the train split of hand is empty .train 0, valid 0, test 1."):
        prepared([1, 1], [1, 2], [1, 2], replace(BASE, split="leave_one_out"))


def test_one_user_only():
    made = prepared([7] * 10, range(10), range(10), replace(BASE, split="leave_one_out"))
    assert [len(made.splits[s]) for s in ("train", "valid", "test")] == [7, 1, 1]
    with pytest.raises(UserError, match="train split of hand is empty"):
        prepared([7] * 10, range(10), range(10), replace(BASE, split="user_split"))


def test_target_rating_leaves_histories_alone():
    made = prepared(
        [1] * 6,
        range(6),
        range(6),
        replace(BASE, min_target_rating=4.0, split="leave_one_out"),
        [5, 1, 4, 1, 4, 5],
    )
    assert lists(made.splits) == {"train": [2], "valid": [4], "test": [5]}
    assert made.items.tolist() == [1, 2, 3, 4, 5, 6]


def test_ties_keep_the_order_of_the_file():
    made = prepared(
        [2, 1, 2, 1, 2], [30, 10, 31, 11, 32], [5, 9, 5, 9, 4], replace(BASE, split_ratio=(0.4, 0.3, 0.3))
    )
    # user 1: 10, 11; user 2: 32, then 30 before 31 as in the file
    assert [int(made.raw_items[i - 1]) for i in made.items] == [10, 11, 32, 30, 31]


# --- properties over random logs ---------------------------------------------------------------

rows_of_log = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 12), st.integers(0, 15), st.integers(1, 5)),
    min_size=8,
    max_size=120,
)
configs = st.builds(
    replace,
    st.just(BASE),
    split=st.sampled_from(["global_time", "leave_one_out", "user_split"]),
    min_history=st.integers(1, 3),
    max_history=st.integers(1, 5),
    short_users=st.sampled_from(["drop", "last"]),
    repeats=st.sampled_from(["keep", "first", "last", "consecutive"]),
    k_core_items=st.sampled_from([None, 2]),
    min_target_rating=st.sampled_from([None, 3.0]),
    split_ratio=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]),
    split_seed=st.integers(0, 3),
)


def brute_force_sees(made: Prepared, config: DatasetConfig) -> list[str]:
    """Leaks by looking at every pair of a held-out row and a training row, one by one."""
    wrong = []
    starts = np.repeat(made.offsets[:-1], np.diff(made.offsets))
    for name in ("valid", "test"):
        for held_out in made.splits[name]:
            for row in made.splits["train"]:
                if max(starts[row], row - config.max_history) <= held_out < row:
                    wrong.append(f"{name} {held_out} in history of {row}")
    for row in np.concatenate(list(made.splits.values())):
        if any(made.times[h] > made.times[row] for h in range(starts[row], row)):
            wrong.append(f"the future in the history of {row}")
    return wrong


@settings(max_examples=150, deadline=None)
@given(log=rows_of_log, config=configs)
def test_no_protocol_leaks(log, config):
    users, items, times, ratings = zip(*log, strict=True)
    try:
        made = prepared(users, items, times, config, ratings)
    except UserError:
        return  # too small for three splits
    assert brute_force_sees(made, config) == []
    ids = np.concatenate(list(made.splits.values()))
    assert len(np.unique(ids)) == len(ids)
    if config.split == "global_time":
        for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
            assert made.times[made.splits[earlier]].max() <= made.times[made.splits[later]].min()
    check_no_leaks(made.items, made.times, made.offsets, made.splits, config)


@settings(max_examples=100, deadline=None)
@given(log=rows_of_log, config=configs)
def test_samples_do_not_depend_on_the_reading(log, config):
    """Same file, same ids; and the rows of one user never depend on those of others before them."""
    users, items, times, ratings = zip(*log, strict=True)
    try:
        one = prepared(users, items, times, config, ratings)
    except UserError:
        return
    # The file with its users' blocks in another order, each user's rows in the same order.
    order = sorted(range(len(users)), key=lambda i: -users[i])
    again = prepared(
        *([column[i] for i in order] for column in (users, items, times)), config, [ratings[i] for i in order]
    )
    assert one.items.tolist() == again.items.tolist() and one.times.tolist() == again.times.tolist()
    assert lists(one.splits) == lists(again.splits)


@settings(max_examples=100, deadline=None)
@given(log=rows_of_log, config=configs)
def test_histories_by_a_second_formulation(log, config):
    """Every sample's history and target, from the raw rows by sorting and slicing lists."""
    from src.core.data_utils import InteractionData

    plain = replace(config, repeats="keep", k_core_items=None)
    users, items, times, ratings = zip(*log, strict=True)
    try:
        made = prepared(users, items, times, plain, ratings)
    except UserError:
        return
    data = InteractionData(
        "hand",
        "",
        made.items,
        made.times,
        made.offsets,
        made.splits,
        ["", *made.titles],
        ["", *made.raw_items],
        plain.max_history,
        {},
    )
    ids = np.concatenate(list(data.splits.values()))
    table = sorted(((u, t, i, item) for i, (u, item, t, _) in enumerate(log)))
    for sample, history, target in zip(ids, data.histories(ids), data.targets(ids), strict=True):
        user = table[sample][0]
        before = [int(row[3]) for row in table[:sample] if row[0] == user][-plain.max_history :]
        seen = [int(data.raw_items[i]) for i in history if i]
        assert seen == before and int(data.raw_items[target]) == table[sample][3]
        assert list(history[: plain.max_history - len(before)]) == [0] * (plain.max_history - len(before))
