"""From rows to unique jobs: the counts of the example table, what is done already, and every problem with its line."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from src.core.artifacts import write_json, write_manifest
from src.core.errors import ConfigError
from src.core.paths import CONF, result_root
from src.core.runs import this_process
from src.exp.settings import Settings
from src.exp.table.plan import Plan, make_plan
from src.exp.table.reading import Row, read_table

SMALL = ("dataset.demo.users=60", "dataset.demo.items=40", "dataset.demo.groups=4")


def row(*overrides: str, stage: str = "distill", name: str = "r") -> Row:
    return Row(f"line of {name}", name, stage, {}, (*SMALL, *overrides))


def rows(*more: tuple[str, ...], stage: str = "distill") -> list[Row]:
    return [row(*o, stage=stage, name=f"r{i}") for i, o in enumerate(more)]


def stages(plan: Plan) -> dict[str, int]:
    return dict(Counter(job.stage for job in plan.jobs))


def complete(job: str, plan: Plan) -> Path:
    """A completed run (of a part: an artifact) as the registry sees it."""
    node = plan.nodes[job]
    if node.folder is not None:
        node.folder.mkdir(parents=True)
        write_manifest(node.folder, {})
        return node.folder
    folder = result_root() / f"result_{job}"
    (folder / "metrics").mkdir(parents=True)
    write_json(folder / "metrics" / "metrics.json", {})
    write_manifest(folder / "metrics", {"stage": node.job.stage, "fingerprint": node.job.fingerprint})
    status = {"state": "completed", "stage": node.job.stage, "fingerprint": node.job.fingerprint}
    write_json(folder / "status.json", {**status, **this_process()})
    if node.job.stage == "teacher":
        node.settings.teacher_dir.mkdir(parents=True, exist_ok=True)
        write_manifest(node.settings.teacher_dir, {})
    return folder


def test_the_example_of_24_rows(roots):
    table = read_table(CONF / "table" / "example.csv", SMALL)
    plan = make_plan(table.rows)
    wanted = Counter(node.job.stage for node in plan.nodes.values())
    assert len(table.rows) == 24
    assert wanted == {
        "dataset": 1,
        "encoder": 4,
        "llm": 4,
        "training": 20,
        "teacher": 24,  # 20 trained ones and 4 that are not
        "student_baseline": 4,
        "distill": 24,
    }
    untrained = [
        n for n in plan.nodes.values() if n.job.stage == "teacher" and "training" not in str(n.job.needs)
    ]
    assert len(untrained) == 4
    # Each teacher is trained in the job that exports it: nobody else needs it.
    assert stages(plan) == {k: v for k, v in wanted.items() if k != "training"}
    assert len({row for job in plan.jobs for row in job.rows}) == 24


def test_every_job_comes_after_those_that_it_needs_and_has_the_fingerprint_of_its_own_process(roots):
    plan = make_plan(rows(("seed=1",), ("seed=2",), ("seed=1", "teacher=knn"), ("teacher=fused",)))
    seen: set[str] = set()
    for job in plan.jobs:
        assert seen.issuperset(job.needs)
        seen.add(job.id)
        settings = Settings.compose(job.overrides)  # as the process itself will compose
        names = {
            "teacher": "teacher_fp",
            "student_baseline": "baseline_fp",
            "distill": "distill_fp",
            "dataset": "dataset_fp",
        }
        if job.stage in names:
            assert job.fingerprint == getattr(settings, names[job.stage])
    # One teacher for the students of r0 and r1, whose training is a member of the pool's, too.
    assert stages(plan) == {
        "dataset": 1,
        "encoder": 1,
        "training": 1,
        "teacher": 3,
        "student_baseline": 3,
        "distill": 4,
    }


def test_a_training_that_two_exports_need_is_a_job_of_its_own(roots):
    plan = make_plan(rows(("teacher.export.top_k=20",), ("teacher.export.top_k=30",)))
    (training,) = [job for job in plan.jobs if job.stage == "training"]
    assert [job.needs for job in plan.jobs if job.stage == "teacher"] == [(training.id,)] * 2
    assert stages(plan)["training"] == 1 and "encoder" not in stages(plan)  # it trains its encoder itself


def test_what_is_done_is_dropped_and_what_only_it_needs_is_not_asked_for(roots):
    two = rows(("seed=1",), ("seed=2",))
    plan = make_plan(two)
    teacher, first = (next(j for j in plan.jobs if j.stage == s) for s in ("teacher", "distill"))
    made = {job: complete(job, plan) for job in (teacher.id, first.id)}
    again = make_plan(two)
    assert made.items() <= again.done.items()
    assert stages(again) == {"dataset": 1, "student_baseline": 2, "distill": 1}
    metrics = made[first.id] / "metrics" / "metrics.json"
    metrics.write_text(metrics.read_text() + " ")  # damaged: the job runs, and says so itself
    assert stages(make_plan(two))["distill"] == 2
    for file in teacher_files(plan):
        file.unlink()  # the run is there, its store is not
    assert stages(make_plan(two))["teacher"] == 1


def teacher_files(plan: Plan) -> list[Path]:
    (node,) = [n for n in plan.nodes.values() if n.job.stage == "teacher"]
    return [*node.settings.teacher_dir.iterdir()]


def test_a_comparison_waits_for_all_and_needs_its_own_seeds(roots):
    asked = [
        *rows(("seed=1",), ("seed=1", "teacher=knn")),
        row("compare.seeds=[1,2]", stage="eval_all", name="all"),
    ]
    plan = make_plan(asked)
    last = plan.jobs[-1]
    assert last.stage == "eval_all" and last.after == tuple(job.id for job in plan.jobs[:-1])
    needed = Counter(plan.nodes[i].job.stage for i in last.needs)
    assert needed == {"student_baseline": 2, "distill": 2, "teacher": 1}  # one teacher, whose seed is its own


def test_a_teacher_override_acts_on_the_rows_whose_teacher_has_the_key(roots):
    mine = ("teacher.train.samples=100", "teacher/prompt=movie", "teacher.seed=5", "student.lr=0.01")
    chosen = rows((), ("teacher=knn",), ("teacher.seed=6", "teacher=ilora"))
    plan = make_plan([replace(r, common=mine) for r in chosen])
    of = {n.job.overrides: n.settings for n in plan.nodes.values() if n.job.stage == "distill"}
    assert {(s.teacher.kind, s.teacher.seed, s.student.lr) for s in of.values()} == {
        ("ilora", 5, 0.01),
        ("knn", 5, 0.01),
        ("ilora", 6, 0.01),
    }
    assert {s.teacher.train.samples for s in of.values() if s.teacher.kind == "ilora"} == {100}
    with pytest.raises(ConfigError, match="found teacher.train.samples=100, expected a key that some row"):
        make_plan([replace(r, common=mine[:1]) for r in rows(("teacher=knn",), ("teacher=tfidf",))])
    with pytest.raises(ConfigError, match="found seed=3, expected a key that some row leaves open"):
        make_plan([replace(r, common=("seed=3",)) for r in rows(("seed=1",), ("seed=2",))])


def test_the_tables_of_study_selection_and_tuning(roots):
    variables = ("vars.seeds=[1,2]", "vars.students=[sasrec,caser]")
    study = read_table(CONF / "table" / "study.yaml", (*SMALL, "teacher.train.samples=100"), variables)
    wanted = Counter(n.job.stage for n in make_plan(study.rows).nodes.values())
    # Per student and seed: as it is, three controls, two parts, two other teachers.
    assert wanted == {
        "dataset": 1,
        "encoder": 1,
        "llm": 1,
        "training": 1,
        "teacher": 5,
        "student_baseline": 4,
        "distill": 4 * (1 + 3 + 2 + 2),
        "eval_all": 2,
    }
    selection = make_plan(read_table(CONF / "table" / "selection.yaml", ("dataset=demo_study",)).rows)
    wanted = Counter(n.job.stage for n in selection.nodes.values())
    assert (wanted["teacher"], wanted["encoder"], wanted["student_baseline"]) == (4 * 4 * 3, 3, 3)
    tuning = CONF / "table" / "tuning.yaml"
    assert Counter(r.stage for r in read_table(tuning).rows) == {"student_baseline": 8, "distill": 8}
    with pytest.raises(ConfigError, match="equal_trials: found .*'student_baseline': 8, 'distill': 4"):
        read_table(tuning, (), ("vars.lam=[1]",))


def test_rows_that_differ_in_nothing_that_matters_run_once(roots):
    plan = make_plan(rows((), ("eval.batch_size=64",)))
    assert stages(plan)["distill"] == 1
    assert plan.notes == ("line of r1 (r1) computes what line of r0 (r0) does: run once",)


def test_all_problems_of_all_rows_are_told_at_once(roots):
    bad = rows(
        ("student.lrr=1",),
        ("student.lr=-1",),
        ("student.lrr=1", "seed=2"),
        ("teacher.overfit=8",),
        ("student=none",),
    )
    with pytest.raises(ConfigError) as error:
        make_plan(bad)
    problems = error.value.problems
    assert len(problems) >= 4
    for start, part in (
        ("line of r0", "student.lrr"),
        ("line of r1", "student.lr: found -1"),
        ("line of r3", "debug run"),
    ):
        assert any(p.startswith(start) and part in p for p in problems), problems


def test_a_missing_raw_file_is_told_with_the_row(roots, tmp_path):
    with pytest.raises(ConfigError, match="line of r"):
        make_plan([row("dataset=movielens", f"dataset.raw_dir={tmp_path}", "dataset.download=false")])


def test_ten_thousand_rows_in_seconds(roots, tmp_path):
    """30 s is the bound on a free machine; here only that the work is shared, counted in compositions of groups."""
    import time

    lines = [
        "seed,teacher.train.samples,active,distill.lam",
        '"+range(0,100)","0,16,50,100","all,random","range(1,13)"',
    ]
    (tmp_path / "big.csv").write_text("\n".join(lines) + "\n")
    started = time.process_time()
    plan = make_plan(read_table(tmp_path / "big.csv", SMALL).rows)
    assert len(plan.targets) == 9600 and stages(plan)["teacher"] == 4 and stages(plan)["distill"] == 9600
    assert time.process_time() - started < 30
