"""Beams of several prompts as nodes behind a shared prefix: no cache is ever copied or reordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.teacher.ranking.prefix import SharedPrefix, likeliest, log_probs


@dataclass(frozen=True)
class Front:
    """The beams of one prompt after a step.

    Attributes:
        beam: [a] which of the earlier beams each goes on from.
        tokens: [a] the token it adds.
    """

    beam: np.ndarray
    tokens: np.ndarray


class BeamState:
    """States of all prompts' beams. At the start each prompt has one beam, its own end.

    Attributes:
        states: [B, F, H] of the beams, best first.
    """

    def __init__(self, prefix: SharedPrefix):
        self.prefix, self.step = prefix, 0
        self.states = prefix.last[:, None]
        self._seen = np.zeros(
            (len(prefix.last), 1, 0), bool
        )  # [B, F, S] cached nodes that a beam consists of

    def log_probs(self, edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Per prompt the log-probabilities [e] of `token[e]` behind beam `beam[e]`.

        Args:
            edges: per prompt (beam [e], token [e]).
        """
        device, width = self.states.device, self.states.shape[1]
        row = np.concatenate([beam + width * i for i, (beam, _) in enumerate(edges)])
        token = np.concatenate([tokens for _, tokens in edges])
        found = log_probs(
            self.prefix.model,
            self.states.flatten(0, 1),
            torch.from_numpy(row.astype(np.int64)).to(device),
            torch.from_numpy(token.astype(np.int64)).to(device),
        )
        cuts = np.cumsum([len(beam) for beam, _ in edges])[:-1]
        return [a.astype(np.float64) for a in np.split(found.cpu().numpy(), cuts)]

    def best_tokens(
        self, alive: Sequence[int], count: int
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per prompt (beam, token, log-probability), [alive * count] each: every beam's likeliest next tokens.

        Args:
            alive: beams per prompt.
        """
        width = self.states.shape[1]
        chosen = np.concatenate([width * i + np.arange(n) for i, n in enumerate(alive)]).astype(np.int64)
        values, tokens = likeliest(
            self.prefix.model,
            self.states.flatten(0, 1)[torch.from_numpy(chosen).to(self.states.device)],
            count,
        )
        cuts = np.cumsum(alive)[:-1]
        pairs = zip(alive, np.split(tokens, cuts), np.split(values.astype(np.float64), cuts), strict=True)
        return [(np.repeat(np.arange(n), count), t.reshape(-1), v.reshape(-1)) for n, t, v in pairs]

    def extend(self, fronts: Sequence[Front]) -> None:
        """Read one more token of every beam; prompts without beams are carried along unread."""
        b, cached = len(fronts), self._seen.shape[2]
        width = max(len(f.tokens) for f in fronts)
        tokens = np.zeros((b, width), np.int64)
        seen = np.zeros((b, width, cached + width), bool)
        for row, front in enumerate(fronts):
            n = len(front.tokens)
            tokens[row, :n] = front.tokens
            seen[row, :n, :cached] = self._seen[row, front.beam]
            seen[row, np.arange(n), cached + np.arange(n)] = True
        device = self.states.device
        depth = torch.full((b, width), self.step, dtype=torch.long, device=device)
        visible = torch.from_numpy(seen).to(device)
        self.states = self.prefix.extend(torch.from_numpy(tokens).to(device), depth, visible)
        self._seen, self.step = seen, self.step + 1
