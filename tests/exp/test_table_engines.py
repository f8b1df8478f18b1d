"""Engines: order, failures, retries, Ctrl-C and kills, with jobs of a few lines instead of trainings.

A job here appends its start to `log`, and its end if it comes to one; SIGTERM ends it as a stage ends (143).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.core.errors import ConfigError, UserError
from src.core.paths import ROOT
from src.exp.table import engines
from src.exp.table.driver import Progress
from src.exp.table.engines import Outcome, command, engine_config, run_jobs
from src.exp.table.plan import Job

JOB = """
import os, pathlib, signal, sys, time
name, wish, log = sys.argv[1:4]
def note(what):
    with open(log, "a") as f:
        f.write(f"{what} {name} {os.getpid()}\\n")
def end(*_):
    note("stop")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
note("start")
print("device", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
starts = pathlib.Path(log).read_text().count(f"start {name} ")
if wish == "fail" or wish == "fail once" and starts == 1:
    sys.exit("error: no luck")
if wish == "bad input":
    print("12:00:00 error: found x, expected y", flush=True)
    sys.exit(2)
if wish == "crash once" and starts == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if wish == "long":
    time.sleep(600)
time.sleep(0.05)
note("end")
"""
RAY = ("engine=ray", "engine.cpus=2", "engine.object_store_mb=80")
ENGINES = {"serial": (), "ray": RAY}


def fake(folder: Path) -> Callable:
    return lambda job, _config: [sys.executable, "-c", JOB, job.id, job.overrides[0], str(folder / "log")]


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(engines, "command", fake(tmp_path))
    # Ray's workers import the module anew: they find the same command in this file.
    monkeypatch.setattr(engines, "_task", _fake_task)
    monkeypatch.setenv("ANYO_FAKE", str(tmp_path))
    return tmp_path


def _fake_task(job, config, folder, *before):
    engines.command = fake(Path(os.environ["ANYO_FAKE"]))
    return engines.run_job(job, config, folder, before[: len(job.needs)])


def job(name: str, wish: str = "", *needs: str, stage: str = "distill") -> Job:
    return Job(stage, name, (wish,), tuple(f"{stage}-{n}" for n in needs), (), (name,))


def run(jobs: list[Job], folder: Path, *overrides: str) -> dict[str, Outcome]:
    return {o.id.rpartition("-")[2]: o for o in run_jobs(jobs, engine_config(overrides), folder)}


def noted(folder: Path, what: str) -> list[str]:
    return [
        line.split()[1].rpartition("-")[2]
        for line in (folder / "log").read_text().splitlines()
        if line.startswith(what)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_skip_what_needs_them_and_nothing_else(table, engine, capfd):
    if engine == "ray":
        pytest.importorskip("ray")
    jobs = [
        job("a"),
        job("b", "fail"),
        job("c", "", "a"),
        job("d", "", "b"),
        job("e", "", "d"),
        job("f", "bad input"),
        job("g", "crash once"),
        job("h", "", "a", "g"),
    ]
    ended = run(jobs, table, *ENGINES[engine], "engine.retries=1")
    assert {name: o.state for name, o in ended.items()} == {
        "a": "completed",
        "b": "failed",
        "c": "completed",
        "d": "skipped",
        "e": "skipped",
        "f": "failed",
        "g": "completed",
        "h": "completed",
    }
    assert ended["b"].reason == "no luck" and noted(table, "start").count("b") == 2  # the retry
    assert ended["f"].reason == "error: found x, expected y" or "found x" in ended["f"].reason
    assert noted(table, "start").count("f") == 1  # bad input stays bad
    assert ended["e"].reason.startswith("distill-d skipped: distill-b failed: no luck")
    assert noted(table, "end").index("a") < noted(table, "end").index("c")
    assert not [*(table / ".running").iterdir()]
    told = capfd.readouterr().err
    assert engine == "ray" or "[a distill] device" in told  # every line carries its row


def _driver(folder: Path, engine: str) -> subprocess.Popen:
    """Another process that runs two long jobs after a short one."""
    code = (
        "import signal, sys; from pathlib import Path; from tests.exp import test_table_engines as t\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "t.engines.command = t.fake(Path(sys.argv[1])); t.engines._task = t._fake_task\n"
        "jobs = [t.job('a'), t.job('b', 'long', 'a'), t.job('c', 'long', 'a')]\n"
        "t.run(jobs, Path(sys.argv[1]), *t.ENGINES[sys.argv[2]])\n"
    )
    env = {**os.environ, "ANYO_FAKE": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), engine],
        cwd=ROOT,
        env=env,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _wait(what: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_driver(tmp_path, engine, how):
    """Ctrl-C (here SIGTERM, which the driver treats alike) and kill -9: the jobs get SIGTERM and stop."""
    if engine == "ray":
        pytest.importorskip("ray")
    driver, running = _driver(tmp_path, engine), {"serial": ["b"], "ray": ["b", "c"]}[engine]
    try:
        _wait(lambda: (tmp_path / "log").is_file() and sorted(noted(tmp_path, "start")) == ["a", *running])
        driver.send_signal(how)
        _wait(lambda: sorted(noted(tmp_path, "stop")) == running)
        assert driver.wait(timeout=120) != 0
    finally:
        driver.kill()
        driver.wait()
    assert noted(tmp_path, "end") == ["a"]


def test_a_killed_worker_loses_its_attempt_and_not_the_job(table):
    ray = pytest.importorskip("ray")
    outcomes = run_jobs([job("a", "long"), job("b")], engine_config(RAY), table)
    assert next(outcomes).id == "distill-b"
    (pid,) = [
        int(line.split()[2])
        for line in (table / "log").read_text().splitlines()
        if line.startswith("start distill-a")
    ]
    worker = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    _wait(lambda: noted(table, "start").count("a") == 2)
    assert noted(table, "stop") == ["a"]  # the first attempt stopped before the second began or while it did
    again = [
        int(line.split()[2])
        for line in (table / "log").read_text().splitlines()
        if line.startswith("start distill-a")
    ][1]
    os.kill(again, signal.SIGTERM)
    (outcome,) = outcomes
    assert outcome.state == "interrupted" and not ray.is_initialized()


def test_what_a_job_runs(monkeypatch):
    config = engine_config(["engine.processes_per_teacher=2"])
    student, teacher, part = (
        Job(s, "f", ("seed=1",), (), (), ("r",)) for s in ("distill", "teacher", "encoder")
    )
    assert command(student, config)[1:] == ["-m", "src.exp.run_distill", "seed=1", "skip_if_done=true"]
    assert command(part, config)[1:] == ["-m", "src.exp.run_part", "encoder", "seed=1"]
    launched = command(teacher, config)
    assert launched[1:6] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    assert launched[-4:] == ["-m", "src.exp.run_teacher", "seed=1", "skip_if_done=true"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["engine=slurm"], "engine.kind: found 'slurm', expected one of serial, ray"),
        (["engine.retries=-1"], "engine.retries: found -1"),
        (["engine.gpus=1"], "engine.gpus: unknown key"),
        (["engine.gpus_per_job.teacher=x"], "engine.gpus_per_job.teacher"),
    ],
)
def test_an_engine_that_is_wrong(overrides, expected):
    with pytest.raises(ConfigError) as error:
        engine_config(overrides)
    assert any(expected in problem for problem in error.value.problems), error.value.problems


def test_an_engine_that_is_not_installed_or_has_no_such_gpus(monkeypatch, table):
    with pytest.raises(UserError, match="Ray has 0 GPUs"):
        pytest.importorskip("ray")
        run([job("a", stage="teacher")], table, *RAY, "engine.gpus_per_job.teacher=4")
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed"):
        engine_config(["engine=ray"])


def test_one_progress_for_all(tmp_path):
    progress = Progress([job("a"), job("b"), job("c", stage="teacher")], tmp_path, {"teacher": 100.0})
    progress.started -= 10  # seconds ago: the rate so far is one second of a job per second
    line = progress.add(Outcome("distill-a", "completed", "", 10.0))
    assert line.startswith(
        "[a distill] completed in 10 s | 1 done, 0 running, 2 waiting, 0 failed, about 110 s left"
    )
    line = progress.add(Outcome("distill-b", "failed", "no luck", 10.0))
    assert line.startswith(
        "[b distill] failed: no luck | 1 done, 0 running, 1 waiting, 1 failed, about 50 s left"
    )
