"""Sample weights of the distillation, learned on held-out samples while the student trains (`distill.weights`).

Both methods ask the same question of every sample i of a batch: does a gradient step on its distillation loss l_i
lower the recommendation loss M of a batch of held-out samples? To first order the step of size a changes M by
-a <grad l_i, grad M>, so the influence g_i = <grad l_i, grad M> is all that is needed:

- `reweight` (Ren et al. 2018, Algorithm 1 and equation 12): w_i = max(0, g_i), normalised to mean 1 in the batch.
- `weight_net` (Shu et al. 2019, equations 3-7): w_i = 2 sigmoid(MLP(features_i)), the MLP trained by a gradient step on
  -mean(g_i w_i), which is the derivative of M through the look-ahead step.

g_i is the derivative of l_i in the direction of grad M: two evaluations of the losses without autograd give it for
the whole batch at once, whatever operations the losses are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

N_FEATURES = 4  # teacher confidence, student loss, consistency, popularity


@torch.no_grad()
def directional_derivatives(
    losses: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    step: float = 1e-2,
) -> Tensor:
    """[B] derivatives of `losses()` at `parameters` along `direction`, by central differences.

    Args:
        losses: computes [B] from `parameters`, the same at every call (no dropout).
        direction: one tensor per parameter; any length.
        step: length of the step in parameter space; the error is O(step^2).
    """
    length = torch.sqrt(
        sum((d.square().sum() for d in direction), torch.zeros((), device=direction[0].device))
    )
    if length == 0:
        return torch.zeros_like(losses())
    saved = [p.clone() for p in parameters]
    ends = []
    for sign in (1.0, -1.0):
        for p, before, d in zip(parameters, saved, direction, strict=True):
            p.copy_(before + d * (sign * step / length))
        ends.append(losses())
    for p, before in zip(parameters, saved, strict=True):
        p.copy_(before)
    return (ends[0] - ends[1]) * (length / (2 * step))


def reweighted(influences: Tensor) -> Tensor:
    """[B] weights >= 0 of mean 1; all 0 where no sample helps (Ren et al. 2018, equations 7-9)."""
    positive = influences.clamp(min=0)
    return positive / positive.mean().clamp(min=1e-12)


class WeightNet(nn.Module):
    """A small MLP from features [B, 4] to weights [B] in (0, 2), 1 before it has learned anything.

    Its weights are buffers: the student's optimizer and moving average leave them alone, checkpoints hold them.
    """

    def __init__(self, hidden: int, lr: float, generator: torch.Generator):
        super().__init__()
        self.lr = lr
        shapes = {"w1": (hidden, N_FEATURES), "b1": (hidden,), "w2": (hidden,), "b2": ()}
        for name, shape in shapes.items():
            start = torch.zeros(shape)
            if name == "w1":
                start = torch.empty(shape).normal_(std=N_FEATURES**-0.5, generator=generator)
            self.register_buffer(name, start)

    def tensors(self) -> list[Tensor]:
        return [self.w1, self.b1, self.w2, self.b2]

    @staticmethod
    def apply_net(features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return 2 * torch.sigmoid(torch.tanh(features @ w1.T + b1) @ w2 + b2)

    def forward(self, features: Tensor) -> Tensor:
        return self.apply_net(features, *self.tensors())

    def learn(self, features: Tensor, influences: Tensor) -> None:
        """One step of gradient descent on -mean(g_i w_i), g scaled to unit root mean square: its unit is that of
        two gradients and changes over a training."""
        scale = influences.square().mean().sqrt().clamp(min=1e-12)
        leaves = [t.detach().requires_grad_(True) for t in self.tensors()]
        with torch.enable_grad():
            loss = -(influences / scale * self.apply_net(features, *leaves)).mean()
            grads = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            for tensor, grad in zip(self.tensors(), grads, strict=True):
                tensor.sub_(self.lr * grad)


def standardised(features: Tensor) -> Tensor:
    """Each column [B] centred and scaled to unit deviation within the batch; constant columns become 0."""
    centred = features - features.mean(dim=0)
    return centred / centred.square().mean(dim=0).sqrt().clamp(min=1e-6)


def cycle(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions [size] of 0..n-1, shuffled, without end."""
    while True:
        yield from torch.randperm(n, generator=generator).split(size)
