"""Where the jobs of a plan run: one after the other (`serial`), or on what Ray has (`ray`)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.config import build_or_raise, config_group, setting
from src.core.errors import ConfigError, UserError
from src.core.paths import CONF, ROOT
from src.exp.run_part import PARTS
from src.exp.table.plan import Job

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM)
_FOR_JOBS = ("ANYO_", "HF_", "OMP_", "MKL_", "TOKENIZERS_")  # variables that workers on other machines need
_LIGHT = ("dataset", "eval_all")  # need no GPU
# Asks the kernel for SIGTERM when the starting process dies, so that no job outlives a killed driver or worker.
_WITH_PARENT = """
import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None and (prctl(1, 15), os.getppid())[1] != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@config_group
class PerJob:
    """Of a job, by its kind."""

    teacher: float | None = setting("of a job of the teacher, its encoder or its LLM", ge=0)
    student: float | None = setting("of a baseline's or a distillation's job", ge=0)


@config_group
class EngineConfig:
    """`conf/engine.yaml`."""

    kind: str = setting("where jobs run", choices=("serial", "ray"))
    retries: int = setting("further attempts of a job that crashed or whose worker died", ge=0)
    processes_per_teacher: int = setting("accelerate processes of a teacher's job", ge=1)
    address: str | None = setting("ray: of a running cluster; null: Ray starts here")
    cpus: int | None = setting("ray: CPUs that it may use where it starts here; null: all", ge=1)
    object_store_mb: int = setting("ray: memory of its object store", ge=80)
    gpus_per_job: PerJob = setting("ray: GPUs; null: 1 and 0.25 where there are any")
    cpus_per_job: PerJob = setting("ray: CPUs")

    def problems(self) -> list[str]:
        if self.kind == "ray" and find_spec("ray") is None:
            return ["kind: found ray, which is not installed, expected serial, or poetry install --with ray"]
        return []


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: `completed`, `failed`, `interrupted`, or `skipped` (something that it needs is missing).
        reason: of the last three.
        seconds: of all attempts.
    """

    id: str
    state: str
    reason: str = ""
    seconds: float = 0.0


def engine_config(overrides: Sequence[str]) -> EngineConfig:
    """`conf/engine.yaml` with `engine=KIND engine.KEY=VALUE ...`.

    Raises:
        ConfigError: no such engine or key, or one that is not installed.
    """
    given = [o.replace("engine=", "engine.kind=", 1).removeprefix("engine.") for o in overrides]
    try:
        values = OmegaConf.merge(OmegaConf.load(CONF / "engine.yaml"), OmegaConf.from_dotlist(given))
        return build_or_raise(EngineConfig, OmegaConf.to_container(values), "engine")  # type: ignore[arg-type]
    except (OmegaConfBaseException, ValueError) as e:
        raise ConfigError([f"engine: {' '.join(str(e).split())}"]) from None


def run_jobs(jobs: Sequence[Job], config: EngineConfig, folder: Path) -> Iterator[Outcome]:
    """Run jobs, each after those it needs; yields every outcome as it comes.

    Args:
        folder: of the table's results: rows' links and, below `.running`, a mark per running job.

    Raises:
        KeyboardInterrupt: Ctrl-C; all jobs have stopped at their checkpoints.
    """
    if config.kind == "ray":
        yield from _ray(jobs, config, folder)
        return
    ended: dict[str, Outcome] = {}
    for job in jobs:
        ended[job.id] = run_job(job, config, folder, [ended[i] for i in job.needs])
        yield ended[job.id]


# -- one job ------------------------------------------------------------------------------------------------


def command(job: Job, config: EngineConfig) -> list[str]:
    """The command line of a job."""
    python = [sys.executable]
    if job.stage in ("training", "teacher") and (n := config.processes_per_teacher) > 1:
        # Without --multi_gpu a machine without GPUs gets one process.
        python += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(n)]
        python += ["--main_process_port", "0"]
    # Parts look for their artifacts themselves; their runs do not say what is still there.
    if job.stage in PARTS:
        return [*python, "-m", "src.exp.run_part", job.stage, *job.overrides]
    return [*python, "-m", f"src.exp.run_{job.stage}", *job.overrides, "skip_if_done=true"]


def run_job(job: Job, config: EngineConfig, folder: Path, needs: Sequence[Outcome] = ()) -> Outcome:
    """Run a job to its end, again after a crash; its lines go to the terminal with the row's name.

    Raises:
        KeyboardInterrupt: Ctrl-C; the job has stopped at its checkpoint.
    """
    if missing := [n for n in needs if n.state != "completed"]:
        return Outcome(job.id, "skipped", f"{missing[0].id} {missing[0].state}: {missing[0].reason}")
    started, mark = time.monotonic(), folder / ".running" / job.id
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    label = f"{job.rows[0]}{f' +{len(job.rows) - 1}' if job.rows[1:] else ''} {job.stage}"
    environment = {**os.environ, "ANYO_RUN_LINK": str(folder / job.rows[0] / job.stage)}
    try:
        for _ in range(config.retries + 1):
            code, reason = _process(command(job, config), label, environment)
            if code in (0, 2, *_STOPPED):  # input that cannot be used stays so
                break
    finally:
        mark.unlink(missing_ok=True)
    state = "completed" if code == 0 else "interrupted" if code in _STOPPED else "failed"
    return Outcome(job.id, state, reason or f"exit status {code}", round(time.monotonic() - started, 3))


def _process(argv: Sequence[str], label: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and the last line that told an error."""
    process = subprocess.Popen(
        [sys.executable, "-SE", "-c", _WITH_PARENT, str(os.getpid()), *argv],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes to this process alone, which tells the job
    )
    assert process.stdout is not None
    reason, stop = "", None
    with process.stdout:
        while True:
            try:
                for line in process.stdout:
                    sys.stderr.write(f"[{label}] {line}")
                    if "error: " in line or "interrupted: " in line:
                        reason = line.partition(": ")[2].strip()
                code = process.wait()
                break
            except KeyboardInterrupt as e:
                process.kill() if stop else process.terminate()
                stop = e
    if stop is not None:
        raise stop
    return code, reason


