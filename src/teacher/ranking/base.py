"""The one interface of the ranking methods, and what the methods that read titles share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.logging import progress
from src.core.signals import check_stop
from src.core.teacher_store import TeacherRows
from src.teacher.classical import top_k
from src.teacher.config import IloraExportConfig
from src.teacher.diagnostics import check_adapter
from src.teacher.ilora_model import IloraModel
from src.teacher.prompts import Example, collate
from src.teacher.samples import SampleSource

SCORE_KIND = {
    "hidden": "log_likelihood",
    "rerank": "log_likelihood",
    "exact": "log_likelihood",
    "trie": "log_likelihood",
    "grounding": "distance",
}
_MASK_AT_ONCE = 16_000_000  # elements of a [B, F, T + F] attention mask


@dataclass(frozen=True)
class Context:
    """What a ranking method works with.

    Attributes:
        model, source: the trained teacher and its samples.
        export: `teacher.export`.
        hybrid: placeholders carry item vectors.
        seed: of the order in which candidates are listed.
    """

    model: IloraModel
    source: SampleSource
    export: IloraExportConfig
    hybrid: bool
    seed: int


class Ranker(Protocol):
    """A ranking method. A sample's rows never depend on which samples are asked for with it."""

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        """The k best items of every sample, rows in the order of `sample_ids`."""


@dataclass(frozen=True)
class Prompts:
    """Some samples' prompts in one batch.

    Attributes:
        rows: [b] their positions among the samples asked for.
        examples: the prompts.
        gate: [b, K].
    """

    rows: np.ndarray
    examples: list[Example]
    gate: Tensor


@torch.no_grad()
def prompt_batches(
    context: Context, sample_ids: np.ndarray, examples: list[Example], nodes: int
) -> Iterator[Prompts]:
    """Prompts of like length together, as many as batch size and memory allow.

    Args:
        examples: a prompt per sample.
        nodes: tokens of continuations that are read in one forward pass.
    """
    model, histories = context.model, context.source.data.histories(sample_ids)
    h_seq = context.source.encoder.h_seq(histories)
    lengths = np.array([len(e.ids) for e in examples])
    order = np.argsort(lengths, kind="stable")
    rows_at_once = _MASK_AT_ONCE // max(1, nodes * (int(lengths.max()) + nodes))
    size = max(1, min(context.export.batch_size, rows_at_once))
    # Of a shard, or what is asked for; a shard of a large LLM takes long.
    for i in progress(range(0, len(order), size), f"ranking {len(order)} samples"):
        rows = order[i : i + size]
        yield Prompts(rows, [examples[r] for r in rows], model.gate(h_seq[rows].to(model.device)))
        check_stop()


def fits(context: Context, examples: list[Example], continuation: int, key: str) -> None:
    """Raise UserError unless every prompt leaves room for `continuation` tokens."""
    longest = max(len(e.ids) for e in examples)
    if longest + continuation > context.source.builder.context:
        raise UserError(
            f"a prompt of {longest} tokens and a title of {continuation}",
            f"at most {context.source.builder.context}, the LLM's context",
            f"{key}, or an LLM with a longer context",
        )


def best_rows(
    sample_ids: np.ndarray,
    items: list[np.ndarray],
    values: list[np.ndarray],
    target_values: np.ndarray,
    k: int,
    key: str,
) -> TeacherRows:
    """The k best of every sample's scored items; equal scores by item id.

    Args:
        items, values: per sample the item ids and their scores, larger is better.
        key: the setting that decides how many items are scored.

    Raises:
        UserError: fewer than k items were scored, or a score is not finite.
    """
    rankings, scores = np.empty((len(items), k), np.int32), np.empty((len(items), k), np.float32)
    for row, (ids, exact) in enumerate(zip(items, values, strict=True)):
        if len(ids) < k:
            raise UserError(
                f"teacher.export.top_k={k} and {len(ids)} items scored for sample {sample_ids[row]}",
                "top_k <= the number of scored items",
                f"{key} or teacher.export.top_k",
            )
        value = exact.astype(np.float32)
        if not np.isfinite(value).all():
            raise not_finite(sample_ids[row])
        by_id = np.argsort(ids, kind="stable")
        best = by_id[top_k(value[by_id][None], k)[0]]
        rankings[row], scores[row] = ids[best], value[best]
    return TeacherRows(
        np.asarray(sample_ids, np.int64), rankings, scores, np.asarray(target_values, np.float32)
    )


def not_finite(sample_id: int) -> UserError:
    return UserError(
        f"the teacher's scores of sample {sample_id} are not finite",
        "finite scores",
        "teacher.train.lr or teacher.train.precision",
    )


def check_context(context: Context, sample_ids: np.ndarray) -> None:
    """`watch.check_adapter` on the first sample's prompt."""
    source, device = context.source, context.model.device
    history = source.data.histories(sample_ids[:1])
    batch = collate([source.builder.build(history[0])]).to(device)
    check_adapter(context.model, batch, source.encoder.h_seq(history).to(device), context.hybrid)
