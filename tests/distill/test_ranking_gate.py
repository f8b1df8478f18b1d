"""Rankings are followed where the teacher is better than the student without them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.core.data_utils import InteractionData
from src.core.metrics import MISSED, EvalConfig, Ranks
from src.core.teacher_store import TeacherRows, TeacherStore
from src.distill.ranking_gate import SLICES, popularity_slice, ranking_gate, why_unused
from tests.distill.conftest import make_data, make_rows, make_store


@pytest.fixture(scope="module")
def log_data() -> InteractionData:
    """Validation rows by slice: 2, 19, 117, 162."""
    return make_data(
        n_items=120, users=300, length=8, sequence=lambda rng: np.minimum(rng.geometric(0.03, 8), 120)
    )


def teacher_at(data: InteractionData, ranks: np.ndarray, k: int = 20) -> TeacherRows:
    """Lists of k whose target stands at these ranks [n]; not listed where the rank is larger than k."""
    ids = data.splits["valid"]
    rows = make_rows(data, ids, data.n_items, seed=3)
    rankings = rows.rankings.copy()
    for row, (target, rank) in enumerate(zip(data.targets(ids), ranks, strict=True)):
        others = rankings[row][rankings[row] != target]
        rankings[row] = np.insert(others, min(rank, data.n_items) - 1, target)
    return TeacherRows(ids, rankings[:, :k], rows.scores[:, :k], rows.target_scores)


def made_gate(
    folder: Path, data: InteractionData, teacher: np.ndarray, student: np.ndarray, **changes: object
):
    train = make_rows(data, data.splits["train"], 20)
    store = make_store(folder, data, train, valid=teacher_at(data, teacher))
    ids = data.splits["valid"]
    config = {"ks": (5, 10), "select_metric": "NDCG@10", "exclude_history": False, "batch_size": 64}
    evaluation = EvalConfig(**config, candidates=None)
    ranks = Ranks(ids, *[student.astype(np.int32)] * 3)
    return ranking_gate(store, data, ranks, evaluation, 1, bool(changes.get("shuffled")))


def test_slices_by_training_count() -> None:
    assert popularity_slice(np.array([0, 1, 4, 5, 19, 20, 999])).tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert list(SLICES) == ["0", "1-4", "5-19", "20+"]


def test_followed_where_better_and_not_elsewhere(log_data: InteractionData, tmp_path: Path) -> None:
    counts = log_data.train_counts()
    seldom = counts[log_data.targets(log_data.splits["valid"])] < 20
    student = np.where(seldom, 15, 2)
    gate = made_gate(tmp_path / "s", log_data, np.where(seldom, 3, 5), student)
    of_train = counts[log_data.targets(log_data.splits["train"])]
    assert np.array_equal(gate.follow > 0, (of_train >= 5) & (of_train < 20))  # too few rows below 5
    assert "followed for targets seen 5-19 times" in gate.report["note"]
    assert gate.report["slices"]["20+"]["followed"] is False
    # by hand: NDCG@10 of rank 5 is 1 / log2(6), of rank 2 is 1 / log2(3)
    head = gate.report["slices"]["20+"]
    assert head["teacher"] == pytest.approx(1 / np.log2(6)) and head["student"] == pytest.approx(
        1 / np.log2(3)
    )


@pytest.mark.parametrize("case", ["equal", "as good by chance", "worse", "shuffled"])
def test_an_equal_or_worse_teacher_is_not_followed(
    log_data: InteractionData, tmp_path: Path, case: str
) -> None:
    rng = np.random.default_rng(0)
    n = len(log_data.splits["valid"])
    student = rng.integers(1, 12, n)
    teacher = {"equal": student, "as good by chance": rng.permutation(student), "worse": student + 3}
    gate = made_gate(
        tmp_path / "s", log_data, teacher.get(case, np.ones(n, int)), student, shuffled=case == "shuffled"
    )
    assert not gate.follow.any()
    assert gate.report["note"].startswith("rankings not used: the teacher is")


def test_a_teacher_worse_than_popularity_is_said(log_data: InteractionData, tmp_path: Path) -> None:
    """Even where the student is worse still."""
    n = len(log_data.splits["valid"])
    gate = made_gate(tmp_path / "s", log_data, np.where(np.arange(n) % 10, 11, 10), np.full(n, MISSED))
    assert gate.report["teacher"] < gate.report["popularity"]
    assert not gate.follow.any() and "no better than popularity" in gate.report["note"]


def test_a_store_without_rows_to_compare_is_said(log_data: InteractionData, tmp_path: Path) -> None:
    rows = make_rows(log_data, log_data.splits["train"], 20)
    store: TeacherStore = make_store(tmp_path / "s", log_data, rows)
    assert why_unused(store) == "the teacher's store has no rankings of valid"
