"""Diagnostics of the teacher's training: figures for TensorBoard, and faults that end the run with their reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.memory import peak_memory
from src.teacher.ilora_model import IloraModel
from src.teacher.llm import backbone, token_logits
from src.teacher.prompts import PromptBatch

_ROUNDING, _ROUNDING_HALF = 1e-3, 0.03  # of the largest logit


@dataclass
class StepSums:
    """What one optimizer step reports: loss parts, tokens, gate statistics."""

    item: float = 0.0
    lm: float = 0.0
    tokens: int = 0
    entropy: float = 0.0
    load: Tensor | None = None
    samples: int = 0

    def add_gate(self, gate: Tensor) -> None:
        """Count the expert weights [B, K] of further samples."""
        g = gate.detach()
        self.samples += len(g)
        self.entropy += float(-(g * g.clamp_min(1e-12).log()).sum())
        self.load = g.sum(0).cpu() if self.load is None else self.load + g.sum(0).cpu()


def step_scalars(
    sums: StepSums, norms: Mapping[str, float], lr: float, seconds: float, experts: int, device: torch.device
) -> dict[str, float]:
    """TensorBoard's figures of one optimizer step of `seconds`; `norms` are gradient norms by part."""
    scalars = {"loss/item": sums.item, "loss/lm": sums.lm, "tokens_per_s": sums.tokens / seconds, "lr": lr}
    scalars |= {f"gradient/{name}": value for name, value in norms.items()}
    scalars["peak_memory_gib"] = peak_memory(device) / 2**30
    if experts > 1 and sums.load is not None:
        # 1 is uniform, 0 is one expert for everybody.
        scalars["gate/entropy"] = sums.entropy / sums.samples / math.log(experts)
        for k, share in enumerate((sums.load / sums.samples).tolist()):
            scalars[f"gate/load_{k}"] = share
    return scalars


def gradient_norms(parts: Mapping[str, list[nn.Parameter]]) -> dict[str, float]:
    """Norm of the gradient of every trained part; 0 where it has none."""
    norms = {}
    for name, group in parts.items():
        grads = [p.grad.norm() for p in group if p.grad is not None]
        if group:
            norms[name] = float(torch.stack(grads).norm()) if grads else 0.0
    return norms


def check_loss(sums: StepSums, step: int) -> None:
    """Raise UserError when a loss of this step is not finite."""
    if not math.isfinite(sums.item + sums.lm):
        found = f"loss {sums.item + sums.lm} at step {step + 1}"
        raise UserError(found, "a finite loss", "teacher.train.lr or precision")


def check_gradients(parts: Mapping[str, list[nn.Parameter]], step: int) -> None:
    """Raise UserError when a trained part gets no gradient."""
    for name, group in parts.items():
        if group and not any(p.grad is not None and bool(p.grad.any()) for p in group):
            fix = "teacher.objective, teacher.lora.targets or teacher.train.train_projector"
            raise UserError(f"the gradient of {name} is zero at step {step + 1}", "a gradient", fix)


@torch.no_grad()
def check_adapter(model: IloraModel, batch: PromptBatch, h_seq: Tensor, hybrid: bool) -> None:
    """Raise UserError when the adapter changes none of the LLM's states on these prompts (then no logit either).

    Args:
        model: in eval mode.
        batch, h_seq: prompts and [B, E] sequence vectors, on its device.
    """
    with model.gates.use(model.gate(h_seq)):
        adapted = model.states(batch, hybrid)
        with model.llm.disable_adapter():
            base = model.states(batch, hybrid)
    if torch.equal(adapted, base):
        found = "the adapter has no effect: the LLM's states are equal with and without it"
        raise UserError(found, "a trained adapter", "teacher.train (lr, epochs, precision), and train again")


@torch.no_grad()
def check_reading(model: IloraModel) -> None:
    """Raise UserError unless embeddings, transformer and head, called one by one, give the LLM's own logits.

    Some families scale logits or embeddings elsewhere, or read token ids beside the vectors.
    """
    if model.bidirectional:
        return
    training = model.training
    model.eval()
    ids = torch.arange(min(8, model.llm.get_input_embeddings().weight.shape[0]), device=model.device)[None]
    with model.gates.uniform():
        logits = model.llm(input_ids=ids, use_cache=False).logits[0].float()
        vectors = model.llm.get_input_embeddings()(ids)
        states = backbone(model.llm)(inputs_embeds=vectors, use_cache=False).last_hidden_state[0]
    model.train(training)
    apart = token_logits(model.llm, states)
    off, scale = float((logits - apart).abs().max()), float(logits.abs().max())
    full = next(model.llm.parameters()).dtype == torch.float32
    if not off <= (_ROUNDING if full else _ROUNDING_HALF) * scale:
        raise UserError(
            f"the LLM's own logits and those of its parts differ by {off:.3g} (of {scale:.3g})",
            "a causal LM whose head is linear, with at most a known scale or cap",
            "teacher.llm.path (or src/teacher/llm.py: token_logits)",
        )
