"""`exact`: the log-likelihood of every title of the catalogue. Slow; what the other methods are tested by."""

from __future__ import annotations

import numpy as np
import torch

from src.core.teacher_store import TeacherRows
from src.teacher.prompts import collate
from src.teacher.ranking.base import Context, best_rows, fits, prompt_batches
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import TitleTree, title_tokens, tree_scores
from src.teacher.ranking.tree_support import refuse_unfit


class ExactRanker:
    """One prefill per sample, then the catalogue in pieces of at most `teacher.export.tree_tokens` tokens."""

    def __init__(self, context: Context):
        refuse_unfit(context, "exact")
        self.context = context
        self.titles = title_tokens(context.source.builder)
        self.longest = max(map(len, self.titles))
        # Neighbours in token order share the most.
        order = sorted(range(1, len(self.titles)), key=lambda i: self.titles[i].tolist())
        self.pieces: list[np.ndarray] = []
        piece: list[int] = []
        size = 0
        for item in order:
            if piece and size + len(self.titles[item]) > context.export.tree_tokens:
                self.pieces.append(np.array(piece))
                piece, size = [], 0
            piece.append(item)
            size += len(self.titles[item])
        self.pieces.append(np.array(piece))
        self.trees = [TitleTree.of([self.titles[i] for i in p]) for p in self.pieces]

    @torch.no_grad()
    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        values = self.scores(sample_ids)
        targets = self.context.source.data.targets(sample_ids)
        items = [np.arange(1, values.shape[1] + 1)] * len(sample_ids)
        of_targets = values[np.arange(len(values)), targets - 1]
        return best_rows(sample_ids, items, list(values), of_targets, k, "teacher.export.top_k")

    @torch.no_grad()
    def scores(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, N] log-likelihoods; column c is item c + 1."""
        context, model = self.context, self.context.model
        histories = context.source.data.histories(sample_ids)
        examples = [context.source.builder.build(h) for h in histories]
        fits(context, examples, self.longest, "teacher.prompt")
        out = np.empty((len(sample_ids), len(self.titles) - 1))
        nodes = max(len(t.inner) for t in self.trees)
        for batch in prompt_batches(context, sample_ids, examples, nodes):
            with model.gates.use(batch.gate):
                prefix = SharedPrefix(model, collate(batch.examples).to(model.device), context.hybrid)
                for items, tree in zip(self.pieces, self.trees, strict=True):
                    found = tree_scores(prefix, [tree] * len(batch.rows))
                    out[batch.rows[:, None], items - 1] = np.stack(found)
        return out
