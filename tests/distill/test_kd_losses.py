"""The distillation terms against executed official lines, an independent formulation, and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.distill import kd_losses as kd
from src.student.fused_losses import plain_terms
from src.student.losses import bce

TAGS = ("a0_l0", "a1_l0", "a0_l1", "a1_l1", "a0_l1_raw", "a1_l1_raw")
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-5)]


def official_total(oracle: dict, tag: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The official objective put together from this project's functions, with every intermediate value."""
    alpha, lam, beta, *gammas, k, _ = oracle[f"loss/{tag}/hp"]
    rows, k = oracle["loss/in/sample"], int(k)
    scores = torch.tensor(oracle["loss/in/model_output"], dtype=dtype, requires_grad=True)
    target = torch.tensor(oracle["loss/in/target"])[:, None]
    negative = torch.tensor(oracle["loss/in/target_neg"])
    candidates = torch.tensor(oracle["loss/in/all_candidate"][rows][:, :k])
    raw = oracle["loss/in/conf_raw" if tag.endswith("raw") else "loss/in/conf_unit"][rows][:, :k]
    propensity = torch.tensor(oracle["loss/in/ps"], dtype=dtype)
    out = {"scores": scores}
    positive, drawn = scores.gather(1, target).squeeze(1), scores.gather(1, negative).squeeze(1)
    out["bce"] = total = bce(positive, drawn).mean()
    if alpha:
        out["dro"] = plain_terms(scores, target, propensity=propensity, beta=beta).dro.squeeze(1)
        total = total + alpha * out["dro"].mean()
    if lam:
        chosen = scores.gather(1, candidates)
        out["position"] = kd.position_weights(k, 1.0, dtype=dtype)
        out["confidence"] = kd.confidence_weights(kd.scale_distances(torch.tensor(raw, dtype=dtype), "none"))
        out["consistent"] = kd.consistency(scores, chosen, k)
        weights = kd.ranking_weights(out["position"], out["confidence"], out["consistent"], tuple(gammas))
        out["weights"], out["terms"] = weights, kd.rd_bce(chosen, drawn, "one_minus")
        per_candidate = (weights * out["terms"]).mean(0)
        if alpha:
            out["rd_dro"] = plain_terms(scores, candidates, propensity=propensity, beta=beta).dro
            ones = torch.ones(len(rows), dtype=dtype)
            share = kd.dro_weights(weights, ones, "batch_mean")
            per_candidate = per_candidate + alpha * (share * out["rd_dro"]).mean(0)
        out["per_candidate"], out["rd"] = per_candidate, per_candidate.sum()
        total = total + lam * out["rd"]
    out["total"] = total
    total.backward()
    return out


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_official_profile_meets_the_executed_official_lines(
    oracle: dict, tag: str, dtype: torch.dtype, tolerance: float
) -> None:
    found = official_total(oracle, tag, dtype)
    names = {
        "bce": "bce",
        "dro": "loss_dro_per_sample",
        "confidence": "weight_confidence",
        "consistent": "weight_com",
        "weights": "weight",
        "terms": "rd_bce_per_cand",
        "rd_dro": "rd_dro_per_cand",
        "per_candidate": "rd_contrib_per_cand",
        "rd": "loss_all_rd",
        "total": "loss_all",
    }
    checked = 0
    for ours, theirs in names.items():
        if ours in found and f"loss/{tag}/{theirs}" in oracle:
            expected = oracle[f"loss/{tag}/{theirs}"]
            # Relative to the largest value: single weights go down to 1e-9.
            np.testing.assert_allclose(
                found[ours].detach().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max()
            )
            checked += 1
    assert checked == {"a0_l0": 2, "a1_l0": 3, "a0_l1": 8, "a0_l1_raw": 8}.get(tag, 10)
    gradient = oracle[f"loss/{tag}/grad_model_output"]
    np.testing.assert_allclose(
        found["scores"].grad.numpy(), gradient, rtol=0, atol=tolerance * np.abs(gradient).max()
    )


def test_position_weights_fall_by_e_and_sum_to_one() -> None:
    weights = kd.position_weights(3, 1.0, dtype=torch.float64)
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    assert weights.tolist() == pytest.approx([math.exp(-r) / total for r in (1, 2, 3)], abs=1e-15)
    assert kd.position_weights(2, 0.5).tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)


def test_scaled_distances_keep_an_order_that_raw_ones_lose() -> None:
    distances = torch.tensor([[40.0, 41.0, 44.0], [7.0, 7.0, 7.0]])
    # Hand-worked: (0, 1/4, 1) -> exp: 1, 0.7788, 0.36788, sum 2.14668.
    scaled = kd.confidence_weights(kd.scale_distances(distances, "minmax"))
    assert scaled[0].tolist() == pytest.approx([0.465836, 0.362794, 0.171371], abs=1e-6)
    assert scaled[1].tolist() == pytest.approx([1 / 3] * 3)
    raw = kd.confidence_weights(kd.scale_distances(distances, "none"))
    assert raw[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert kd.weight_entropy(raw[0]).item() == pytest.approx(1.0)
    assert kd.weight_entropy(scaled[0]).item() < 0.95
    sharp = kd.confidence_weights(kd.scale_distances(distances, "minmax", temperature=0.1))
    assert sharp[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2.5) + math.exp(-10)), abs=1e-6)


def test_a_log_likelihood_as_distance_gives_the_teachers_own_distribution() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1]])
    assert torch.allclose(kd.confidence_weights(-p.log()), p, atol=1e-7)


