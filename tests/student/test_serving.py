"""A saved student in use: raw ids in, raw ids with titles out."""

from __future__ import annotations

import pytest
import torch

from src.core.errors import UserError
from src.student.checkpoint import save_student
from src.student.models import build_student
from src.student.serving import load_student
from tests.student.conftest import make_student_config


@pytest.fixture(scope="module")
def served(small_data, tmp_path_factory):
    config = make_student_config("sasrec", "width=16")
    torch.manual_seed(2)
    student = build_student(config, small_data.n_items, small_data.max_history).eval()
    folder = tmp_path_factory.mktemp("serving") / "student"
    save_student(folder, student, config, small_data, {})
    return student, load_student(folder)


def test_ranking_is_the_students(served, small_data):
    student, recommender = served
    with torch.no_grad():
        scores = student(torch.tensor([[3, 7, 4]]))[0]
    ranking = recommender.recommend([103, "107", 104], k=30)
    columns = [int(r.raw_id) - 101 for r in ranking]
    assert columns == scores.argsort(descending=True, stable=True).tolist()
    assert [r.title for r in ranking] == [f"title {c + 1}" for c in columns]
    assert [r.score for r in ranking] == pytest.approx(scores[columns].tolist(), abs=1e-6)


def test_only_the_newest_items_are_read(served):
    _, recommender = served
    newest = [105, 106, 107, 108, 109, 110]
    assert recommender.recommend([101, 102, 103, *newest]) == recommender.recommend(newest)


def test_history_can_be_left_out(served):
    _, recommender = served
    history = [101, 102, 103, 105, 106, 107, 108, 109]
    ids = {r.raw_id for r in recommender.recommend(history, k=22, exclude_history=True)}
    assert len(ids) == 22 and not ids & {str(i) for i in history}


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [([], 5, "empty history"), ([101, 999], 5, "unknown item 999"), ([101], 31, "k=31"), ([101], 0, "k=0")],
)
def test_unusable_requests_are_refused(served, history, k, message):
    with pytest.raises(UserError, match=message):
        served[1].recommend(history, k=k)
