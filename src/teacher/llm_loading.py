"""Loading the language model behind the teacher: complete, frozen, without its own dropout; or refusing it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGUFReader
from huggingface_hub import constants
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import resolve
from src.teacher.chat import chat_frame
from src.teacher.config import TeacherConfig, members_of
from src.teacher.config_parts import LLMConfig
from src.teacher.llm import LoadedLLM
from src.teacher.llm_checks import (
    check_tokenizer,
    load_error,
    reads_both_sides,
    refuse_incomplete,
    refuse_not_finite,
)
from src.teacher.llm_files import check_files, files_hash

_PATH, _MERGE = "teacher.llm.path", "teacher.llm.merge_adapter"
log = get_logger(__name__)


class _Source(NamedTuple):
    """Where a model comes from: `name` and `arguments` of every `from_pretrained`, and how messages call it."""

    name: str
    label: str
    arguments: dict[str, Any]


def _source(config: LLMConfig, folder: Path | None = None) -> _Source:
    """The source that `config` names, its files checked (`check_files`)."""
    kind, arguments = config.kind, {"trust_remote_code": config.trust_remote_code}
    if kind == "hub":
        label = f"model {config.path} (revision {config.revision or 'default'})"
        revision = {"revision": config.revision} if config.revision else {}
        return _Source(str(config.path), label, arguments | {"local_files_only": False} | revision)
    path = folder if folder is not None else resolve(str(config.path))
    if kind == "gguf" and path.suffix != ".gguf":
        raise UserError(f"{path} does not end in .gguf", "a GGUF file (or teacher/llm=local)", _PATH)
    if kind != "gguf" and path.suffix == ".gguf" and path.is_file():
        raise UserError(f"{path} is a GGUF file", "a folder in Hugging Face layout", "teacher/llm to gguf")
    check_files(path, config.merge_adapter)
    gguf = {"gguf_file": path.name} if kind == "gguf" else {}
    name = path.parent if kind == "gguf" else path
    return _Source(str(name), str(path), arguments | {"local_files_only": True} | gguf)


def check_llm(config: LLMConfig, chat: str) -> None:
    """Whether the named model could be loaded whole, in seconds: files, configuration, tokenizer, chat template, and
    the header of every weight. A model on the hub is only looked at when it must be in the cache (HF_HUB_OFFLINE).

    Args:
        chat: `teacher.prompt.chat`.

    Raises:
        UserError: as `load_llm`, values that are not finite apart.
    """
    if config.kind == "tiny" or (config.kind == "hub" and not constants.is_offline_mode()):
        return
    source = _source(config)
    if config.kind == "gguf":  # its weights would have to be unpacked: that is left to `load_llm`
        try:
            GGUFReader(resolve(str(config.path)))
        except (IndexError, KeyError, ValueError) as e:
            raise load_error(config, source.label, e) from e
        return
    _, tokenizer, _, _ = _open(config, source, weights=False)
    chat_frame(tokenizer, chat)


def check_llms(config: TeacherConfig) -> None:
    """`check_llm` for every language model behind this teacher."""
    for member in members_of(config):
        if (llm := getattr(member, "llm", None)) is not None:
            prompt = getattr(member, "prompt", None)
            check_llm(llm, "never" if prompt is None else prompt.chat)


def load_llm(config: LLMConfig, folder: Path | None = None) -> LoadedLLM:
    """Load the model that `config` names, whole and frozen.

    Args:
        config: settings; kind `tiny` needs `folder`.
        folder: where the embedded model was written (src/teacher/tiny_llm.py).

    Raises:
        UserError: the model is missing, gated, damaged, of a kind that cannot serve, or needs code that was not
            allowed; a weight is missing, left over, of another shape or not finite; the tokenizer does not fit.
    """
    source = _source(config, folder)
    if config.trust_remote_code:
        log.warning("teacher.llm.trust_remote_code=true: Python code that comes with %s is run", source.label)
    model, tokenizer, hf_config, bidirectional = _open(config, source, weights=True)
    if config.merge_adapter:
        model = _merged(model, Path(source.name))
    refuse_not_finite(model, source.label)
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False
    context = getattr(hf_config, "max_position_embeddings", None) or 2048
    local = None if config.kind == "hub" else folder or resolve(str(config.path))
    identity = {
        "model_type": hf_config.model_type,
        "path": config.path if config.kind == "hub" else None,
        "revision": getattr(hf_config, "_commit_hash", None) or config.revision,
        "weights": None if local is None else files_hash(local, remember=True),
    }
    return LoadedLLM(model, tokenizer, bidirectional, int(context), identity)


def _open(
    config: LLMConfig, source: _Source, weights: bool
) -> tuple[nn.Module, PreTrainedTokenizerBase, Any, bool]:
    """Model, tokenizer, configuration, and whether attention sees both sides; checked to be whole.

    Args:
        weights: False reads the headers alone, onto the meta device.
    """
    _libraries_to_the_log()
    settings: dict[str, Any] = {
        "dtype": getattr(torch, config.dtype),
        "attn_implementation": config.attention,
    }
    if config.kind == "local":
        settings["use_safetensors"] = True
    settings |= _quantization(config) if weights else {"device_map": "meta"}
    try:
        hf_config = AutoConfig.from_pretrained(source.name, **source.arguments)
        bidirectional = reads_both_sides(hf_config, source.label, config.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.arguments)
        _no_base_dropout(hf_config)
        auto = AutoModel if bidirectional else AutoModelForCausalLM
        with _without_adapter(source.name) if config.merge_adapter else nullcontext(source.name) as name:
            model, report = auto.from_pretrained(
                name,
                config=hf_config,
                ignore_mismatched_sizes=True,  # they are in the report, and refused with their names
                output_loading_info=True,
                **settings,
                **source.arguments,
            )
    except UserError:
        raise
    except Exception as e:  # whatever the libraries raise for a damaged or foreign folder
        raise load_error(config, source.label, e) from e
    refuse_incomplete(report, source.label, bidirectional)
    check_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0], source.label)
    return model, tokenizer, hf_config, bidirectional


def _libraries_to_the_log() -> None:
    """Warnings of transformers go the way of all log records, to `run.log`; its bars are switched off."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()


