"""The language model behind the teacher: its parts, LoRA inside its blocks, and what a family needs.

Any `AutoModelForCausalLM` works: the target modules are the linears of its blocks, whatever their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from src.core.errors import UserError
from src.core.logging import get_logger
from src.teacher.config_parts import LoraSettings
from src.teacher.gating import GateControl

# Of compiled code: beyond the limit (8 by default) blocks would silently run uncompiled.
_VARIANTS = 32
log = get_logger(__name__)


@dataclass
class LoadedLLM:
    """A frozen language model.

    Attributes:
        model: the model, with its output head unless `bidirectional`.
        tokenizer: its tokenizer.
        bidirectional: attention sees both sides (objective `item` only).
        context: longest input in tokens.
        identity: what names these weights: model type, name and revision on the hub, hash of a local folder.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    bidirectional: bool
    context: int
    identity: dict[str, Any]

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]


def backbone(model: nn.Module) -> nn.Module:
    """The transformer without its output head."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, base.base_model_prefix, base)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the stack that holds most of the parameters."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise UserError("no stack of transformer blocks in the LLM", "a transformer", "teacher.llm")
    return max(stacks, key=lambda s: sum(p.numel() for p in s.parameters()))


def find_targets(model: nn.Module) -> list[str]:
    """Names, relative to their block, of all linears (and GPT-2's Conv1D) inside the transformer blocks."""
    names: set[str] = set()
    for block in find_blocks(model):
        names |= {n for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return sorted(names)


def add_lora(model: nn.Module, lora: LoraSettings) -> PeftModel:
    """Wrap the frozen model with plain LoRA layers; the seed of A is PyTorch's global generator.

    Raises:
        UserError: a configured target does not exist, or peft has no LoRA for this family.
    """
    found = find_targets(model)
    targets = list(lora.targets) if lora.targets else found
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in found):
            expected = f"some of {', '.join(found)}"
            raise UserError(f"the LLM has no linear {target!r}", expected, "teacher.lora.targets")
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as e:  # some linears of recurrent blocks
        message = f"no LoRA for this LLM: {e}"
        raise UserError(message, "linears that peft adapts", "teacher.lora.targets") from e


def token_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Vocabulary logits of final hidden states [M, H] -> [M, V], in float32.

    `diagnostics.check_reading` finds the models whose head does something else.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    logits = base.get_output_embeddings()(hidden).float()
    if divisor := getattr(base.config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if factor := getattr(base.config, "logit_scale", None):  # Cohere
        logits = logits * factor
    cap = getattr(base.config, "final_logit_softcapping", None)  # Gemma 2
    return torch.tanh(logits / cap) * cap if cap else logits


def compile_blocks(llm: nn.Module, gates: GateControl, backend: str = "inductor") -> None:
    """`teacher.llm.compile`: the blocks of an adapted LLM, on its device, through torch.compile, each in place.

    Names of weights, peft's folders and hooks do not change. All blocks share one compiled code, for batches of any
    size and length; a batch of one row, evaluation, and passes with the uniform gate compile variants of their own.

    Args:
        llm: with its LoRA layers, hooked by `gates`.
        backend: of torch.compile; `inductor` makes kernels, the others serve tests.

    Raises:
        UserError: no compiler for this device.
    """
    if backend == "inductor":
        require_compiler(next(llm.parameters()).device)
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _VARIANTS)
    # A hook on a Linear reads the gate: by default its batch size would be a constant of the code.
    settings.force_nn_module_property_static_shapes = False
    gates.compiled = True
    blocks = find_blocks(llm)
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    log.info("teacher.llm.compile=true: %d blocks, compiled with the first batches (minutes)", len(blocks))


def require_compiler(device: torch.device) -> None:
    """Compile a small function for `device`; raises UserError where that fails."""
    try:
        torch.compile(lambda x: x.sin() + 1.0, dynamic=False)(torch.zeros(8, device=device))
    except Exception as e:  # whatever compiler, headers or driver say
        why = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise UserError(
            f"teacher.llm.compile=true, but torch.compile fails on {device.type}: {type(e).__name__}: {why[:200]}",
            "a C++ compiler (g++; CXX names another) and, on a GPU, triton",
            "teacher.llm.compile to false",
        ) from e
