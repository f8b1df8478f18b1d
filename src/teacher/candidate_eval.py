"""iLoRA's evaluation protocol: which of few candidates the teacher names, by what it writes and by likelihood.

generation    greedy decoding behind the evaluation's prompt with the candidates listed; the answer's first
              line is matched against their titles (`matching`)
likelihood    the candidate whose title has the highest log-probability behind the same prompt; always valid
item_scores   the candidate with the best score of the item objective; always valid

Every prompt is read once: its KV cache serves the tree of titles and the decoding. Padding stands on the right
there and is never seen, with every token at its own position, so a row's result is that of the row alone.
"""

from __future__ import annotations

import numpy as np
import torch

from src.core.candidates import CandidateSet, Choices, Written
from src.teacher.matching import match_title
from src.teacher.prompts import PLACEHOLDER, Example, collate
from src.teacher.ranking.base import Context, fits, prompt_batches
from src.teacher.ranking.beams import BeamState, Front
from src.teacher.ranking.hidden import catalogue_scores, item_vectors
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import TitleTree, title_tokens, tree_scores
from src.teacher.ranking.tree_support import refuse_unfit

_SHOWN = 8  # generated answers kept for people
_TAIL = 400  # characters of their prompts


def by_language(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    """The choices of a teacher trained with the `lm` objective: `generation` and `likelihood`.

    A teacher that never saw a candidate list is asked without one, where only likelihood makes sense.

    Raises:
        UserError: an LLM that cannot do this, a prompt that leaves no room for a title, scores that are not finite.
    """
    return (_listed if context.source.builder.config.candidates else _unlisted)(context, candidates)


@torch.no_grad()
def by_item_scores(context: Context, candidates: CandidateSet) -> Choices:
    """The choices of a teacher trained with the `item` objective."""
    model, source = context.model, context.source
    how = {"hybrid": context.hybrid, "batch_size": context.export.batch_size}
    vectors = item_vectors(model, source, context.hybrid)
    hits = np.empty(candidates.items.shape[:2], bool)
    for rows, log_p in catalogue_scores(model, source, candidates.sample_ids, vectors, **how):
        hits[:, rows] = candidates.hits(log_p.cpu().numpy(), rows)
    return Choices(hits, np.ones_like(hits))


@torch.no_grad()
def _listed(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    model, builder, ids = context.model, context.source.builder, candidates.sample_ids
    refuse_unfit(context, "rerank")
    answers = title_tokens(builder)
    limit = max(map(len, answers))
    tokenizer = builder.tokens.tokenizer
    histories = context.source.data.histories(ids)
    values = np.empty(candidates.items.shape)
    hits, valid = (np.zeros(values.shape[:2], bool) for _ in range(2))
    written: dict[int, Written] = {}
    for draw, shown in enumerate(candidates.items):
        examples = [
            builder.build(h, candidates=c.astype(np.int64), reserve=limit)
            for h, c in zip(histories, shown, strict=True)
        ]
        fits(context, examples, limit, "teacher.prompt")
        nodes = max(sum(len(answers[i]) for i in row) for row in shown)
        for batch in prompt_batches(context, ids, examples, nodes):
            trees = [TitleTree.of([answers[i] for i in shown[r]]) for r in batch.rows]
            with model.gates.use(batch.gate):
                prefix = SharedPrefix(model, collate(batch.examples).to(model.device), context.hybrid)
                values[draw, batch.rows] = tree_scores(prefix, trees)
                texts = greedy(prefix, len(batch.rows), limit, stop_tokens(context))
            for row, tokens in zip(batch.rows.tolist(), texts, strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                chosen = match_title(text, [builder.titles[i] for i in shown[row]])
                valid[draw, row] = chosen is not None
                hits[draw, row] = chosen is not None and shown[row, chosen] == candidates.targets[row]
                if draw == 0 and row < _SHOWN:
                    name = None if chosen is None else builder.titles[shown[row, chosen]]
                    target = builder.titles[candidates.targets[row]]
                    prompt = _readable(tokenizer, examples[row])
                    written[row] = Written(int(ids[row]), prompt, text, name, target)
    likely = candidates.best(values, np.arange(len(ids)))
    return {
        "generation": Choices(hits, valid, tuple(written[r] for r in sorted(written))),
        "likelihood": Choices(likely, np.ones_like(likely)),
    }


@torch.no_grad()
def _unlisted(context: Context, candidates: CandidateSet) -> dict[str, Choices]:
    """All draws of a sample share its prompt: the union of their candidates is one tree."""
    model, builder, ids = context.model, context.source.builder, candidates.sample_ids
    refuse_unfit(context, "rerank")
    answers = title_tokens(builder)
    limit = max(map(len, answers))
    examples = [builder.build(h, reserve=limit) for h in context.source.data.histories(ids)]
    fits(context, examples, limit, "teacher.prompt")
    union = [np.unique(candidates.items[:, row], return_inverse=True) for row in range(len(ids))]
    nodes = max(sum(len(answers[i]) for i in items) for items, _ in union)
    values = np.empty(candidates.items.shape)
    for batch in prompt_batches(context, ids, examples, nodes):
        trees = [TitleTree.of([answers[i] for i in union[r][0]]) for r in batch.rows]
        with model.gates.use(batch.gate):
            prefix = SharedPrefix(model, collate(batch.examples).to(model.device), context.hybrid)
            for row, found in zip(batch.rows, tree_scores(prefix, trees), strict=True):
                values[:, row] = found[union[row][1].reshape(values[:, row].shape)]
    likely = candidates.best(values, np.arange(len(ids)))
    return {"likelihood": Choices(likely, np.ones_like(likely))}


@torch.no_grad()
def write_answers(context: Context, sample_ids: np.ndarray) -> tuple[Written, ...]:
    """What the teacher writes behind the evaluation's prompt of some samples, with candidates where it learned with
    them; nothing is matched (`chosen` is None).

    Args:
        context: with the model in eval mode.
    """
    model, source, builder = context.model, context.source, context.source.builder
    refuse_unfit(context, "generation")
    tokenizer, limit = builder.tokens.tokenizer, max(map(len, title_tokens(builder)))
    histories, targets = source.data.histories(sample_ids), source.data.targets(sample_ids)
    examples = []
    for sample, history, target in zip(sample_ids.tolist(), histories, targets.tolist(), strict=True):
        count = builder.config.candidates
        shown = builder.candidates(sample, history, target, count) if count else None
        examples.append(builder.build(history, candidates=shown, reserve=limit))
    gate = model.gate(source.encoder.h_seq(histories).to(model.device))
    with model.gates.use(gate):
        prefix = SharedPrefix(model, collate(examples).to(model.device), context.hybrid)
        texts = greedy(prefix, len(examples), limit, stop_tokens(context))
    return tuple(
        Written(
            int(sample),
            _readable(tokenizer, example),
            tokenizer.decode(tokens, skip_special_tokens=True),
            None,
            builder.titles[target],
        )
        for sample, example, tokens, target in zip(sample_ids, examples, texts, targets, strict=True)
    )


def stop_tokens(context: Context) -> set[int]:
    """Tokens that end an answer: the template's first end token (a newline) and the tokenizer's own."""
    builder = context.source.builder
    eos = builder.tokens.tokenizer.eos_token_id
    return {int(t) for t in builder.end_ids[:1]} | ({eos} if eos is not None else set())


def greedy(prefix: SharedPrefix, rows: int, limit: int, stop: set[int]) -> list[list[int]]:
    """The likeliest next token again and again, for every prompt of `prefix`: token ids without the stop token.

    Args:
        limit: tokens at most.
    """
    state, none = BeamState(prefix), np.empty(0, np.int64)
    texts: list[list[int]] = [[] for _ in range(rows)]
    alive = [1] * rows
    for step in range(limit):
        fronts = []
        for row, (_, likeliest, _) in enumerate(state.best_tokens(alive, 1)):
            ends = bool(alive[row]) and int(likeliest[0]) in stop
            token = none if ends else likeliest
            alive[row] = len(token)
            texts[row] += token.tolist()
            fronts.append(Front(np.zeros(len(token), np.int64), token))
        if not any(alive) or step + 1 == limit:
            break
        state.extend(fronts)
    return texts


def _readable(tokenizer, prompt: Example) -> str:
    """The end of a prompt as text, placeholders left out."""
    text = tokenizer.decode([i for i in prompt.ids.tolist() if i != PLACEHOLDER], skip_special_tokens=True)
    return text if len(text) <= _TAIL else "…" + text[-_TAIL:]
