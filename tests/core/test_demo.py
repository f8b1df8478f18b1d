"""The generated dataset: deterministic, and what its documentation promises."""

from __future__ import annotations

import numpy as np

from src.core.data_utils import load_dataset
from src.core.datasets import demo


def test_default_size(roots, dataset_config):
    data = load_dataset(dataset_config("demo"))
    users = len(data.offsets) - 1
    assert users == 600
    assert 340 <= data.n_items <= 360
    assert 13 <= len(data.items) / users <= 17
    assert min(len(ids) for ids in data.splits.values()) > 500


def test_same_seed_same_log_and_other_seed_other_log(dataset_config):
    first, again = (demo.read(None, dataset_config("demo")) for _ in range(2))
    other = demo.read(None, dataset_config("demo", "dataset.demo.seed=8"))
    assert np.array_equal(first.items.codes, again.items.codes)
    assert np.array_equal(first.users.codes, again.users.codes)
    assert np.array_equal(first.timestamps, again.timestamps)
    assert first.titles.equals(again.titles)
    assert not first.titles.equals(other.titles)


def test_small_fixture(demo_data):
    assert demo_data.n_items <= 60
    assert all(len(ids) for ids in demo_data.splits.values())
