"""`grounding`: a text is generated freely, and items are ranked by how near their texts lie to it.

BIGRec (arXiv 2308.08434, section 3.3): d_i = || z(generated text) - z(title_i) ||_2 with z the LLM's last
hidden state of a text's last token; the original takes z from the model without its adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from src.core.teacher_store import TeacherRows
from src.teacher.classical import top_k
from src.teacher.embeddings import TextEmbedder
from src.teacher.prompts import collate
from src.teacher.ranking.base import Context, fits, not_finite, prompt_batches
from src.teacher.ranking.beams import BeamState, Front
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import title_tokens
from src.teacher.ranking.tree_support import refuse_unfit


@dataclass
class Draft:
    """What one prompt's beams have written.

    Attributes:
        texts: the tokens of each beam, best first.
        scores: their log-likelihoods.
        ended: (log-likelihood per token, tokens) of texts that ended.
    """

    texts: list[list[int]] = field(default_factory=lambda: [[]])
    scores: list[float] = field(default_factory=lambda: [0.0])
    ended: list[tuple[float, list[int]]] = field(default_factory=list)


class GroundingRanker:
    """Beam search (`beams` 1: greedy) until `beams` texts have ended or `max_new_tokens` are written; the text
    with the best log-likelihood per token is grounded. Scores are distances: smaller is better.
    """

    def __init__(self, context: Context):
        refuse_unfit(context, "grounding")
        self.context, self.builder, export = context, context.source.builder, context.export
        title_tokens(self.builder)
        self.embedder = TextEmbedder(context.model, self.builder, export.embedding, export.batch_size)
        self.items = torch.from_numpy(self.embedder.titles()[1:]).double()
        eos = self.builder.tokens.tokenizer.eos_token_id
        self.stop = {int(t) for t in self.builder.end_ids[:1]} | ({eos} if eos is not None else set())

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        n = len(sample_ids)
        vectors = self.embedder.embed(self.generate(sample_ids)).cpu().double()
        targets = self.context.source.data.targets(sample_ids)
        rankings, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        of_targets = np.empty(n, np.float32)
        # Differences, not the expanded square: near the title they would cancel.
        how = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        for row in range(n):
            distances = torch.cdist(vectors[row : row + 1], self.items, **how)[0].float().numpy()
            if not np.isfinite(distances).all():
                raise not_finite(sample_ids[row])
            best = top_k(-distances[None], k)[0]
            rankings[row], scores[row] = best + 1, distances[best]
            of_targets[row] = distances[targets[row] - 1]
        return TeacherRows(np.asarray(sample_ids, np.int64), rankings, scores, of_targets)

    @torch.no_grad()
    def generate(self, sample_ids: np.ndarray) -> list[str]:
        """One text per sample."""
        context, model, limit = self.context, self.context.model, self.context.export.max_new_tokens
        histories = context.source.data.histories(sample_ids)
        examples = [self.builder.build(h) for h in histories]
        fits(context, examples, limit, "teacher.export.max_new_tokens")
        out = [""] * len(sample_ids)
        nodes = context.export.beams * limit
        for batch in prompt_batches(context, sample_ids, examples, nodes):
            with model.gates.use(batch.gate):
                prefix = SharedPrefix(model, collate(batch.examples).to(model.device), context.hybrid)
                drafts = self._write(prefix, len(batch.rows), limit)
            for row, draft in zip(batch.rows, drafts, strict=True):
                unfinished = [(s / max(1, len(t)), t) for s, t in zip(draft.scores, draft.texts, strict=True)]
                _, tokens = max(draft.ended or unfinished, key=lambda pair: pair[0])
                out[row] = self.builder.tokens.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return out

    def _write(self, prefix: SharedPrefix, rows: int, limit: int) -> list[Draft]:
        drafts, state = [Draft() for _ in range(rows)], BeamState(prefix)
        for step in range(limit):
            best = state.best_tokens([len(d.texts) for d in drafts], 2 * self.context.export.beams)
            fronts = [self._advance(d, *b) for d, b in zip(drafts, best, strict=True)]
            if step + 1 == limit or not any(len(f.tokens) for f in fronts):
                break
            state.extend(fronts)
        return drafts

    def _advance(self, draft: Draft, beam: np.ndarray, token: np.ndarray, step: np.ndarray) -> Front:
        """Take the best continuations; a draft with enough ended texts stops."""
        beams, texts, scores, came = self.context.export.beams, [], [], []
        total = np.array([draft.scores[b] for b in beam]) + step
        for i in np.argsort(-total, kind="stable"):
            text = draft.texts[beam[i]]
            if int(token[i]) in self.stop:
                draft.ended.append((float(total[i]) / (len(text) + 1), text))
            else:
                texts.append([*text, int(token[i])])
                scores.append(float(total[i]))
                came.append(i)
            if len(texts) == beams or len(draft.ended) >= beams:
                break
        if len(draft.ended) >= beams:
            texts, scores, came = [], [], []
        draft.texts, draft.scores = texts, scores
        return Front(beam[came].astype(np.int64), token[came].astype(np.int64))
