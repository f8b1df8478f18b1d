"""One run of one stage: its folder, status, times, metrics, TensorBoard, and how it ends.

`result/result_<timestamp>/` holds `.hydra/`, `run.log`, `status.json`, `git_info.json`, `models/`,
`metrics/`, `tensorboard/`, `plots/`. Several processes of one launch share the folder: rank 0 writes.
"""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import now, save_npy, write_json, write_manifest
from src.core.errors import UserError
from src.core.git_info import git_info
from src.core.memory import usage
from src.core.metrics import CONVENTIONS, Ranks
from src.core.paths import result_root
from src.core.runs import TIMES, find_runs, this_process
from src.core.tracking import Trackers, card, copy_curves

_PARTS = (".hydra", "models", "metrics", "tensorboard", "plots", "run.log", "status.json", "git_info.json")


def rank() -> int:
    """This process's number within the launch (`accelerate launch` sets RANK and WORLD_SIZE).

    Raises:
        UserError: the variables contradict each other: a process that wrongly believes it is not the first would write nothing.
    """
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    number, size = found["RANK"] or "0", found["WORLD_SIZE"] or "1"
    if not (number.isdecimal() and size.isdecimal() and int(number) < int(size)):
        variables = " and ".join(f"{name}={value}" for name, value in found.items() if value is not None)
        raise UserError(
            f"the environment has {variables}",
            "RANK below WORLD_SIZE, as a launcher sets them",
            "unset both, or start with accelerate launch",
        )
    return int(number)


