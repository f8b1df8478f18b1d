"""Batches: rows belong together, an epoch is one pass, its order is a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import torch

from src.core.selection import Selection
from src.student.datamodule import Samples

CPU = torch.device("cpu")


def samples_of(data, weighted=True):
    ids = data.splits["train"][::-1][:50]
    return Samples(data, Selection(ids, np.arange(50, dtype=np.float32) if weighted else None), CPU), ids


def test_a_pass_holds_every_sample_once_with_its_own_columns(small_data):
    samples, ids = samples_of(small_data)
    batches = list(samples.shuffled(16, seed=1, epoch=0))
    assert [len(b) for b in batches] == [16, 16, 16, 2]
    seen = torch.cat([b.sample_ids for b in batches]).numpy()
    assert not np.array_equal(seen, ids)
    np.testing.assert_array_equal(np.sort(seen), np.sort(ids))
    for batch in batches:
        own = batch.sample_ids.numpy()
        np.testing.assert_array_equal(ids[batch.rows], own)
        np.testing.assert_array_equal(batch.history, small_data.histories(own))
        np.testing.assert_array_equal(batch.target, small_data.targets(own))
        np.testing.assert_array_equal(batch.weight, batch.rows)


def test_order_depends_on_seed_and_epoch_only(small_data):
    def order(seed, epoch):
        samples, _ = samples_of(small_data, weighted=False)
        return torch.cat([b.sample_ids for b in samples.shuffled(7, seed, epoch)]).tolist()

    assert order(1, 3) == order(1, 3)
    assert len({tuple(order(*key)) for key in ((1, 3), (1, 4), (2, 3))}) == 3


def test_in_order_keeps_the_order_and_the_tail(small_data):
    samples, ids = samples_of(small_data)
    np.testing.assert_array_equal(torch.cat([b.sample_ids for b in samples.in_order(16)]), ids)
