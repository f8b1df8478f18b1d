"""env_shell/setup.sh: the procedure for each kind of machine, repetition, and one-line errors."""

from __future__ import annotations

import subprocess
import time
import tomllib
from pathlib import Path

import pytest

PIP_IS_RECORDED_ONLY = 'if [[ "$1 $2" == "-m pip" ]]; then exit 0; fi'
SETUP = "env_shell/setup.sh"


@pytest.fixture
def machine(sandbox, fake_venv):
    """A machine without CUDA; Poetry and pip are recorded, not run."""
    fake_venv(PIP_IS_RECORDED_ONLY)
    poetry = sandbox.stub("poetry", 'echo "mirror=${POETRY_PYPI_MIRROR_URL} venv=${VIRTUAL_ENV}"')
    sandbox.stub("nvidia-smi", "exit 9")
    sandbox.env |= {"ANYO_POETRY": str(poetry), "POETRY_PYPI_MIRROR_URL": "mirror.invalid"}
    return sandbox


def locked(root: Path, name: str) -> str:
    with (root / "poetry.lock").open("rb") as f:
        return next(p["version"] for p in tomllib.load(f)["package"] if p["name"] == name)


def pip_installs(machine) -> list[list[str]]:
    return [row[4:] for row in machine.calls("python") if row[1:4] == ["-m", "pip", "install"]]


def last_line(result) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_cpu_keeps_torch_out_of_poetry(machine):
    """torch and what only torch needs come from pip, beside Poetry and without NVIDIA's libraries."""
    result = machine.run(SETUP)
    assert result.returncode == 0, result.stderr
    assert machine.calls("poetry") == [["poetry", "install", "--without", "torch"]]
    torch = pip_installs(machine)[0]
    assert torch[:2] == ["--no-compile", "--no-deps"]
    names = ("accelerate", "mpmath", "networkx", "peft", "sympy", "torch")
    assert torch[2:] == [f"{n}=={locked(machine.root, n)}" for n in names]
    assert machine.calls("python")[-2][1:] == ["-m", "pip", "check"]  # the last call computes the stamp


def test_a_torch_that_is_no_cpu_build_gets_its_libraries(machine, fake_venv):
    fake_venv(
        PIP_IS_RECORDED_ONLY + '\nif [[ "$*" == *importlib.metadata*" torch" ]]; then echo 2.13.0; exit 0; fi'
    )
    machine.stub("uname", "echo Linux x86_64")
    assert machine.run(SETUP).returncode == 0
    _, libraries = pip_installs(machine)
    assert libraries[1] == "--constraint" and libraries[-1] == f"torch=={locked(machine.root, 'torch')}"
    constraints = (machine.root / ".cache/constraints.txt").read_text()
    assert f"nvidia-cublas=={locked(machine.root, 'nvidia-cublas')}\n" in constraints


def test_a_failed_torch_is_told(machine, fake_venv):
    fake_venv(
        'if [[ "$1 $2 $3" == "-m pip install" ]]; then echo no such wheel; exit 1; fi\n'
        + PIP_IS_RECORDED_ONLY
    )
    result = machine.run(SETUP)
    assert result.returncode == 1
    assert "no such wheel" in result.stderr and "installing torch failed" in last_line(result)


def test_the_commands_of_the_readme_are_there(machine):
    """poetry beside python in the environment; tensorboard and accelerate are installed there by their wheels."""
    assert machine.run(SETUP).returncode == 0
    link = machine.root / ".venv/bin/poetry"
    assert link.is_symlink() and link.resolve() == Path(machine.env["ANYO_POETRY"]).resolve()


@pytest.mark.parametrize(("driver", "warned"), [("550.54.14", True), ("580.65.06", False), ("N/A", False)])
def test_a_driver_that_is_too_old_is_one_line(machine, driver, warned):
    machine.stub("nvidia-smi", f"echo {driver}")
    result = machine.run(SETUP)
    assert result.returncode == 0
    assert ("older than 580" in result.stderr) == warned


