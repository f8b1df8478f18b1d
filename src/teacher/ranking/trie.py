"""`trie`: beam search that can only write titles of the catalogue; every answer is valid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from src.core.teacher_store import TeacherRows
from src.teacher.ranking.base import Context, prefixes
from src.teacher.ranking.beams import Edges, Scored, beam_search
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import ROOT, TitleTree, require_tree_support, tree_scores
from src.teacher.rows import rank_items


@dataclass
class Search:
    """The beams of one sample.

    Attributes:
        alive: inner nodes that the beams stand on, best first.
        scores: [len(alive)] their log-likelihoods.
        done: end node -> log-likelihood of complete titles.
    """

    alive: np.ndarray = field(default_factory=lambda: np.array([ROOT]))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(1))
    done: dict[int, float] = field(default_factory=dict)


class TrieRanker:
    """Beams are prefixes of titles. Of all complete titles and all prefixes the best `beams` are kept at each
    length, so `beams` >= the number of titles scores them all. Items of one title share its score and are all listed.
    """

    def __init__(self, context: Context):
        require_tree_support(context, "trie")
        self.context, self.beams = context, context.export.beams
        self.titles = context.source.builder.answers
        tree = self.tree = TitleTree.of(self.titles[1:])
        self.items_of: dict[int, list[int]] = {}
        for item, node in enumerate(tree.end.tolist(), start=1):
            self.items_of.setdefault(node, []).append(item)
        self.children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parent.tolist()):
            self.children.setdefault(parent, []).append(node)

    @torch.no_grad()
    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        context, data = self.context, self.context.source.data
        examples = [context.source.builder.build(h) for h in data.histories(sample_ids)]
        targets = data.targets(sample_ids)
        items: list[np.ndarray] = [np.empty(0)] * len(sample_ids)
        values, of_targets = list(items), np.empty(len(sample_ids))
        nodes, room = min(self.beams, len(self.tree.inner)) * 4, max(map(len, self.titles))
        for rows, prefix in prefixes(context, sample_ids, examples, room, nodes, "teacher.prompt"):
            alone = [TitleTree.of([self.titles[t]]) for t in targets[rows]]
            of_targets[rows] = [float(v[0]) for v in tree_scores(prefix, alone)]
            for row, search in zip(rows, self._search(prefix, len(rows), room), strict=True):
                pairs = [(i, s) for node, s in search.done.items() for i in self.items_of[node]]
                items[row] = np.array([i for i, _ in pairs], np.int64)
                values[row] = np.array([s for _, s in pairs])
        return rank_items(sample_ids, items, values, of_targets, k, "teacher.export.beams")

    def _search(self, prefix: SharedPrefix, rows: int, limit: int) -> list[Search]:
        searches = [Search() for _ in range(rows)]
        beam_search(
            prefix,
            lambda state: state.score(
                [(beam, self.tree.token[nodes]) for beam, nodes in map(self._children, searches)]
            ),
            lambda row, scored: self._advance(searches[row], scored),
            limit,
        )
        return searches

    def _children(self, search: Search) -> tuple[np.ndarray, np.ndarray]:
        """(beam [e], node [e]) of every token that some beam may write next."""
        alive = enumerate(search.alive.tolist())
        pairs = [(beam, child) for beam, node in alive for child in self.children[node]]
        beam, nodes = np.array(pairs, np.int64).reshape(-1, 2).T
        return beam, nodes

    def _advance(self, search: Search, scored: Scored) -> Edges:
        """Keep the best of the complete titles and the prefixes one token longer; returns the latter."""
        beam, nodes = self._children(search)
        scores = search.scores[beam] + scored[2]
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
        return beam[alive], self.tree.token[nodes[alive]]
