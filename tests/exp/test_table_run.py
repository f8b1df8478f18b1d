"""A shipped table from its plan to its summary, with real jobs in processes of their own."""

from __future__ import annotations

import pandas as pd

from src.core.paths import CONF, result_root
from src.exp.table.driver import run_table
from tests.exp.conftest import TINY

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