def test_a_signal_ends_what_runs_in_the_background(machine, fake_venv):
    fake_venv('if [[ "$1 $2 $3" == "-m pip install" ]]; then exec sleep 314.1; fi\n' + PIP_IS_RECORDED_ONLY)
    process = subprocess.Popen(
        ["bash", SETUP], cwd=machine.root, env=machine.env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not pip_installs(machine):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 143
    running = subprocess.run(["pgrep", "-f", "^sleep 314.1"], capture_output=True, text=True, check=False)
    assert running.stdout == ""


def test_cpu_wheels_can_come_from_a_given_index(machine):
    assert machine.run(SETUP, ANYO_TORCH_INDEX="index.invalid").returncode == 0
    first, second = pip_installs(machine)
    assert first[1:4] == ["--no-deps", "--index-url", "index.invalid"]
    assert "index.invalid" not in second


@pytest.mark.parametrize("forced", [False, True])
def test_cuda_installs_the_whole_lock(machine, forced):
    env = {"ANYO_TORCH": "cuda"} if forced else {}
    if not forced:
        machine.stub("nvidia-smi")
    assert machine.run(SETUP, **env).returncode == 0
    assert machine.calls("poetry") == [["poetry", "install", "--with", "gpu"]]
    assert pip_installs(machine) == []


def test_override_beats_the_driver(machine):
    machine.stub("nvidia-smi")
    assert machine.run(SETUP, ANYO_TORCH="cpu").returncode == 0
    assert machine.calls("poetry")[0][-2:] == ["--without", "torch"]


def test_image_torch_is_kept(machine):
    result = machine.run(SETUP, POETRY_VIRTUALENVS_OPTIONS_SYSTEM_SITE_PACKAGES="true")
    assert result.returncode == 0, result.stderr
    assert machine.calls("poetry")[0][-2:] == ["--without", "torch"]
    (only,) = pip_installs(machine)
    assert only[1] == "--no-deps" and not any(a.startswith("torch==") for a in only)


def test_image_torch_of_another_version_is_refused(machine):
    lock = machine.root / "poetry.lock"
    lock.write_text(
        lock.read_text().replace('name = "torch"\nversion = "2.13.0"', 'name = "torch"\nversion = "2.12.9"')
    )
    result = machine.run(SETUP, POETRY_VIRTUALENVS_OPTIONS_SYSTEM_SITE_PACKAGES="true")
    assert result.returncode == 1
    assert "2.13.0" in result.stderr and "2.12.9" in result.stderr and "FROM" in result.stderr
    assert machine.calls("poetry") == []


def test_second_run_does_nothing_until_an_input_changes(machine):
    assert machine.run(SETUP).returncode == 0
    again = machine.run(SETUP)
    assert again.returncode == 0 and "nothing changed" in again.stderr
    assert machine.run(SETUP, "--quiet").stderr == ""
    assert len(machine.calls("poetry")) == 1

    with (machine.root / "pyproject.toml").open("a") as f:
        f.write("# changed\n")
    assert machine.run(SETUP).returncode == 0
    assert len(machine.calls("poetry")) == 2

    assert machine.run(SETUP, ANYO_TORCH="cuda").returncode == 0
    assert len(machine.calls("poetry")) == 3


def test_a_failed_install_is_told_and_leaves_no_stamp(machine):
    machine.stub("poetry", "echo boom; exit 7")
    result = machine.run(SETUP)
    assert result.returncode == 1
    assert "boom" in result.stderr and "poetry install" in last_line(result)
    machine.stub("poetry")
    assert machine.run(SETUP).returncode == 0
    assert len(machine.calls("poetry")) == 2


def test_poetry_uses_the_index_of_pip_and_this_venv(machine):
    del machine.env["POETRY_PYPI_MIRROR_URL"]
    assert machine.run(SETUP, PIP_INDEX_URL="pip.invalid").returncode == 0
    log = (machine.root / ".cache/setup.log").read_text()
    assert f"mirror=pip.invalid venv={machine.root}/.venv" in log


def test_an_index_given_for_poetry_wins(machine):
    assert machine.run(SETUP, PIP_INDEX_URL="pip.invalid").returncode == 0
    assert "mirror=mirror.invalid" in (machine.root / ".cache/setup.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        (["--fast"], {}, "--fast"),
        ([], {"ANYO_TORCH": "rocm"}, "ANYO_TORCH='rocm'"),
        ([], {"ANYO_POETRY": "/nonexistent/poetry"}, "ANYO_POETRY=/nonexistent/poetry"),
    ],
)
def test_bad_settings_end_with_one_line(machine, arguments, env, expected):
    result = machine.run(SETUP, *arguments, **env)
    assert result.returncode == 1
    assert expected in last_line(result)


def test_python_out_of_range_is_refused(sandbox):
    old = sandbox.stub("oldpython", "exit 1")
    result = sandbox.run(SETUP, ANYO_PYTHON=str(old))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "3.11" in result.stderr


def test_a_folder_that_is_no_venv_is_left_alone(sandbox):
    sandbox.stub("nvidia-smi", "exit 9")
    mine = sandbox.root / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    result = sandbox.run(SETUP, ANYO_VENV=str(mine))
    assert result.returncode == 1 and "is not a virtual environment" in result.stderr
    assert (mine / "thesis.txt").read_text() == "keep"
