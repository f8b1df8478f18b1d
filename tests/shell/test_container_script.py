"""env_shell/start_experiment_container.sh: the arguments it gives to docker (a stub that only records)."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

START = "env_shell/start_experiment_container.sh"
IMAGE = "anyo-ilora-dllm2rec:latest"
DOCKER = """
case "$1 $2" in
  "--version "*) echo "${STUB_VERSION:-Docker version 29}" ;;
  "info --format") echo "${STUB_RUNTIMES}" ;;
  "container inspect")
    [[ -n ${STUB_RUNNING:-} ]] || exit 1
    case "$4" in *Running*) echo "${STUB_RUNNING}" ;; *Labels*) echo "${STUB_OWNER}" ;; esac ;;
  "image inspect") [[ -n ${STUB_HASH:-} ]] && echo "${STUB_HASH}" ;;
esac
exit 0
"""
USER = re.sub("[^A-Za-z0-9_.]", "-", pwd.getpwuid(os.getuid()).pw_name)


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
    sandbox.env["HF_HOME"] = str(sandbox.root.parent / "hf")
    return sandbox


def docker(host, verb: str) -> list[list[str]]:
    return [row[2:] for row in host.calls("docker") if row[1] == verb]


def name_of(host) -> str:
    (run,) = docker(host, "run")
    return run[run.index("--name") + 1]


def test_runs_as_specified(host):
    result = host.run(START)
    assert result.returncode == 0, result.stderr
    (run,) = docker(host, "run")
    name = name_of(host)
    assert re.fullmatch(rf"anyo-{re.escape(USER)}-repo-[0-9a-f]{{6}}", name)
    assert run[: run.index("bash")] == [
        *("-d", "--rm", "--init", "--gpus", "all", "--name", name, "--hostname", "anyo"),
        *(
            "--label",
            f"anyo.checkout={host.root}",
            "--user",
            f"{os.getuid()}:{os.getgid()}",
            "--shm-size",
            "8g",
        ),
        *("-v", f"{host.root}:/workspace", "-v", f"{host.root}/.cache/container:/opt/anyo"),
        *("-v", f"{host.env['HF_HOME']}:/opt/huggingface", "-e", "HF_HOME=/opt/huggingface"),
        *("-w", "/workspace", IMAGE),
    ]
    assert docker(host, "exec") == [["-i", name, "bash"]]
    assert (host.root / ".cache/container/home").is_dir()  # made here, or docker would create it as root
    assert Path(host.env["HF_HOME"]).is_dir()
    assert docker(host, "build") == []


def test_arguments_are_the_command(host):
    assert host.run(START, "poetry", "run", "python", "-c", "print('a b')").returncode == 0
    assert docker(host, "exec") == [["-i", name_of(host), "poetry", "run", "python", "-c", "print('a b')"]]


def test_in_the_background(host):
    result = host.run(START, "-d", "bash", "cmd/run_all.sh", "dataset=a b")
    assert result.returncode == 0 and "attach" in result.stderr
    ((*head, command),) = docker(host, "exec")
    assert head == [name_of(host), "tmux", "new-session", "-d", "-s", "anyo"]
    assert command == r"bash cmd/run_all.sh dataset=a\ b ; exec bash"
    assert host.run(START, "-d").returncode == 0


def test_another_checkout_has_another_container(host, tmp_path):
    assert host.run(START).returncode == 0
    first = name_of(host)
    second = tmp_path / "elsewhere" / "repo"
    shutil.copytree(host.root, second)
    host.calls_file.unlink()
    assert host.run(str(second / START)).returncode == 0
    assert name_of(host) != first and name_of(host).rpartition("-")[0] == first.rpartition("-")[0]


def test_a_suffix_names_another_container(host):
    assert host.run(START, ANYO_NAME="two").returncode == 0
    assert name_of(host).endswith("-two")
    assert (host.root / ".cache/container-two/home").is_dir()


def test_a_container_of_another_checkout_is_not_entered(host):
    result = host.run(START, STUB_RUNNING="true", STUB_OWNER="/other/checkout")
    assert result.returncode == 1 and "belongs to /other/checkout" in result.stderr
    assert docker(host, "exec") == docker(host, "run") == []


def test_stop_and_reset(host):
    state = host.root / ".cache/container"
    assert host.run(START).returncode == 0
    name = name_of(host)
    assert host.run(START, "stop", STUB_RUNNING="true").returncode == 0
    assert docker(host, "stop") == [["-t", "60", name]] and state.is_dir()
    assert host.run(START, "--reset").returncode == 0
    assert not state.exists() and len(docker(host, "stop")) == 1, "nothing ran any more"


def test_attach(host):
    assert "not running" in host.run(START, "attach").stderr
    assert host.run(START, "attach", STUB_RUNNING="true").returncode == 0
    assert docker(host, "exec")[0][:2] == ["-it", docker(host, "exec")[0][1]]
    assert docker(host, "exec")[0][2:] == ["tmux", "attach", "-t", "anyo"]


def test_podman_behind_the_name_docker(host):
    podman = {"STUB_VERSION": "podman version 5.4.0"}
    assert host.run(START, ANYO_GPU="all", **podman).returncode == 0
    (run,) = docker(host, "run")
    assert run[3:5] == ["--device", "nvidia.com/gpu=all"] and "--gpus" not in run
    assert "--userns=keep-id" in run


@pytest.mark.parametrize("arguments", [["--reste"], ["stop", "now"], ["attach", "x"]])
def test_arguments_that_it_does_not_know(host, arguments):
    result = host.run(START, *arguments)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert docker(host, "run") == docker(host, "exec") == []


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
    ("env", "expected"),
    [
        ({"ANYO_GPU": "all"}, ["--gpus", "all"]),
        ({"ANYO_GPU": "device=1"}, ["--gpus", "device=1"]),
        ({"ANYO_GPU": "none"}, []),
        ({"GPU_ID": "1"}, ["--gpus", "device=1"]),
        ({"GPU_ID": "0,1"}, ["--gpus", '"device=0,1"']),
        ({"GPU_ID": "all"}, ["--gpus", "all"]),
        ({"GPU_ID": "none"}, []),
    ],
)
def test_gpu_choice_is_the_users(host, env, expected):
    assert host.run(START, **env, STUB_RUNTIMES='{"runc":{}}').returncode == 0
    (run,) = docker(host, "run")
    assert run[3 : run.index("--name")] == expected


def test_a_gpu_that_is_no_number(host):
    result = host.run(START, GPU_ID="first")
    assert result.returncode == 1 and "GPU_ID='first' is not valid" in result.stderr
    assert docker(host, "run") == []


def test_token_is_passed_by_name_only(host):
    assert host.run(START, HF_TOKEN="hf_secret").returncode == 0
    (run,) = docker(host, "run")
    assert "HF_TOKEN" in run
    assert "hf_secret" not in host.calls_file.read_text()


def test_extra_docker_arguments(host):
    assert host.run(START, ANYO_DOCKER_ARGS="-v /datasets:/datasets:ro").returncode == 0
    (run,) = docker(host, "run")
    assert run[run.index(IMAGE) - 2 : run.index(IMAGE)] == ["-v", "/datasets:/datasets:ro"]


def test_enters_a_running_container(host):
    assert host.run(START, STUB_RUNNING="true", STUB_OWNER=str(host.root)).returncode == 0
    ((flag, name, command),) = docker(host, "exec")
    assert (flag, command) == ("-i", "bash") and name.startswith(f"anyo-{USER}-repo-")
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
