"""One run of one stage: its folder, status, times, metrics, TensorBoard, and how it ends.

`result/result_<timestamp>/` holds `.hydra/`, `run.log`, `status.json`, `git_info.json`, `models/`,
`metrics/`, `tensorboard/`, `plots/`. Several processes of one launch share the folder: rank 0 writes.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import now, read_object, save_npy, write_json
from src.core.errors import Interrupted, UserError
from src.core.git_info import git_info
from src.core.logging import get_logger
from src.core.paths import result_root

TIMES = (
    "teacher_train_time_total",
    "distill_teacher_export_time",
    "student_baseline_train_time",
    "distill_student_train_time",
)
log = get_logger(__name__)
_seen: list[int] = []  # the signals that came within `stop_on_signals`


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM only leave a mark, which loops look at between steps."""
    _seen.clear()

    def mark(signum: int, _frame: Any) -> None:
        _seen.append(signum)
        if len(_seen) > 1:  # the second time the user means it
            raise Interrupted(signum)
        log.warning("signal %d: stopping at the next step", signum)

    before = {s: signal.signal(s, mark) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _seen.clear()


def stop_requested() -> bool:
    return bool(_seen)


def check_stop() -> None:
    """Raise Interrupted if a signal came; loops call this after each step (checkpoint written first)."""
    if _seen:
        raise Interrupted(_seen[0])


def rank() -> int:
    """This process's number within the launch (`accelerate launch` sets RANK)."""
    return int(os.environ.get("RANK", "0"))


class Run:
    """The folder of one run; construct it with `Run.start`.

    Attributes:
        dir: `result/result_<timestamp>`.
        stage: `teacher`, `student_baseline`, `distill` or `eval_all`.
        fingerprint: what the run computes; equal fingerprints give equal results.
    """

    def __init__(self, folder: Path, stage: str, fingerprint: str):
        self.dir, self.stage, self.fingerprint = folder, stage, fingerprint
        self.main = rank() == 0
        self._writer: Any = None

    @classmethod
    def start(cls, folder: Path, stage: str, fingerprint: str) -> Run:
        run = cls(folder, stage, fingerprint)
        if run.main:
            for name in ("models", "metrics", "tensorboard", "plots"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            write_json(folder / "git_info.json", git_info())
            run.status("running")
        return run

    def status(self, state: str, reason: str | None = None) -> None:
        """Write `status.json`: running, completed, failed or interrupted."""
        if self.main:
            fields = {"state": state, "stage": self.stage, "reason": reason, "fingerprint": self.fingerprint}
            write_json(self.dir / "status.json", {**fields, "pid": os.getpid(), "updated_at": now()})

    def scalar(self, tag: str, value: float, step: int) -> None:
        if self.main:
            self._tensorboard().add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        if self.main:
            self._tensorboard().add_text(tag, text, step)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.dir / "tensorboard"))
        return self._writer

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        if self.main:
            write_json(self.dir / "metrics" / "metrics.json", {"stage": self.stage, **metrics})

    def write_times(self, reused: bool = False, **seconds: float) -> None:
        """`metrics/time.json`: the times this run knows, in seconds.

        Args:
            reused: the artifact was made by an earlier run, whose times these are.
            seconds: values for keys of TIMES.
        """
        unknown = set(seconds) - set(TIMES)
        if unknown:
            raise ValueError(f"unknown times {sorted(unknown)}")
        if self.main:
            times: dict[str, Any] = {k: round(v, 3) for k, v in seconds.items()}
            write_json(self.dir / "metrics" / "time.json", {**times, **({"reused": True} if reused else {})})

    def write_ranks(
        self, sample_ids: np.ndarray, ranked: np.ndarray, history_excluded: np.ndarray | None
    ) -> None:
        """Per-sample test ranks: `test_ranks.npy` [n], `test_sample_ids.npy` [n], and, where the model
        ranks the whole catalogue, `test_ranks_history_excluded.npy` [n]."""
        if self.main:
            save_npy(self.dir / "metrics" / "test_sample_ids.npy", np.asarray(sample_ids, np.int64))
            save_npy(self.dir / "metrics" / "test_ranks.npy", ranked)
            if history_excluded is not None:
                save_npy(self.dir / "metrics" / "test_ranks_history_excluded.npy", history_excluded)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def discard(self) -> None:
        """Remove the folder of a run that had nothing to do."""
        self.close()
        if self.main:
            shutil.rmtree(self.dir)


def find_runs(stage: str, fingerprint: str, state: str = "completed") -> list[Path]:
    """Folders below `result/` of that stage, fingerprint and state, oldest name first."""
    found = []
    for status in sorted(result_root().glob("*/status.json")):
        try:
            fields = read_object(status)
        except UserError as e:
            log.warning("%s: ignored: %s", status.parent, e)
            continue
        if (fields.get("stage"), fields.get("fingerprint"), fields.get("state")) == (
            stage,
            fingerprint,
            state,
        ):
            found.append(status.parent)
    return found


def completed_run(stage: str, fingerprint: str) -> Path | None:
    """The first completed run; several of one fingerprint are identical by determinism."""
    runs = find_runs(stage, fingerprint)
    if len(runs) > 1:
        log.info(
            "%d completed %s runs with fingerprint %s: taking %s", len(runs), stage, fingerprint, runs[0].name
        )
    return runs[0] if runs else None


class Stopwatch:
    """Wall-clock seconds since construction, plus what an interrupted run had spent."""

    def __init__(self, before: float = 0.0):
        self._started, self._before = time.perf_counter(), before

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started
