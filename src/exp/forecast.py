"""GPU memory of a teacher's training before it starts: rough on purpose, from configurations alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.artifacts import read_object
from src.core.errors import UserError
from src.core.paths import resolve
from src.teacher.config import IloraConfig
from src.teacher.config_llm import LLMConfig

_GIB = 2**30
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_BYTES_4BIT = 0.55  # nf4 with double quantisation
TOKENS_PER_ITEM, _TOKENS_AROUND = 12, 48  # of a title with its placeholder; of the instruction and the cue


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: H width, I width of the MLP, L blocks, V vocabulary, kv width of keys and values."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    kv: int
    context: int

    def parameters(self) -> int:
        block = 2 * self.hidden**2 + 2 * self.hidden * self.kv + 3 * self.hidden * self.intermediate
        return 2 * self.vocabulary * self.hidden + self.layers * block

    def lora_parameters(self, rank: int) -> int:
        """All linears of the blocks: rank x (inputs + outputs) each."""
        ends = 4 * self.hidden + 2 * (self.hidden + self.kv) + 3 * (self.hidden + self.intermediate)
        return rank * self.layers * ends


def llm_shape(config: LLMConfig) -> Shape | None:
    """The sizes of the LLM; None where its configuration is not on this machine.

    Raises:
        UserError: a local folder without a readable config.json.
    """
    if (tiny := config.tiny) is not None:
        h = tiny.hidden_size
        return Shape(h, tiny.intermediate_size, tiny.layers, tiny.vocab_size, h, tiny.context)
    if config.kind == "local":
        folder = resolve(str(config.path))
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder} holds no config.json", "a folder in Hugging Face layout", "teacher.llm.path"
            )
        return _shape(read_object(folder / "config.json"))
    if config.kind == "gguf":
        from transformers import AutoConfig

        file = resolve(str(config.path))
        return _shape(AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict())
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(config.path), "config.json", revision=config.revision)
    return _shape(read_object(Path(found))) if isinstance(found, str) else None


def _shape(fields: dict[str, Any]) -> Shape | None:
    def first(*names: str) -> int | None:
        return next((int(fields[n]) for n in names if isinstance(fields.get(n), int)), None)

    hidden, layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer")
    if hidden is None or layers is None:
        return None
    heads = first("num_attention_heads", "n_head") or 1
    kv = hidden * (first("num_key_value_heads") or heads) // heads
    intermediate = first("intermediate_size", "n_inner") or 4 * hidden
    context = first("max_position_embeddings", "n_positions") or 2048
    return Shape(hidden, intermediate, layers, first("vocab_size") or 32000, kv, context)


def prompt_tokens(shape: Shape, max_history: int) -> int:
    return min(shape.context, _TOKENS_AROUND + TOKENS_PER_ITEM * max_history)


def memory(config: IloraConfig, shape: Shape, max_history: int) -> dict[str, float]:
    """Bytes by use: frozen weights, trained parts with Adam, activations of one micro-batch.

    Activations by Korthikanti et al. (2022), 34 B x T x H per block in half precision without the attention
    matrix, which fused attention does not keep; with checkpointing 2 B x T x H per block and one block whole.
    """
    size = BYTES[config.llm.dtype]
    weights = shape.parameters() * (_BYTES_4BIT if config.llm.quantization == "4bit" else size)
    trained = shape.lora_parameters(config.lora.rank) * 16.0  # weight, gradient, two moments in float32
    tokens = prompt_tokens(shape, max_history)
    unit = config.train.micro_batch_size * tokens * shape.hidden * size / 2
    per_block = 34.0 * unit
    blocks = (
        shape.layers * (2.0 * unit) + per_block
        if config.llm.gradient_checkpointing
        else per_block * shape.layers
    )
    answer = config.train.micro_batch_size * 16 * shape.vocabulary * 8.0 if config.objective.lm > 0 else 0.0
    return {"weights": weights, "trained": trained, "activations": blocks + answer}


def memory_lines(config: IloraConfig, max_history: int) -> list[str]:
    """The forecast as one line of the plan, beside what the GPU has (or `no GPU`)."""
    shape = llm_shape(config.llm)
    if shape is None:
        named = _by_name(config.llm)
        return [
            f"memory of {config.llm.path}: {named}more is not known before its configuration is on this machine; {_gpu()}"
        ]
    parts = memory(config, shape, max_history)
    shown = ", ".join(f"{name} {value / _GIB:.2f}" for name, value in parts.items())
    line = f"LLM of {shape.parameters() / 1e6:.1f} M parameters, about {sum(parts.values()) / _GIB:.2f} GiB ({shown})"
    return [f"{line}; {_gpu()}; where it does not fit, the micro-batch is halved up to three times"]


def _by_name(config: LLMConfig) -> str:
    """The weights' bytes where the model's name tells its size ("Llama-2-7b-hf")."""
    found = re.search(
        r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z])", str(config.path).rpartition("/")[2].lower()
    )
    if found is None:
        return ""
    count = float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]
    size = _BYTES_4BIT if config.quantization == "4bit" else BYTES[config.dtype]
    return f"by its name about {count * size / _GIB:.1f} GiB of weights; "


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
