"""Hydra sweeps: a folder for every trial, and Optuna's proposals."""

from __future__ import annotations

import json
import time

import pytest
from omegaconf import OmegaConf

from src.core.paths import result_root
from tests.exp.conftest import TINY, Stage


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is named in the same second."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101_000000")


def test_sweeps_of_one_second_share_no_folder(stage: Stage, stopped_clock: None) -> None:
    for seeds in ("1,2", "3,4"):
        assert stage("run_student_baseline", "--multirun", *TINY, f"seed={seeds}").code == 0
    runs = sorted(result_root().glob("result_*"))
    assert len(runs) == 4
    overrides = {(run / ".hydra" / "overrides.yaml").read_text() for run in runs}
    assert len(overrides) == 4
    assert all((run / "status.json").is_file() for run in runs)


def test_optuna_proposes_trials_by_validation(stage: Stage) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1")
    found = ("student.lr=interval(0.001,0.01)", "hydra.sweeper.n_trials=2")
    assert stage("run_student_baseline", "--multirun", *TINY, *sweeper, *found).code == 0
    values = [
        json.loads((f / "metrics" / "metrics.json").read_text())["valid"]["NDCG@10"]
        for f in result_root().glob("result_*")
    ]
    (best,) = result_root().glob("sweep_*/optimization_results.yaml")
    assert OmegaConf.load(best).best_value == pytest.approx(max(values))
