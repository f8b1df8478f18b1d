"""Settings and small data of the student tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.metrics import EvalConfig
from src.student.config import StudentConfig
from tests.compose import composed


def make_student_config(name: str, *overrides: str) -> StudentConfig:
    """`conf/student/<name>.yaml` with overrides ("width=16"); on the CPU."""
    settings = [f"student.{o}" for o in ("device=cpu", *overrides)]
    return build_or_raise(StudentConfig, composed("student", f"student={name}", *settings), "student")


@pytest.fixture(scope="session")
def student_config() -> Callable[..., StudentConfig]:
    return make_student_config


@pytest.fixture
def eval_config() -> EvalConfig:
    return EvalConfig(
        ks=(1, 5, 10), select_metric="NDCG@10", exclude_history=False, batch_size=64, candidates=None
    )


@pytest.fixture(scope="session")
def small_data() -> InteractionData:
    """40 users, 30 items, 3 to 14 interactions each; histories of up to 6 items, repeats included."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 15, size=40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 31, size=offsets[-1]).astype(np.int32)
    last = offsets[1:] - 1
    rows = np.setdiff1d(np.arange(offsets[-1]), offsets[:-1])  # a user's first row has no history
    train = np.setdiff1d(rows, np.concatenate([last, last - 1]))
    return InteractionData(
        name="small",
        fingerprint="small0",
        items=items,
        times=np.arange(offsets[-1]),
        offsets=offsets,
        splits={"train": train, "valid": np.intersect1d(rows, last - 1), "test": last},
        titles=["", *(f"title {i}" for i in range(1, 31))],
        raw_items=["", *(str(100 + i) for i in range(1, 31))],
        max_history=6,
        info={},
    )
