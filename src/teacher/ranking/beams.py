"""Beam search behind shared prompts: one driver for titles (`trie`) and for free text (`grounding`, greedy answers).

Beams are nodes behind their prompt, so that no cache is ever copied or reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from src.teacher.ranking.prefix import SharedPrefix, likeliest, log_probs

# Tokens that some beams of a prompt may write next: (beam [e], token [e]), and with log-probability [e].
Edges = tuple[np.ndarray, np.ndarray]
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]


class BeamState:
    """States of all prompts' beams. At the start each prompt has one beam, its own end.

    Attributes:
        states: [B, F, H] of the beams, best first.
    """

    def __init__(self, prefix: SharedPrefix):
        self.prefix, self.step = prefix, 0
        self.states = prefix.last[:, None]
        # [B, F, S] cached nodes that a beam consists of
        self._seen = np.zeros((len(prefix.last), 1, 0), bool)

    def score(self, edges: Sequence[Edges]) -> list[Scored]:
        """The edges of every prompt with their log-probabilities."""
        width, cuts = self.states.shape[1], np.cumsum([len(beam) for beam, _ in edges])[:-1]
        row = np.concatenate([beam + width * i for i, (beam, _) in enumerate(edges)])
        token = np.concatenate([tokens for _, tokens in edges])
        places = (torch.from_numpy(a.astype(np.int64)).to(self.states.device) for a in (row, token))
        found = log_probs(self.prefix.model, self.states.flatten(0, 1), *places).cpu().numpy()
        return [(*e, v) for e, v in zip(edges, np.split(found.astype(np.float64), cuts), strict=True)]

    def likeliest(self, alive: Sequence[int], count: int) -> list[Scored]:
        """The `count` likeliest next tokens of each of a prompt's `alive` beams."""
        width, cuts = self.states.shape[1], np.cumsum(alive)[:-1]
        chosen = np.concatenate([width * i + np.arange(n) for i, n in enumerate(alive)]).astype(np.int64)
        states = self.states.flatten(0, 1)[torch.from_numpy(chosen).to(self.states.device)]
        values, tokens = likeliest(self.prefix.model, states, count)
        pairs = zip(alive, np.split(tokens, cuts), np.split(values.astype(np.float64), cuts), strict=True)
        return [(np.repeat(np.arange(n), count), t.reshape(-1), v.reshape(-1)) for n, t, v in pairs]

    def extend(self, fronts: Sequence[Edges]) -> None:
        """Read one more token: beam a goes on from `front[0][a]` with the token `front[1][a]`. Prompts without beams
        are carried along unread."""
        b, cached = len(fronts), self._seen.shape[2]
        width = max(len(front) for _, front in fronts)
        tokens = np.zeros((b, width), np.int64)
        seen = np.zeros((b, width, cached + width), bool)
        for row, (beam, token) in enumerate(fronts):
            n = len(token)
            tokens[row, :n] = token
            seen[row, :n, :cached] = self._seen[row, beam]
            seen[row, np.arange(n), cached + np.arange(n)] = True
        device = self.states.device
        depth = torch.full((b, width), self.step, dtype=torch.long, device=device)
        visible = torch.from_numpy(seen).to(device)
        self.states = self.prefix.extend(torch.from_numpy(tokens).to(device), depth, visible)
        self._seen, self.step = seen, self.step + 1


def beam_search(
    prefix: SharedPrefix,
    options: Callable[[BeamState], list[Scored]],
    take: Callable[[int, Scored], Edges],
    limit: int,
) -> None:
    """Extend all prompts' beams until none has any left, or `limit` tokens are written.

    Args:
        options: what each prompt's beams may write next.
        take: (prompt, its options) -> the beams that it goes on with, best first.
    """
    state = BeamState(prefix)
    for step in range(limit):
        fronts = [take(row, scored) for row, scored in enumerate(options(state))]
        if step + 1 == limit or not any(len(tokens) for _, tokens in fronts):
            return
        state.extend(fronts)


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

    def best(self) -> list[int]:
        """The tokens of the ended text (of the unfinished ones where none ended) that is likeliest per token."""
        open_ends = ((s / max(1, len(t)), t) for s, t in zip(self.scores, self.texts, strict=True))
        return max(self.ended or open_ends, key=lambda pair: pair[0])[1]

    def advance(self, scored: Scored, beams: int, stop: set[int]) -> Edges:
        """Take the best continuations; a draft with `beams` ended texts stops."""
        beam, token, step = scored
        texts, scores, came = [], [], []
        total = np.array([self.scores[b] for b in beam]) + step
        for i in np.argsort(-total, kind="stable"):
            text = self.texts[beam[i]]
            if int(token[i]) in stop:
                self.ended.append((float(total[i]) / (len(text) + 1), text))
            else:
                texts.append([*text, int(token[i])])
                scores.append(float(total[i]))
                came.append(i)
            if len(texts) == beams or len(self.ended) >= beams:
                break
        if len(self.ended) >= beams:
            texts, scores, came = [], [], []
        self.texts, self.scores = texts, scores
        return beam[came].astype(np.int64), token[came].astype(np.int64)


def write_texts(
    prefix: SharedPrefix, rows: int, limit: int, stop: set[int], beams: int = 1
) -> list[list[int]]:
    """One text per prompt as token ids without the token that ended it; `beams` 1 is greedy decoding.

    Args:
        limit: tokens at most.
        stop: tokens that end a text.
    """
    drafts = [Draft() for _ in range(rows)]
    beam_search(
        prefix,
        lambda state: state.likeliest([len(d.texts) for d in drafts], 2 * beams),
        lambda row, scored: drafts[row].advance(scored, beams, stop),
        limit,
    )
    return [draft.best() for draft in drafts]
