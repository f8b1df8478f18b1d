"""Learned sample weights against exact derivatives by double backward, and on samples known to be good or bad."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.distill.meta_weights import WeightNet, directional_derivatives, reweighted, standardised


def problem(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """A two-layer softmax regression: parameters, x [12, 5], labels [12], held-out x [9, 5] and labels [9]."""
    g = torch.Generator().manual_seed(0)
    w1, w2 = (torch.randn(s, generator=g, dtype=dtype) * 0.5 for s in ((7, 5), (4, 7)))
    x, held = (torch.randn(n, 5, generator=g, dtype=dtype) for n in (12, 9))
    y, held_y = (torch.randint(4, (n,), generator=g) for n in (12, 9))
    return [w1.requires_grad_(True), w2.requires_grad_(True)], x, y, held, held_y


def losses(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.tanh(x @ parameters[0].T) @ parameters[1].T, y, reduction="none")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 3e-3)])
def test_influences_are_the_derivative_of_the_look_ahead(dtype: torch.dtype, tolerance: float) -> None:
    """Ren et al.'s own route: a step of size a with weights e, then d M / d e at e = 0, by double backward."""
    parameters, x, y, held, held_y = problem(dtype)
    epsilon, a = torch.zeros(12, dtype=dtype, requires_grad=True), 0.1
    grads = torch.autograd.grad((epsilon * losses(parameters, x, y)).sum(), parameters, create_graph=True)
    ahead = [p - a * g for p, g in zip(parameters, grads, strict=True)]
    (exact,) = torch.autograd.grad(losses(ahead, held, held_y).mean(), epsilon)

    direction = torch.autograd.grad(losses(parameters, held, held_y).mean(), parameters)
    before = [p.detach().clone() for p in parameters]
    found = directional_derivatives(lambda: losses(parameters, x, y), parameters, direction)
    torch.testing.assert_close(-a * found, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_no_direction_no_influence() -> None:
    parameters, x, y, _, _ = problem(torch.float32)
    zero = [torch.zeros_like(p) for p in parameters]
    assert directional_derivatives(lambda: losses(parameters, x, y), parameters, zero).tolist() == [0.0] * 12


def test_reweighted_by_hand() -> None:
    assert reweighted(torch.tensor([3.0, -1.0, 1.0, 0.0])).tolist() == [3.0, 0.0, 1.0, 0.0]
    assert reweighted(torch.tensor([-3.0, -1.0])).tolist() == [0.0, 0.0]


def test_weight_net_follows_the_derivative_and_starts_at_one() -> None:
    """Its step against finite differences of -mean(g w), and where it leads: up for the feature that helps."""
    net = WeightNet(8, lr=0.5, generator=torch.Generator().manual_seed(1)).double()
    features = standardised(torch.randn(64, 4, generator=torch.Generator().manual_seed(2)).double())
    assert torch.equal(net(features), torch.ones(64).double())
    net.w2 += 0.3
    helpful = features[:, 1].sign()
    scaled = helpful / helpful.square().mean().sqrt()
    before, step = [t.clone() for t in net.tensors()], 1e-6
    changes = []
    for i, position in ((0, (2, 1)), (1, (3,)), (2, (5,)), (3, ())):
        values = []
        for sign in (1, -1):
            moved = [t.clone() for t in before]
            moved[i][position] += sign * step
            values.append(float(-(scaled * net.apply_net(features, *moved)).mean()))
        changes.append((i, position, (values[0] - values[1]) / (2 * step)))
    net.learn(features, helpful)
    for i, position, slope in changes:
        moved = float((net.tensors()[i][position] - before[i][position]) / -net.lr)
        assert moved == pytest.approx(slope, rel=1e-5, abs=1e-9)
    for _ in range(200):
        net.learn(features, helpful)
    weights = net(features)
    assert weights[helpful > 0].min() > 1.5 and weights[helpful < 0].max() < 0.5


def test_standardised_columns() -> None:
    found = standardised(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert found.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
