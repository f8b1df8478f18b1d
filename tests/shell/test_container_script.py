"""env_shell/start_experiment_container.sh: the arguments it gives to docker (a stub that only records)."""

from __future__ import annotations

import os
import subprocess

import pytest

START = "env_shell/start_experiment_container.sh"
IMAGE = "anyo-ilora-dllm2rec:latest"
DOCKER = """
case "$1 $2" in
  "info --format") echo "${STUB_RUNTIMES}" ;;
  "container inspect") [[ -n ${STUB_RUNNING:-} ]] && echo "${STUB_RUNNING}" ;;
  "image inspect") [[ -n ${STUB_HASH:-} ]] && echo "${STUB_HASH}" ;;
esac
"""


@pytest.fixture
def host(sandbox):
    """A host with Docker, the NVIDIA runtime and an image built from the present Dockerfile."""
    sandbox.stub("docker", DOCKER)
    digest = subprocess.run(
        ["git", "hash-object", "--no-filters", "Dockerfile"],
        cwd=sandbox.root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    sandbox.env |= {"STUB_RUNTIMES": '{"nvidia":{},"runc":{}}', "STUB_HASH": digest}
    return sandbox


def docker(host, verb: str) -> list[list[str]]:
    return [row[2:] for row in host.calls("docker") if row[1] == verb]


def test_runs_as_specified(host):
    result = host.run(START)
    assert result.returncode == 0, result.stderr
    (run,) = docker(host, "run")
    assert run == [
        *("-i", "--rm", "--gpus", "all", "--name", "anyo-experiment"),
        *("--user", f"{os.getuid()}:{os.getgid()}", "--shm-size", "8g"),
        *("-v", f"{host.root}:/workspace", "-v", f"{host.root}/.cache/container:/opt/anyo"),
        *("-w", "/workspace", IMAGE, "bash"),
    ]
    assert (host.root / ".cache/container/home").is_dir()  # made here, or docker would create it as root
    assert docker(host, "build") == []


def test_arguments_are_the_command(host):
    assert host.run(START, "poetry", "run", "python", "-c", "print('a b')").returncode == 0
    (run,) = docker(host, "run")
    assert run[run.index(IMAGE) + 1 :] == ["poetry", "run", "python", "-c", "print('a b')"]


@pytest.mark.parametrize("stale", ["", "0123abcd"])
def test_builds_when_missing_or_stale(host, stale):
    digest = host.env["STUB_HASH"]
    assert host.run(START, STUB_HASH=stale).returncode == 0
    assert docker(host, "build") == [["--label", f"anyo.dockerfile={digest}", "-t", IMAGE, str(host.root)]]
    assert len(docker(host, "run")) == 1


def test_a_failed_build_starts_nothing(host):
    host.stub("docker", '[[ $1 != build ]] || exit 3\n[[ "$2" != inspect ]] || exit 1')
    assert host.run(START).returncode == 3
    assert docker(host, "run") == []


def test_without_nvidia_runtime_says_so(host):
    result = host.run(START, STUB_RUNTIMES='{"runc":{}}')
    assert result.returncode == 0 and "ANYO_GPU" in result.stderr
    assert "--gpus" not in docker(host, "run")[0]


@pytest.mark.parametrize(
    ("gpu", "expected"), [("all", ["--gpus", "all"]), ("device=1", ["--gpus", "device=1"]), ("none", [])]
)
def test_gpu_choice_is_the_users(host, gpu, expected):
    assert host.run(START, ANYO_GPU=gpu, STUB_RUNTIMES='{"runc":{}}').returncode == 0
    (run,) = docker(host, "run")
    assert run[2 : run.index("--name")] == expected


def test_token_is_passed_by_name_only(host):
    assert host.run(START, HF_TOKEN="hf_secret").returncode == 0
    (run,) = docker(host, "run")
    assert run[run.index("-e") + 1] == "HF_TOKEN"
    assert "hf_secret" not in host.calls_file.read_text()


def test_extra_docker_arguments(host):
    assert host.run(START, ANYO_DOCKER_ARGS="-v /datasets:/datasets:ro").returncode == 0
    (run,) = docker(host, "run")
    assert run[run.index(IMAGE) - 2 : run.index(IMAGE)] == ["-v", "/datasets:/datasets:ro"]


def test_enters_a_running_container(host):
    assert host.run(START, STUB_RUNNING="true").returncode == 0
    assert docker(host, "exec") == [["-i", "anyo-experiment", "bash"]]
    assert docker(host, "run") == docker(host, "build") == []


def test_unreachable_docker_is_one_line(host):
    host.stub("docker", "exit 1")
    result = host.run(START)
    assert result.returncode == 1 and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["install"], 0, "setup"),
        (["run", "python", "-m", "x"], 0, "poetry\trun\tpython\t-m\tx"),
        (["install", "--with", "gpu"], 1, ""),
        (["sync"], 1, ""),
    ],
)
def test_poetry_inside_the_container(sandbox, arguments, status, expected):
    (sandbox.root / "env_shell/setup.sh").write_text(f'echo setup >>"{sandbox.calls_file}"\n')
    link = sandbox.root.parent / "poetry"
    link.symlink_to(sandbox.root / "env_shell/poetry_in_container.sh")
    real = sandbox.stub("poetry")
    result = sandbox.run(str(link), *arguments, ANYO_POETRY=str(real))
    assert result.returncode == status, result.stderr
    record = sandbox.calls_file.read_text() if sandbox.calls_file.exists() else ""
    assert record.strip() == expected
    assert bool(result.stderr) == bool(status)
