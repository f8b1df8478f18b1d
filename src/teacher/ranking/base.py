"""The one interface of the ranking methods, and what the methods that read titles share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from src.core.errors import UserError
from src.core.logging import progress
from src.core.signals import check_stop
from src.core.teacher_store import TeacherRows
from src.teacher.prompts import Example, collate
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.samples import Context

_MASK_AT_ONCE = 16_000_000  # elements of a [B, F, T + F] attention mask


class Ranker(Protocol):
    """A ranking method. A sample's rows never depend on which samples are asked for with it."""

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        """The k best items of every sample, rows in the order of `sample_ids`."""


@torch.no_grad()
def prefixes(
    context: Context, sample_ids: np.ndarray, examples: Sequence[Example], room: int, nodes: int, key: str
) -> Iterator[tuple[np.ndarray, SharedPrefix]]:
    """Prefilled prompts of like length, as many at once as batch size and memory allow; their gates are set.

    Args:
        examples: a prompt per sample.
        room: tokens of the longest continuation.
        nodes: tokens of continuations that are read in one forward pass.
        key: the setting to change where a prompt leaves no such room.

    Yields:
        (positions [b] among `sample_ids`, their prompts in a cache).

    Raises:
        UserError: a prompt with its continuation is longer than the LLM's context.
    """
    model, limit = context.model, context.source.builder.context
    lengths = np.array([len(e.ids) for e in examples])
    longest = int(lengths.max())
    if longest + room > limit:
        found = f"a prompt of {longest} tokens and a title of {room}"
        raise UserError(
            found, f"at most {limit}, the LLM's context", f"{key}, or an LLM with a longer context"
        )
    h_seq = context.source.encoder.h_seq(context.source.data.histories(sample_ids))
    order = np.argsort(lengths, kind="stable")
    size = max(1, min(context.export.batch_size, _MASK_AT_ONCE // max(1, nodes * (longest + nodes))))
    # Progress within a shard: with a large LLM a shard takes long.
    for i in progress(range(0, len(order), size), f"ranking {len(order)} samples"):
        rows = order[i : i + size]
        with model.gates.use(model.gate(h_seq[rows].to(model.device))):
            batch = collate([examples[r] for r in rows]).to(model.device)
            yield rows, SharedPrefix(model, batch, context.hybrid)
        check_stop()
