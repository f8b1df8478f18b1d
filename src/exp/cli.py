"""The one seat of every entry point: Hydra, the run's folder, signals, and how failures are told.

Exit codes: 0 a complete run; 1 an unexpected error (traceback in `run.log`); 2 input that cannot be
used (one line: found, expected, what to change); 130 or 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.errors import Interrupted, UserError
from src.core.logging import close_logging, get_logger, redact, setup_logging
from src.core.paths import CONF, result_root
from src.core.run import Run, rank, stop_on_signals

log = get_logger(__name__)
_DISK = {
    getattr(errno, f"E{name}") for name in ["NOSPC", "DQUOT", "ROFS", "ACCES", "PERM", "IO", "FBIG", "NOTDIR"]
}
Work = Callable[[Any, Run], "float | None"]


def run_stage(stage: str, work: Work) -> None:
    """Run `work(settings, run)` as the stage `stage` and end the process with the documented code.

    `work` returns the validation metric, for Hydra's sweepers, or None.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own report is many lines; its exceptions come to us
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars obey it too
    OmegaConf.register_new_resolver("new_result_dir", _new_result_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("result_root", lambda: str(result_root()), replace=True)

    def task(cfg: DictConfig) -> float | None:
        return _guarded(stage, work, cfg)

    # Hydra takes the name of the job from the task.
    task.__name__ = task.__qualname__ = f"run_{stage}"
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, OSError) as e:
        sys.exit(_fail_before_run(e))


def _fail_before_run(error: Exception) -> int:
    line = redact(" ".join(str(error).split()))
    sys.stderr.write(f"error: configuration: {line}; see --help for the keys and conf/ for the groups\n")
    return 2


def _guarded(stage: str, work: Work, cfg: DictConfig) -> float | None:
    from src.exp.settings import Settings

    folder = Path(HydraConfig.get().runtime.output_dir)
    main = rank() == 0
    setup_logging(folder / "run.log" if main else None, quiet=not main)
    run = Run(folder, stage, "")
    try:
        run = Run.start(folder, stage, "")
        with stop_on_signals():
            settings = Settings.load(cfg, HydraConfig.get().overrides.task)
            if settings.root.dry_run:
                from src.exp.plan import plan

                for line in plan(settings, stage):
                    log.info("plan: %s", line)
                run.discard()
                return None
            result = work(settings, run)
        if run.dir.exists():  # a run that had nothing to do has removed its folder
            run.status("completed")
        return result
    except Interrupted as e:
        code, reason = 128 + e.signum, str(e)
        run.status("interrupted", reason)
        log.error("interrupted: %s; the same command goes on from the last checkpoint", reason)
    except UserError as e:
        code = _failed(run, str(e), 2)
        log.error("error: %s", e)
    except Exception as e:
        if isinstance(e, OSError) and e.errno in _DISK:
            code = _failed(run, str(_disk_error(e)), 2)
            log.exception("error: %s", _disk_error(e))
            sys.exit(code)
        line = " ".join(f"{type(e).__name__}: {e}".split())
        code = _failed(run, line, 1)
        log.exception("error: %s; the traceback is in %s", line, folder / "run.log")
    finally:
        run.close()
        close_logging()
    sys.exit(code)


def _disk_error(error: OSError) -> UserError:
    return UserError(
        f"{error.strerror}: {error.filename or 'a file of the run'}",
        "a disk that takes writes",
        "its space or permissions (ANYO_DATA_ROOT, ANYO_RESULT_ROOT name other places); the same command goes on",
    )


def _failed(run: Run, reason: str, code: int) -> int:
    """Note the failure in `status.json`; on a full or read-only disk the line on stderr must do."""
    try:
        run.status("failed", redact(reason))
    except OSError as e:
        log.error("status.json could not be written: %s", e)
    return code


def _new_result_dir() -> str:
    """Make and name `result/result_<timestamp>`; never a folder that exists already.

    Processes other than rank 0 get a temporary folder for what Hydra writes by itself.
    """
    if rank() != 0:
        scratch = tempfile.mkdtemp(prefix="anyo_rank_")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return scratch
    root, stamp = result_root(), time.strftime("%Y%m%d_%H%M%S")
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = root / (f"result_{stamp}" if number == 1 else f"result_{stamp}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder)
    raise RuntimeError(f"{root}: 1000 runs in one second")
