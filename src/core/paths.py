"""Every place of the repository that more than one module needs (the only owner of path rules).

The root is taken from this file's position: Hydra changes the working directory of a run
(`hydra.job.chdir`), so nothing else may rely on relative paths.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def data_root() -> Path:
    """`data/`, or the folder named by the environment variable ANYO_DATA_ROOT."""
    return resolve(os.environ.get("ANYO_DATA_ROOT") or "data")


def result_root() -> Path:
    """`result/`, or the folder named by the environment variable ANYO_RESULT_ROOT."""
    return resolve(os.environ.get("ANYO_RESULT_ROOT") or "result")


def resolve(path: str | Path) -> Path:
    """A path from a setting or the environment: absolute, or relative to the repository root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (ROOT / path).resolve()


def raw_dir(dataset: str) -> Path:
    """Where a dataset's raw files lie when `dataset.raw_dir` is not set."""
    return data_root() / "raw" / dataset


def processed_dir(dataset: str, fp: str) -> Path:
    return data_root() / "processed" / dataset / fp


def candidates_dir(dataset: str, dataset_fp: str, fp: str) -> Path:
    """Candidate sets of a prepared dataset (src/core/candidates.py)."""
    return processed_dir(dataset, dataset_fp) / "candidates" / fp


def model_dir(dataset: str, name: str, fp: str) -> Path:
    """Models that other stages need (the frozen encoder, the tiny language model)."""
    return data_root() / "models" / dataset / name / fp


def teacher_output_dir(dataset: str, teacher: str, fp: str) -> Path:
    return data_root() / "teacher_outputs" / dataset / teacher / fp


def selection_dir(dataset: str, fp: str) -> Path:
    """A selection of training samples (src/distill/selection.py)."""
    return data_root() / "selections" / dataset / fp


def work_dir(stage: str, fp: str) -> Path:
    """Checkpoints of a training in progress; a run of the same fingerprint goes on from them."""
    return data_root() / "work" / stage / fp
