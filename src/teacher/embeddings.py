"""Vectors of texts from the LLM: item embeddings for the store, and the space in which BIGRec grounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.signals import check_stop
from src.teacher.config import EmbeddingConfig
from src.teacher.ilora_model import IloraModel
from src.teacher.llm import backbone
from src.teacher.prompts import PromptBuilder


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
        layers = model.llm.get_base_model().config.get_text_config().num_hidden_layers
        if not -layers - 1 <= config.layer <= layers:
            raise UserError(
                f"teacher.export.embedding.layer={config.layer}",
                f"{-layers - 1}..{layers}: 0 are the input embeddings, {layers} or -1 the last block",
                "teacher.export.embedding.layer",
            )

    def tokens(self, text: str) -> list[int]:
        """A text as a title is read; nothing at all reads as the end of an answer."""
        ids = self.builder.tokens.of(" " + text.strip(" ")) if text.strip() else []
        return ids or [int(t) for t in self.builder.end_ids[:1]]

    def titles(self) -> np.ndarray:
        """[N+1, H] float32, row 0 zeros.

        Raises:
            UserError: a title without tokens, or an embedding that is not finite.
        """
        from src.teacher.ranking.tree import title_tokens

        title_tokens(self.builder)
        vectors = self.embed(self.builder.titles[1:])
        table = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors.cpu().numpy()])
        if not np.isfinite(table).all():
            bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
            raise UserError(
                f"the embedding of item {bad} is not finite",
                "finite values",
                "teacher.llm.dtype or teacher.train.lr",
            )
        return table

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """[M, H] float32, on the model's device; one text's vector does not depend on the others."""
        start = self.builder.tokens.start
        ids = [[*start, *self.tokens(t)][: self.builder.context] for t in texts]
        # Neighbours in length share a batch.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = torch.empty(len(ids), self.model.neutral.shape[0], device=self.model.device)
        was_training = self.model.training
        self.model.eval()
        with ExitStack() as stack:
            stack.enter_context(self.model.gates.uniform())
            if self.config.weights == "base":
                stack.enter_context(self.model.llm.disable_adapter())
            for at in range(0, len(order), self.batch_size):
                rows = order[at : at + self.batch_size]
                out[rows] = self._pooled([ids[r] for r in rows], len(start))
                check_stop()
        self.model.train(was_training)
        return out

    # transformers collects hidden states by hooks that compiled blocks would break on: once over the titles, as it is.
    @torch.compiler.set_stance("force_eager")
    def _pooled(self, ids: list[list[int]], skipped: int) -> Tensor:
        longest, device = max(map(len, ids)), self.model.device
        tokens = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = True
        tokens, mask = tokens.to(device), mask.to(device)
        bidirectional = self.model.bidirectional
        # Padding on the right is unseen under causal attention (see IloraModel.states).
        extra = {"attention_mask": mask.long()} if bidirectional else {"use_cache": False}
        hidden = backbone(self.model.llm)(input_ids=tokens, output_hidden_states=True, **extra).hidden_states
        states = hidden[self.config.layer].float()
        if self.config.pooling == "last":
            return states[torch.arange(len(ids), device=device), mask.sum(dim=1) - 1]
        words = mask.clone()
        words[:, :skipped] = False  # the start token carries no word of the title
        weights = words.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1)
