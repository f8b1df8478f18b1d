"""Ranking metrics against hand-worked numbers and the official code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.metrics import (
    MISSED,
    per_sample,
    ranking_metrics,
    ranks_in_lists,
    shortest_list,
)

ORACLE = Path(__file__).resolve().parents[1] / "oracles" / "metrics.npz"
EVAL = {
    "ks": [1, 5, 10],
    "select_metric": "NDCG@10",
    "exclude_history": False,
    "batch_size": 8,
    "candidates": None,
}


def test_hand_worked_ranks():
    """Ranks 1, 2, 3 and a miss: gains 1, 1/log2(3), 1/2 and 0."""
    metrics = ranking_metrics(np.array([1, 2, 3, MISSED], np.int32), ks=(1, 2, 3, 100))
    assert metrics["HitRatio@1"] == metrics["Recall@1"] == metrics["NDCG@1"] == 0.25
    assert metrics["HitRatio@2"] == 0.5
    assert metrics["NDCG@2"] == pytest.approx((1 + 0.6309297535714575) / 4, abs=1e-15)
    assert metrics["NDCG@3"] == pytest.approx((1 + 0.6309297535714575 + 0.5) / 4, abs=1e-15)
    assert metrics["HitRatio@100"] == 0.75, "a miss is a miss however long the list"
    assert set(metrics) == {f"{m}@{k}" for m in ("Recall", "NDCG", "HitRatio") for k in (1, 2, 3, 100)}


def test_metrics_of_the_official_code():
    """Full ranking of 40 x 50 scores: HR@K and NDCG@K as DLLM2Rec's evaluation gave them."""
    oracle = np.load(ORACLE)
    scores, truth = oracle["scores"], oracle["truth"].astype(int)
    assert all(len(np.unique(row)) == len(row) for row in scores), "without ties every convention agrees"
    ranks = 1 + (scores > scores[np.arange(len(truth)), truth][:, None]).sum(axis=1)
    metrics = ranking_metrics(ranks, oracle["topk"].tolist())
    for k, hr, ndcg in zip(oracle["topk"], oracle["hr"], oracle["ndcg"], strict=True):
        assert metrics[f"HitRatio@{k}"] == pytest.approx(hr, abs=1e-12)
        assert metrics[f"NDCG@{k}"] == pytest.approx(ndcg, abs=1e-7)

    longest = int(oracle["topk"].max())
    lists = np.argsort(-scores, axis=1)[:, :longest] + 1
    from_lists = ranking_metrics(
        ranks_in_lists(lists, -np.sort(-scores, axis=1)[:, :longest], truth + 1),
        oracle["topk"].tolist(),
        list_length=longest,
    )
    assert from_lists == metrics, "a ranking cut at the largest K gives the figures of the full one"


def test_no_metric_beyond_the_length_of_the_list():
    metrics = ranking_metrics(np.array([1, MISSED], np.int32), ks=(1, 5, 10), list_length=5)
    assert {name.partition("@")[2] for name in metrics} == {"1", "5"}


def test_no_samples_is_an_error():
    with pytest.raises(UserError, match="no samples"):
        ranking_metrics(np.array([], np.int32), ks=(10,))


def test_per_sample_is_what_the_mean_is_made_of():
    ranks = np.array([1, 3, 10, 11, MISSED], np.int32)
    assert per_sample(ranks, "HitRatio@10").tolist() == [1, 1, 1, 0, 0]
    assert per_sample(ranks, "Recall@10").tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(per_sample(ranks, "NDCG@10"), [1, 0.5, 1 / math.log2(11), 0, 0], rtol=1e-15)
    with pytest.raises(ValueError, match="MRR@10"):
        per_sample(ranks, "MRR@10")


def test_ranks_in_lists():
    lists = np.array([[4, 2, 9], [1, 2, 3], [3, 2, 1]], np.int32)
    scores = np.tile(np.array([0.9, 0.5, 0.1], np.float32), (3, 1))
    assert ranks_in_lists(lists, scores, np.array([4, 4, 1])).tolist() == [1, MISSED, 3]
    # a history item before the target is left out, one behind it changes nothing
    histories = np.array([[0, 9], [0, 1], [3, 2]])
    assert ranks_in_lists(lists, scores, np.array([4, 2, 1]), histories).tolist() == [1, 1, 1]
    # items of equal score count as before the target, unless the history takes them out
    tied = np.tile(np.array([0.5, 0.5, 0.5], np.float32), (3, 1))
    assert ranks_in_lists(lists, tied, np.array([4, 4, 1])).tolist() == [3, MISSED, 3]
    assert ranks_in_lists(lists, tied, np.array([4, 2, 1]), histories).tolist() == [2, 2, 1]
    assert shortest_list(lists, histories) == 1 and shortest_list(lists, histories[:, :0]) == 3
    # the target in its own history
    assert ranks_in_lists(lists, scores, np.array([9, 2, 1]), histories).tolist() == [MISSED, 1, 1]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(ranks=st.lists(st.integers(1, 60) | st.just(int(MISSED)), min_size=1, max_size=30))
def test_metrics_grow_with_k_and_stay_in_order(ranks):
    ks = (1, 2, 5, 20, 60)
    metrics = ranking_metrics(np.array(ranks, np.int32), ks)
    for name in ("NDCG", "HitRatio"):
        values = [metrics[f"{name}@{k}"] for k in ks]
        assert values == sorted(values)
    assert all(0 <= metrics[f"NDCG@{k}"] <= metrics[f"HitRatio@{k}"] <= 1 for k in ks)
