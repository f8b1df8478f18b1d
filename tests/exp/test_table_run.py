"""Tables from their plan to their summary, with real jobs in processes of their own."""

from __future__ import annotations

import pandas as pd
import pytest

from src.core.paths import CONF, result_root
from src.exp.table.driver import run_table
from tests.exp.conftest import TINY, TINY_TEACHER

TRIALS = (
    "vars.dropout=[0.1]",
    "vars.lr=[0.001,0.01]",
    "vars.ema=[0]",
    "vars.lam=[1]",
    "vars.embedding=[fuse,none]",
)


def test_tuning_lists_equally_many_trials_best_first_by_validation(roots, capfd):
    tuning = str(CONF / "table" / "tuning.yaml")
    arguments = (*TINY, *TRIALS, "teacher=tfidf", "eval.candidates=null")
    assert run_table(tuning, arguments) == 0
    table = pd.read_csv(result_root() / "tuning" / "summary.csv")
    assert table["stage"].value_counts().to_dict() == {"student_baseline": 2, "distill": 2}
    told = capfd.readouterr()
    listed = told.out.partition("## Over seeds")[2]
    assert "valid" in told.out and not any(word in told.out for word in ("test", "baseline NDCG"))
    for stage, rows in table.groupby("stage"):
        lines = [line for line in listed.splitlines() if line.startswith(f"| {stage} ")]
        values = sorted(rows["NDCG@10"], reverse=True)
        assert len(lines) == 2 and all(f"{v:.4f}" in line for v, line in zip(values, lines, strict=True))
    runs = sorted(result_root().glob("result_*"))
    assert run_table(tuning, arguments) == 0
    assert sorted(result_root().glob("result_*")) == runs  # nothing runs twice


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "ray"])
def test_a_profile_as_a_column_and_two_processes_for_the_teacher(roots, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    (tmp_path / "t.csv").write_text("experiment,seed\nsmoke,1\nsmoke,2\n")
    arguments = (*TINY, *TINY_TEACHER, "eval.candidates=null", f"engine={engine}", "engine.cpus=2")
    assert run_table(str(tmp_path / "t.csv"), (*arguments, "engine.processes_per_teacher=2")) == 0
    table = pd.read_csv(result_root() / "t" / "summary.csv")
    assert table["stage"].tolist() == ["distill", "distill"] and table["NDCG@10"].notna().all()
    (teacher,) = (result_root() / "t").glob("*seed1/teacher")
    assert "2 process(es)" in (teacher / "run.log").read_text()
