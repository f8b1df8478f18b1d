"""`teacher.llm.merge_adapter`: a LoRA adapter that lies beside a model's weights, added to them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from src.core.errors import UserError
from src.core.logging import get_logger

_KEY = "teacher.llm.merge_adapter"
log = get_logger(__name__)


@contextmanager
def without_adapter(folder: str) -> Iterator[str]:
    """A folder of links to all files but the adapter's: transformers would load that by itself, unmerged."""
    with tempfile.TemporaryDirectory() as links:
        for file in Path(folder).iterdir():
            if not file.name.startswith("adapter_"):
                (Path(links) / file.name).symlink_to(file.resolve())
        yield links


def merged(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the adapter in `folder` added to its weights (`teacher.llm.merge_adapter`).

    Raises:
        UserError: an adapter that does not fit the model, or whose tensors are not all there.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing", "the adapter's weights", _KEY)
    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
        tensors, expected = load_file(file), get_peft_model_state_dict(adapted)
        for name in sorted(tensors.keys() ^ expected.keys()):
            found = f"{file} {'lacks' if name in expected else 'has an unknown'} {name}"
            raise UserError(found, "the adapter of these weights", _KEY)
        set_peft_model_state_dict(adapted, tensors)
        merged = adapted.merge_and_unload()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(
            f"{folder}: the adapter cannot be merged: {' '.join(str(e).split())[:300]}",
            "an adapter that peft can add to these weights",
            _KEY,
        ) from e
    log.info("merged the adapter in %s into the weights", folder)
    return merged
