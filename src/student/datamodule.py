"""Samples as tensors on the training device, prepared once; batches cost one gather per column.

Letters: B samples of a batch, L columns of a history, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.seed import numpy_stream
from src.core.selection import Selection

_POOL = 16  # batches of windows that are sorted by length together: less padding


@dataclass(frozen=True)
class SampleBatch:
    """Some samples on the device.

    Attributes:
        sample_ids: [B] int64.
        rows: [B] int64 positions within `Samples`: index for tensors prepared in its order.
        inputs: item ids that the student encodes, int64, newest last, 0 = padding: the histories [B, L], or windows
            [W, L] of several samples each.
        target: [B] int64 item ids.
        weight: [B] float32.
        places: [B] int64 where each sample's newest item stands in `inputs.flatten()`; None: at each row's end.
    """

    sample_ids: Tensor
    rows: Tensor
    inputs: Tensor
    target: Tensor
    weight: Tensor
    places: Tensor | None = None

    @cached_property
    def history(self) -> Tensor:
        """[B, L] int64 item ids before each target, newest last, 0 = padding."""
        if self.places is None:
            return self.inputs
        columns = self.inputs.shape[1]
        window, newest = self.places // columns, self.places % columns
        source = newest[:, None] + torch.arange(1 - columns, 1, device=self.inputs.device)
        return self.inputs[window[:, None], source.clamp(min=0)].masked_fill(source < 0, 0)

    def forbidden(self) -> Tensor:
        """[R, M] items that are no negatives of the samples in each row of `inputs`: all items there, and the targets."""
        if self.places is None:
            return torch.cat([self.inputs, self.target.unsqueeze(1)], dim=1)
        targets = torch.zeros_like(self.inputs)
        targets.view(-1)[self.places] = self.target
        return torch.cat([self.inputs, targets], dim=1)

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
        self._prepare(data, ids)
        self.target = torch.from_numpy(data.targets(ids).astype(np.int32)).to(device)
        self.weight = torch.from_numpy(weights).to(device)

    def _prepare(self, data: InteractionData, ids: np.ndarray) -> None:
        self.history = torch.from_numpy(data.histories(ids)).to(self.device)

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

    def steps(self, batch_size: int) -> int:
        """Batches of `shuffled`."""
        return -(-len(self) // batch_size)


class SequenceSamples(Samples):
    """The same samples, encoded by sequence: a causal student reads a user's log once for all targets in it.

    Up to L items of a log are one window, which ends at the last item that any chosen sample has in its history. A
    longer log has windows of L that overlap by half; a sample belongs to the one with the longest history of it, at
    least L / 2 items. So `history` is what the window shows: that of `Samples` wherever the log fits into a window.
    In `shuffled` and `steps` a batch is so many windows of about one length, with all their samples.
    """

    def _prepare(self, data: InteractionData, ids: np.ndarray) -> None:
        length = data.max_history
        start = data.offsets[data.users_of(ids)]
        newest = data.rows(ids) - 1  # the row of each sample's newest history item
        users, of = np.unique(start, return_inverse=True)
        last = np.zeros(len(users), np.int64)
        np.maximum.at(last, of, newest)
        last, stride = last[of], -(-length // 2)
        end = np.maximum(last - (last - newest) // stride * stride, np.minimum(start + length - 1, last))
        ends, first, window = np.unique(end, return_index=True, return_inverse=True)
        rows = ends[:, None] - np.arange(length - 1, -1, -1)
        own = rows >= start[first][:, None]
        windows = np.where(own, data.items[np.maximum(rows, 0)], 0).astype(np.int32)
        self.windows = torch.from_numpy(windows).to(self.device)
        self._window = torch.from_numpy(window).to(self.device)
        self._column = torch.from_numpy(newest - end + length - 1).to(self.device)
        self._order = np.argsort(window, kind="stable")  # samples by window
        self._bounds = np.searchsorted(window[self._order], np.arange(len(ends) + 1))
        self._lengths = own.sum(axis=1)

    def batch(self, rows: Tensor, columns: int | None = None) -> SampleBatch:
        """As in `Samples`; `columns` newest ones of the windows hold all their items (default: L)."""
        chosen, of = torch.unique(self._window[rows], return_inverse=True)
        padding = 0 if columns is None else self.windows.shape[1] - columns
        windows = self.windows[chosen, padding:].long()
        places = of * windows.shape[1] + self._column[rows] - padding
        own = (self.sample_ids[rows], rows, windows, self.target[rows].long(), self.weight[rows])
        return SampleBatch(*own, places)

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> Iterator[SampleBatch]:
        random = numpy_stream(seed, "order", epoch)
        order, pool = random.permutation(len(self.windows)), _POOL * batch_size
        alike = [np.sort(order[i : i + pool]) for i in range(0, len(order), pool)]
        alike = [part[np.argsort(self._lengths[part], kind="stable")] for part in alike]
        batches = [part[i : i + batch_size] for part in alike for i in range(0, len(part), batch_size)]
        for chosen in (batches[i] for i in random.permutation(len(batches))):
            rows = np.concatenate([self._order[self._bounds[w] : self._bounds[w + 1]] for w in chosen])
            yield self.batch(torch.from_numpy(rows).to(self.device), int(self._lengths[chosen].max()))

    def steps(self, batch_size: int) -> int:
        return -(-len(self.windows) // batch_size)
