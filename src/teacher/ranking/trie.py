"""`trie`: beam search that can only write titles of the catalogue; every answer is valid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from src.core.teacher_store import TeacherRows
from src.teacher.prompts import collate
from src.teacher.ranking.base import Context, best_rows, fits, prompt_batches
from src.teacher.ranking.beams import BeamState, Front
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import ROOT, TitleTree, title_tokens, tree_scores
from src.teacher.ranking.tree_support import refuse_unfit


@dataclass
class Search:
    """The beams of one sample.

    Attributes:
        alive: inner nodes that the beams stand on, best first.
        scores: [len(alive)] their log-likelihoods.
        done: end node -> log-likelihood of complete titles.
    """

    alive: np.ndarray
    scores: np.ndarray
    done: dict[int, float] = field(default_factory=dict)


class TrieRanker:
    """Beams are prefixes of titles. Of all complete titles and all prefixes the best `beams` are kept at each
    length, so `beams` >= the number of titles scores them all, as `exact` does. Items of one title share
    its score and are all listed.
    """

    def __init__(self, context: Context):
        refuse_unfit(context, "trie")
        self.context, self.beams = context, context.export.beams
        self.titles = title_tokens(context.source.builder)
        tree = self.tree = TitleTree.of(self.titles[1:])
        self.items_of: dict[int, list[int]] = {}
        for item, node in enumerate(tree.end.tolist(), start=1):
            self.items_of.setdefault(node, []).append(item)
        self.children: dict[int, np.ndarray] = {}
        order = np.argsort(tree.parent, kind="stable")
        parents, starts = np.unique(tree.parent[order], return_index=True)
        for parent, nodes in zip(parents.tolist(), np.split(order, starts[1:]), strict=True):
            self.children[parent] = nodes

    @torch.no_grad()
    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        context, model, data = self.context, self.context.model, self.context.source.data
        examples = [context.source.builder.build(h) for h in data.histories(sample_ids)]
        fits(context, examples, max(map(len, self.titles)), "teacher.prompt")
        targets = data.targets(sample_ids)
        items: list[np.ndarray] = [np.empty(0)] * len(sample_ids)
        values, of_targets = list(items), np.empty(len(sample_ids))
        nodes = min(self.beams, len(self.tree.inner)) * 4
        for batch in prompt_batches(context, sample_ids, examples, nodes):
            with model.gates.use(batch.gate):
                prefix = SharedPrefix(model, collate(batch.examples).to(model.device), context.hybrid)
                alone = [TitleTree.of([self.titles[t]]) for t in targets[batch.rows]]
                of_targets[batch.rows] = [float(v[0]) for v in tree_scores(prefix, alone)]
                for row, search in zip(batch.rows, self._search(prefix, len(batch.rows)), strict=True):
                    pairs = [(i, s) for node, s in search.done.items() for i in self.items_of[node]]
                    items[row] = np.array([i for i, _ in pairs], np.int64)
                    values[row] = np.array([s for _, s in pairs])
        return best_rows(sample_ids, items, values, of_targets, k, "teacher.export.beams")

    def _search(self, prefix: SharedPrefix, rows: int) -> list[Search]:
        searches = [Search(np.array([ROOT]), np.zeros(1)) for _ in range(rows)]
        state = BeamState(prefix)
        while any(len(s.alive) for s in searches):
            edges = [self._edges(s) for s in searches]
            steps = state.log_probs([(beam, self.tree.token[nodes]) for beam, nodes in edges])
            fronts = [
                self._advance(s, beam, nodes, step)
                for s, (beam, nodes), step in zip(searches, edges, steps, strict=True)
            ]
            if any(len(f.tokens) for f in fronts):
                state.extend(fronts)
        return searches

    def _edges(self, search: Search) -> tuple[np.ndarray, np.ndarray]:
        """(beam [e], node [e]) of every token that some beam may write next."""
        children = [self.children[n] for n in search.alive.tolist()]
        beam = np.repeat(np.arange(len(children)), np.array([len(c) for c in children], np.int64))
        return beam, np.concatenate(children) if children else np.empty(0, np.int64)

    def _advance(self, search: Search, beam: np.ndarray, nodes: np.ndarray, step: np.ndarray) -> Front:
        """Keep the best of the complete titles and the prefixes one token longer; returns the latter."""
        scores = search.scores[beam] + step
        for node, score in zip(nodes.tolist(), scores.tolist(), strict=True):
            if node in self.items_of:
                search.done[node] = score
        longer = np.array([n in self.children for n in nodes.tolist()], bool)
        beam, nodes, scores = beam[longer], nodes[longer], scores[longer]
        done = sorted(search.done.items(), key=lambda pair: (-pair[1], pair[0]))
        # A title that is a prefix of another is a complete title and a prefix: two entries.
        everything = np.concatenate([[s for _, s in done], scores])
        kept = np.argsort(-everything, kind="stable")[: self.beams]
        search.done = dict(done[i] for i in kept if i < len(done))
        alive = kept[kept >= len(done)] - len(done)
        search.alive, search.scores = nodes[alive], scores[alive]
        return Front(beam[alive], self.tree.token[nodes[alive]])
