"""One pass over the score matrix against separate operations: values, gradients, and the hard places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from src.student import fused_losses
from src.student.fused_losses import catalogue_terms, plain_terms
from src.student.losses import propensity as propensity_of


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
    monkeypatch.setattr(fused_losses, "_CACHED", piece)
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


def naive_dro(scores, columns, ps, beta):
    """Each term on its own, in extended precision."""
    s, ps = scores.astype(np.longdouble), ps.astype(np.longdouble)
    out = np.empty(columns.shape)
    for b in range(columns.shape[0]):
        for k in range(columns.shape[1]):
            i = columns[b, k]
            a = s[b] ** 2 * ps / beta
            a[i] = (s[b, i] - 1) ** 2 * ps[i] / beta
            top = a.max()
            out[b, k] = float(top + np.log(np.exp(a - top).sum()))
    return out


def dro_case(dtype, scale, beta=1.0):
    rng = np.random.default_rng(int(scale * 10))
    scores = (rng.normal(size=(6, 40)) * scale).astype(dtype)
    columns = np.stack([rng.permutation(40)[:5] for _ in range(6)])
    columns[:, 0] = np.abs(scores).argmax(1)  # an item that may hold nearly all of Z
    ps = propensity_of(rng.integers(0, 500, size=40)).astype(dtype)
    return scores, columns, ps, beta


FORMS = pytest.mark.parametrize("form", [catalogue_terms, plain_terms])


@FORMS
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 12.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_dro_terms_match_the_naive_sum(form, dtype, tolerance, scale, beta):
    scores, columns, ps, beta = dro_case(dtype, scale, beta)
    terms = form(torch.tensor(scores), torch.tensor(columns), propensity=torch.tensor(ps), beta=beta).dro
    assert terms.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    np.testing.assert_allclose(terms, naive_dro(scores, columns, ps, beta), rtol=tolerance, atol=tolerance)


@FORMS
@pytest.mark.parametrize("logit", [14.0, 60.0, 300.0])
def test_dro_terms_where_the_target_dominates(form, logit):
    scores = np.zeros((1, 20), np.float32)
    scores[0, 3] = logit
    ps = np.full(20, 0.7, np.float32)
    columns = np.array([[3, 4]])
    leaf = torch.tensor(scores, requires_grad=True)
    terms = form(leaf, torch.tensor(columns), propensity=torch.tensor(ps)).dro
    expected = naive_dro(scores, columns, ps, 1.0)
    np.testing.assert_allclose(terms.detach(), expected, rtol=1e-6)
    terms.sum().backward()
    assert leaf.grad.isfinite().all()
    # By hand: without item 3 the rest are 19 e^0, beside e^{(logit-1)^2 0.7}.
    assert expected[0, 0] == pytest.approx(np.logaddexp(np.log(19.0), (logit - 1) ** 2 * np.float32(0.7)))


@pytest.mark.parametrize("scale", [0.5, 6.0])
def test_dro_gradient_matches_finite_differences(scale):
    scores, columns, ps, beta = dro_case(np.float64, scale)
    leaf = torch.tensor(scores, requires_grad=True)
    c, p = torch.tensor(columns), torch.tensor(ps)
    f = lambda s: plain_terms(s, c, propensity=p, beta=beta).dro  # noqa: E731
    assert torch.autograd.gradcheck(f, (leaf,), eps=1e-6, atol=1e-5)
    gradients = [
        weighted_gradient(form, leaf.detach(), c, p, False) for form in (catalogue_terms, plain_terms)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@FORMS
@pytest.mark.parametrize("scale", [0.5, 12.0])
def test_dro_gradient_in_float32_is_that_of_float64(form, scale):
    scores, columns, ps, beta = dro_case(np.float64, scale)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = torch.tensor(scores, dtype=dtype, requires_grad=True)
        weights = torch.arange(1.0, 6.0, dtype=dtype)
        p = torch.tensor(ps, dtype=dtype)
        (form(leaf, torch.tensor(columns), propensity=p, beta=beta).dro * weights).sum().backward()
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max())
    )


def test_a_second_backward_is_refused_not_wrong() -> None:
    scores, columns, _ = random_case(3, 9, 4, seed=3)
    terms = catalogue_terms(scores.requires_grad_(), columns, log_z=True)
    terms.log_z.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        terms.log_z.sum().backward()
