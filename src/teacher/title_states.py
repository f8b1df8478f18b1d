"""Vectors of texts from a language model: titles as item vectors, and the space in which BIGRec grounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
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
from src.teacher.config import EmbeddingConfig, TextConfig
from src.teacher.ilora_model import IloraModel
from src.teacher.llm import LoadedLLM, backbone
from src.teacher.llm_loading import load_llm
from src.teacher.prompt_tokens import PromptTokens, readable_titles
from src.teacher.prompts import PromptBuilder

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
    if settings.pooling == ("last" if llm.bidirectional else "cls"):
        kind, expected = ("an encoder", "cls") if llm.bidirectional else ("a causal LM", "last")
        found = f"teacher.text.pooling={settings.pooling} with {config.llm.path}, {kind}"
        raise UserError(found, f"mean or {expected}", "teacher.text.pooling")
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
    _check_finite(table, titles, "teacher.llm.dtype")
    seconds, count = watch.seconds(), sum(len(t.ids) for t in texts)
    log.info(
        "title states: %d titles, %d tokens, %.0f tokens/s", len(texts), count, count / max(seconds, 1e-9)
    )
    return table, llm.identity


def _check_finite(table: np.ndarray, titles: Sequence[str], fix: str) -> None:
    """Raises UserError naming the first of `titles` (entry 0 unused) whose row of [N, H] is not finite."""
    if len(bad := np.flatnonzero(~np.isfinite(table).all(axis=1))):
        raise UserError(f"the state of title {titles[bad[0] + 1]!r} is not finite", "finite states", fix)


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


def begin(tokens: PromptTokens, bidirectional: bool) -> list[int]:
    """What stands before a text of its own.

    A causal LM whose tokenizer has no begin token starts with its end-of-text token: the first token's state is an
    attention sink of its own direction, and as a title's first token it would outweigh the mean.
    """
    end = tokens.tokenizer.eos_token_id
    return list(tokens.start) or ([] if bidirectional or end is None else [end])


def _tokenised(llm: LoadedLLM, prompt: str, titles: Sequence[str]) -> list[TokenText]:
    """The titles inside the prompt, cut where a text is longer than the LLM reads."""
    tokens = PromptTokens(llm.tokenizer)
    start, end = begin(tokens, llm.bidirectional), []
    if llm.bidirectional:
        end = [t for t in [llm.tokenizer.sep_token_id] if t is not None]
    before, after = prompt.split("{title}")
    head, tail = (
        start + (tokens.of(before, first=True, control=True) if before.strip() else []),
        tokens.of(after, control=True) + end,
    )
    room = llm.context - len(head) - len(tail)
    if room < 1:
        found = f"a prompt of {len(head) + len(tail)} tokens"
        raise UserError(found, f"< {llm.context}, the LLM's context", "teacher.text.prompt")
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


class TextEmbedder:
    """Bare texts (no item vectors, no user's gate) -> hidden states of the LLM.

    Args:
        model: the teacher.
        builder: its prompts; gives tokenizer and titles.
        config: layer, pooling, with or without the adapter.
        batch_size: texts per forward pass.
    """

    def __init__(self, model: IloraModel, builder: PromptBuilder, config: EmbeddingConfig, batch_size: int):
        self.model, self.builder, self.config, self.batch_size = model, builder, config, batch_size
        check_layers(model.llm.get_base_model(), (config.layer,), "teacher.export.embedding.layer")

    def tokens(self, text: str) -> list[int]:
        """A text as a title is read; nothing at all reads as the end of an answer."""
        ids = self.builder.tokens.of(" " + text.strip(" ")) if text.strip() else []
        return ids or self.builder.end_ids[:1]

    def titles(self, titles: Sequence[str] | None = None) -> np.ndarray:
        """[N+1, H] float32, row 0 zeros.

        Args:
            titles: [N+1], entry 0 unused; None: as the prompts show them.

        Raises:
            UserError: an embedding that is not finite.
        """
        titles = titles or self.builder.titles
        vectors = self.embed(titles[1:])
        table = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors.cpu().numpy()])
        _check_finite(table[1:], titles, "teacher.llm.dtype or teacher.train.lr")
        return table

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[M, H] float32, on the model's device; one text's vector does not depend on the others."""
        start, context = begin(self.builder.tokens, self.model.bidirectional), self.builder.context
        ids = [[*start, *self.tokens(t)][:context] for t in texts]
        # The start token carries no word of the title.
        tokens = [TokenText(i, len(start), len(i)) for i in ids]
        was_training = self.model.training
        self.model.eval()
        with ExitStack() as stack:
            stack.enter_context(self.model.gates.uniform())
            if self.config.weights == "base":
                stack.enter_context(self.model.llm.disable_adapter())
            out = pooled_states(
                backbone(self.model.llm),
                tokens,
                (self.config.layer,),
                self.config.pooling,
                self.batch_size,
                bidirectional=self.model.bidirectional,
            )
        self.model.train(was_training)
        return out
