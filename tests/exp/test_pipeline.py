"""The four stages end to end on a tiny demo: what they write, reuse, and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from src.core.paths import data_root, result_root
from src.core.runs import TIMES
from tests.exp.conftest import TINY, TINY_TEACHER, Stage

PROFILE = (
    "+experiment=smoke"  # with all its values overridden: the runs are those of the same command without it
)


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_four_stages_then_reuse(stage: Stage) -> None:
    teacher = stage("run_teacher", PROFILE, *TINY, *TINY_TEACHER)
    assert teacher.code == 0, teacher.err
    control = stage("run_teacher", *TINY, "teacher=knn", "teacher.export.top_k=30")
    assert control.code == 0, control.err
    baseline = stage("run_student_baseline", PROFILE, *TINY, *TINY_TEACHER)
    assert baseline.code == 0, baseline.err
    distilled = stage("run_distill", PROFILE, *TINY, *TINY_TEACHER)
    assert distilled.code == 0, distilled.err
    compared = stage("run_eval_all", PROFILE, *TINY, *TINY_TEACHER)
    assert compared.code == 0, compared.err

    # every run leaves its configuration, state, times, metrics and ranks behind
    ids = None
    for run in (teacher, baseline, distilled):
        assert run.folder is not None
        assert _json(run.folder / "status.json")["state"] == "completed"
        assert (run.folder / ".hydra" / "overrides.yaml").is_file()
        assert (run.folder / "run.log").stat().st_size > 0
        assert "commit" in _json(run.folder / "git_info.json")
        metrics = _json(run.folder / "metrics" / "metrics.json")
        assert metrics["n_test"] == len(np.load(run.folder / "metrics" / "test_ranks.npy"))
        assert {"Recall@10", "NDCG@10", "HitRatio@10"} <= metrics["test"].keys() & metrics["valid"].keys()
        these = np.load(run.folder / "metrics" / "test_sample_ids.npy")
        ids = these if ids is None else ids
        assert np.array_equal(ids, these)
        among = _json(run.folder / "metrics" / "candidates.json")
        ways = {"likelihood", "item_scores", "frozen_sasrec"} if run is teacher else {"scores"}
        assert set(among["ways"]) == ways and (among["count"], among["draws"]) == (20, 5)
        hits = [np.load(run.folder / "metrics" / f"candidate_hits_{way}.npy") for way in ways]
        asked = np.load(run.folder / "metrics" / "candidate_sample_ids.npy")
        assert np.array_equal(asked, ids) and all(h.shape == (5, len(ids)) for h in hits)
    assert teacher.folder is not None and compared.folder is not None
    gates = np.load(teacher.folder / "metrics" / "gate_weights.npy")
    assert gates.shape == (len(ids), 4) and np.allclose(gates.sum(axis=1), 1, atol=1e-5)
    lines = [
        line
        for e in (teacher, control, baseline, distilled, compared)
        for line in e.err.splitlines()
        if "model shards" not in line
    ]
    assert len(lines) + compared.out.count("\n") <= 60, "\n".join(lines)
    for run, says in (
        (teacher, "trains ilora"),
        (baseline, "trains sasrec"),
        (distilled, "the outputs of ilora"),
    ):
        begins, *_, ends = run.err.splitlines()
        line = rf" [0-9a-f]{{12}}: .*{says}.*; device cpu, float32; its result: {run.folder}$"
        assert re.search(line, begins) and ends.endswith(f"is completed: {run.folder}")
    times = _json(compared.folder / "metrics" / "time.json")
    assert set(times) == set(TIMES) and all(v > 0 for v in times.values())
    report = (compared.folder / "metrics" / "comparison.md").read_text()
    assert "sasrec <- ilora" in report and "Paired differences" in report
    assert "sasrec <- ilora" in compared.out
    assert _json(distilled.folder / "metrics" / "metrics.json")["control"] == "none"
    assert "## Does distillation help?" in report and "no gain can be shown: 1 of 3 seeds" in compared.out
    assert "20 candidates" in report and "| frozen SASRec of ilora | teacher ilora, item_scores |" in report
    assert "| sasrec <- ilora | distilled | scores |" in report
    assert "| teacher ilora | teacher | likelihood |" in compared.out
    for run, plots in (
        (compared, ("comparison", "by_k", "slices", "cost")),
        (teacher, ("learning_curves", "slices", "gate_users")),
        (baseline, ("learning_curves", "slices")),
        (distilled, ("learning_curves", "slices", "item_map")),
    ):
        assert all((run.folder / "plots" / f"{plot}.png").stat().st_size > 1000 for plot in plots)
    assert (
        "test, history excluded: NDCG@10"
        in stage(
            "run_student_baseline",
            *TINY,
            *TINY_TEACHER,
            "skip_if_done=true",
            "eval.ks=[2,10,20]",
            "eval.exclude_history=true",
        ).err
    ), "what is only reported trains nothing"

    # a second time: nothing is done twice, and nothing is left lying about
    before = sorted(p.name for p in result_root().glob("*"))
    for name in ("run_teacher", "run_student_baseline", "run_distill"):
        again = stage(name, *TINY, *TINY_TEACHER, "skip_if_done=true")
        assert again.code == 0 and "done already" in again.err
    assert sorted(p.name for p in result_root().glob("*")) == before

    # without skip_if_done the store is reused, its times marked, and the metrics equal
    again = stage("run_teacher", *TINY, *TINY_TEACHER)
    assert again.code == 0 and again.folder is not None and teacher.folder is not None
    assert _json(again.folder / "metrics" / "time.json") == {
        **_json(teacher.folder / "metrics" / "time.json"),
        "reused": True,
    }
    assert _json(again.folder / "metrics" / "metrics.json") == _json(
        teacher.folder / "metrics" / "metrics.json"
    )


def test_same_seed_same_baseline(stage: Stage) -> None:
    runs = [stage("run_student_baseline", *TINY).folder for _ in range(2)]
    first, second = (_json(run / "metrics" / "metrics.json") for run in runs if run)
    assert first == second
    other = stage("run_student_baseline", *TINY, "seed=1").folder
    assert other and _json(other / "metrics" / "metrics.json")["test"] != first["test"]


def test_distill_without_teacher_outputs(stage: Stage) -> None:
    ended = stage("run_distill", *TINY, *TINY_TEACHER)
    assert ended.code == 2 and "run_teacher" in ended.error_line
    assert ended.folder and _json(ended.folder / "status.json")["state"] == "failed"


def test_eval_without_runs(stage: Stage) -> None:
    ended = stage("run_eval_all", *TINY)
    assert ended.code == 2 and "run_student_baseline" in ended.error_line


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["datset=demo"], "datset"),
        (["dataset=nosuch"], "nosuch"),
        (["student.widht=3"], "widht"),
        (["teacher.lora.rank=8", "teacher.lora.experts=3"], "rank divisible by experts"),
        (["dataset.min_history=0"], "dataset.min_history: found 0, expected >= 1"),
        (["eval.select_metric=MRR@10"], "MRR@10"),
        (["distill.lam=-1"], "distill.lam: found -1"),
        (["dataset.split_ratio=[0.5,0.1,0.1]"], "sum to 1"),
        (["dataset.min_history=500"], "split"),
    ],
)
def test_bad_input_is_one_line(stage: Stage, overrides: list[str], says: str) -> None:
    ended = stage("run_student_baseline", *TINY, *overrides)
    assert ended.code == 2
    assert says in ended.error_line
    assert not list(data_root().glob("processed/*/*/manifest.json"))
    if ended.folder:  # Hydra's own errors come before there is a folder
        assert _json(ended.folder / "status.json")["state"] == "failed"


def test_missing_raw_folder(stage: Stage, tmp_path: Path) -> None:
    raw = tmp_path / "nothing"
    ended = stage("run_teacher", "dataset=movielens", f"dataset.raw_dir={raw}", "dataset.download=false")
    assert ended.code == 2 and str(raw) in ended.error_line and "dataset.raw_dir" in ended.error_line


def test_dry_run_leaves_nothing(stage: Stage) -> None:
    ended = stage("run_teacher", *TINY, *TINY_TEACHER, "dry_run=true")
    assert ended.code == 0 and "plan: teacher" in ended.err
    assert ended.folder is None and not data_root().exists()


def test_all_configuration_problems_at_once(stage: Stage) -> None:
    ended = stage("run_teacher", *TINY, "dataset.min_history=0", "student.batch_size=0", "distill.lam=-1")
    line = ended.error_line
    assert ended.code == 2 and all(k in line for k in ("min_history", "batch_size", "lam"))
