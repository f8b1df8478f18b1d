"""DLLM2Rec's own data and its teacher's files: read, imported, distilled from, and written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.data_utils import load_dataset
from src.distill.data_bridge import join_rows
from src.distill.official_files import DISTANCES, EMBEDDINGS, RANKS
from src.exp import official_files
from src.exp.settings import Settings

ITEMS = 12
# Histories and targets; the second row has none (no sample), the third is bought again.
TRAIN = [([0, 1], 2), ([], 3), ([4, 5], 5), ([1, 2, 3, 4, 5, 6], 7), ([8, 9], 10)]
VALID, TEST = [([3, 3, 3, 3, 3, 3], 3), ([6], 1)], [([3, 3, 3, 3, 3, 3], 3), ([2, 7], 11)]


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, rows, target in (("train", TRAIN, "{}"), ("val", VALID, "{}.0"), ("test", TEST, "{}.0")):
        lines = ["seq,len_seq,next"]
        for history, following in rows:
            seq = history + [ITEMS] * (6 - len(history))
            lines.append(f'"{seq}",{max(len(history), 1)},{target.format(following)}')
        (folder / f"{name}_data.csv").write_text("\n".join(lines) + "\n")
    names = [f"Game {i}: Part::{i}" for i in range(ITEMS)]
    (folder / "id2name.txt").write_text("".join(f"{name}\t{i}\n" for i, name in enumerate(names)))
    return folder


def write_files(folder: Path, rows: int = len(TRAIN), k: int = 4) -> Path:
    folder.mkdir(parents=True)
    ranks = (np.arange(rows)[:, None] * 2 + np.arange(k)) % ITEMS
    np.savetxt(folder / RANKS, ranks)  # as the official code's savetxt: 1.000000000000000000e+00
    np.savetxt(folder / DISTANCES, 40 + np.arange(k) + np.arange(rows)[:, None] / 8)
    torch.save(torch.arange(ITEMS * 3.0).reshape(ITEMS, 3), folder / EMBEDDINGS)
    return folder


@pytest.fixture
def overrides(roots: Path) -> list[str]:
    raw = write_data(roots / "raw")
    return ["dataset=games_dllm2rec", f"dataset.raw_dir={raw}", "teacher=official_files", "distill.top_k=4"]


def test_data_is_read_as_published(overrides: list[str]) -> None:
    data = load_dataset(Settings.compose(overrides).dataset)
    assert {name: ids.tolist() for name, ids in data.splits.items()} == {
        "train": [0, 2, 3, 4],
        "valid": [5, 6],
        "test": [7, 8],
    }
    assert data.targets(np.array([2, 5, 8])).tolist() == [6, 4, 12]
    assert data.histories(np.array([2]))[0, -3:].tolist() == [0, 5, 6] and data.titles[3] == "Game 2: Part::2"


def test_import_distill_rows_and_export(overrides: list[str], roots: Path, capsys) -> None:
    files = write_files(roots / "tocf")
    assert official_files.main(["import", str(files), *overrides]) == 0
    settings = Settings.compose(overrides)
    data = load_dataset(settings.dataset)
    manifest = json.loads((settings.teacher_dir / "manifest.json").read_text())
    assert manifest["n_samples"] == {"train": 4} and manifest["target_scores"] == "listed"
    from src.core.teacher_store import TeacherStore

    store = TeacherStore(settings.teacher_dir, data.fingerprint)
    rows = join_rows(store, data, 4)
    assert rows.sample_ids.tolist() == [0, 2, 3, 4]  # the row without a history is left out, none moves up
    assert rows.rankings[1].tolist() == [5, 6, 7, 8] and rows.scores[1, 0] == 40.25
    assert official_files.main(["import", str(files), *overrides]) == 0  # once more: nothing to do
    assert official_files.main(["export", str(roots / "again"), *overrides]) == 0
    again = np.loadtxt(roots / "again" / RANKS)
    assert np.array_equal(again, np.loadtxt(files / RANKS)[[0, 2, 3, 4]])
    assert torch.equal(torch.load(roots / "again" / EMBEDDINGS), torch.load(files / EMBEDDINGS))
    other = write_files(roots / "other", k=5)
    assert official_files.main(["import", str(other), *overrides]) == 2
    assert "holds other files" in capsys.readouterr().err
    renamed = Settings.compose([*overrides, "teacher.name=bigrec_2"])
    assert renamed.distill_fp != settings.distill_fp  # a name of its own, results of its own


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (3, [], "has 3 rows; expected 4, one per training sample of games_dllm2rec"),
        (7, [], "has 7 rows; expected 4"),
        (5, ["teacher=popularity"], "teacher.kind=popularity; expected official_files"),
        (5, ["dataset.ilora.allow_repeats=false"], "1 of 4 train rows have their target as the newest"),
        (5, ["dataset.nope=1"], "nope"),
    ],
)
def test_refuses(rows: int, more: list[str], message: str, overrides: list[str], roots: Path, capsys) -> None:
    files = write_files(roots / "tocf", rows)
    assert official_files.main(["import", str(files), *overrides, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_stage_without_imported_rows_says_what_to_run(overrides: list[str], roots: Path, capsys) -> None:
    from src.core.errors import UserError
    from src.teacher.factory import build_teacher

    settings = Settings.compose(overrides)
    with pytest.raises(UserError, match="run src.exp.official_files import"):
        build_teacher(settings.teacher, load_dataset(settings.dataset))
    assert official_files.main(["export", str(roots / "x"), *overrides]) == 2
    assert "no manifest.json" in capsys.readouterr().err