# -- Ray ----------------------------------------------------------------------------------------------------


def _ray(jobs: Sequence[Job], config: EngineConfig, folder: Path) -> Iterator[Outcome]:
    """Every job a Ray task that waits for the tasks it needs; Ray places them and sets CUDA_VISIBLE_DEVICES."""
    os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    # Ray would kill a worker's processes with SIGKILL; they get SIGTERM from the kernel (_WITH_PARENT) and save.
    os.environ |= {"RAY_kill_child_processes_on_worker_exit": "false"}
    import ray

    names = {k: v for k, v in os.environ.items() if k.startswith(_FOR_JOBS)}
    options: dict[str, Any] = {"runtime_env": {"env_vars": {**names, "PYTHONPATH": str(ROOT)}}}
    if config.address is None:
        memory = config.object_store_mb * 2**20
        options |= {"num_cpus": config.cpus, "include_dashboard": False, "object_store_memory": memory}
    try:
        ray.init(address=config.address or "local", logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise UserError(f"Ray did not start: {e}", "a running cluster", "engine.address") from None
    try:
        gpus = _gpus(config, ray.cluster_resources().get("GPU", 0.0), jobs)
        task = ray.remote(max_retries=config.retries)(_task)
        refs: dict[str, Any] = {}
        for job in jobs:
            kind = _kind(job)
            order = [refs[i] for i in dict.fromkeys((*job.needs, *job.after))]
            need = {"num_cpus": getattr(config.cpus_per_job, kind) or 1}
            need["num_gpus"] = 0 if job.stage in _LIGHT else gpus[kind]
            refs[job.id] = task.options(**need, name=job.id).remote(job, config, folder, *order)
        yield from _outcomes(ray, {refs[job.id]: job for job in jobs})
    finally:
        ray.shutdown()


def _task(job: Job, config: EngineConfig, folder: Path, *before: Outcome) -> Outcome:
    return run_job(job, config, folder, before[: len(job.needs)])


def _kind(job: Job) -> str:
    return "student" if job.stage in ("student_baseline", "distill", *_LIGHT) else "teacher"


def _gpus(config: EngineConfig, there: float, jobs: Sequence[Job]) -> dict[str, float]:
    """GPUs by kind of job. Raises UserError where a job could never be placed."""
    out = {}
    for kind, usual in (("teacher", 1.0), ("student", 0.25)):
        asked = getattr(config.gpus_per_job, kind)
        out[kind] = (usual if there else 0.0) if asked is None else asked
        if out[kind] > there and any(_kind(job) == kind for job in jobs):
            key = f"engine.gpus_per_job.{kind}"
            raise UserError(f"{key}={asked:g} where Ray has {there:g} GPUs", f"at most {there:g}", key)
    return out


def _outcomes(ray: Any, waiting: dict[Any, Job]) -> Iterator[Outcome]:
    ended: dict[str, Outcome] = {}
    try:
        while waiting:
            (ref,), _ = ray.wait([*waiting], num_returns=1)
            job = waiting.pop(ref)
            try:
                ended[job.id] = ray.get(ref)
            except ray.exceptions.RayError as e:  # its worker, or that of a job before it, died too often
                lost = next(
                    (ended[i] for i in job.needs if i in ended and ended[i].state != "completed"), None
                )
                told = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
                state, reason = (
                    ("skipped", f"{lost.id} {lost.state}: {lost.reason}") if lost else ("failed", told)
                )
                ended[job.id] = Outcome(job.id, state, reason)
            yield ended[job.id]
    except KeyboardInterrupt:
        for ref in waiting:
            ray.cancel(ref)
        ray.wait([*waiting], num_returns=len(waiting), timeout=300)  # until they stand at their checkpoints
        raise
