"""Vectors of texts from the LLM: item embeddings for the store, and the space in which BIGRec grounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from torch import Tensor

from src.core.errors import UserError
from src.teacher.config import EmbeddingConfig
from src.teacher.ilora_model import IloraModel
from src.teacher.llm import backbone
from src.teacher.prompts import PromptBuilder
from src.teacher.title_states import TokenText, check_layers, pooled_states


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

    def titles(self) -> np.ndarray:
        """[N+1, H] float32, row 0 zeros.

        Raises:
            UserError: an embedding that is not finite.
        """
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

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[M, H] float32, on the model's device; one text's vector does not depend on the others."""
        start, context = self.builder.tokens.start, self.builder.context
        ids = [[*start, *self.tokens(t)][:context] for t in texts]
        tokens = [
            TokenText(i, len(start), len(i)) for i in ids
        ]  # the start token carries no word of the title
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
