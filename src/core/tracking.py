"""Where a run's curves go: TensorBoard, and on request Weights & Biases and MLflow (`logger=[tensorboard,wandb]`).

Names begin with a number, so that TensorBoard opens on what matters: `1_curves` (losses, validation), `2_gate`,
`3_run` (learning rate, speed, memory, gradients), `4_final`. Nothing goes out to a network by itself: wandb is offline
unless WANDB_MODE says otherwise, MLflow writes to `result/mlruns` unless MLFLOW_TRACKING_URI does.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from src.core.paths import result_root

LOGGERS = ("tensorboard", "wandb", "mlflow")
Series = dict[str, tuple[np.ndarray, np.ndarray]]  # by tag: steps and values
_GROUPS = (
    ("2_gate", r"(.*/)?(gate|confidence|weight)[/_]"),
    ("3_run", r"(.*/)?(lr|samples_per_s|tokens_per_s|peak_memory_gib|gradient/.*)$"),
)


def missing_loggers(names: tuple[str, ...]) -> list[str]:
    """Those whose package is not installed."""
    return [name for name in names if find_spec(name) is None]


def card(tag: str) -> str:
    """The name under which `tag` is shown."""
    return f"{next((g for g, pattern in _GROUPS if re.match(pattern, tag)), '1_curves')}/{tag}"


class _Tracker(Protocol):
    def scalar(self, tag: str, value: float, step: int, at: float | None) -> None: ...
    def settings(self, settings: dict[str, Any], finals: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, name: str):
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard" / name), flush_secs=20)

    def scalar(self, tag: str, value: float, step: int, at: float | None) -> None:
        self.writer.add_scalar(tag, value, step, walltime=at)

    def settings(self, settings: dict[str, Any], finals: dict[str, float]) -> None:
        self.writer.add_hparams(settings, finals, run_name=".")

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """Offline by default; no source, git remote, host or terminal output is collected."""

    def __init__(self, folder: Path, name: str):
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_meta=True, x_disable_stats=True
        )
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project="anyo", name=name, dir=str(folder), mode=mode, settings=quiet, reinit="create_new"
        )
        self.run.define_metric("*", step_metric="step")

    def scalar(self, tag: str, value: float, step: int, at: float | None) -> None:
        self.run.log({tag: value, "step": step})

    def settings(self, settings: dict[str, Any], finals: dict[str, float]) -> None:
        self.run.config.update(settings)
        self.run.summary.update(finals)

    def close(self) -> None:
        self.run.finish()


class _Mlflow:
    def __init__(self, folder: Path, name: str):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if store is None:  # files are enough for one user; MLflow asks to be told so
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = (result_root() / "mlruns").as_uri()
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=store)
        found = self.client.get_experiment_by_name("anyo")
        experiment = found.experiment_id if found else self.client.create_experiment("anyo")
        self.run_id = self.client.create_run(
            experiment, run_name=name, tags={"folder": folder.name}
        ).info.run_id

    def scalar(self, tag: str, value: float, step: int, at: float | None) -> None:
        when = None if at is None else int(at * 1000)
        self.client.log_metric(self.run_id, _plain(tag), value, timestamp=when, step=step)

    def settings(self, settings: dict[str, Any], finals: dict[str, float]) -> None:
        for key, value in settings.items():
            self.client.log_param(self.run_id, _plain(key), value)
        for tag, value in finals.items():
            self.client.log_metric(self.run_id, _plain(tag), value)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def _plain(name: str) -> str:
    """MLflow takes no @."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"))


_KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}


class Trackers:
    """The loggers of one run, opened by the first figure.

    Args:
        folder: of the run.
        kinds: out of LOGGERS.
        name: of the run, such as `demo_ilora_sasrec_seed2024`.
    """

    def __init__(self, folder: Path, kinds: tuple[str, ...], name: str):
        self._folder, self._kinds, self._name = folder, kinds, name
        self._open: dict[str, _Tracker] = {}

    def _all(self) -> list[_Tracker]:
        if not self._open:
            self._open = {kind: _KINDS[kind](self._folder, self._name) for kind in self._kinds}
        return [*self._open.values()]

    def scalar(self, tag: str, value: float, step: int, at: float | None = None) -> None:
        """Args: at: seconds since the epoch; None: now."""
        for tracker in self._all():
            tracker.scalar(card(tag), value, step, at)

    def settings(self, settings: dict[str, Any], finals: Mapping[str, float]) -> None:
        """What runs are sorted by: settings (plain values) and final figures."""
        for tracker in self._all():
            tracker.settings(settings, {f"4_final/{tag}": value for tag, value in finals.items()})

    def board(self) -> Any:
        """TensorBoard's writer, for what only it shows (text, histograms, images); None without it."""
        self._all()
        board = self._open.get("tensorboard")
        return board.writer if isinstance(board, _TensorBoard) else None

    def close(self) -> None:
        for tracker in self._open.values():
            tracker.close()
        self._open = {}


def logged(folder: Path) -> Series:
    """The scalars that a run wrote to TensorBoard, by tag; {} where it wrote none."""
    return {
        tag: (np.array([p.step for p in points]), np.array([p.value for p in points]))
        for tag, points in _events(folder).items()
    }


def _events(folder: Path) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file that it comes to
    out: dict[str, list[Any]] = {}
    for place in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            out.setdefault(tag.partition("/")[2], []).extend(events.Scalars(tag))
    return out


def copy_curves(source: Path, to: Trackers, prefix: str, step: int) -> None:
    """Repeat the scalars of an earlier run's TensorBoard: those named `prefix…` up to `step`, the others whole."""
    with suppress(OSError):  # curves are a help; no result depends on them
        for tag, points in _events(source).items():
            for p in points:
                if not tag.startswith(prefix) or p.step <= step:
                    to.scalar(tag, p.value, p.step, p.wall_time)
