"""Preparing a dataset: the files it leaves, the numbers in them, and what a damaged folder does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from src.core.data_utils import dataset_fingerprint, load_dataset
from src.core.datasets import plots
from src.core.errors import UserError
from src.core.paths import processed_dir


@pytest.fixture
def small(tmp_path, roots, dataset_config):
    """Three users, four items; the numbers below are counted by hand."""
    raw = tmp_path / "raw"
    raw.mkdir()
    log = [
        ("a", 1, 0),
        ("a", 2, 10),
        ("a", 1, 20),
        ("a", 3, 30),
        ("b", 1, 5),
        ("b", 2, 15),
        ("b", 4, 25),
        ("c", 1, 40),
    ]
    (raw / "interactions.csv").write_text(
        "user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in log)
    )
    (raw / "items.csv").write_text("item,title\n1,One more word\n2,Two\n3,two\n4,Two\n5,Never used\n")
    return dataset_config("csv", f"dataset.raw_dir={raw}", "dataset.split_ratio=[0.6,0.2,0.2]")


def folder_of(config):
    return processed_dir(config.name, dataset_fingerprint(config))


def test_numbers_by_hand(small):
    data = load_dataset(small)
    numbers = json.loads((folder_of(small) / "statistics.json").read_text())
    assert (numbers["users"], numbers["items"], numbers["interactions"]) == (3, 4, 8)
    assert numbers["density"] == 8 / 12
    assert numbers["interactions_per_user"]["max"] == 4 and numbers["interactions_per_user"]["mean"] == 8 / 3
    # popularity 4 2 1 1: sum |x_i - x_j| / (2 n^2 mean) = (2*2 + 4*3 + 4*1) / (2 * 16 * 2)
    assert numbers["popularity"]["gini"] == pytest.approx(20 / 64)
    assert numbers["popularity"]["share_of_top_10_percent"] == 0.5
    assert numbers["titles"]["words"]["max"] == 3 and numbers["titles"]["distinct_words"] == 4
    assert numbers["titles"]["shared_titles"] == 1
    # samples in time: a2@10 b2@15 a1@20 | b4@25 | a3@30
    assert {name: split["samples"] for name, split in numbers["splits"].items()} == {
        "train": 3,
        "valid": 1,
        "test": 1,
    }
    assert numbers["splits"]["test"]["targets_never_seen_in_training"] == 1
    assert numbers["splits"]["test"]["first_target"] == "1970-01-01T00:00:30+00:00"
    assert numbers["splits"]["test"]["history_length"]["mean"] == 3
    assert data.n_items == 4 and data.info["n_samples"] == {"train": 3, "valid": 1, "test": 1}


def test_page_and_plots_on_demand(small, tmp_path, capsys):
    load_dataset(small)
    page = " ".join((folder_of(small) / "statistics.md").read_text().split())
    assert "| interactions | 8 |" in page and "| test | 1 | 1 | 1 | 1970-01-01T00:00:30" in page
    assert not list(folder_of(small).rglob("*.png"))
    assert plots.main([str(folder_of(small)), "--out", str(tmp_path / "plots")]) == 0
    made = sorted((tmp_path / "plots").iterdir())
    assert [p.name for p in made] == ["popularity.png", "time.png", "title_words.png", "user_lengths.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in made)
    assert plots.main([str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_prepared_once_and_byte_for_byte_again(small, roots, monkeypatch):
    load_dataset(small)
    first = {p.name: p.read_bytes() for p in folder_of(small).glob("*") if p.is_file()}
    monkeypatch.setattr("src.core.datasets.prepare.prepare", lambda *a: pytest.fail("prepared twice"))
    load_dataset(small)
    monkeypatch.undo()
    monkeypatch.setenv("ANYO_DATA_ROOT", str(roots / "elsewhere"))
    load_dataset(small)
    assert {p.name: p.read_bytes() for p in folder_of(small).glob("*") if p.is_file()} == first


def test_fingerprint_follows_raw_files_and_settings(small, tmp_path):
    first = dataset_fingerprint(small)
    assert dataset_fingerprint(replace(small, max_history=5)) != first
    assert dataset_fingerprint(replace(small, download=False)) == first
    (tmp_path / "raw" / "items.csv").write_text("item,title\n1,A\n2,B\n3,C\n4,D\n")
    assert dataset_fingerprint(small) != first


def test_nothing_is_left_of_a_failed_preparation(small, roots):
    config = replace(small, min_history=4)
    with pytest.raises(UserError, match="split of csv is empty"):
        load_dataset(config)
    assert not folder_of(config).exists()


def test_item_ids_are_the_sorted_raw_ids(small):
    data = load_dataset(small)
    assert data.raw_items == ["", "1", "2", "3", "4"] and data.titles[1] == "One more word"
    assert data.items.tolist() == [1, 2, 1, 3, 1, 2, 4, 1]
    assert data.train_counts().tolist() == [0, 1, 2, 0, 0]


def test_arrays_are_mapped_not_copied(small):
    data = load_dataset(small)
    assert isinstance(data.items, np.memmap) and isinstance(data.times, np.memmap)
    assert data.items.dtype == np.int32 and data.histories(data.splits["test"]).dtype == np.int32
