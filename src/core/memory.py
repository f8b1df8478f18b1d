"""Memory: how glibc reuses freed blocks, and what a process has used."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Any

_MIB = 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """Let this process reuse freed blocks of up to 32 MiB, and keep up to 256 MiB of them.

    glibc returns large blocks to the system as soon as they are free, so that every step takes its score matrix
    as new pages, which the system fills with zeros one by one: a quarter of a step with 17,408 items. Blocks of
    more than 32 MiB (glibc's limit) are returned as before. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**28)


def peak_memory(device: Any) -> int:
    """Most bytes so far: of tensors on the GPU, or of the whole process (resident) on the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usage() -> dict[str, Any]:
    """What this process has used so far: peak memory of process and GPU in MiB, and the GPU's name."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {"peak_mib": peak // (_MIB if sys.platform == "darwin" else 1024)}
    torch = sys.modules.get("torch")  # never imported for this
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "peak_gpu_mib": torch.cuda.max_memory_allocated() // _MIB,
        }
    return found
