"""What a language model must be: text only, whole, finite, with the tokenizer that belongs to it; why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from src.core.errors import UserError
from src.teacher.config_parts import LLMConfig

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


def reads_both_sides(hf_config: Any, label: str, foreign_code: bool) -> bool:
    """Whether this is a text encoder; raises UserError for what is neither that nor a causal language model."""
    kind = hf_config.model_type
    if getattr(hf_config, "is_encoder_decoder", False):
        raise UserError(f"{label} is an encoder-decoder model ({kind})", "a causal language model", _PATH)
    other = [n for n in ("vision_config", "audio_config", "speech_config") if getattr(hf_config, n, None)]
    known = kind in BIDIRECTIONAL or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or foreign_code
    if other or not known:
        what = f"a model of more than text ({other[0]})" if other else "no language model known here"
        found = f"{label} is {what}: model_type {kind}"
        raise UserError(found, "a causal language model or a text encoder", _PATH)
    return kind in BIDIRECTIONAL


def refuse_incomplete(report: Mapping[str, Any], label: str, bidirectional: bool) -> None:
    """Raise UserError naming the first weight that is missing, left over or of another shape.

    Args:
        report: loading info of transformers: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        bidirectional: heads of a text encoder may be missing or left over; nothing reads them.
    """
    heads = _ENCODER_HEADS if bidirectional else _HARMLESS

    def counting(keys: Iterable[str]) -> list[str]:
        return sorted(k for k in keys if not _HARMLESS.search(k) and not heads.search(k))

    missing, extra = counting(report["missing_keys"]), counting(report["unexpected_keys"])
    if missing:
        prefix = next((k.removesuffix(missing[0]) for k in extra if k.endswith("." + missing[0])), "")
        note = f" (its keys begin with {prefix!r})" if prefix else ""
        found = f"{label} lacks {len(missing)} of the model's weights, the first {missing[0]}{note}"
        raise UserError(found, "every weight that its config.json asks for", _PATH)
    if report["mismatched_keys"]:
        key, shape, expected = sorted(report["mismatched_keys"])[0]
        raise UserError(f"{label}: {key} is {tuple(shape)}", f"{tuple(expected)} by its config.json", _PATH)
    if extra:
        found = (
            f"{label} holds {len(extra)} weights that its config.json has no place for, the first {extra[0]}"
        )
        raise UserError(found, "the configuration that belongs to the weights", _PATH)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, label: str) -> None:
    """Raise UserError where a token has no embedding, or a word of the prompts is a token of its own."""
    # Some classes add such tokens by themselves; no text becomes one of them.
    unread = {tokenizer.pad_token_id, tokenizer.unk_token_id}
    if label.endswith(".gguf"):
        unread |= set(tokenizer.get_added_vocab().values())
    if beyond := {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and i not in unread}:
        first = min(beyond)
        found = f"{label}: the tokenizer's token {first} ({beyond[first]!r}) is beyond the {rows} rows"
        raise UserError(
            f"{found} of the embedding matrix", "the tokenizer that belongs to the weights", _PATH
        )
    if words := sorted(tokenizer.get_added_vocab().keys() & set(PLACEHOLDER_WORDS)):
        found = f"{label}: {words[0]!r}, a placeholder of prompts, is a token of the tokenizer"
        fix = f"{_PATH} (its tokenizer.json, added_tokens)"
        raise UserError(found, "a tokenizer without such tokens", fix)


def refuse_not_finite(model: nn.Module, label: str) -> None:
    """Raise UserError naming the first weight that holds NaN or infinity."""
    for name, weight in model.named_parameters():
        # The sum needs no memory; weights whose finite values overflow it are looked at one by one.
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise UserError(f"{label}: {name} holds NaN or infinity", "finite weights", _PATH)


def load_error(config: LLMConfig, label: str, error: Exception) -> UserError:
    """One line for what a library raised, with what to do; its exception carries the hub's own as a cause.

    Args:
        label: the model, as messages call it.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def came(*kinds: type[Exception]) -> bool:
        return any(isinstance(c, kinds) for c in causes)

    kind = "" if isinstance(error, (OSError, ValueError)) else type(error).__name__ + ": "
    why = " ".join(f"{kind}{error}".split())
    found, expected, fix = f"{label} cannot be loaded: {why[:300]}", "", _PATH
    if isinstance(error, ValueError) and "attention implementation" in why:
        fix, expected = "teacher.llm.attention", "eager"
        found = f"{label} has no {fix}={config.attention}"
    elif "custom code" in why:
        found, expected = (
            f"{label} needs Python code that comes with it",
            "a model of this transformers version",
        )
        fix = "teacher.llm.trust_remote_code to true, if you trust its authors"
    elif config.kind != "hub":
        expected = "a whole model of this transformers version"
    elif came(GatedRepoError):  # a kind of RepositoryNotFoundError: first
        found, page = f"{label} is gated", f"{constants.ENDPOINT}/{config.path}"
        expected = (
            f"its licence accepted at {page}, and the account's token in HF_TOKEN or by `hf auth login`"
        )
        fix = f"{_PATH} to an open model otherwise"
    elif came(RevisionNotFoundError):
        found, expected, fix = f"{label}: no such revision", "a commit, tag or branch", "teacher.llm.revision"
    elif came(RepositoryNotFoundError):
        found = f"{label} is not on the hub, or private"
        expected = "owner/name as on its page; for a private one a token in HF_TOKEN or by `hf auth login`"
    elif came(LocalEntryNotFoundError, OfflineModeIsEnabled):  # lost connections, timeouts, offline mode
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
        found = f"{label} is not in the cache {constants.HF_HUB_CACHE}, and {reason}"
        expected = "one download with a connection (gated models: HF_TOKEN), or a copy (teacher/llm=local)"
    else:
        expected = "a model that is there and that you may read"
        fix = f"{_PATH} or revision, or give a token (HF_TOKEN, `hf auth login`)"
    return UserError(found, expected, fix)
