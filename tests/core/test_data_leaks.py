"""Canaries: splits that leak on purpose must not pass the checks that every run makes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from src.core.artifacts import save_npy
from src.core.data_utils import InteractionData, dataset_fingerprint, load_dataset
from src.core.errors import UserError
from src.core.leaks import check_no_leaks
from src.core.paths import processed_dir
from tests.robustness.conftest import reseal

OFFSETS = np.array([0, 5, 10])
ITEMS = np.arange(1, 11)
TIMES = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5])


def check(config, train, valid, test, items=ITEMS, times=TIMES, offsets=OFFSETS):
    splits = {
        n: np.array(r, dtype=np.int64)
        for n, r in zip(("train", "valid", "test"), (train, valid, test), strict=True)
    }
    check_no_leaks(items, times, offsets, splits, config)


@pytest.fixture
def config(dataset_config):
    def make(split, **keys):
        group = dataset_config("lastfm_ilora" if split == "official" else "csv")
        return replace(group, split=split, min_history=1, max_history=3, **keys)

    return make


def test_clean_splits_pass(config):
    check(config("leave_one_out"), [1, 2, 6, 7], [3, 8], [4, 9])
    check(config("global_time"), [1, 2, 6, 7], [3, 8], [4, 9])
    check(config("user_split"), [1, 2, 3, 4], [6], [])


@pytest.mark.parametrize(
    ("split", "splits", "message"),
    [
        ("leave_one_out", ([1, 2, 4], [3], [9]), "held-out target in row 3 stands in the history .* row 4"),
        ("leave_one_out", ([1, 2, 3], [3], [4]), "a valid sample stands in two splits"),
        ("leave_one_out", ([1, 1], [3], [4]), "train targets are not ascending"),
        ("leave_one_out", ([1], [3], [10]), "test targets are not ascending rows"),
        ("leave_one_out", ([-1, 1], [3], [4]), "train targets are not ascending rows"),
        ("leave_one_out", ([5, 6], [8], [9]), "a train sample has no history"),
        ("global_time", ([1, 2, 3], [7], [9]), "a train target at 4 is later than a valid target at 3"),
        ("global_time", ([1], [9], [4 - 1]), "a valid target at 5 is later than a test target at 4"),
        ("user_split", ([1, 2], [3], [9]), "a user of the valid split is in another split too"),
    ],
)
def test_leaking_splits_fail(split, splits, message, config):
    with pytest.raises(UserError, match=message):
        check(config(split), *splits)


def test_future_in_a_history_fails(config):
    with pytest.raises(UserError, match="not in time order"):
        check(config("leave_one_out"), [1, 2], [3], [4], times=np.array([1, 2, 5, 4, 6, 1, 2, 3, 4, 5]))


def test_a_held_out_target_out_of_reach_passes(config):
    # row 1 is held out; the training row 5 sees rows 2..4
    check(config("leave_one_out"), [5], [1], [9], offsets=np.array([0, 10]), times=np.arange(10))
    with pytest.raises(UserError, match="row 1 stands in the history of the training sample in row 4"):
        check(config("leave_one_out"), [4], [1], [9], offsets=np.array([0, 10]), times=np.arange(10))


def test_official_target_as_newest_history_item_fails(config):
    items = np.array([1, 2, 3, 3, 4, 1, 2, 3, 4, 5])
    with pytest.raises(UserError, match="1 of 1 train rows have their target as the newest"):
        check(config("official"), [3], [], [9], items=items, offsets=np.array([0, 4, 10]), times=np.zeros(10))


def test_official_row_in_two_splits_fails(config):
    items = np.tile([1, 2, 3, 4, 5, 6], 2)
    with pytest.raises(UserError, match="row stands in (train|test) too"):
        check(
            config("official"), [5], [], [11], items=items, offsets=np.array([0, 6, 12]), times=np.zeros(12)
        )


def test_a_folder_is_checked_once_and_again_when_it_changed(roots, dataset_config, monkeypatch):
    """A split file that was made to leak stops the next run before it starts, with or without the right hash."""
    config = dataset_config("demo", "dataset.demo.users=40", "dataset.demo.items=40", "dataset.demo.groups=2")
    called = []
    monkeypatch.setattr(InteractionData, "check_no_leaks", lambda self, c: called.append(c))
    load_dataset(config)
    time.sleep(0.06)  # younger files are not remembered
    load_dataset(config)
    known = len(called)
    load_dataset(config)
    assert len(called) == known  # nothing changed since the last check
    monkeypatch.undo()
    monkeypatch.setenv("ANYO_DATA_ROOT", str(roots / "data"))
    folder = processed_dir(config.name, dataset_fingerprint(config))
    train, test = (np.load(folder / f"split_{name}.npy") for name in ("train", "test"))
    save_npy(folder / "split_train.npy", test)
    save_npy(folder / "split_test.npy", train)
    with pytest.raises(UserError, match="does not have the hash"):
        load_dataset(config)
    reseal(folder)
    with pytest.raises(UserError, match="held-out|later than"):
        load_dataset(config)
