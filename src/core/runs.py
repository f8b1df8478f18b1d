"""The registry of runs: every reader of `result/` (plan, comparison, tables of experiments) asks here.

    for run in find_runs(stage="distill", state="completed"):
        run.fingerprint, run.seed, run.setting("student.lr"), run.metrics["valid"]["NDCG@10"]

A listing reads one small file per run. Saved configuration, metrics and times are read when they are asked for,
and `metrics/` only after its manifest was checked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import load_manifest, load_npy, read_object
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import result_root

STATES = ("running", "completed", "failed", "interrupted")
TIMES = (
    "teacher_train_time_total",
    "distill_teacher_export_time",
    "student_baseline_train_time",
    "distill_student_train_time",
)
log = get_logger(__name__)
_reported: set[Path] = set()  # foreign folders, named once per process


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it.

    Attributes:
        folder: `result/result_<timestamp>`, or where `hydra.run.dir` put it.
        stage: `teacher`, `student_baseline`, `distill` or `eval_all`.
        fingerprint: what the run computes; equal fingerprints give equal results.
        state: one of STATES; a run whose process is gone is `interrupted`, whatever it wrote last.
        reason: of a failure or an interruption.
        seed: of the model that was trained; None where the run had none.
        usage: `core.memory.usage` of its process at the last status; empty where it is not known.
        started_at, updated_at: ISO 8601 with the zone; "" where they are not known.
    """

    folder: Path
    stage: str
    fingerprint: str
    state: str
    reason: str | None
    seed: int | None
    started_at: str
    updated_at: str
    usage: Mapping[str, Any] = field(compare=False)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The saved configuration with every interpolation resolved; empty where none was saved."""
        file = self.folder / ".hydra" / "config.json"
        return read_object(file)["config"] if file.is_file() else {}

    @property
    def seconds(self) -> float:
        """From the run's beginning to its last status, with what it imports and reads; 0 where not known."""
        try:
            begin, end = map(datetime.fromisoformat, (self.started_at, self.updated_at))
        except ValueError:
            return 0.0
        return (end - begin).total_seconds()

    def setting(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key of the saved configuration ("student.lr"), or `default`."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Of `metrics/`, checked: every file has its hash.

        Raises:
            UserError: the run wrote no metrics, or a file is missing or was changed.
        """
        return load_manifest(
            self.folder / "metrics", {"fingerprint": self.fingerprint}, f"delete {self.folder}"
        )

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """`metrics.json`. Raises UserError as `manifest` does."""
        return self._checked("metrics.json", read_object)

    @cached_property
    def times(self) -> dict[str, float]:
        """Seconds by the names of TIMES that this run knows. Raises UserError as `manifest` does."""
        if "time.json" not in self.manifest["files"]:
            return {}
        found = self._checked("time.json", read_object)
        return {k: float(v) for k, v in found.items() if k in TIMES and type(v) in (int, float)}

    def array(self, name: str) -> np.ndarray:
        """An array of `metrics/` ("test_ranks.npy"). Raises UserError as `manifest` does."""
        return self._checked(name, load_npy)

    def _checked(self, name: str, read: Any) -> Any:
        if name not in self.manifest["files"]:
            raise UserError(
                f"{self.folder} has no metrics/{name}", "a completed run", f"delete {self.folder}"
            )
        return read(self.folder / "metrics" / name)


def find_runs(
    stage: str | None = None,
    fingerprint: str | Collection[str] | None = None,
    state: str | None = None,
) -> list[RunRecord]:
    """Runs below `result/` that have all the given values, by name of their folder (oldest first).

    Args:
        fingerprint: one, or several of which a run has one.

    Folders that hold no status of this project are left out, and the log names each once.
    """
    wanted = {fingerprint} if isinstance(fingerprint, str) else fingerprint
    found = []
    for folder in _folders(result_root()):
        try:
            run = read_run(folder)
        except UserError as e:
            if folder not in _reported:
                _reported.add(folder)
                log.warning("%s: ignored: %s", folder, e)
            continue
        fits = (
            stage in (None, run.stage),
            state in (None, run.state),
            wanted is None or run.fingerprint in wanted,
        )
        if all(fits):
            found.append(run)
    return found


def completed_run(stage: str, fingerprint: str) -> Path | None:
    """The first completed run's folder; several of one fingerprint are identical by determinism."""
    runs = find_runs(stage, fingerprint, "completed")
    if len(runs) > 1:
        name = runs[0].folder.name
        log.info("%d completed %s runs with fingerprint %s: taking %s", len(runs), stage, fingerprint, name)
    return runs[0].folder if runs else None


def read_run(folder: Path) -> RunRecord:
    """The record of one result folder.

    Raises:
        UserError: its `status.json` is missing, damaged, or not of this project.
    """
    file = folder / "status.json"
    fields = read_object(file)
    stage, state = fields.get("stage"), fields.get("state")
    if not isinstance(stage, str) or state not in STATES:
        raise UserError(
            f"{file}: stage {stage!r}, state {state!r}", f"a stage and one of {STATES}", f"delete {folder}"
        )
    reason = fields.get("reason")
    if state == "running" and not _alive(fields):
        state, reason = "interrupted", "its process ended without a word (killed, or the machine went down)"
    seed = fields.get("seed")
    return RunRecord(
        folder,
        stage,
        str(fields.get("fingerprint") or ""),
        state,
        reason if isinstance(reason, str) else None,
        seed if type(seed) is int else None,
        str(fields.get("started_at") or ""),
        str(fields.get("updated_at") or ""),
        fields["usage"] if isinstance(fields.get("usage"), dict) else {},
    )


def _folders(root: Path) -> list[Path]:
    """Below `root`, those with a status; links (`latest`) name no run of their own."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    return [root / name for name in names if (root / name / "status.json").is_file()]


def this_process() -> dict[str, Any]:
    """What a status tells of its writer, for readers that ask whether it still runs."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": _start_of(os.getpid())}


def _alive(status: Mapping[str, Any]) -> bool:
    """Whether the writer of a status still runs; nobody here can know that of another machine's: yes."""
    pid = status.get("pid")
    if status.get("host") not in (None, socket.gethostname()):
        return True
    if type(pid) is not int or not 0 < pid < 2**31 or (started := _start_of(pid)) is None:
        return False
    return status.get("process_started") in (None, started)  # else the number went to another process


def _start_of(pid: int) -> str | None:
    """When a process was started, in the system's own units; None where there is none.

    From `/proc`, as the clock that psutil asks can be set back meanwhile; elsewhere psutil's answer.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    return f"{psutil.Process(pid).create_time():.0f}" if psutil.pid_exists(pid) else None
