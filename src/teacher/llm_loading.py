"""Loading the language model behind the teacher: the one that was named, whole, frozen, without dropout of its own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import resolve
from src.teacher.chat import chat_frame
from src.teacher.config import TeacherConfig, members_of
from src.teacher.config_llm import LLMConfig
from src.teacher.llm import LoadedLLM
from src.teacher.llm_errors import load_error
from src.teacher.llm_files import check_files, files_hash

# Encoders that transformers would also load as decoders, by an untrained detour.
BIDIRECTIONAL = {
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("eurobert", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta"),
}
# Words that stand for something else in this project's prompts or in the official code's.
PLACEHOLDER_WORDS = (
    *("{history}", "{candidates}", "{title}", "{item}"),
    *("[HistoryEmb]", "[CansEmb]", "[TargetEmb]", "[PH]"),
)
# Buffers that older versions of transformers saved, and heads that a text encoder is not asked for.
_HARMLESS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|embeddings\.position_ids$")
_ENCODER_HEADS = re.compile(
    r"(^|\.)(cls|lm_head|pooler|head|decoder|classifier|vocab_\w+|generator_\w+|discriminator_\w+)\."
)
_PATH = "teacher.llm.path"
log = get_logger(__name__)


@dataclass(frozen=True)
class _Source:
    """Where a model comes from: `name` and `arguments` of every `from_pretrained`, and how messages call it."""

    name: str
    label: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, config: LLMConfig, folder: Path | None = None) -> _Source:
        """The source that `config` names; its files are looked at (`check_files`)."""
        arguments = {"trust_remote_code": config.trust_remote_code, "local_files_only": config.kind != "hub"}
        if config.kind == "hub":
            arguments |= {"revision": config.revision} if config.revision else {}
            label = f"model {config.path} (revision {config.revision or 'default'})"
            return cls(str(config.path), label, arguments)
        path = folder if config.kind == "tiny" else resolve(str(config.path))
        assert path is not None
        if config.kind == "gguf" and path.suffix != ".gguf":
            raise UserError(f"{path} does not end in .gguf", "a GGUF file (or teacher/llm=local)", _PATH)
        if config.kind != "gguf" and path.suffix == ".gguf" and path.is_file():
            raise UserError(
                f"{path} is a GGUF file", "a folder in Hugging Face layout", "teacher/llm to gguf"
            )
        check_files(path, config.merge_adapter)
        if config.kind == "gguf":
            return cls(str(path.parent), str(path), arguments | {"gguf_file": path.name})
        return cls(str(path), str(path), arguments)


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
    source = _Source.of(config)
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
    source = _Source.of(config, folder)
    if config.trust_remote_code:
        log.warning("teacher.llm.trust_remote_code=true: Python code that comes with %s is run", source.label)
    model, tokenizer, hf_config, bidirectional = _open(config, source, weights=True)
    if config.merge_adapter:
        model = _merged(model, Path(source.name))
    _refuse_not_finite(model, source.label)
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
        bidirectional = _reads_both_sides(hf_config, config, source.label)
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
    _check_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0], source.label)
    return model, tokenizer, hf_config, bidirectional


def _libraries_to_the_log() -> None:
    """Warnings of transformers go the way of all log records, to `run.log`; its bars are switched off."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()


def _reads_both_sides(hf_config: Any, config: LLMConfig, label: str) -> bool:
    """Whether this is a text encoder; raises UserError for what is neither that nor a causal language model."""
    kind = hf_config.model_type
    if getattr(hf_config, "is_encoder_decoder", False):
        raise UserError(f"{label} is an encoder-decoder model ({kind})", "a causal language model", _PATH)
    other = [n for n in ("vision_config", "audio_config", "speech_config") if getattr(hf_config, n, None)]
    known = kind in BIDIRECTIONAL or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.trust_remote_code
    if other or not known:
        what = f"a model of more than text ({other[0]})" if other else "no language model known here"
        raise UserError(
            f"{label} is {what}: model_type {kind}", "a causal language model or a text encoder", _PATH
        )
    return kind in BIDIRECTIONAL


def refuse_incomplete(report: Mapping[str, Any], label: str, bidirectional: bool) -> None:
    """Raise UserError naming the first weight that is missing, left over or of another shape.

    Args:
        report: loading info of transformers: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        bidirectional: heads of a text encoder may be missing or left over; nothing reads them.
    """

    def counting(keys: Iterable[str]) -> list[str]:
        heads = _ENCODER_HEADS if bidirectional else _HARMLESS
        return sorted(k for k in keys if not _HARMLESS.search(k) and not heads.search(k))

    missing, extra = counting(report["missing_keys"]), counting(report["unexpected_keys"])
    if missing:
        prefix = next((k.removesuffix(missing[0]) for k in extra if k.endswith("." + missing[0])), "")
        note = f" (its keys begin with {prefix!r})" if prefix else ""
        raise UserError(
            f"{label} lacks {len(missing)} of the model's weights, the first {missing[0]}{note}",
            "every weight that its config.json asks for",
            _PATH,
        )
    if report["mismatched_keys"]:
        key, found, expected = sorted(report["mismatched_keys"])[0]
        raise UserError(f"{label}: {key} is {tuple(found)}", f"{tuple(expected)} by its config.json", _PATH)
    if extra:
        raise UserError(
            f"{label} holds {len(extra)} weights that its config.json has no place for, the first {extra[0]}",
            "the configuration that belongs to the weights",
            _PATH,
        )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, label: str) -> None:
    """Raise UserError where a token has no embedding, or a word of the prompts is a token of its own."""
    # Some classes add such tokens by themselves; no text becomes one of them.
    unread = {tokenizer.pad_token_id, tokenizer.unk_token_id}
    if label.endswith(".gguf"):
        unread |= set(tokenizer.get_added_vocab().values())
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and i not in unread}
    if beyond:
        first = min(beyond)
        raise UserError(
            f"{label}: the tokenizer's token {first} ({beyond[first]!r}) is beyond the {rows} rows of the embedding matrix",
            "the tokenizer that belongs to the weights",
            _PATH,
        )
    if words := sorted(tokenizer.get_added_vocab().keys() & set(PLACEHOLDER_WORDS)):
        raise UserError(
            f"{label}: {words[0]!r}, a placeholder of prompts, is a token of the tokenizer",
            "a tokenizer without such tokens",
            f"{_PATH} (its tokenizer.json, added_tokens)",
        )


def _refuse_not_finite(model: nn.Module, label: str) -> None:
    for name, weight in model.named_parameters():
        # The sum needs no memory; weights whose finite values overflow it are looked at one by one.
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise UserError(f"{label}: {name} holds NaN or infinity", "finite weights", _PATH)


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
        raise UserError(f"{file} is missing", "the adapter's weights", "teacher.llm.merge_adapter")
    try:
        adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
        tensors, expected = load_file(file), get_peft_model_state_dict(adapted)
        for name in sorted(tensors.keys() ^ expected.keys()):
            found = f"{file} {'lacks' if name in expected else 'has an unknown'} {name}"
            raise UserError(found, "the adapter of these weights", "teacher.llm.merge_adapter")
        set_peft_model_state_dict(adapted, tensors)
        merged = adapted.merge_and_unload()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(
            f"{folder}: the adapter cannot be merged: {' '.join(str(e).split())[:300]}",
            "an adapter that peft can add to these weights",
            "teacher.llm.merge_adapter",
        ) from e
    log.info("merged the adapter in %s into the weights", folder)
    return merged


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
