"""Learning rate and curriculum as functions of the optimizer step."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, peak: float, floor: float, warmup_share: float) -> float:
    """Linear from `floor * peak` to `peak` over the first w steps, then cosine to the floor.

    w = floor(total * warmup_share); iLoRA: share 0.05, floor 0.01 (reference/ilora.md).

    Args:
        step: optimizer steps done, 0..total - 1.
        total: optimizer steps of the whole training.
    """
    low, warmup = floor * peak, int(total * warmup_share)
    if step < warmup:
        return low + (peak - low) * step / warmup
    return low + 0.5 * (peak - low) * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def hybrid_probability(step: int, total: int, curriculum: str) -> float:
    """Probability that a step's prompts carry projected item vectors: 1, or rising from 0 to 1."""
    return 1.0 if curriculum == "none" else step / max(1, total)
