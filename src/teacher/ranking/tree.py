"""Titles as a prefix tree of tokens, and the log-likelihood of all of them behind a prompt.

Whether an LLM can read such a tree is measured before it ranks (`require_tree_support`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.teacher.ilora_model import IloraModel
from src.teacher.losses import answer_losses
from src.teacher.prompts import Example, collate
from src.teacher.ranking.base import Context
from src.teacher.ranking.prefix import SharedPrefix, log_probs

ROOT = -1
_CHOICE = 512  # samples of which the longest prompt is read
_ROUNDING = 1e-3  # largest difference of log-likelihoods per token of a title
_ROUNDING_HALF = 0.1  # of weights in half precision


@dataclass(frozen=True)
class TitleTree:
    """Token sequences that share their beginnings. Nodes stand behind their parents.

    Attributes:
        token: [Q] token of each node.
        parent: [Q] its parent, ROOT for first tokens.
        depth: [Q] 0 for first tokens.
        end: [A] the node that each sequence ends in; equal sequences end in one node.
        inner: [F] nodes with children, ascending: only these need a forward pass.
    """

    token: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    end: np.ndarray
    inner: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> TitleTree:
        """The tree of `sequences`; none may be empty."""
        at: dict[tuple[int, int], int] = {}
        token: list[int] = []
        parent: list[int] = []
        depth: list[int] = []
        end = []
        for sequence in sequences:
            node = ROOT
            for step, t in enumerate(sequence.tolist()):
                key = (node, t)
                if key not in at:
                    at[key] = len(token)
                    token.append(t)
                    parent.append(node)
                    depth.append(step)
                node = at[key]
            end.append(node)
        parents = np.array(parent, np.int64)
        inner = np.unique(parents[parents >= 0])
        return cls(np.array(token, np.int64), parents, np.array(depth, np.int64), np.array(end), inner)

    @cached_property
    def order(self) -> np.ndarray:
        """[F, F] bool, `order[i, j]`: inner node j is inner node i or one of its ancestors.

        Only where the tree is read at once: for the trie of a whole catalogue it would be gigabytes.
        """
        place = np.full(len(self.token), -1)
        place[self.inner] = np.arange(len(self.inner))
        order = np.eye(len(self.inner), dtype=bool)
        for i, node in enumerate(self.inner):  # a parent's row is finished before its children's
            if self.parent[node] >= 0:
                order[i] |= order[place[self.parent[node]]]
        return order

    def totals(self, step: np.ndarray) -> np.ndarray:
        """[A] sums of the nodes' values `step` [Q] along each sequence."""
        total = step.astype(np.float64)
        for level in range(1, int(self.depth.max()) + 1):
            at = self.depth == level
            total[at] += total[self.parent[at]]
        return total[self.end]


def tree_scores(prefix: SharedPrefix, trees: Sequence[TitleTree]) -> list[np.ndarray]:
    """Log-likelihoods [A_b] of every sequence of every row's tree, in one forward pass; the cache is rewound.

    Args:
        trees: one per prompt of `prefix`.
    """
    device, b = prefix.last.device, len(trees)
    width = max(len(t.inner) for t in trees)
    states = prefix.last[:, None]
    if width:
        tokens, depth = np.zeros((b, width), np.int64), np.zeros((b, width), np.int64)
        visible = np.zeros((b, width, width), bool)
        for row, t in enumerate(trees):
            n = len(t.inner)
            tokens[row, :n], depth[row, :n] = t.token[t.inner], t.depth[t.inner]
            visible[row, :n, :n] = t.order
        inputs = (torch.from_numpy(a).to(device) for a in (tokens, depth, visible))
        states = torch.cat([states, prefix.extend(*inputs)], dim=1)  # place 0 is the prompt's end
        prefix.rewind()
    source, token = [], []
    for row, t in enumerate(trees):
        place = np.zeros(len(t.token) + 1, np.int64)  # the last entry is ROOT's
        place[t.inner] = np.arange(len(t.inner)) + 1
        source.append(row * (width + 1) + place[t.parent])
        token.append(t.token)
    edges = (torch.from_numpy(np.concatenate(a)).to(device) for a in (source, token))
    steps = log_probs(prefix.model, states.flatten(0, 1), *edges).cpu().numpy()
    cuts = np.cumsum([len(t.token) for t in trees])[:-1]
    return [t.totals(s) for t, s in zip(trees, np.split(steps, cuts), strict=True)]


