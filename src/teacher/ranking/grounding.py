"""`grounding`: a text is generated freely, and items are ranked by how near their texts lie to it.

BIGRec (arXiv 2308.08434, section 3.3): d_i = || z(generated text) - z(title_i) ||_2 with z the LLM's last
hidden state of a text's last token; the original takes z from the model without its adapter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from src.core.teacher_store import TeacherRows
from src.teacher.ranking.base import Context, prefixes
from src.teacher.ranking.beams import write_texts
from src.teacher.ranking.tree import require_tree_support
from src.teacher.rows import TRAINING, rank_scores
from src.teacher.title_states import TextEmbedder


class GroundingRanker:
    """Beam search (`beams` 1: greedy) until `beams` texts have ended or `max_new_tokens` are written; the text
    with the best log-likelihood per token is grounded. Scores are distances: smaller is better.
    """

    def __init__(self, context: Context):
        require_tree_support(context, "grounding")
        self.context, self.builder, export = context, context.source.builder, context.export
        self.embedder = TextEmbedder(context.model, self.builder, export.embedding, export.batch_size)
        self.items = torch.from_numpy(self.embedder.titles()[1:]).double()

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        vectors = self.embedder.embed(self.generate(sample_ids)).cpu().double()
        # Differences, not the expanded square: near the title they would cancel.
        exact = "donot_use_mm_for_euclid_dist"
        batches = (
            (
                np.array([row]),
                -torch.cdist(vectors[row : row + 1], self.items, compute_mode=exact).float().numpy(),
            )
            for row in range(len(sample_ids))
        )
        targets = self.context.source.data.targets(sample_ids)
        rows = rank_scores(sample_ids, targets, batches, k, TRAINING)
        return replace(rows, scores=-rows.scores, target_scores=-rows.target_scores)

    @torch.no_grad()
    def generate(self, sample_ids: np.ndarray) -> list[str]:
        """One text per sample."""
        context, builder, beams = self.context, self.builder, self.context.export.beams
        limit, key = context.export.max_new_tokens, "teacher.export.max_new_tokens"
        examples = [builder.build(h) for h in context.source.data.histories(sample_ids)]
        out = [""] * len(sample_ids)
        for rows, prefix in prefixes(context, sample_ids, examples, limit, beams * limit, key):
            texts = write_texts(prefix, len(rows), limit, builder.stop_ids, beams)
            for row, tokens in zip(rows, texts, strict=True):
                out[row] = builder.tokens.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return out
