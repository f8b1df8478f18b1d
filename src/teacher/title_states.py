"""Title states of a plain language model: no adapter, no item vectors, each title once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.run import Stopwatch
from src.core.signals import check_stop
from src.student.models import device_of
from src.teacher.config import TextConfig
from src.teacher.llm import LoadedLLM, backbone
from src.teacher.llm_loading import load_llm
from src.teacher.prompt_tokens import PromptTokens, readable_titles

log = get_logger(__name__)


@dataclass(frozen=True)
class TokenText:
    """A text as token ids, of which `ids[start:stop]` are the title's."""

    ids: list[int]
    start: int
    stop: int


def title_states(config: TextConfig, titles: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """One vector per title, [N, H] float32, and the identity of the LLM.

    Args:
        titles: [N+1], entry 0 unused.

    Raises:
        UserError: an LLM that cannot be loaded, a layer or pooling that it does not have, a title without tokens,
            or a state that is not finite.
    """
    llm, settings, watch = load_llm(config.llm), config.text, Stopwatch()
    if (
        settings.pooling == "last"
        and llm.bidirectional
        or settings.pooling == "cls"
        and not llm.bidirectional
    ):
        kind = "encoder" if llm.bidirectional else "causal LM"
        raise UserError(
            f"teacher.text.pooling={settings.pooling} with {config.llm.path}, {'an' if llm.bidirectional else 'a'} {kind}",
            "mean or cls" if llm.bidirectional else "mean or last",
            "teacher.text.pooling",
        )
    model = llm.model.eval().to(device_of(settings.device))
    check_layers(model, settings.layers, "teacher.text.layers")
    texts = _tokenised(llm, settings.prompt, titles)
    found = pooled_states(
        backbone(model),
        texts,
        settings.layers,
        settings.pooling,
        settings.batch_size,
        bidirectional=llm.bidirectional,
    )
    table = found.cpu().numpy()
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise UserError(
            f"the state of title {titles[bad + 1]!r} is not finite", "finite states", "teacher.llm.dtype"
        )
    seconds, count = watch.seconds(), sum(len(t.ids) for t in texts)
    log.info(
        "title states: %d titles, %d tokens, %.0f tokens/s", len(texts), count, count / max(seconds, 1e-9)
    )
    return table, llm.identity


def check_layers(model: nn.Module, layers: Sequence[int], key: str) -> None:
    """Raises UserError for a hidden layer that the model does not have."""
    count = model.config.get_text_config().num_hidden_layers
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UserError(
                f"{key} names layer {layer}",
                f"{-count - 1}..{count}: 0 are the input embeddings, {count} or -1 the last block",
                key,
            )


def _tokenised(llm: LoadedLLM, prompt: str, titles: Sequence[str]) -> list[TokenText]:
    """The titles inside the prompt, cut where a text is longer than the LLM reads.

    A causal LM whose tokenizer has no begin token starts with its end-of-text token: the first token's state is an
    attention sink of its own direction, and as a title's first token it would outweigh the mean.
    """
    tokens = PromptTokens(llm.tokenizer)
    start, end = list(tokens.start), []
    if llm.bidirectional:
        end = [t for t in [llm.tokenizer.sep_token_id] if t is not None]
    elif not start and llm.tokenizer.eos_token_id is not None:
        start = [llm.tokenizer.eos_token_id]
    before, after = prompt.split("{title}")
    head, tail = (
        start + (tokens.of(before, first=True, control=True) if before.strip() else []),
        tokens.of(after, control=True) + end,
    )
    room = llm.context - len(head) - len(tail)
    if room < 1:
        raise UserError(
            f"a prompt of {len(head) + len(tail)} tokens",
            f"< {llm.context}, the LLM's context",
            "teacher.text.prompt",
        )
    first = llm.bidirectional and not before.strip()  # a text of its own, as sentence encoders are trained
    texts = []
    for title in readable_titles(tokens, titles, None)[1:]:
        ids = (tokens.of(title, first=True) if first else tokens.of(" " + title))[:room]
        texts.append(TokenText([*head, *ids, *tail], len(head), len(head) + len(ids)))
    if llm.bidirectional:  # sentence encoders are trained to have all tokens in the mean
        return [TokenText(t.ids, 0, len(t.ids)) for t in texts]
    return texts


# transformers collects hidden states by hooks that compiled blocks would break on.
@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def pooled_states(
    transformer: nn.Module,
    texts: Sequence[TokenText],
    layers: Sequence[int],
    pooling: str,
    batch_size: int,
    *,
    bidirectional: bool,
) -> Tensor:
    """[M, H] float32 on the model's device: the mean of some layers' states, pooled over each text's tokens.

    A text's vector does not depend on the others. Neighbours in length share a batch.

    Args:
        transformer: without output head, in eval mode.
        pooling: `mean` over `start:stop`, `last` token or first (`cls`).
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    parts = []
    for at in progress(range(0, len(order), batch_size), f"reading {len(order)} texts"):
        parts.append(
            _pooled(
                transformer, [texts[i] for i in order[at : at + batch_size]], layers, pooling, bidirectional
            )
        )
        check_stop()
    found = torch.cat(parts)
    out = torch.empty_like(found)
    out[torch.tensor(order, device=out.device)] = found
    return out


def _pooled(
    transformer: nn.Module,
    texts: Sequence[TokenText],
    layers: Sequence[int],
    pooling: str,
    bidirectional: bool,
) -> Tensor:
    longest, device = max(len(t.ids) for t in texts), next(transformer.parameters()).device
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    read, words = torch.zeros(len(texts), longest, dtype=torch.bool), torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        tokens[row, : len(text.ids)] = torch.tensor(text.ids)
        read[row, : len(text.ids)] = True
        words[row, text.start : text.stop] = 1.0
    # Padding on the right is unseen under causal attention (see IloraModel.states).
    extra = {"attention_mask": read.long().to(device)} if bidirectional else {"use_cache": False}
    hidden = transformer(input_ids=tokens.to(device), output_hidden_states=True, **extra).hidden_states
    states = torch.stack([hidden[layer].float() for layer in layers]).mean(dim=0)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(texts), device=device), read.sum(dim=1).to(device) - 1]
    weights = words.unsqueeze(-1).to(device)
    return (states * weights).sum(1) / weights.sum(1)
