"""iLoRA's split files: the official protocol, the conversion of the pickles, and the counts."""

from __future__ import annotations

import base64
import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.data_utils import load_dataset
from src.core.datasets import convert_ilora
from src.core.errors import UserError

SPLITS = ("train_data.csv", "Val_data.csv", "Test_data.csv")
# Pickles (base64) by version of pandas: lists of (item, rating) of five, padding 9; see `test_old_pickles`.
PICKLES = json.loads((Path(__file__).parent / "official_pickles.json").read_text())


def write(folder, train, valid, test, n_items=9):
    folder.mkdir(exist_ok=True)
    for name, rows in zip(SPLITS, (train, valid, test), strict=True):
        lines = ["seq,len_seq,next"]
        lines += [f'"{[*h, *[n_items] * (4 - len(h))]}",{max(len(h), 1)},{t}' for h, t in rows]
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "id2name.txt").write_text("".join(f"{i}::Name {i}\n" for i in range(n_items)))
    return folder


TRAIN = [([], 0), ([0], 1), ([0, 1], 2), ([0, 1, 2], 3), ([1, 2, 3, 4], 5)]


def load(folder, dataset_config, *overrides):
    return load_dataset(
        dataset_config("lastfm_ilora", f"dataset.raw_dir={folder}", "dataset.min_history=2", *overrides)
    )


def test_rows_are_sample_ids(tmp_path, roots, dataset_config):
    data = load(write(tmp_path / "raw", TRAIN, [([6, 7], 8)], [([8, 7, 6], 0)]), dataset_config)
    assert {name: ids.tolist() for name, ids in data.splits.items()} == {
        "train": [2, 3, 4],
        "valid": [5],
        "test": [6],
    }
    ids = np.array([6, 2, 4])
    assert data.targets(ids).tolist() == [1, 3, 6]
    assert data.histories(ids)[:, -4:].tolist() == [[0, 9, 8, 7], [0, 0, 1, 2], [2, 3, 4, 5]]
    assert data.history_lengths(ids).tolist() == [3, 2, 4]
    assert data.users_of(ids).tolist() == ids.tolist()
    assert (data.n_items, data.n_ids, data.titles[9]) == (9, 7, "Name 8")
    assert data.train_counts().tolist() == [0, 0, 0, 1, 1, 0, 1, 0, 0, 0]


def test_max_history_cuts_the_oldest(tmp_path, roots, dataset_config):
    folder = write(tmp_path / "raw", TRAIN, [([6, 7], 8)], [([8, 7, 6], 0)])
    data = load(folder, dataset_config, "dataset.max_history=2")
    assert data.histories(np.array([4])).tolist() == [[4, 5]]


def test_target_as_newest_history_item(tmp_path, roots, dataset_config):
    """Steam's files repeat the target at the end of short training histories."""
    folder = write(tmp_path / "raw", [*TRAIN, ([3, 4, 5], 5)], [([6, 7], 8)], [([8, 7, 6], 0)])
    with pytest.raises(
        UserError, match=r"1 of 4 train rows have their target as the newest.*strip_target=true"
    ):
        load(folder, dataset_config)
    data = load(folder, dataset_config, "dataset.ilora.strip_target=true")
    assert data.splits["train"].tolist() == [2, 3, 4, 5]
    assert data.histories(np.array([5]))[0, -3:].tolist() == [0, 4, 5] and data.targets(
        np.array([5])
    ).tolist() == [6]


def test_ids_must_be_complete(tmp_path, roots, dataset_config):
    folder = write(tmp_path / "raw", TRAIN, [([6, 7], 8)], [([8, 7, 6], 0)])
    (folder / "id2name.txt").write_text("0::A\n2::B\n")
    with pytest.raises(UserError, match="id2name.txt lists ids 0..2; expected 0..1"):
        load(folder, dataset_config)


