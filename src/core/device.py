"""Description of the device that a stage uses, and a warning for a GPU that PyTorch cannot use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from src.core.logging import get_logger

log = get_logger(__name__)
_DRIVER = Path("/proc/driver/nvidia/version")
_NEEDS = {"12": 525, "13": 580}  # NVIDIA's minimum driver by the major version of CUDA


def describe_device(config: Any) -> str:
    """ "device cpu, float32" for a student's or a teacher's settings; warns of a GPU that goes unused.

    Args:
        config: has `device`, or `train.device` and `llm.dtype`.
    """
    asked = getattr(config, "device", None) or getattr(getattr(config, "train", None), "device", "cpu")
    dtype = getattr(getattr(config, "llm", None), "dtype", "float32")
    import torch

    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu" and (warning := unusable_gpu()):
        log.warning(warning)
    name = (
        f" ({torch.cuda.get_device_name()})"
        if str(asked).startswith("cuda") and torch.cuda.is_available()
        else ""
    )
    return f"device {asked}{name}, {dtype}"


def unusable_gpu(driver_file: Path = _DRIVER) -> str | None:
    """Why PyTorch cannot use the NVIDIA GPU of this machine; None where it can, or there is none."""
    import torch

    if torch.cuda.is_available() or not driver_file.is_file():
        return None
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", driver_file.read_text())
    driver = found[1] if found else "unknown"
    if torch.version.cuda is None:
        return f"GPU not used: torch {torch.__version__} is a CPU build; expected ANYO_TORCH=cuda at env_shell/setup.sh"
    needed = _NEEDS.get(torch.version.cuda.partition(".")[0])
    needs = f", which needs {needed} or newer" if needed else ""
    return f"GPU not used: NVIDIA driver {driver}, torch was built for CUDA {torch.version.cuda}{needs}; update the driver"
