"""Counts of the real datasets, known from the papers' code."""

from __future__ import annotations

import numpy as np

from src.core.data_utils import load_dataset


def test_movielens_100k_windows_of_ten(shared_data, roots, dataset_config):
    data = load_dataset(dataset_config("movielens", f"dataset.raw_dir={shared_data / 'ml-100k'}"))
    assert {name: len(ids) for name, ids in data.splits.items()} == {
        "train": 72456,
        "valid": 9057,
        "test": 9057,
    }
    assert data.n_items == 1682
    assert len(data.offsets) - 1 == 943
    assert (data.history_lengths(data.splits["train"]) == 10).all()


def test_movielens_100k_first_sample_by_hand(shared_data, roots, dataset_config):
    """User 1's rows in time order, read without any code of the project."""
    folder = shared_data / "ml-100k"
    rows = [list(map(int, line.split("\t"))) for line in (folder / "u.data").read_text().splitlines()]
    mine = sorted(((r[3], i, r[1]) for i, r in enumerate(rows) if r[0] == 1))
    data = load_dataset(dataset_config("movielens", f"dataset.raw_dir={folder}"))
    first = np.array([10])  # user 1 owns the first rows of the table
    assert data.targets(first)[0] == mine[10][2]
    assert data.histories(first)[0].tolist() == [item for _, _, item in mine[:10]]
    assert data.titles[mine[10][2]] and data.raw_items[7] == "7"