def naive_scores(
    model: IloraModel,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[np.ndarray]],
    gate: Tensor,
    hybrid: bool,
) -> list[np.ndarray]:
    """What `tree_scores` computes, one whole prompt-with-title text at a time: slow, needs no cache.

    Args:
        gate: [B, K], a row per prompt.
    """
    out = []
    for row, (prompt, titles) in enumerate(zip(prompts, answers, strict=True)):
        scores = []
        for title in titles:
            text = Example(np.concatenate([prompt.ids, title]), prompt.items, prompt.prefix, len(prompt.ids))
            batch = collate([text]).to(model.device)
            with model.gates.use(gate[row : row + 1]):
                states = model.states(batch, hybrid)
                scores.append(-float(answer_losses(model.llm, states, batch.labels).double().sum()))
        out.append(np.array(scores))
    return out


def require_tree_support(context: Context, ranking: str) -> None:
    """Raise UserError for an LLM that cannot write, or that scores a tree of titles differently from each title alone.

    The second is measured once per model, on the longest of some prompts: recurrent layers, positions that
    come from the mask (ALiBi) or windows that the configuration does not name would give other likelihoods.
    """
    model = context.model
    if model.bidirectional:
        raise UserError(
            f"teacher.export.ranking={ranking} with a bidirectional LLM", "hidden", "teacher.export.ranking"
        )
    attention = getattr(model.llm.get_base_model().config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager", None):
        raise UserError(
            f"teacher.llm.attention={attention} with teacher.export.ranking={ranking}",
            "sdpa or eager: flash attention has no mask for trees",
            "teacher.llm.attention",
        )
    if not model.supports_trees:
        _measure(context, ranking)
        model.supports_trees = True


@torch.no_grad()
def _measure(context: Context, ranking: str) -> None:
    model, source = context.model, context.source
    ids = np.asarray(source.data.splits["train"])[-_CHOICE:]
    examples = [source.builder.build(h) for h in source.data.histories(ids)]
    longest = int(np.argmax([len(e.ids) for e in examples]))
    titles = sorted(source.builder.answers[1:], key=len)
    # The shortest, a middling and the longest; siblings that see each other would change all of them.
    answers = [titles[0], titles[len(titles) // 2], titles[-1]]
    room = source.builder.context - len(examples[longest].ids)
    answers = [a for a in answers if len(a) <= room]
    if not answers:
        return  # `fits` refuses these prompts with the two lengths
    prompts = [examples[longest]]
    gate = model.gate(
        source.encoder.h_seq(source.data.histories(ids[longest : longest + 1])).to(model.device)
    )
    expected = naive_scores(model, prompts, [answers], gate, context.hybrid)[0]
    try:
        with model.gates.use(gate):
            prefix = SharedPrefix(model, collate(prompts).to(model.device), context.hybrid)
            found = tree_scores(prefix, [TitleTree.of(answers)])[0]
    except (AttributeError, IndexError, TypeError, ValueError) as e:
        what = f"cannot read a tree of titles ({type(e).__name__}: {str(e)[:120]})"
        raise _refusal(model, ranking, what) from e
    full = next(model.llm.parameters()).dtype == torch.float32
    off = float((np.abs(found - expected) / [len(a) for a in answers]).max())
    if not off <= (_ROUNDING if full else _ROUNDING_HALF):
        what = f"scores a tree of titles differently from each title alone (by {off:.3g} per token)"
        raise _refusal(model, ranking, what)


def _refusal(model: IloraModel, ranking: str, what: str) -> UserError:
    kind = model.llm.get_base_model().config.model_type
    return UserError(
        f"teacher.export.ranking={ranking}: the LLM ({kind}) {what}",
        "hidden, or another LLM",
        "teacher.export.ranking",
    )