class Run:
    """The folder of one run; construct it with `Run.start`.

    Attributes:
        dir: `result/result_<timestamp>`.
        stage: `teacher`, `student_baseline`, `distill` or `eval_all`.
        fingerprint: what the run computes; equal fingerprints give equal results.
        seed: of the model that is trained.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        fingerprint: str,
        seed: int | None = None,
        loggers: tuple[str, ...] = ("tensorboard",),
        name: str = "",
    ):
        self.dir, self.stage, self.fingerprint, self.seed = folder, stage, fingerprint, seed
        self.main = rank() == 0
        self.started_at = now()
        self._trackers = Trackers(folder, loggers, name)
        self._prefix = ""
        self._made = False

    @classmethod
    def start(
        cls, folder: Path | None, stage: str, fingerprint: str, seed: int | None = None, **tracked: Any
    ) -> Run:
        """Begin a run in a folder that is new or empty.

        Args:
            folder: None: `result/result_<timestamp>`; in processes other than rank 0 a temporary folder.
            tracked: `loggers` (of `core.tracking`) and the run's `name` there.

        Raises:
            UserError: the folder holds something, or is a file.
        """
        if rank() != 0:
            scratch = tempfile.mkdtemp(prefix="anyo_rank_")
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            return cls(Path(scratch), stage, fingerprint, seed)
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder} is not empty", "a new or empty folder for the results of a run", "hydra.run.dir"
            )
        made = folder is None or not folder.exists()
        run = cls(folder or _new_folder(), stage, fingerprint, seed, **tracked)
        run._made = made
        for name in ("models", "metrics", "tensorboard", "plots"):
            (run.dir / name).mkdir(parents=True)
        write_json(run.dir / "git_info.json", git_info())
        run.status("running")
        _point_latest_at(run.dir)
        if link := os.environ.get("ANYO_RUN_LINK"):  # a table of experiments names its runs by row
            point(Path(link), run.dir)
        return run

    def status(self, state: str, reason: str | None = None) -> None:
        """Write `status.json`: running, completed, failed or interrupted.

        `completed` seals `metrics/` with a manifest first: readers trust no metrics without one.
        """
        if not self.main:
            return
        if state == "completed":
            write_manifest(self.dir / "metrics", {"stage": self.stage, "fingerprint": self.fingerprint})
        fields: dict[str, Any] = {
            "state": state,
            "stage": self.stage,
            "reason": reason,
            "fingerprint": self.fingerprint,
        }
        fields |= {"seed": self.seed, "started_at": self.started_at, "updated_at": now(), "usage": usage()}
        write_json(self.dir / "status.json", {**fields, **this_process()})

    def within(self, part: str) -> Run:
        """This run, whose curves are named `part/…`."""
        inner = copy.copy(self)
        inner._prefix = f"{part}/"
        return inner

    def scalar(self, tag: str, value: float, step: int) -> None:
        if self.main:
            self._trackers.scalar(self._prefix + tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        if self.main and (board := self._trackers.board()) is not None:
            board.add_text(tag, text, step)

    def spread(self, tag: str, values: np.ndarray, step: int) -> None:
        """The mean of `values` [n], and (TensorBoard) their histogram."""
        self.scalar(tag, float(values.mean()), step)
        if self.main and (board := self._trackers.board()) is not None:
            board.add_histogram(card(self._prefix + tag), values, step)

    def gates(self, tag: str, gates: np.ndarray, step: int) -> None:
        """Of expert weights [B, K]: a histogram per expert, and (TensorBoard) users x experts as an image."""
        for k, weights in enumerate(gates.T):
            self.spread(f"{tag}/gate/expert_{k}", weights, step)
        if self.main and (board := self._trackers.board()) is not None:
            pixels = np.kron(gates, np.ones((8, 24))) / max(float(gates.max()), 1e-9)
            board.add_image(f"2_gate/{tag}/users_x_experts", pixels, step, dataformats="HW")

    def hparams(self, settings: dict[str, Any], finals: dict[str, float]) -> None:
        """What runs are sorted by: settings (plain values) and final figures."""
        if self.main:
            self._trackers.settings(settings, finals)

    def continue_curves(self, prefix: str, step: int) -> None:
        """Repeat the curves of the stopped run whose checkpoint this one goes on from: those named `prefix…` up to
        `step`, the others whole."""
        earlier = [r for r in find_runs(self.stage, self.fingerprint) if r.folder != self.dir]
        if self.main and earlier and earlier[-1].state != "completed":
            copy_curves(earlier[-1].folder / "tensorboard", self._trackers, prefix, step)

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

    def write_ranks(self, ranks: Ranks) -> None:
        """Per-sample test ranks [n], a file per convention, and `test_sample_ids.npy` [n]."""
        if self.main:
            save_npy(self.dir / "metrics" / "test_sample_ids.npy", np.asarray(ranks.sample_ids, np.int64))
            for convention, file in CONVENTIONS.items():
                save_npy(self.dir / "metrics" / file, ranks.of(convention))

    def close(self) -> None:
        self._trackers.close()

    def discard(self) -> None:
        """Remove the files of a run that had nothing to do; other files in its folder stay."""
        self.close()
        if not self.main:
            return
        for name in _PARTS:
            path = self.dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if self._made and not any(self.dir.iterdir()):
            self.dir.rmdir()
        earlier = sorted(p.parent for p in self.dir.parent.glob("result_*/status.json"))
        _point_latest_at(earlier[-1] if earlier else None, instead_of=self.dir)


def _new_folder() -> Path:
    """Make and name `result/result_<timestamp>`; never a folder that exists already."""
    root, stamp = result_root(), time.strftime("%Y%m%d_%H%M%S")
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = root / (f"result_{stamp}" if number == 1 else f"result_{stamp}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RuntimeError(f"{root}: 1000 runs in one second")


def _point_latest_at(folder: Path | None, instead_of: Path | None = None) -> None:
    """Make `result/latest` a link to the newest run.

    Args:
        instead_of: a discarded run; the link is moved only if it points there.
    """
    link = result_root() / "latest"
    if instead_of is not None and not (link.is_symlink() and os.readlink(link) == instead_of.name):
        return
    if folder is None:
        link.unlink()
    elif folder.parent == link.parent and (
        link.is_symlink() or not link.exists()
    ):  # what the user made stays
        point(link, folder)


def point(link: Path, folder: Path) -> None:
    """Make `link` a relative link to `folder`, or move it there."""
    spare = link.with_name(f".{link.name}.tmp{os.getpid()}")
    with suppress(OSError):  # some file systems have no links; no result depends on one
        link.parent.mkdir(parents=True, exist_ok=True)
        spare.symlink_to(os.path.relpath(folder, link.parent))
        os.replace(spare, link)


class Stopwatch:
    """Wall-clock seconds since construction, plus what an interrupted run had spent."""

    def __init__(self, before: float = 0.0):
        self._started, self._before = time.perf_counter(), before

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started