def test_lastfm_counts(shared_data, roots, dataset_config):
    folder = shared_data / "lastfm-ilora"
    data = load_dataset(dataset_config("lastfm_ilora", f"dataset.raw_dir={folder}"))
    assert [data.n_ids, data.n_items] == [50_800 + 122 + 122, 4_606]
    assert [len(data.splits[s]) for s in ("train", "valid", "test")] == [47_872, 122, 122]
    every = load_dataset(dataset_config("lastfm_ilora", f"dataset.raw_dir={folder}", "dataset.min_history=1"))
    assert len(every.splits["train"]) == 50_800 - 976  # 976 rows have an empty history
    # Every row of every file, read with the standard library alone.
    row = 0
    for name in SPLITS:
        with open(folder / name, newline="") as f:
            lines = list(csv.DictReader(f))
        ids = np.arange(row, row + len(lines))
        row += len(lines)
        assert data.targets(ids).tolist() == [int(line["next"]) + 1 for line in lines]
        expected = []
        for line in lines:
            history = [int(x) + 1 for x in line["seq"].strip("[]").split(",") if int(x) != 4606]
            expected.append([0] * (10 - len(history)) + history)
        assert data.histories(ids).tolist() == expected


# --- the official pickles -----------------------------------------------------------------------


def pickled(folder, **rows):
    for name, frame in rows.items():
        frame.columns = pd.Index(["seq", "len_seq", "next"], dtype=object)  # as every version before pandas 3
        frame.to_pickle(folder / f"{name}.df")


def test_conversion_of_all_three_files(tmp_path, roots, dataset_config):
    source = tmp_path / "official"
    source.mkdir()
    pickled(
        source,
        train_data=pd.DataFrame(
            [[[1, 2, 3, 3], 2, 0], [[3, 3, 3, 3], 1, 1], [[0, 1, 3, 3], 2, 2]], index=[4, 9, 7]
        ),
        Val_data=pd.DataFrame([[[0, 1, 3, 3], 2, 2]]),
        Test_data=pd.DataFrame([[[2, 1, 3, 3], 2, 0]]),
    )
    (source / "id2name.txt").write_text("0::A\n1::B::C\n2::Ø\n", encoding="utf-8")
    assert convert_ilora.main([str(source), str(tmp_path / "csv")]) == 0
    assert (tmp_path / "csv" / "train_data.csv").read_text().splitlines() == [
        "seq,len_seq,next",
        '"[1, 2, 3, 3]",2,0',
        '"[3, 3, 3, 3]",1,1',
        '"[0, 1, 3, 3]",2,2',
    ]
    data = load(tmp_path / "csv", dataset_config)
    assert data.titles == ["", "A", "B::C", "Ø"] and data.splits["train"].tolist() == [0, 2]


@pytest.mark.parametrize("version", PICKLES)
def test_old_pickles_and_movielens_pairs(version, tmp_path):
    for name in ("train_data", "Val_data", "Test_data"):
        (tmp_path / f"{name}.df").write_bytes(base64.b64decode(PICKLES[version]))
    (tmp_path / "u.item").write_bytes("1|Wrong Man, The (1956)|x\n2|Fantômas|y\n".encode("latin-1"))
    assert convert_ilora.convert(tmp_path, tmp_path / "csv") == dict.fromkeys(SPLITS, 4)
    assert (tmp_path / "csv" / "Val_data.csv").read_text().splitlines()[1:] == [
        '"[1, 2, 3, 9, 9]",3,4',
        '"[1, 2, 3, 4, 9]",4,5',
        '"[9, 9, 9, 9, 9]",1,1',
        '"[5, 6, 7, 8, 1]",5,2',
    ]
    assert (tmp_path / "csv" / "id2name.txt").read_text() == "0::The Wrong Man (1956)\n1::Fantômas\n"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil()),
        pickle.dumps(Evil(), protocol=0),
        pickle.dumps([pd.DataFrame({"seq": [Evil()]})]),
        b"\x80\x04\x8c\x06pandas\x8c\x10DataFrame.to_csv\x93.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"not a pickle",
        b"",
        pickle.dumps({"seq": 1}),
    ],
)
def test_other_pickles_are_refused_unrun(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_data.df").write_bytes(content)
    with pytest.raises(UserError, match="train_data.df"):
        convert_ilora.read_pickled_table(tmp_path / "train_data.df")
    assert not (tmp_path / "evil").exists()


def test_command_reports_in_one_line(tmp_path, capsys):
    assert convert_ilora.main([str(tmp_path), str(tmp_path)]) == 2
    assert "train_data.df is missing" in capsys.readouterr().err
