"""Hydra sweeps: a folder for every trial, and the table that chooses among trials by validation."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from src.core.paths import result_root
from src.exp import trials
from tests.exp.conftest import TINY, Stage

GRID = ("--multirun", *TINY, "student.lr=0.001,0.01")


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is named in the same second."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101_000000")


def _valid(folder: Path) -> float:
    return json.loads((folder / "metrics" / "metrics.json").read_text())["valid"]["NDCG@10"]


def test_sweeps_of_one_second_share_no_folder(stage: Stage, stopped_clock: None) -> None:
    for seeds in ("1,2", "3,4"):
        assert stage("run_student_baseline", "--multirun", *TINY, f"seed={seeds}").code == 0
    runs = sorted(result_root().glob("result_*"))
    assert len(runs) == 4
    overrides = {(run / ".hydra" / "overrides.yaml").read_text() for run in runs}
    assert len(overrides) == 4
    assert all((run / "status.json").is_file() for run in runs)


def test_trials_are_listed_by_validation(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert stage("run_student_baseline", *GRID, "seed=1,2").code == 0
    assert stage("run_student_baseline", *TINY, "student=gru4rec", "seed=1").code == 0
    control = ("student.lr=0.02", "distill.control=shuffle_rankings")  # of a study: nobody's candidate
    assert stage("run_student_baseline", *TINY, *control, "seed=1").code == 0
    foreign = result_root() / "not_ours"
    foreign.mkdir()
    (foreign / "status.json").write_text('{"state": 3}')
    shared = list(TINY)
    table = trials.find_trials("student_baseline", shared, "NDCG@10")
    assert list(table["overrides"].str.contains("gru4rec")).count(True) == 1
    assert list(table["NDCG@10"]) == sorted(table["NDCG@10"], reverse=True)
    by_name = table.set_index("overrides")
    for lr in ("student.lr=0.001", "student.lr=0.01"):
        runs = [
            r
            for r in result_root().glob("result_*")
            if f"- {lr}\n" in (r / ".hydra" / "overrides.yaml").read_text()
        ]
        assert len(runs) == 2 == by_name.loc[lr, "seeds"]
        assert by_name.loc[lr, "NDCG@10"] == pytest.approx(sum(map(_valid, runs)) / 2)
    only = trials.find_trials("student_baseline", [*shared, "student=gru4rec"], "NDCG@10")
    assert list(only["overrides"]) == ["(as shipped)"]

    monkeypatch.setattr(sys, "argv", ["trials", "student_baseline", *shared])
    trials.main()
    assert "3 trials of student_baseline, validation NDCG@10" in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["trials", "student_baseline", *shared, "--metric", "NDCG@7"])
    with pytest.raises(SystemExit) as ended:
        trials.main()
    assert ended.value.code == 2 and "--metric=NDCG@7; expected one of" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", ["trials", "distill", *shared])
    with pytest.raises(SystemExit, match="no completed run of distill"):
        trials.main()