def _quantization(config: LLMConfig) -> dict[str, Any]:
    if config.kind == "gguf":  # LoRA needs plain linears
        return {"quantization_config": GgufConfig(dequantize=True)}
    if config.quantization == "none":
        return {}
    if not torch.cuda.is_available():
        raise UserError("teacher.llm.quantization=4bit without a GPU", "none", "teacher.llm.quantization")
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        )
    }


def _no_base_dropout(hf_config: Any) -> None:
    """A frozen model's own dropout would only blur the read-out; the families name it differently."""
    for name, value in list(vars(hf_config).items()):
        if name.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(value, float):
            setattr(hf_config, name, 0.0)
    if getattr(hf_config, "layerdrop", 0.0):
        hf_config.layerdrop = 0.0


@contextmanager
def _without_adapter(folder: str) -> Iterator[str]:
    """A folder of links to all files but the adapter's: transformers would load that by itself, unmerged."""
    with tempfile.TemporaryDirectory() as links:
        for file in Path(folder).iterdir():
            if not file.name.startswith("adapter_"):
                (Path(links) / file.name).symlink_to(file.resolve())
        yield links


def _merged(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the adapter in `folder` added to its weights (`teacher.llm.merge_adapter`).

    Raises:
        UserError: an adapter that does not fit the model, or whose tensors are not all there.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing", "the adapter's weights", _MERGE)
    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
        tensors, expected = load_file(file), get_peft_model_state_dict(adapted)
        for name in sorted(tensors.keys() ^ expected.keys()):
            found = f"{file} {'lacks' if name in expected else 'has an unknown'} {name}"
            raise UserError(found, "the adapter of these weights", _MERGE)
        set_peft_model_state_dict(adapted, tensors)
        merged = adapted.merge_and_unload()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(
            f"{folder}: the adapter cannot be merged: {' '.join(str(e).split())[:300]}",
            "an adapter that peft can add to these weights",
            _MERGE,
        ) from e
    log.info("merged the adapter in %s into the weights", folder)
    return merged
