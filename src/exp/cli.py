"""The one seat of every entry point: Hydra, the run's folder, signals, and how failures are told.

Exit codes: 0 a complete run; 1 an unexpected error (traceback in `run.log`); 2 input that cannot be used (one line:
found, expected, what to change); 128 + n stopped by signal n (Ctrl-C 130, SIGTERM 143, a closed session 129).
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from src.core.artifacts import write_json, write_text
from src.core.errors import DoneAlready, Interrupted, UserError, disk_error
from src.core.logging import close_logging, get_logger, log_to_file, redact, setup_logging
from src.core.paths import CONF, result_root
from src.core.run import Run, rank
from src.core.runs import find_runs
from src.core.signals import stop_on_signals
from src.exp.command_line import check_groups, explain

log = get_logger(__name__)
_JOBS = "jobs.jsonl"  # of a sweep: every job, its folder, how it ended
STAGES_THAT_TRAIN = ("teacher", "student_baseline", "distill")
_asked: list[Path] = []  # what `hydra.run.dir` says


def run_stage(stage: str) -> None:
    """Run a stage as the command line says, and end the process with the documented code."""
    sys.exit(launch(stage, sys.argv[1:], f"python -m src.exp.run_{stage}"))


def launch(stage: str, arguments: Sequence[str], command: str) -> int:
    """Run one stage, or a sweep of it, with Hydra's command line; returns the exit code.

    Args:
        command: what the user typed before the overrides; an interrupted run names it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own report is many lines; its exceptions come to us
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars obey it too
    os.environ.pop("ANYO_SWEEP", None)
    codes: list[int] = []
    again = shlex.join([*shlex.split(command), *arguments])

    def task(cfg: DictConfig) -> float | None:
        code, metric = _guarded(stage, cfg, again)
        if code >= 128:  # the user stops the whole sweep
            sys.exit(code)
        codes.append(code)
        return metric

    # Hydra takes the name of the job from the task.
    task.__name__ = task.__qualname__ = f"run_{stage}"
    several = [
        a for a in arguments if a in ("-m", "--multirun")
    ]  # argparse wants it before or after all overrides
    ordered = [*several, *(a for a in arguments if a not in several)]
    typed, sys.argv = sys.argv, [f"run_{stage}", *ordered]
    try:
        check_groups(arguments)
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    except SystemExit as e:
        codes.append(e.code if isinstance(e.code, int) else 1)
    except (HydraException, OmegaConfBaseException, UserError, OSError) as e:
        sys.stderr.write(f"error: configuration: {redact(explain(e, arguments))}\n")
        codes.append(2)
    except KeyboardInterrupt:  # a launcher's processes got the signal, and it raises what they said
        codes.append(130)
    finally:
        sys.argv = typed
    return max([*codes, *_end_of_sweep()], default=0)


class ResultFolder(Callback):
    """Keeps Hydra from making the folder of a run: the run makes it, once it has something to do."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with read_write(config), open_dict(config):
            _asked[:] = [Path(config.hydra.run.dir).absolute()]
            config.hydra.run.dir = "."

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            sys.stderr.write(f"error: {folder} is not empty; expected a new folder; change hydra.sweep.dir\n")
            raise SystemExit(2)
        os.environ["ANYO_SWEEP"] = str(folder)  # for the jobs, in whatever process they run


def _new_sweep_folder() -> str:
    """Name of the folder of this launch's sweep; its jobs find it in the environment."""
    if "ANYO_SWEEP" not in os.environ:
        stem = result_root() / time.strftime(f"sweep_%Y%m%d_%H%M%S_{os.getpid()}")
        names = (stem.with_name(f"{stem.name}_{n}") for n in itertools.count(2))
        return str(next(f for f in itertools.chain([stem], names) if not f.exists()))
    return os.environ["ANYO_SWEEP"]


# Here, and not in `launch`: joblib's processes import this module and call the task alone.
OmegaConf.register_new_resolver("result_root", lambda: str(result_root()), replace=True)
OmegaConf.register_new_resolver("sweep_dir", _new_sweep_folder, replace=True)


