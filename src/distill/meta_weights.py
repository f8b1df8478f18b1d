"""Sample weights of the distillation, learned on held-out samples while the student trains (`active.meta`).

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

import numpy as np
import torch
from torch import Tensor, nn

from src.core.data_utils import InteractionData
from src.core.seed import derive
from src.core.selection import Selection
from src.distill.config import ActiveConfig
from src.student.datamodule import SampleBatch, Samples

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


class LearnedWeights:
    """Sets the distillation weights of every batch from held-out samples (`active.meta`).

    Args:
        config: `active`.
        data: the dataset.
        held_out: [m] sample ids of the held-out rows; no other part of the training may use them.
        seed: of the order of the held-out samples and of the net's start.
        device: of the training.
    """

    def __init__(
        self,
        config: ActiveConfig,
        data: InteractionData,
        held_out: np.ndarray,
        seed: int,
        device: torch.device,
    ):
        self.config, self.seed = config, seed
        self.held_out = Samples(data, Selection(held_out), device)
        counts = torch.from_numpy(data.train_counts()).to(device)
        self.popularity = torch.log1p(counts.float())  # [N+1]
        start = torch.Generator().manual_seed(derive(seed, "weight_net") % 2**63)
        self.net = WeightNet(config.meta_hidden, config.meta_lr, start).to(device)

    def start_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(derive(self.seed, "held_out", epoch) % 2**63)
        self._order = self._positions(generator)

    def _positions(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Positions among the held-out samples, shuffled, without end."""
        while True:
            order = torch.randperm(len(self.held_out), generator=generator)
            yield from order.to(self.held_out.device).split(self.config.meta_batch)

    def weights(
        self,
        parameters: Sequence[Tensor],
        held_out_loss: Callable[[SampleBatch], Tensor],
        terms: Callable[[], tuple[Tensor, Tensor, Tensor]],
        batch: SampleBatch,
        confidence: Tensor,
        selected: Tensor,
    ) -> Tensor:
        """[B] weights of the batch's distillation losses; 0 where nothing is distilled.

        Args:
            parameters: what the student's optimizer trains.
            held_out_loss: the mean recommendation loss of held-out samples.
            terms: distillation loss, recommendation loss and consistency of the batch's samples, [B] each, without
                their present weights.
            confidence: [B] the teacher's.
            selected: [B] weights of the selection, which the learned ones multiply.
        """
        with torch.enable_grad():
            loss = held_out_loss(self.held_out.batch(next(self._order)))
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def losses() -> Tensor:
            seen.append(terms())
            return seen[-1][0]

        influences = directional_derivatives(losses, [p for p, _ in pairs], [g for _, g in pairs])
        distilled, recommendation, consistency = seen[0]
        rows = (selected > 0) & (distilled > 0)
        out = torch.zeros_like(influences)
        if not rows.any():
            return out
        if self.config.meta == "reweight":
            out[rows] = reweighted(influences[rows])
        else:
            columns = (confidence, recommendation, consistency, self.popularity[batch.target])
            features = standardised(torch.stack([c.float() for c in columns], dim=1)[rows])
            self.net.learn(features, influences[rows])
            out[rows] = self.net(features)
        return out * selected
