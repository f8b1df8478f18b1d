"""iLoRA's evaluation protocol: which of few candidates the teacher names, by what it writes and by likelihood.

generation    greedy decoding behind the evaluation's prompt with the candidates listed; the answer's first
              line is matched against their titles (`match_title`)
likelihood    the candidate whose title has the highest log-probability behind the same prompt; always valid
item_scores   the candidate with the best score of the item objective; always valid

Every prompt is read once: its KV cache serves the tree of titles and the decoding. Padding stands on the right
there and is never seen, with every token at its own position, so a row's result is that of the row alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from src.core.candidates import CandidateSet, Choices, Written, normal_title
from src.teacher.prompts import PLACEHOLDER, Example
from src.teacher.ranking.base import Context, prefixes
from src.teacher.ranking.beams import write_texts
from src.teacher.ranking.hidden import catalogue_scores, item_vectors
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import TitleTree, require_tree_support, tree_scores

_SHOWN = 8  # generated answers kept for people
_TAIL = 400  # characters of their prompts
_KEY = "teacher.prompt"


def by_language(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    """The choices of a teacher trained with the `lm` objective: `generation` and `likelihood`.

    A teacher that never saw a candidate list is asked without one, where only likelihood makes sense.

    Raises:
        UserError: an LLM that cannot do this, a prompt that leaves no room for a title, scores that are not finite.
    """
    require_tree_support(context, "rerank")
    return (_listed if context.source.builder.config.candidates else _unlisted)(context, candidates)


@torch.no_grad()
def by_item_scores(context: Context, candidates: CandidateSet) -> Choices:
    """The choices of a teacher trained with the `item` objective."""
    hits = np.empty(candidates.items.shape[:2], bool)
    for rows, log_p in catalogue_scores(context, candidates.sample_ids, item_vectors(context)):
        hits[:, rows] = candidates.hits(log_p.cpu().numpy(), rows)
    return Choices(hits, np.ones_like(hits))


@torch.no_grad()
def _listed(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    builder, ids = context.source.builder, candidates.sample_ids
    answers, limit = builder.answers, max(map(len, builder.answers))
    histories = context.source.data.histories(ids)
    values = np.empty(candidates.items.shape)
    hits, valid = (np.zeros(values.shape[:2], bool) for _ in range(2))
    written: dict[int, Written] = {}
    for draw, listed in enumerate(candidates.items):
        pairs = zip(histories, listed.astype(np.int64), strict=True)
        examples = [builder.build(h, candidates=c, reserve=limit) for h, c in pairs]
        nodes = max(sum(len(answers[i]) for i in row) for row in listed)
        for rows, prefix in prefixes(context, ids, examples, limit, nodes, _KEY):
            trees = [TitleTree.of([answers[i] for i in listed[r]]) for r in rows]
            values[draw, rows] = tree_scores(prefix, trees)
            for row, text in zip(rows.tolist(), _texts(context, prefix, len(rows)), strict=True):
                chosen = match_title(text, [builder.titles[i] for i in listed[row]])
                valid[draw, row] = chosen is not None
                hits[draw, row] = chosen is not None and listed[row, chosen] == candidates.targets[row]
                if draw == 0 and row < _SHOWN:
                    name = None if chosen is None else builder.titles[listed[row, chosen]]
                    written[row] = _written(context, ids[row], examples[row], text, name)
    likely = candidates.best(values, np.arange(len(ids)))
    return {
        "generation": Choices(hits, valid, tuple(written[r] for r in sorted(written))),
        "likelihood": Choices(likely, np.ones_like(likely)),
    }


@torch.no_grad()
def _unlisted(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    """All draws of a sample share its prompt: the union of their candidates is one tree."""
    builder, ids = context.source.builder, candidates.sample_ids
    answers, limit = builder.answers, max(map(len, builder.answers))
    examples = [builder.build(h, reserve=limit) for h in context.source.data.histories(ids)]
    union = [np.unique(candidates.items[:, row], return_inverse=True) for row in range(len(ids))]
    nodes = max(sum(len(answers[i]) for i in items) for items, _ in union)
    values = np.empty(candidates.items.shape)
    for rows, prefix in prefixes(context, ids, examples, limit, nodes, _KEY):
        trees = [TitleTree.of([answers[i] for i in union[r][0]]) for r in rows]
        for row, found in zip(rows, tree_scores(prefix, trees), strict=True):
            values[:, row] = found[union[row][1].reshape(values[:, row].shape)]
    likely = candidates.best(values, np.arange(len(ids)))
    return {"likelihood": Choices(likely, np.ones_like(likely))}


@torch.no_grad()
def write_answers(context: Context, sample_ids: np.ndarray) -> list[Written]:
    """What the teacher writes behind the evaluation's prompt of some samples, with candidates where it learned with
    them; nothing is matched (`chosen` is None).

    Args:
        context: with the model in eval mode.
    """
    require_tree_support(context, "generation")
    source, limit = context.source, max(map(len, context.source.builder.answers))
    examples = source.examples(sample_ids, None, False, source.builder.config.candidates, limit)
    texts = [""] * len(examples)
    for rows, prefix in prefixes(context, sample_ids, examples, limit, limit, _KEY):
        for row, text in zip(rows.tolist(), _texts(context, prefix, len(rows)), strict=True):
            texts[row] = text
    return [_written(context, *row, None) for row in zip(sample_ids, examples, texts, strict=True)]


def _texts(context: Context, prefix: SharedPrefix, rows: int) -> list[str]:
    """The greedily decoded answers."""
    builder = context.source.builder
    written = write_texts(prefix, rows, max(map(len, builder.answers)), builder.stop_ids)
    return [builder.tokens.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]


def _written(context: Context, sample: int, prompt: Example, text: str, chosen: str | None) -> Written:
    """An answer with the end of its prompt as text, placeholders left out."""
    source, words = context.source, [i for i in prompt.ids.tolist() if i != PLACEHOLDER]
    shown = source.builder.tokens.tokenizer.decode(words, skip_special_tokens=True)
    shown = shown if len(shown) <= _TAIL else "…" + shown[-_TAIL:]
    target = source.builder.titles[source.data.targets(np.array([sample]))[0]]
    return Written(int(sample), shown, text, chosen, target)


def match_title(text: str, titles: Sequence[str]) -> int | None:
    """Index of the one title that the first line of `text` names; None where it names none, or more than one.

    A line that equals a title names it. Otherwise every title that occurs in it counts, unless it overlaps a longer
    one that occurs. (The official code counts all of them, so that "Alien" makes the right answer "Aliens" invalid.)

    Args:
        titles: all different by `normal_title`; an empty one never counts.
    """
    line = normal_title(text.split("\n", 1)[0])
    names = [normal_title(t) for t in titles]
    if line and line in names:
        return names.index(line)
    places = [
        (len(name), found.start(), index)
        for index, name in enumerate(names)
        if name
        for found in re.finditer(f"(?={re.escape(name)})", line)
    ]
    counted: list[tuple[int, int, int]] = []
    for length, start, index in sorted(places, reverse=True):
        if all(start + length <= s or s + n <= start or n == length for n, s, _ in counted):
            counted.append((length, start, index))
    named = {index for *_, index in counted}
    return named.pop() if len(named) == 1 else None
