"""Whether an LLM can read titles behind a shared prompt at all: asked once, and measured, before it ranks."""

from __future__ import annotations

import numpy as np
import torch

from src.core.errors import UserError
from src.teacher.ilora_model import IloraModel
from src.teacher.prompts import collate
from src.teacher.ranking.base import Context
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.tree import TitleTree, naive_scores, title_tokens, tree_scores

_CHOICE = 512  # samples of which the longest prompt is read
_ROUNDING = 1e-3  # largest difference of log-likelihoods per token of a title
_ROUNDING_HALF = 0.1  # of weights in half precision


def refuse_unfit(context: Context, ranking: str) -> None:
    """Raise UserError for an LLM that cannot write, or that reads a tree of titles otherwise than each alone.

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
    if not model.reads_trees:
        _measure(context, ranking)
        model.reads_trees = True


@torch.no_grad()
def _measure(context: Context, ranking: str) -> None:
    model, source = context.model, context.source
    ids = np.asarray(source.data.splits["train"])[-_CHOICE:]
    examples = [source.builder.build(h) for h in source.data.histories(ids)]
    longest = int(np.argmax([len(e.ids) for e in examples]))
    titles = sorted(title_tokens(source.builder)[1:], key=len)
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
        what = f"reads a tree of titles otherwise than each alone (log-likelihoods differ by {off:.3g} per token)"
        raise _refusal(model, ranking, what)


def _refusal(model: IloraModel, ranking: str, what: str) -> UserError:
    kind = model.llm.get_base_model().config.model_type
    return UserError(
        f"teacher.export.ranking={ranking}: the LLM ({kind}) {what}",
        "hidden, or another LLM",
        "teacher.export.ranking",
    )
