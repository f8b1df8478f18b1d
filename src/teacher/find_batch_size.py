"""Running out of GPU memory: retry with half the samples per pass, at most three times.

Home-made: accelerate's `find_executable_batch_size` collects garbage and empties the GPU's cache before every call, and
a training step is a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from src.core.errors import UserError
from src.core.logging import get_logger

T = TypeVar("T")
MOST = 3
log = get_logger(__name__)


class BatchSizeFinder:
    """Samples per forward pass; the number is halved when memory runs out, for the rest of the run.

    Results must not depend on it: gradients are sums over the effective batch, rankings are per sample.

    Args:
        size: samples per pass.
        key: the setting it comes from.
        most: halvings allowed; 0 where several processes share the passes: one alone must not halve.
    """

    def __init__(self, size: int, key: str, most: int = MOST):
        self.size, self.key, self.left = size, key, most

    def run(self, compute: Callable[[int], T], forget: Callable[[], None] = lambda: None) -> T:
        """`compute(size)`, again with half the size when it runs out of memory.

        Args:
            forget: undoes what a failed try left behind (gradients).

        Raises:
            UserError: memory is short after the last halving.
        """
        while True:
            try:
                return compute(self.size)
            except torch.OutOfMemoryError as e:
                problem = " ".join(str(e).split())[:200]
            # Not in the handler: its traceback keeps the tensors of the failed try alive.
            forget()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.left == 0 or self.size == 1:
                raise UserError(
                    f"out of GPU memory with {self.size} samples per pass: {problem}",
                    "a pass that fits",
                    f"{self.key}, teacher.llm.gradient_checkpointing, dtype or quantization",
                )
            self.left, self.size = self.left - 1, (self.size + 1) // 2
            log.warning(
                "out of GPU memory: continuing with %d samples per pass (%s; the effective batch is unchanged)",
                self.size,
                self.key,
            )
