"""One pass over the score matrix against separate operations: values, gradients, and the hard places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from src.distill import catalogue
from src.distill.catalogue import catalogue_terms, plain_terms


def random_case(
    batch: int, n_items: int, chosen: int, seed: int, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, n_items, generator=generator, dtype=dtype) * 2
    columns = torch.randint(0, n_items, (batch, chosen), generator=generator)
    columns[:, -1] = columns[:, 0]  # the target is often among the candidates
    return scores, columns, torch.rand(n_items, generator=generator, dtype=dtype) * 0.4 + 0.4


def weighted_gradient(
    function, scores: Tensor, columns: Tensor, propensity: Tensor | None, log_z: bool
) -> Tensor:
    """Gradient of a weighted sum of all outputs: every path is used, with different factors."""
    scores = scores.clone().requires_grad_()
    terms = function(scores, columns, log_z=log_z, propensity=propensity, beta=0.7)
    generator = torch.Generator().manual_seed(5)
    total = 0.0
    for output in terms:
        if output is not None:
            factor = torch.rand(output.shape, generator=generator, dtype=torch.float64)
            total = total + (output * factor.to(scores.dtype)).sum()
    total.backward()
    return scores.grad


@pytest.mark.parametrize("log_z", [True, False])
@pytest.mark.parametrize("dro", [True, False])
@pytest.mark.parametrize("piece", [40, 2**19])  # one row at a time; all at once
def test_equals_separate_operations(
    monkeypatch: pytest.MonkeyPatch, log_z: bool, dro: bool, piece: int
) -> None:
    monkeypatch.setattr(catalogue, "_CACHED", piece)
    scores, columns, ps = random_case(7, 50, 6, seed=1)
    propensity = ps if dro else None
    ours = catalogue_terms(scores, columns, log_z=log_z, propensity=propensity, beta=0.7)
    plain = plain_terms(scores, columns, log_z=log_z, propensity=propensity, beta=0.7)
    for a, b in zip(ours, plain, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    gradients = [
        weighted_gradient(f, scores, columns, propensity, log_z) for f in (catalogue_terms, plain_terms)
    ]
    assert torch.allclose(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("peak", [14.0, 30.0, 100.0])
@pytest.mark.parametrize("where", ["chosen", "elsewhere", "chosen twice", "two peaks"])
def test_float32_where_one_item_dominates_the_sum(peak: float, where: str) -> None:
    scores, columns, ps = random_case(4, 60, 5, seed=2, dtype=torch.float32)
    columns = torch.tensor([[3, 9, 20, 31, 40]]).repeat(4, 1)
    scores[:, 9] = peak if where != "elsewhere" else 0.3
    scores[:, 50] = peak if where == "elsewhere" else 0.1
    if where == "chosen twice":
        columns[:, 4] = 9
    if where == "two peaks":
        scores[:, 31] = peak - 0.001
    ours = catalogue_terms(scores, columns, propensity=ps, beta=0.7).dro
    # The definition in float64 with the sum over j != i taken as it stands.
    s, c = scores.double().numpy(), ps.double().numpy() / np.float64(np.float32(0.7))
    a = s**2 * c
    expected = np.empty(columns.shape)
    for b in range(4):
        for k, i in enumerate(columns[b].tolist()):
            others = np.delete(a[b], i)
            expected[b, k] = np.logaddexp(np.logaddexp.reduce(others), (s[b, i] - 1) ** 2 * c[i])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-5)
    single = weighted_gradient(catalogue_terms, scores, columns, ps, False)
    double = weighted_gradient(plain_terms, scores.double(), columns, ps.double(), False)
    assert torch.isfinite(single).all()
    # exp() of a difference of two a's near 6000 keeps three digits in float32.
    error = (single.double() - double).norm() / double.norm()
    assert error < (1e-4 if peak < 100 else 1e-2)


def test_gradients_against_finite_differences() -> None:
    scores, columns, ps = random_case(2, 9, 4, seed=3)
    gradient = weighted_gradient(catalogue_terms, scores, columns, ps, True)

    def total(s: Tensor) -> float:
        generator = torch.Generator().manual_seed(5)
        out = 0.0
        for output in catalogue_terms(s, columns, log_z=True, propensity=ps, beta=0.7):
            out += float((output * torch.rand(output.shape, generator=generator, dtype=torch.float64)).sum())
        return out

    for b, j in np.ndindex(2, 9):
        step = torch.zeros_like(scores)
        step[b, j] = 1e-6
        assert gradient[b, j].item() == pytest.approx(
            (total(scores + step) - total(scores - step)) / 2e-6, abs=1e-6
        )


def test_a_second_backward_is_refused_not_wrong() -> None:
    scores, columns, _ = random_case(3, 9, 4, seed=3)
    terms = catalogue_terms(scores.requires_grad_(), columns, log_z=True)
    terms.log_z.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        terms.log_z.sum().backward()
