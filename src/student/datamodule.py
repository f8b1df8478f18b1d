"""Samples as tensors on the training device, prepared once; batches cost one gather per column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.seed import numpy_stream
from src.core.selection import Selection


@dataclass(frozen=True)
class SampleBatch:
    """Some samples on the device.

    Attributes:
        sample_ids: [B] int64.
        rows: [B] int64 positions within `Samples`: index for tensors prepared in its order.
        history: [B, L] int64 item ids, newest last, 0 = padding.
        target: [B] int64 item ids.
        weight: [B] float32.
    """

    sample_ids: Tensor
    rows: Tensor
    history: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.target)


class Samples:
    """Histories, targets and weights of chosen samples as int32 / float32 tensors on a device.

    Args:
        data: the dataset.
        selection: the samples; their order is kept (row i of every tensor is `sample_ids[i]`).
        device: where the tensors lie.

    Raises:
        UserError: no samples, one twice, an unknown one, one without history, or an unusable weight.
    """

    def __init__(self, data: InteractionData, selection: Selection, device: torch.device):
        ids = np.array(selection.sample_ids, np.int64)
        if len(ids) == 0:
            raise UserError("no samples are selected", "at least one", "active, or dataset.split_ratio")
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) != len(ids):
            raise UserError(
                f"sample {unique[counts > 1][0]} is selected {counts.max()} times", "once", "active"
            )
        if unique[0] < 0 or unique[-1] >= len(data.items):
            raise UserError(f"sample ids {unique[0]}..{unique[-1]}", f"0..{len(data.items) - 1}", "active")
        lengths = data.history_lengths(ids)
        if lengths.min() < 1:
            raise UserError(
                f"sample {ids[lengths < 1][0]} has an empty history",
                "at least one item",
                "dataset.min_history",
            )
        weights = np.ones(len(ids), np.float32) if selection.weights is None else selection.weights
        weights = np.array(weights, np.float32)
        if weights.shape != ids.shape or not (
            np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
        ):
            raise UserError(
                f"sample weights of shape {weights.shape}, smallest {weights.min(initial=np.inf)}",
                f"{ids.shape} finite non-negative values, not all zero",
                "active",
            )
        self.selection = Selection(ids, weights)
        self.device = device
        self.sample_ids = torch.from_numpy(ids).to(device)
        self.history = torch.from_numpy(data.histories(ids)).to(device)
        self.target = torch.from_numpy(data.targets(ids).astype(np.int32)).to(device)
        self.weight = torch.from_numpy(weights).to(device)

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, rows: Tensor) -> SampleBatch:
        """The samples at `rows` [B] int64 (on the device)."""
        return SampleBatch(
            self.sample_ids[rows],
            rows,
            self.history[rows].long(),
            self.target[rows].long(),
            self.weight[rows],
        )

    def in_order(self, batch_size: int) -> Iterator[SampleBatch]:
        """All samples in their order, the last batch shorter."""
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self)), device=self.device))

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> Iterator[SampleBatch]:
        """One pass in an order that `seed` and `epoch` determine; the tail is kept."""
        order = numpy_stream(seed, "order", epoch).permutation(len(self))
        for rows in torch.from_numpy(order).to(self.device).split(batch_size):
            yield self.batch(rows)
