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


@pytest.mark.parametrize(
    ("name", "variables"),
    [("tuning", []), ("study", ["vars.seeds=[4]", "vars.students=[sasrec,gru4rec,caser]"])],
)
def test_study_and_tuning_are_tables(project, name, variables):
    own = ["dataset=demo_study", "vars.lam=[1, 2]"]
    assert project.run(f"cmd/run_{name}.sh", *own, SEEDS="4").returncode == 0
    assert stages(project) == [("run_table", [f"conf/table/{name}.yaml", *variables, *own])]
    for variable in ("PARTS",) if name == "study" else ("BASELINE_GRID", "DISTILL_GRID"):
        refused = project.run(f"cmd/run_{name}.sh", **{variable: "controls"})
        assert refused.returncode != 0 and f"found {variable}, expected vars.NAME=VALUE" in refused.stderr


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
