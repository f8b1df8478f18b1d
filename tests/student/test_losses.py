"""Losses against independent NumPy formulations and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.student.losses import bce, ce, gbce, propensity, sample_negatives

RNG = np.random.default_rng(3)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_ce_and_label_smoothing_match_numpy():
    scores, columns = RNG.normal(size=(4, 6)), np.array([0, 5, 2, 2])
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    expected = -log_p[np.arange(4), columns]
    np.testing.assert_allclose(ce(torch.tensor(scores), torch.tensor(columns)), expected)
    smoothed = 0.8 * expected - 0.2 * log_p.mean(1)
    np.testing.assert_allclose(ce(torch.tensor(scores), torch.tensor(columns), 0.2), smoothed)


def test_bce_matches_numpy_and_its_mean_is_the_official_mean_over_2b():
    positive, negative = RNG.normal(size=(2, 5)) * 3
    terms = np.concatenate([-np.log(sigmoid(positive)), -np.log(1 - sigmoid(negative))])
    loss = bce(torch.tensor(positive), torch.tensor(negative))
    np.testing.assert_allclose(loss, 0.5 * (terms[:5] + terms[5:]))
    assert float(loss.mean()) == pytest.approx(terms.mean())


def test_bce_stays_finite_where_log_of_sigmoid_does_not():
    loss = bce(torch.tensor([-200.0]), torch.tensor([200.0]))
    assert float(loss) == 200.0


def test_gbce_matches_its_definition():
    positive, negatives = RNG.normal(size=3), RNG.normal(size=(3, 4))
    rate, t = 4 / 20, 0.75
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    expected = -(np.log(sigmoid(positive) ** beta) + np.log(1 - sigmoid(negatives)).sum(1)) / 5
    np.testing.assert_allclose(gbce(torch.tensor(positive), torch.tensor(negatives), 21, t), expected)


def test_gbce_without_calibration_is_bce():
    positive, negatives = torch.randn(6), torch.randn(6, 1)
    torch.testing.assert_close(gbce(positive, negatives, 100, 0.0), bce(positive, negatives[:, 0]))


def test_propensity_by_hand():
    np.testing.assert_allclose(propensity(np.array([0, 1, 2])), (np.array([1, 2, 3]) / 6) ** 0.05)


@pytest.mark.parametrize("count", [2, 20])  # compared with everything, and searched for
def test_negatives_are_uniform_over_what_is_left(count):
    forbidden = torch.tensor([[0, 0, 2, 5, 1], [1, 3, 3, 8, 2]]).repeat_interleave(40_000 // count, 0)
    drawn = sample_negatives(forbidden, 8, count, torch.Generator().manual_seed(0))
    half = len(drawn) // 2
    for rows, allowed in ((slice(0, half), [3, 4, 6, 7, 8]), (slice(half, None), [4, 5, 6, 7])):
        items, counts = drawn[rows].unique(return_counts=True)
        assert items.tolist() == allowed
        expected = 40_000 / len(allowed)
        assert (counts - expected).abs().max() < 5 * expected**0.5


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_negatives_avoid_history_and_target(data):
    n_items = data.draw(st.integers(12, 40))
    item = st.integers(1, n_items)
    rows = data.draw(
        st.lists(st.tuples(st.lists(item, min_size=1, max_size=10), item), min_size=1, max_size=5)
    )
    history = torch.tensor([[0] * (10 - len(h)) + h for h, _ in rows])
    target = torch.tensor([[t] for _, t in rows])
    drawn = sample_negatives(torch.cat([history, target], 1), n_items, 50, torch.Generator().manual_seed(1))
    assert drawn.min() >= 1 and drawn.max() <= n_items
    for row, (items, true) in zip(drawn.tolist(), rows, strict=True):
        assert not set(row) & {*items, true}
