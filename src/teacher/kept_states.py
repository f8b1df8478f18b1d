"""Title states on disk: what a frozen language model says of the titles is computed once and kept with its origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.core.artifacts import artifact_folder, fingerprint, is_complete, load_manifest, lock, write_manifest
from src.core.data_utils import InteractionData
from src.core.logging import get_logger
from src.core.paths import model_dir
from src.core.run import Stopwatch

FORMAT_VERSION = 1
log = get_logger(__name__)


@dataclass(frozen=True)
class KeptStates:
    """Title states [N, H] float32 as they are kept.

    Attributes:
        model: identity of the LLM that gave them.
        seconds: what they took, in the run that computed them.
        reused: whether that was an earlier run.
    """

    table: np.ndarray
    model: Mapping[str, Any]
    seconds: float
    reused: bool


def kept_states(
    data: InteractionData,
    llm: str,
    settings: Mapping[str, Any],
    compute: Callable[[], tuple[np.ndarray, Mapping[str, Any]]],
) -> KeptStates:
    """The states of the titles of `data`, computed where no earlier run did.

    Args:
        llm: what names the LLM's files.
        settings: what else determines the states.
        compute: gives states [N, H] float32 and the identity of the LLM.

    Raises:
        UserError: the folder holds states of another LLM than its name says, or was changed.
    """
    from safetensors.numpy import load_file, save_file

    expected = {"dataset_fingerprint": data.fingerprint, "llm": llm, "settings": dict(settings)}
    folder = model_dir(data.name, "title_states", fingerprint({"version": FORMAT_VERSION, **expected}))
    with lock(folder, log.info):
        reused = is_complete(folder)
        if not reused:
            watch = Stopwatch()
            table, model = compute()
            with artifact_folder(folder) as tmp:
                save_file({"title_states": table}, tmp / "title_states.safetensors")
                seconds = round(watch.seconds(), 3)
                write_manifest(tmp, {**expected, "model": dict(model), "seconds": seconds})
    manifest = load_manifest(folder, expected, f"delete {folder} to compute them again")
    table = load_file(folder / "title_states.safetensors")["title_states"]
    return KeptStates(table, manifest["model"], float(manifest["seconds"]), reused)