def test_sequence_confidence_averages_one_over_k_and_lifts_sure_samples() -> None:
    confidence = kd.sequence_confidence(torch.tensor([0.0, math.log(2.0), math.log(4.0)]), k=10)
    assert confidence.mean() == pytest.approx(0.1)
    assert confidence.tolist() == pytest.approx([0.1 * 3 * x / 1.75 for x in (1, 0.5, 0.25)])
    position = kd.position_weights(10, 1.0)
    none = torch.zeros(3, 10)
    weights = kd.ranking_weights(position, confidence[:, None], none, (0.3, 0.5, 0.1))
    # Row sums: (g_p + g_c * K * q) / (g_p + g_c), with mean 1 over the samples.
    expected = [(0.3 + 0.5 * 10 * q) / 0.8 for q in confidence.tolist()]
    assert weights.sum(1).tolist() == pytest.approx(expected)
    assert weights.sum(1).mean() == pytest.approx(1.0)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([3, 63, 64, 65, 700, 2048, 2111, 5000]),
    st.integers(1, 40),
    st.integers(0, 9999),
)
def test_blocked_threshold_is_the_kth_largest(batch: int, n_items: int, k: int, seed: int) -> None:
    logits = torch.randn(batch, n_items, generator=torch.Generator().manual_seed(seed))
    expected = np.sort(logits.numpy(), axis=1)[:, ::-1][:, min(k, n_items) - 1]
    assert np.array_equal(kd.top_k_threshold(logits, k).numpy(), expected)


def test_blocked_threshold_with_ties_and_the_best_in_the_tail() -> None:
    logits = torch.zeros(2, 4100)
    logits[0, 4096:] = torch.tensor([5.0, 4.0, 3.0, 2.0])  # beyond the last whole block
    logits[1, 10:40] = 1.0  # all within one block
    assert kd.top_k_threshold(logits, 3).tolist() == [3.0, 1.0]


def test_consistency_marks_the_students_own_top_k_and_has_no_gradient() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]], requires_grad=True)
    candidates = torch.tensor([[4, 1]])
    marked = kd.consistency(logits, logits.gather(1, candidates), 2)
    assert marked.tolist() == [[pytest.approx(1e-8), pytest.approx(1 + 1e-8)]]
    assert not marked.requires_grad


def test_corrected_bce_term_is_binary_cross_entropy() -> None:
    terms = kd.rd_bce(torch.tensor([[2.0, -1.0]]), torch.tensor([0.5]), "minus")
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    second = -math.log(sigma(-0.5))
    assert terms[0].tolist() == pytest.approx(
        [-math.log(sigma(2.0)) + second, -math.log(sigma(-1.0)) + second]
    )
    official = kd.rd_bce(torch.tensor([[2.0]]), torch.tensor([0.5]), "one_minus")
    assert official.item() == pytest.approx(-math.log(sigma(2.0)) - math.log(sigma(1 - 0.5)))


@pytest.mark.parametrize("kind", ["minus", "one_minus"])
def test_extreme_logits_stay_finite_in_value_and_gradient(kind: str) -> None:
    candidate = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    negative = torch.tensor([500.0], requires_grad=True)
    terms = kd.rd_bce(candidate, negative, kind)
    terms.sum().backward()
    assert terms[0, 0].item() == pytest.approx(1000.0, abs=1.5) and torch.isfinite(terms).all()
    assert candidate.grad.tolist() == [[-1.0, 0.0]] and negative.grad.tolist() == [2.0]


def test_soft_target_cross_entropy_by_hand_and_its_minimum() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)).requires_grad_()
    weights = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    order = torch.tensor([[0, 1, 2, 3]])
    terms = kd.rd_ce(scores.logsumexp(1), scores.gather(1, order))
    loss = (weights * terms).sum()
    assert loss.item() == pytest.approx(1.75 * math.log(2))  # the entropy of the weights: the minimum
    loss.backward()
    assert torch.allclose(scores.grad, torch.zeros_like(scores), atol=1e-15)


def test_soft_target_cross_entropy_equals_torch_with_dense_targets() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    candidates = torch.argsort(torch.rand(6, 40, generator=generator), dim=1)[:, :7]
    weights = torch.rand(6, 7, generator=generator, dtype=torch.float64).softmax(1)
    dense = torch.zeros_like(scores).scatter(1, candidates, weights)
    expected = torch.nn.functional.cross_entropy(scores, dense)
    terms = kd.rd_ce(scores.logsumexp(1), scores.gather(1, candidates))
    assert torch.allclose((weights * terms).sum(1).mean(), expected, atol=1e-12)


def test_dro_weights_per_sample_and_as_the_code_broadcasts_them() -> None:
    weights = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ones = torch.ones(2)
    per_sample = (kd.dro_weights(weights, ones, "per_sample") * losses).sum(1).mean()
    assert per_sample.item() == pytest.approx((0.9 + 0.2 + 0.6 + 3.2) / 2)
    slip = (kd.dro_weights(weights, ones, "batch_mean") * losses).sum(1).mean()
    assert slip.item() == pytest.approx(0.55 * 2.0 + 0.45 * 3.0)
    # A sample that is not distilled takes part in neither mean.
    r = torch.tensor([1.0, 0.0])
    masked = (r * (kd.dro_weights(weights, r, "batch_mean") * losses).sum(1)).mean()
    assert masked.item() == pytest.approx(0.45 * 0.5 + 0.05 * 1.0)


def test_align_loss_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    assert kd.align_loss(student, teacher, "cosine").item() == pytest.approx(0.5)  # (1 - 0, 1 - 1)
    assert kd.align_loss(student, teacher, "mse").item() == pytest.approx((1 + 9 + 0 + 1) / 4)


def test_fuse_with_and_without_offset() -> None:
    own, teacher = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert kd.fuse(own, teacher, 0.25, True).eq(1.5).all()
    assert kd.fuse(own, teacher, 0.25, False).eq(0.5).all()
