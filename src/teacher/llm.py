"""The language model behind the teacher: loading, adapting with LoRA, and what a family needs.

Any `AutoModelForCausalLM` works: the target modules are the linears of its blocks, whatever their
names. The base weights are frozen and its own dropout is off; only LoRA has dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from src.core.artifacts import fingerprint, sha256_file
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import resolve
from src.teacher.config_llm import LLMConfig, LoraSettings

# Encoders that transformers would also load as decoders, by an untrained detour.
BIDIRECTIONAL = {
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "camembert",
    "xlm-roberta",
    "deberta-v2",
    "modernbert",
}
log = get_logger(__name__)


@dataclass
class LoadedLLM:
    """A frozen language model.

    Attributes:
        model: the model, with its output head unless `bidirectional`.
        tokenizer: its tokenizer.
        bidirectional: attention sees both sides (objective `item` only).
        context: longest input in tokens.
        identity: what names these weights: model type, revision, hash of the configuration and weights.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    bidirectional: bool
    context: int
    identity: dict[str, Any]

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]


def load_llm(config: LLMConfig, folder: Path | None = None) -> LoadedLLM:
    """Load the model that `config` names, frozen.

    Args:
        config: settings; kind `tiny` needs `folder`.
        folder: where the embedded model was written (src/teacher/tiny_llm.py).

    Raises:
        UserError: the model is missing, gated, or needs code that was not allowed.
    """
    if config.kind == "hub":
        source, shown = str(config.path), f"model {config.path} (revision {config.revision or 'default'})"
    else:
        path = folder if config.kind == "tiny" else resolve(str(config.path))
        if path is None or not (path / "config.json").is_file():
            raise UserError(
                f"{path} holds no config.json", "a folder in Hugging Face layout", "teacher.llm.path"
            )
        source, shown = str(path), str(path)
    common = {"revision": config.revision} if config.revision else {}
    common |= {"trust_remote_code": config.trust_remote_code, "local_files_only": config.kind != "hub"}
    if config.trust_remote_code:
        log.warning("teacher.llm.trust_remote_code=true: Python code that comes with %s is run", shown)
    try:
        hf_config = AutoConfig.from_pretrained(source, **common)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        _no_base_dropout(hf_config)
        bidirectional = hf_config.model_type in BIDIRECTIONAL
        causal = hf_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.trust_remote_code
        auto = AutoModelForCausalLM if causal and not bidirectional else AutoModel
        model = auto.from_pretrained(
            source,
            config=hf_config,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            **_quantization(config),
            **common,
        )
    except (OSError, ValueError, ImportError) as e:
        raise _refusal(config, shown, e) from e
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False
    context = getattr(hf_config, "max_position_embeddings", None) or 2048
    identity = {
        "model_type": hf_config.model_type,
        "path": config.path if config.kind != "tiny" else "tiny",
        "revision": getattr(hf_config, "_commit_hash", None) or config.revision,
        "weights": None if config.kind == "hub" else _weights_hash(Path(source)),
    }
    return LoadedLLM(model, tokenizer, bidirectional, int(context), identity)


def _refusal(config: LLMConfig, shown: str, error: Exception) -> UserError:
    """Why a model cannot be loaded and what to do; the library's exception carries the hub's own as its cause."""
    causes, cause = [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ValueError) and "attention implementation" in str(error):
        return UserError(
            f"{shown} has no teacher.llm.attention={config.attention}", "eager", "teacher.llm.attention"
        )
    if config.kind != "hub":
        return UserError(
            f"{shown} cannot be loaded: {str(error)[:300]}",
            "a whole model of this transformers version",
            "teacher.llm.path",
        )
    # A gated model is reported as a kind of missing one: ask for it first.
    if any(isinstance(c, GatedRepoError) for c in causes):
        page = f"{constants.ENDPOINT}/{config.path}"
        return UserError(
            f"{shown} is gated",
            f"its licence accepted at {page}, and the account's token in HF_TOKEN or by `hf auth login`",
            "teacher.llm.path to an open model otherwise",
        )
    if any(isinstance(c, RevisionNotFoundError) for c in causes):
        return UserError(f"{shown}: no such revision", "a commit, tag or branch", "teacher.llm.revision")
    if any(isinstance(c, RepositoryNotFoundError) for c in causes):
        return UserError(
            f"{shown} is not on the hub, or private",
            "owner/name as on its page; for a private one a token in HF_TOKEN or by `hf auth login`",
            "teacher.llm.path",
        )
    # ConnectionError, timeouts and offline mode end as a file that is not in the cache.
    if any(isinstance(c, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for c in causes):
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
        return UserError(
            f"{shown} is not in the cache {constants.HF_HUB_CACHE}, and {why}",
            "one download with a connection (gated models: HF_TOKEN), or a copy (teacher/llm=local)",
            "teacher.llm.path",
        )
    return UserError(
        f"{shown} cannot be loaded: {str(error)[:300]}",
        "a model that is there and that you may read",
        "teacher.llm.path or revision, or give a token (HF_TOKEN, `hf auth login`)",
    )


def _quantization(config: LLMConfig) -> dict[str, Any]:
    if config.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

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


def _weights_hash(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".model"))
    return fingerprint({p.name: sha256_file(p) for p in files if p.name != "manifest.json"})


def backbone(model: nn.Module) -> nn.Module:
    """The transformer without its output head."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, base.base_model_prefix, base)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the stack that holds most of the parameters."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise UserError("no stack of transformer blocks in the LLM", "a transformer", "teacher.llm")
    return max(stacks, key=lambda s: sum(p.numel() for p in s.parameters()))


def find_targets(model: nn.Module) -> list[str]:
    """Names, relative to their block, of all linears (and GPT-2's Conv1D) inside the transformer blocks."""
    names: set[str] = set()
    for block in find_blocks(model):
        names |= {n for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return sorted(names)


def add_lora(model: nn.Module, lora: LoraSettings) -> PeftModel:
    """Wrap the frozen model with plain LoRA layers; the seed of A is PyTorch's global generator.

    Raises:
        UserError: a configured target does not exist, or peft has no LoRA for this family.
    """
    found = find_targets(model)
    targets = list(lora.targets) if lora.targets else found
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in found):
            raise UserError(
                f"the LLM has no linear {target!r}", f"some of {', '.join(found)}", "teacher.lora.targets"
            )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as e:  # some linears of recurrent blocks
        raise UserError(
            f"no LoRA for this LLM: {e}", "linears that peft adapts", "teacher.lora.targets"
        ) from e


def token_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Vocabulary logits of final hidden states [M, H] -> [M, V], in float32.

    `watch.check_reading` finds the models whose head does something else.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    logits = base.get_output_embeddings()(hidden).float()
    if divisor := getattr(base.config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if factor := getattr(base.config, "logit_scale", None):  # Cohere
        logits = logits * factor
    cap = getattr(base.config, "final_logit_softcapping", None)  # Gemma 2
    return torch.tanh(logits / cap) * cap if cap else logits
