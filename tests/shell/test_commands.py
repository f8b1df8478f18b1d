"""cmd/*.sh: order of the stages, passing on of Hydra overrides, reporting of failures."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

RECORD_ONLY = 'case "$*" in *"${STUB_FAILS:-@none@}"*) exit 3 ;; esac\nexit 0'
STAGES = ["run_teacher", "run_student_baseline", "run_distill", "run_eval_all"]


@pytest.fixture
def project(sandbox, fake_venv):
    """The commands, with the set-up and the interpreter recorded only."""
    fake_venv(RECORD_ONLY)
    (sandbox.root / "env_shell/setup.sh").write_text(
        f'printf "setup\\t%s\\n" "$@" >>"{sandbox.calls_file}"\n'
    )
    return sandbox


def stages(project) -> list[tuple[str, list[str]]]:
    return [(row[2].removeprefix("src.exp."), row[3:]) for row in project.calls("python")]


@pytest.mark.parametrize("name", STAGES)
def test_one_stage_passes_overrides_through(project, name):
    overrides = ["dataset=movielens", "dataset.raw_dir=/a b/c", "+x=[1,2]"]
    result = project.run(f"cmd/{name}.sh", *overrides)
    assert result.returncode == 0, result.stderr
    assert project.calls()[0] == ["setup", "--quiet"]
    assert stages(project) == [(name, overrides)]


def test_run_all_is_one_process(project):
    overrides = ["dataset=movielens", "teacher/llm=local", "~teacher.y"]
    result = project.run("cmd/run_all.sh", *overrides)
    assert result.returncode == 0, result.stderr
    assert stages(project) == [("run_all", overrides)]
    assert project.run("cmd/run_all.sh", STUB_FAILS="src.exp.run_all").returncode == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_run_all_reaches_the_stage(project, fake_venv, signum):
    """The command becomes the process that trains: nothing is left running behind it."""
    fake_venv('trap "echo got >>$OUT; exit 7" TERM HUP; echo $$ >>$OUT; while :; do sleep 0.05; done')
    out = project.root / "out"
    process = subprocess.Popen(
        ["bash", "cmd/run_all.sh"], cwd=project.root, env=project.env | {"OUT": str(out)}
    )
    deadline = time.monotonic() + 30
    while not out.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(timeout=30) == 7
    assert out.read_text().split() == [str(process.pid), "got"]


def test_tuning_gives_both_sides_equally_many_trials(project):
    grids = {"BASELINE_GRID": "student.lr=1,2 student.dropout=3,4", "DISTILL_GRID": "distill.lam=1,2,3,4"}
    result = project.run("cmd/run_tuning.sh", "student=caser", **grids)
    assert result.returncode == 0, result.stderr
    own, skip = ["student=caser"], ["skip_if_done=true"]
    assert stages(project) == [
        ("run_student_baseline", ["--multirun", *own, "student.lr=1,2", "student.dropout=3,4", *skip]),
        ("run_teacher", own + skip),
        ("run_distill", ["--multirun", *own, "distill.lam=1,2,3,4", *skip]),
        ("trials", ["student_baseline", *own]),
        ("trials", ["distill", *own]),
    ]
    uneven = project.run("cmd/run_tuning.sh", **grids | {"DISTILL_GRID": "distill.lam=1,2"})
    assert uneven.returncode == 1
    assert "found 4 baseline and 2 distillation trials, expected equally many" in uneven.stderr
    assert len(stages(project)) == 5


def test_study_runs_the_parts_that_are_asked_for(project):
    result = project.run(
        "cmd/run_study.sh", "dataset=demo_study", SEEDS="4", STUDENTS="caser", PARTS="controls"
    )
    assert result.returncode == 0, result.stderr
    ran = stages(project)
    checked = ran.pop(0)  # contradictions in the table come to light before the first training
    assert checked[0] == "run_eval_all" and "dry_run=true" in checked[1]
    assert [name for name, _ in ran] == ["run_teacher"] * 5 + [
        "run_student_baseline",
        "run_distill",
        "run_distill",
        "run_eval_all",
    ]
    assert all("teacher.seed=1" in arguments and "dataset=demo_study" in arguments for _, arguments in ran)
    assert "distill.control=shuffle_rankings,permute_embeddings,both" in ran[7][1]


def test_a_failed_set_up_runs_nothing(project):
    (project.root / "env_shell/setup.sh").write_text("exit 1\n")
    assert project.run("cmd/run_all.sh").returncode == 1
    assert project.calls() == []


def test_test_command_runs_every_check_and_names_all_failures(project):
    tools = project.root / ".venv/bin"
    project.stub("shellcheck", "exit 1", tools)
    for name in ("shfmt", "hadolint"):
        project.stub(name, "", tools)
    result = project.run("cmd/test.sh", "-k", "a b", STUB_FAILS="black")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "test: failed: shellcheck black"
    assert project.calls("python")[-1][1:] == ["-m", "pytest", "-q", "-k", "a b"]
    assert project.run("cmd/test.sh").returncode == 1

    project.stub("shellcheck", "", tools)
    assert project.run("cmd/test.sh").returncode == 0
