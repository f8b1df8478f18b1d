"""Oracle numbers of the official code, settings from conf/, a small random dataset, and stores made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.errors import ConfigError
from src.core.metrics import EvalConfig
from src.core.paths import ROOT
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows, TeacherStore
from src.distill.config import ActiveConfig, DistillConfig
from src.distill.strategies import active_problems
from src.student.config import StudentConfig
from tests.compose import composed

GROUPS = {"distill": DistillConfig, "active": ActiveConfig, "student": StudentConfig}


def make_settings(group: str, name: str, **values: object):
    """`conf/<group>/<name>.yaml` with values replaced, as its dataclass."""
    made = build_or_raise(GROUPS[group], {**composed(group, f"{group}={name}"), **values}, group)
    if group == "active" and (problems := active_problems(made)):
        raise ConfigError(problems)
    return made


def make_data(
    n_items: int,
    users: int,
    length: int,
    seed: int = 0,
    max_history: int = 5,
    sequence: Callable | None = None,
) -> InteractionData:
    """A dataset in memory: every user's last two samples are valid and test.

    Args:
        sequence: generator -> item ids of one user; None draws them uniformly.
    """
    rng = np.random.default_rng(seed)
    draw = sequence or (lambda rng: rng.integers(1, n_items + 1, length))
    items = np.concatenate([draw(rng) for _ in range(users)]).astype(np.int32)
    offsets = np.arange(users + 1) * length
    ids = np.arange(users * length).reshape(users, length)
    return InteractionData(
        name="made",
        fingerprint="0123456789ab",
        items=items,
        times=np.tile(np.arange(length), users).astype(np.int64),
        offsets=offsets.astype(np.int64),
        splits={"train": ids[:, 1:-2].ravel(), "valid": ids[:, -2].ravel(), "test": ids[:, -1].ravel()},
        titles=["", *(f"item {i}" for i in range(1, n_items + 1))],
        raw_items=["", *map(str, range(1, n_items + 1))],
        max_history=max_history,
        info={},
    )


def make_rows(
    data: InteractionData, ids: np.ndarray, k: int, seed: int = 0, kind: str = "distance"
) -> TeacherRows:
    """Random rankings with scores in the right order."""
    rng = np.random.default_rng(seed)
    rankings = np.argsort(rng.random((len(ids), data.n_items)), axis=1)[:, :k] + 1
    scores = np.sort(rng.random((len(ids), k)), axis=1) * 3
    scores = scores if kind == "distance" else -scores
    return TeacherRows(
        ids.astype(np.int64),
        rankings.astype(np.int32),
        scores.astype(np.float32),
        np.abs(rng.random(len(ids))).astype(np.float32) * (1 if kind == "distance" else -1),
    )


def make_store(
    folder: Path,
    data: InteractionData,
    rows: TeacherRows,
    vectors: np.ndarray | None = None,
    kind: str = "distance",
    valid: TeacherRows | None = None,
    **fields: object,
) -> TeacherStore:
    """A store with training rows, and these of validation; `fields` replace what the manifest says."""
    if vectors is None:
        vectors = np.random.default_rng(1).standard_normal((data.n_items + 1, 12)).astype(np.float32)
        vectors[0] = 0
    writer = StoreWriter(folder, data.n_items, kind, shard_size=1000)
    splits = {"train": rows} if valid is None else {"train": rows, "valid": valid}
    for split, of_split in splits.items():

        def chosen(ids: np.ndarray, of: TeacherRows = of_split) -> TeacherRows:
            at = np.searchsorted(of.sample_ids, ids)
            return TeacherRows(**{name: values[at] for name, values in vars(of).items()})

        writer.export(split, of_split.sample_ids, chosen)
    manifest = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "teacher": "made",
        "n_train_split": len(data.splits["train"]),
    }
    return writer.finish(
        {split: r.sample_ids for split, r in splits.items()}, vectors, {**manifest, **fields}
    )


@pytest.fixture(scope="session")
def oracle() -> dict[str, np.ndarray]:
    """Inputs, terms and gradients of executed official lines (8 samples, 50 items)."""
    with np.load(ROOT / "tests" / "oracles" / "dllm2rec_loss.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def small_data() -> InteractionData:
    return make_data(n_items=30, users=12, length=8)


@pytest.fixture
def eval_config() -> EvalConfig:
    return EvalConfig(
        ks=(5, 10), select_metric="NDCG@10", exclude_history=False, batch_size=64, candidates=None
    )
