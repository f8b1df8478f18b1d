"""`teacher.llm.compile`: the LLM's blocks through torch.compile, each in place.

Names of weights, peft's folders and hooks do not change. All blocks share one compiled code, for batches of any size
and length; a batch of one row, evaluation, and passes with the uniform gate compile variants of their own.
"""

from __future__ import annotations

import torch
from torch import nn

from src.core.errors import UserError
from src.core.logging import get_logger
from src.teacher.gating import GateControl
from src.teacher.llm import find_blocks

# More than a teacher needs: beyond the limit (8 by default) blocks would silently run uncompiled.
_VARIANTS = 32
log = get_logger(__name__)


def compile_blocks(llm: nn.Module, gates: GateControl, backend: str = "inductor") -> None:
    """Compile the blocks of an adapted LLM that is on its device.

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
