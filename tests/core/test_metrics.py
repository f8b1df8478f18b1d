"""Ranking metrics against hand-worked numbers and the official code; the statistics against simulation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.config import build_or_raise
from src.core.errors import ConfigError, UserError
from src.core.metrics import (
    MISSED,
    Difference,
    EvalConfig,
    holm,
    paired_difference,
    per_sample,
    ranking_metrics,
    ranks_in_lists,
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


def _simulated_means(diff: np.ndarray, users: np.ndarray, draws: int) -> np.ndarray:
    """The same bootstrap written out: draw users with replacement, pool their samples, take the mean."""
    rng = np.random.default_rng(1)
    groups = [diff[users == u] for u in np.unique(users)]
    return np.array(
        [
            np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean()
            for _ in range(draws)
        ]
    )


def _clustered(
    seed: int, n_users: int = 60, effect: float = 0.02
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models' metrics with users of very different sizes and a user effect (as ML-100K's test split)."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), np.maximum(1, rng.geometric(0.1, n_users)))
    a = rng.random(len(users))
    b = a + effect + rng.normal(0, 0.05, n_users)[users] + rng.normal(0, 0.02, len(users))
    return a, b, users


def test_bootstrap_agrees_with_a_simulation_written_out():
    a, b, users = _clustered(3)
    means = _simulated_means(b - a, users, 8000)
    found = paired_difference(a, b, users, np.random.default_rng(0), draws=8000)
    assert found.mean == pytest.approx((b - a).mean(), abs=1e-15)
    sd = means.std()
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.1 * sd)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.1 * sd)
    expected_p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    assert found.p_value == pytest.approx(expected_p, abs=0.02)


def test_bootstrap_resamples_users_not_samples():
    """With an effect per user the interval is far wider than one that takes samples as independent."""
    a, b, users = _clustered(3)
    by_user = paired_difference(a, b, users, np.random.default_rng(0), draws=2000)
    by_sample = paired_difference(a, b, np.arange(len(a)), np.random.default_rng(0), draws=2000)
    assert by_user.high - by_user.low > 2 * (by_sample.high - by_sample.low)
    shuffled = np.random.default_rng(5).permutation(len(a))
    relabelled = paired_difference(a[shuffled], b[shuffled], 1000 - users[shuffled], np.random.default_rng(0))
    assert relabelled.mean == pytest.approx(by_user.mean, abs=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """95 % intervals over 120 simulated experiments of 60 users: a percentile bootstrap covers a little less."""
    hits = 0
    for seed in range(120):
        a, b, users = _clustered(seed)
        found = paired_difference(a, b, users, np.random.default_rng(seed), draws=400)
        hits += found.low <= 0.02 <= found.high
    assert 0.86 * 120 <= hits <= 0.99 * 120


def test_no_difference_and_sure_difference():
    users = np.arange(40)
    same = paired_difference(np.ones(40), np.ones(40), users, np.random.default_rng(0), draws=500)
    assert same == Difference(0.0, 0.0, 0.0, 1.0)
    sure = paired_difference(np.zeros(40), np.ones(40), users, np.random.default_rng(0), draws=499)
    assert (sure.mean, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert sure.p_value == pytest.approx(2 / 500), "never zero: bounded by the number of draws"


def test_swapping_the_models_mirrors_the_result():
    a, b, users = _clustered(7)
    ab = paired_difference(a, b, users, np.random.default_rng(0))
    ba = paired_difference(b, a, users, np.random.default_rng(0))
    assert (ba.mean, ba.p_value) == (pytest.approx(-ab.mean), ab.p_value)
    assert (ba.low, ba.high) == (pytest.approx(-ab.high), pytest.approx(-ab.low))


@pytest.mark.parametrize("b, users", [(np.ones(3), np.ones(4)), (np.ones(4), np.ones(3))])
def test_unequal_lengths_are_refused(b, users):
    with pytest.raises(ValueError, match="lengths differ"):
        paired_difference(np.ones(4), b, users, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no samples"):
        paired_difference(np.ones(0), np.ones(0), np.ones(0), np.random.default_rng(0))


def test_holm_hand_worked():
    """Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last is raised to .06 (step-down)."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-12)
    np.testing.assert_allclose(holm([0.6, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.02, 0.02, 0.02]), [0.06, 0.06, 0.06], rtol=1e-12)
    assert holm([]).tolist() == []
    assert holm([0.3]).tolist() == [0.3]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), level=st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_the_sequential_procedure_rejects(p, level):
    """Holm 1979: go through the ordered p-values and stop at the first p_(i) > level / (m - i + 1)."""
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level} == rejected


def test_eval_settings():
    config = build_or_raise(EvalConfig, EVAL, "eval")
    assert config.ks == (1, 5, 10)
    for bad in ("NDCG@20", "MRR@10", "NDCG", "NDCG@x", "@10"):
        with pytest.raises(ConfigError, match="select_metric"):
            build_or_raise(EvalConfig, {**EVAL, "select_metric": bad}, "eval")
    with pytest.raises(ConfigError, match="eval.ks: found 0, expected >= 1"):
        build_or_raise(EvalConfig, {**EVAL, "ks": [0, 10]}, "eval")
