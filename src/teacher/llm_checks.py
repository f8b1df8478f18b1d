"""What a language model must be: text only, whole, finite, with the tokenizer that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from src.core.errors import UserError

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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, label: str) -> None:
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


def refuse_not_finite(model: nn.Module, label: str) -> None:
    for name, weight in model.named_parameters():
        # The sum needs no memory; weights whose finite values overflow it are looked at one by one.
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise UserError(f"{label}: {name} holds NaN or infinity", "finite weights", _PATH)
