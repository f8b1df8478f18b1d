"""Randomness: one seed from the configuration, a named stream for each use.

A stream is derived from the seed and the name of its use, so that a new consumer of random numbers
never shifts the others. On CPU equal seeds give equal results bit for bit. On a GPU some kernels
add in varying order (atomics in scatter and attention backward): `seed_everything` asks PyTorch for
deterministic kernels where they exist, says so in the log, and PyTorch warns of every other kernel by its
name when it is used (`run.log` has these warnings).
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import numpy as np

from src.core.logging import get_logger

log = get_logger(__name__)


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` (the same on every machine and Python version)."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: str | int) -> Any:
    """A CPU `torch.Generator` for the stream `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def seed_everything(seed: int, *names: str | int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (weights' initialisation, dropout)."""
    import torch

    if torch.cuda.is_available() and not torch.are_deterministic_algorithms_enabled():
        _ask_for_deterministic_kernels()
    value = derive(seed, *names)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def _ask_for_deterministic_kernels() -> None:
    """Turn on deterministic GPU kernels; one that has no deterministic form still runs, with a warning."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # costs time, and nothing here reads such memory
    )
    log.info(
        "GPU: deterministic kernels where PyTorch has them; a kernel without one is named in run.log when it is "
        "used, and then equal seeds may differ in the last digits"
    )


def global_state() -> dict[str, Any]:
    """The state of PyTorch's global generators, for checkpoints (the others are not used in training)."""
    import torch

    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_global_state(state: dict[str, Any]) -> None:
    import torch

    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
