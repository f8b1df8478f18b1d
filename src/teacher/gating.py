"""iLoRA's core: routers that turn h_seq into expert weights, and the gate inside peft's LoRA layers.

One LoRA of total rank r is cut into K experts of rank rho = r / K; expert k owns rows
k*rho..(k+1)*rho-1 of A and the same columns of B. With u = A x (peft's `lora_A` output) and weights g

    y = W0 x + (alpha / r) * B ( K * repeat_interleave(g, rho) * u )

which equals the official s * sum_k g_k B_k u_k with s = alpha / rho, at the cost of plain LoRA; a
uniform gate 1/K multiplies by one and is plain LoRA. (arXiv 2408.10159, section 3; reference/ilora.md)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.core.errors import UserError
from src.teacher.config_parts import GateConfig


class GateControl:
    """Holds the gate of the current batch for the hooks on a model's LoRA layers.

    A forward pass outside `use` or `uniform` raises: a gate that was forgotten would silently act as
    plain LoRA.

    Attributes:
        compiled: the hooks run inside compiled blocks (`compile_blocks`).
    """

    def __init__(self, experts: int):
        self.experts, self.rank, self.compiled = experts, 0, False
        self._factor: Tensor | None = None  # [B, r]
        self._uniform = False

    def attach(self, model: nn.Module, adapter: str = "default") -> list[str]:
        """Hook every LoRA layer of `model`, whose rank the experts divide; returns the names of the adapted layers."""
        names = []
        for name, module in model.named_modules():
            lora_a = getattr(module, "lora_A", None)
            if isinstance(lora_a, nn.ModuleDict) and adapter in lora_a:
                self.rank = lora_a[adapter].weight.shape[0]
                lora_a[adapter].register_forward_hook(self._hook)
                names.append(name)
        return names

    @contextmanager
    def use(self, gate: Tensor) -> Iterator[None]:
        """Weigh the experts by `gate` until the block ends.

        With gradient checkpointing the forward pass runs again in backward, so the block must
        contain the backward pass too.

        Args:
            gate: [B, K] weights, row b for row b of the batch; rows sum to 1.
        """
        if gate.dim() != 2 or gate.shape[1] != self.experts:
            raise ValueError(f"gate {tuple(gate.shape)}, expected [B, {self.experts}]")
        factor = gate.repeat_interleave(self.rank // self.experts, dim=1) * self.experts
        if self.compiled:
            factor = factor.clone()  # no view: its base's sizes would be guarded, too
            # After a batch of B = r rows the compiled code would assume B = r, and recompile for other batches.
            torch._dynamo.mark_static(factor, 1)
        with self._set(factor, uniform=False):
            yield

    @contextmanager
    def uniform(self) -> Iterator[None]:
        """Plain LoRA for the block, whatever the batch (the item texts have no user)."""
        with self._set(None, uniform=True):
            yield

    @contextmanager
    def _set(self, factor: Tensor | None, uniform: bool) -> Iterator[None]:
        before = self._factor, self._uniform
        self._factor, self._uniform = factor, uniform
        try:
            yield
        finally:
            self._factor, self._uniform = before

    def _hook(self, _module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
        if self._uniform:
            return None
        if self._factor is None:
            raise RuntimeError("forward pass outside a gate: wrap it in GateControl.use or .uniform")
        factor = self._factor.to(output.dtype)
        rows, batch = output.shape[0], factor.shape[0]
        if output.dim() == 2 and rows != batch and rows % batch == 0:
            # OPT flattens [B, T, H] to [B*T, H] before its MLP.
            return (output.view(batch, -1, output.shape[-1]) * factor[:, None]).view_as(output)
        if rows != batch:
            raise RuntimeError(f"the gate has {batch} rows, the batch {rows}")
        return output * factor.view(batch, *(1,) * (output.dim() - 2), -1)


def refuse_merge(model: nn.Module) -> None:
    """Make every way to merge the adapter into the base weights of the peft `model` raise."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise UserError(
            "a merge of the gated adapter into the base weights",
            "the adapter kept beside them: a merged weight would have one gate for all users",
            "nothing: load the adapter folder with peft as it is (it then acts as the uniform gate)",
        )

    model.merge_and_unload = model.merge_adapter = refuse
    for module in model.modules():
        if hasattr(module, "merge"):
            module.merge = refuse
        if hasattr(module, "merge_and_unload"):
            module.merge_and_unload = module.merge_adapter = refuse


def build_router(config: GateConfig, width: int, experts: int) -> nn.Module:
    """The router: h_seq [B, width] -> expert weights [B, K], rows sum to 1."""
    if config.kind == "uniform" or experts == 1:
        return UniformRouter(experts)
    logits: nn.Module
    if config.kind == "linear":
        logits = nn.Linear(width, experts)
    elif config.kind == "mlp":
        logits = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, experts))
    else:
        logits = ResNet1d(experts)
    return SoftmaxRouter(logits, config.temperature)


class UniformRouter(nn.Module):
    """Plain LoRA as an ablation: 1/K for everyone."""

    def __init__(self, experts: int):
        super().__init__()
        self.experts = experts

    def forward(self, h_seq: Tensor) -> Tensor:
        return h_seq.new_full((len(h_seq), self.experts), 1.0 / self.experts)


class SoftmaxRouter(nn.Module):
    """softmax(logits(h_seq) / temperature): dense, no noise, no balance loss."""

    def __init__(self, logits: nn.Module, temperature: float):
        super().__init__()
        self.logits, self.temperature = logits, temperature

    def forward(self, h_seq: Tensor) -> Tensor:
        return torch.softmax(self.logits(h_seq).float() / self.temperature, dim=-1)


class ResNet1d(nn.Module):
    """The official code's router: h_seq as a 1-channel signal, three stages of three residual blocks.

    BatchNorm makes a user's gate depend on the others of its batch in training; `linear` and `mlp`
    do not. 90,772 parameters for K = 4.
    """

    def __init__(self, experts: int, channels: tuple[int, int, int] = (16, 32, 64), blocks: int = 3):
        super().__init__()
        self.conv = nn.Conv1d(1, channels[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(channels[0])
        stages, width = [], channels[0]
        for stage, out in enumerate(channels):
            for block in range(blocks):
                stages.append(_ResidualBlock(width, out, stride=2 if stage > 0 and block == 0 else 1))
                width = out
        self.blocks = nn.Sequential(*stages)
        self.out = nn.Linear(width, experts)

    def forward(self, h_seq: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(h_seq[:, None, :])))
        return self.out(self.blocks(x).mean(dim=-1))


class _ResidualBlock(nn.Module):
    """relu(BN(conv3)) -> BN(conv3) -> + shortcut -> relu; a strided shortcut has no parameters."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(out)
        self.conv2 = nn.Conv1d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(out)
        self.stride, self.pad = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1 or self.pad:
            # Every second position; the new channels are zeros, half on each side.
            x = F.pad(x[:, :, :: self.stride], (0, 0, self.pad // 2, self.pad - self.pad // 2))
        return F.relu(x + y)
