"""Full ranking: against a naive ranking, ties, both history conventions, batches, bad scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.candidates import CandidateConfig, load_candidates
from src.core.errors import UserError
from src.core.metrics import MISSED
from src.core.selection import Selection
from src.student.datamodule import Samples
from src.student.evaluator import choose, rank_prepared, rank_samples, ranks_from_scores
from src.student.models import build_student
from tests.student.conftest import make_student_config

CPU = torch.device("cpu")


def naive_ranks(scores, history, target):
    """One sample, in plain Python: items that score at least as well as the target, with and without history."""
    ahead = [
        item
        for item in range(1, len(scores) + 1)
        if item != target and scores[item - 1] >= scores[target - 1]
    ]
    excluded = MISSED if target in history else 1 + len([item for item in ahead if item not in history])
    return 1 + len(ahead), excluded


@given(st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_ranks_match_the_naive_ranking(data):
    n_items = data.draw(st.integers(3, 12))
    item = st.integers(1, n_items)
    scores = data.draw(st.lists(st.integers(-3, 3), min_size=n_items, max_size=n_items))  # many ties
    history = data.draw(st.lists(item, min_size=1, max_size=6))
    padded, target = [0] * (6 - len(history)) + history, data.draw(item)
    window = torch.tensor([padded[-3:]])
    ranks = ranks_from_scores(
        torch.tensor([scores], dtype=torch.float32), torch.tensor([target]), window, torch.tensor([padded])
    )
    expected = naive_ranks(scores, history[-3:], target), naive_ranks(scores, history, target)
    assert [int(r) for r in ranks] == [*expected[0], expected[1][1]]


def test_ties_go_against_the_target():
    ranked, excluded = ranks_from_scores(torch.zeros(1, 5), torch.tensor([3]), torch.tensor([[0, 2, 2]]))
    assert (int(ranked), int(excluded)) == (5, 4)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student(make_student_config("sasrec", "width=16"), 30, 6)


def test_batch_size_never_changes_a_rank(student, small_data):
    ids = small_data.splits["test"]
    expected = rank_samples(student, small_data, ids, 1000, CPU)
    for batch_size in (1, 2, 3, 7, 39, 40):
        ranks = rank_samples(student, small_data, ids, batch_size, CPU)
        np.testing.assert_array_equal(ranks.ranked, expected.ranked)
        np.testing.assert_array_equal(ranks.history_excluded, expected.history_excluded)
    np.testing.assert_array_equal(expected.sample_ids, ids)


def test_ranks_follow_the_sample_ids(student, small_data):
    ids = small_data.splits["test"]
    forward, backward = (rank_samples(student, small_data, i, 8, CPU) for i in (ids, ids[::-1]))
    np.testing.assert_array_equal(forward.ranked, backward.ranked[::-1])
    assert forward.ranked.dtype == forward.history_excluded.dtype == np.int32


def test_choices_are_the_best_score_among_the_candidates(student, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path))
    candidates = load_candidates(CandidateConfig(5, 3, 20, 0), small_data)
    student.train()
    chosen = choose(student, small_data, candidates, 7, CPU)
    assert student.training and chosen.valid.all()
    student.eval()
    for row, (sample, target) in enumerate(zip(candidates.sample_ids, candidates.targets, strict=True)):
        with torch.no_grad():
            scores = student(torch.from_numpy(small_data.histories(np.array([sample]))).long())[0].tolist()
        for draw, items in enumerate(candidates.items[:, row].tolist()):
            best = max(items, key=lambda i: scores[i - 1])
            assert chosen.hits[draw, row] == (best == target)


def test_evaluation_is_without_dropout_and_restores_the_mode(student, small_data):
    student.train()
    one, other = (rank_samples(student, small_data, small_data.splits["test"], 8, CPU) for _ in range(2))
    assert student.training
    np.testing.assert_array_equal(one.ranked, other.ranked)


def test_three_conventions_by_hand(student, small_data):
    """The window of L items, and all that the user had before; validation ranks like the first."""
    student.eval()
    ids = small_data.splits["test"]
    ranks = rank_samples(student, small_data, ids, 8, CPU)
    with torch.no_grad():
        scores = student(torch.from_numpy(small_data.histories(ids)).long()).numpy()
    owners, longer = small_data.users_of(ids), 0
    for row, sample in enumerate(ids):
        target = int(small_data.items[sample])
        past = small_data.items[small_data.offsets[owners[row]] : sample].tolist()
        window, longer = past[-small_data.max_history :], longer + (len(past) > small_data.max_history)
        assert (ranks.ranked[row], ranks.history_excluded[row]) == naive_ranks(scores[row], window, target)
        assert ranks.past_excluded[row] == naive_ranks(scores[row], past, target)[1]
    assert longer, "some pasts are longer than the window"
    again = rank_prepared(student, Samples(small_data, Selection(ids), CPU), 8, student.tables())
    np.testing.assert_array_equal(again, ranks.ranked)
    assert ranks.metrics((10,), "past_excluded")["HitRatio@10"] == np.mean(ranks.past_excluded <= 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(student, small_data, value):
    tables = student.tables()._replace(inputs=student.item_table().detach().clone())
    item = int(small_data.targets(small_data.splits["test"][3:4])[0])
    tables.inputs[item] = value
    with pytest.raises(UserError, match="not finite"):
        rank_samples(student, small_data, small_data.splits["test"], 8, CPU, tables=tables)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([], None, "no samples"),
        ([5, 7, 5], None, "sample 5 is selected 2 times"),
        ([-1, 5], None, "sample ids -1..5"),
        ([5, 10**6], None, "sample ids"),
        ([0], None, "empty history"),
        ([5, 7], [1.0], "weights of shape"),
        ([5, 7], [1.0, -1.0], "smallest -1.0"),
        ([5, 7], [1.0, float("nan")], "weights"),
        ([5, 7], [0.0, 0.0], "not all zero"),
    ],
)
def test_unusable_selections_are_refused(student, small_data, ids, weights, message):
    from src.student.datamodule import Samples

    weights = None if weights is None else np.array(weights, np.float32)
    with pytest.raises(UserError, match=message):
        Samples(small_data, Selection(np.array(ids, np.int64), weights), CPU)