def _guarded(stage: str, cfg: DictConfig, again: str) -> tuple[int, float | None]:
    """Run one job; returns its exit code, and the validation metric for Hydra's sweepers."""
    setup_logging()
    run, code, reason, metric, here = None, 0, None, None, os.getcwd()
    try:
        setup_logging(quiet=rank() != 0, brief=not os.environ.get("ANYO_VERBOSE"))
        with stop_on_signals():
            from src.exp.identity import identity_of
            from src.exp.settings import Settings

            settings = Settings.load(cfg, HydraConfig.get().overrides.task)
            if settings.root.dry_run:
                _plan(settings, stage)
                return 0, None
            config: Any = OmegaConf.to_container(cfg, resolve=True)
            fingerprint, seed = identity_of(stage, settings, config)
            if settings.root.skip_if_done and (earlier := find_runs(stage, fingerprint, "completed")):
                raise DoneAlready(earlier[0].folder)
            tracked = {"loggers": settings.root.logger, "name": settings.run_name(stage)}
            run = Run.start(_asked_folder(), stage, fingerprint, seed, **tracked)
            _open_logs(run, cfg, config)
            from src.exp.stages import WORK

            metric = WORK[stage](settings, run)
            run.status("completed")
        log.info("%s is completed: %s", stage, run.dir)
    except DoneAlready as e:
        log.info("%s is done already: %s", stage, e.folder)
        if run is not None:
            run.discard()
            run = None
        if stage != "eval_all":
            from src.exp.results import report_again

            report_again(e.folder, settings.eval)
        summary = e.folder / "metrics" / "summary.md"
        sys.stdout.write(summary.read_text() if summary.is_file() else "")
    except Interrupted as e:
        code, reason = 128 + e.signum, f"{e}; go on from the last checkpoint with: {again}"
        log.error("interrupted: %s", reason)
    except Exception as e:
        code, reason = _failure(e, run)
    finally:
        os.chdir(here)
        _finish(run, code, reason)
        close_logging()
    return code, metric


def _plan(settings: Any, stage: str) -> None:
    from src.exp.plan import plan

    for line in plan(settings, stage):
        log.info("plan: %s", line)


def _asked_folder() -> Path | None:
    """The folder that the command line names for the run; None: `result/result_<timestamp>`."""
    h, sweep = HydraConfig.get(), "ANYO_SWEEP" in os.environ
    key = "hydra.sweep.subdir=" if sweep else "hydra.run.dir="
    if not any(o.startswith(key) for o in h.overrides.hydra):
        return None
    return Path(h.runtime.output_dir) if sweep else _asked[0]


def _open_logs(run: Run, cfg: DictConfig, config: Mapping[str, Any]) -> None:
    """`run.log` and the configuration in the result folder, which becomes the working directory."""
    h = HydraConfig.get()
    if run.main:
        log_to_file(run.dir / "run.log")
        saved, hydra_cfg = run.dir / ".hydra", OmegaConf.create({"hydra": h})
        saved.mkdir()
        for name, value in (("config", cfg), ("overrides", h.overrides.task), ("hydra", hydra_cfg)):
            write_text(saved / f"{name}.yaml", OmegaConf.to_yaml(value))
        write_json(saved / "config.json", {"config": config, "overrides": list(h.overrides.task)})
        if run.stage not in STAGES_THAT_TRAIN:  # these say it with the device, which takes torch to know
            log.info("%s %s begins; its result: %s", run.stage, run.fingerprint, run.dir)
    if h.job.chdir:
        os.chdir(run.dir)


def _failure(error: Exception, run: Run | None) -> tuple[int, str]:
    """Tell of an error in one line; its exit code, and the line."""
    known = error if isinstance(error, UserError) else disk_error(error)
    line = str(known) if known else " ".join(f"{type(error).__name__}: {error}".split())
    if known is error:
        log.error("error: %s", line)
        return 2, line
    where = "" if run is None or known else f"; the traceback is in {run.dir / 'run.log'}"
    try:
        log.exception("error: %s%s", line, where)
    except OSError:  # run.log is what cannot be written; its handler is gone now
        log.error("error: %s", line)
    return 2 if known else 1, line


def _finish(run: Run | None, code: int, reason: str | None) -> None:
    """Note how a job ended in `status.json` and, of a sweep, in its list; a full disk has been told already."""
    try:
        if run is not None:
            if code:
                run.status("interrupted" if code >= 128 else "failed", redact(reason or ""))
            run.close()
        if sweep := os.environ.get("ANYO_SWEEP"):
            job = {"overrides": list(HydraConfig.get().overrides.task), "code": code, "reason": reason}
            with open(Path(sweep) / _JOBS, "a", encoding="utf-8") as f:
                f.write(
                    json.dumps({**job, "folder": str(run.dir) if run else None}, ensure_ascii=False) + "\n"
                )
    except OSError as e:
        log.error("how the run ended could not be noted: %s", e)


def _end_of_sweep() -> list[int]:
    """List the jobs of a sweep that failed; their exit codes. The folder of a sweep without runs is removed."""
    if "ANYO_SWEEP" not in os.environ:
        return []
    folder = Path(os.environ.pop("ANYO_SWEEP"))
    lines = (folder / _JOBS).read_text(encoding="utf-8").splitlines() if (folder / _JOBS).is_file() else []
    jobs = [json.loads(line) for line in lines]
    failed = [job for job in jobs if job["code"]]
    if failed:
        shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
        names = (" ".join(o for o in job["overrides"] if o not in shared) for job in failed)
        told = "; ".join(f"{name}: {job['reason']}" for name, job in zip(names, failed, strict=True))
        sys.stderr.write(f"error: {len(failed)} of {len(jobs)} jobs failed: {told}\n")
    if not any(job["folder"] for job in jobs) and {p.name for p in folder.glob("*")} <= {
        "multirun.yaml",
        _JOBS,
    }:
        shutil.rmtree(folder, ignore_errors=True)
    return [job["code"] for job in failed]
