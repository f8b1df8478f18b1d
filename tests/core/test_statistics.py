"""Intervals over users and seeds: a simulation written out, Welch's test, and their level under the null."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.comparison_level import null_rate, paired_difference
from src.core.statistics import Difference, holm, resample_users


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
    means = _simulated_means(b - a, users, 4000)
    found = paired_difference(a, b, users, np.random.default_rng(0), draws=8000)
    assert found.mean == pytest.approx((b - a).mean(), abs=1e-15)
    sd = means.std() * np.sqrt(60 / 59)
    half = stats.t.ppf(0.975, 59) * sd
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * sd)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.mean) / sd, 59), abs=0.02)


def test_bootstrap_resamples_users_not_samples():
    """With an effect per user the interval is far wider than one that takes samples as independent."""
    a, b, users = _clustered(3)
    by_user = paired_difference(a, b, users, np.random.default_rng(0), draws=2000)
    by_sample = paired_difference(a, b, np.arange(len(a)), np.random.default_rng(0), draws=2000)
    assert by_user.high - by_user.low > 2 * (by_sample.high - by_sample.low)
    shuffled = np.random.default_rng(5).permutation(len(a))
    relabelled = paired_difference(a[shuffled], b[shuffled], 1000 - users[shuffled], np.random.default_rng(0))
    assert relabelled.mean == pytest.approx(by_user.mean, abs=1e-12)


def test_without_chance_of_users_it_is_the_test_of_welch():
    """Every user alike: what is left is the seeds' variance, and the two-sample t-test of unequal variances."""
    runs_a, runs_b = np.array([0.1, 0.14, 0.11]), np.array([0.2, 0.21, 0.29, 0.22])
    a, b = (np.tile(runs[:, None], (1, 50)) for runs in (runs_a, runs_b))
    found = paired_difference(a, b, np.arange(50), np.random.default_rng(0), draws=500)
    welch = stats.ttest_ind(runs_b, runs_a, equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval(0.95)), rel=1e-9)


def test_seeds_widen_the_interval_and_one_run_has_none():
    rng = np.random.default_rng(2)
    users, shift = np.arange(300), np.array([-0.2, 0.0, 0.2])[:, None]
    a, b = rng.random((3, 300)), rng.random((3, 300)) + 0.05
    calm, noisy = (paired_difference(a, b + s, users, np.random.default_rng(0)) for s in (0 * shift, shift))
    assert noisy.mean == pytest.approx(calm.mean) and noisy.high - noisy.low > 1.5 * (calm.high - calm.low)
    averaged = paired_difference(a.mean(axis=0), b.mean(axis=0), users, np.random.default_rng(0))
    assert averaged.high - averaged.low <= calm.high - calm.low


@pytest.mark.parametrize("seed_sd, interaction", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (8.0, 0.0)])
def test_no_gain_where_there_is_none(seed_sd: float, interaction: float):
    """At most 5 % of the intervals lie above 0; nominally 2.5 % (400 experiments: standard error .8 %)."""
    assert null_rate("users_and_seeds", seed_sd, interaction, repeats=400, draws=100) <= 0.05


def test_intervals_over_users_alone_would_not_do():
    assert null_rate("users", 2.0, 0.0, repeats=200, draws=100) > 0.1


def test_draws_are_those_of_independent_users():
    values = np.random.default_rng(0).random((6, 5000))
    found = resample_users(values, np.arange(5000), np.random.default_rng(1), 1000)
    np.testing.assert_allclose(found.draws.std(axis=0), values.std(axis=1) / np.sqrt(5000), rtol=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """95 % intervals over 120 simulated experiments of 60 users of very different sizes."""
    hits = 0
    for seed in range(120):
        a, b, users = _clustered(seed)
        found = paired_difference(a, b, users, np.random.default_rng(seed), draws=400)
        hits += found.low <= 0.02 <= found.high
    assert 0.86 * 120 <= hits <= 0.99 * 120


def test_no_difference_and_sure_difference():
    users, rng = np.arange(40), np.random.default_rng(0)
    same = paired_difference(np.ones(40), np.ones(40), users, rng, draws=500)
    assert same == Difference(0.0, 0.0, 0.0, 1.0)
    assert paired_difference(np.zeros(40), np.ones(40), users, rng, draws=499) == Difference(
        1.0, 1.0, 1.0, 0.0
    )
    one_user = paired_difference(np.zeros(4), np.ones(4), np.zeros(4), rng, draws=100)
    assert one_user == Difference(1.0, -np.inf, np.inf, 1.0), "one user cannot tell"


def test_p_does_not_end_at_the_number_of_draws():
    """An effect of ten standard errors stays one after Holm over many metrics, with few draws."""
    rng = np.random.default_rng(0)
    found = paired_difference(np.zeros(100), 1 + rng.normal(0, 1, 100), np.arange(100), rng, draws=200)
    assert 0 < found.p_value < 1e-9


def test_swapping_the_models_mirrors_the_result():
    a, b, users = _clustered(7)
    ab = paired_difference(a, b, users, np.random.default_rng(0))
    ba = paired_difference(b, a, users, np.random.default_rng(0))
    assert (ba.mean, ba.p_value) == (pytest.approx(-ab.mean), pytest.approx(ab.p_value))
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
