"""Split protocols, and the checks that every run makes against leaks.

A sample is a row of the canonical table with at least `min_history` earlier rows of its user; a
protocol says which samples are train, valid and test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from src.core.errors import UserError

if TYPE_CHECKING:
    from src.core.data_utils import DatasetConfig

Splits = dict[str, np.ndarray]


def _positions(offsets: np.ndarray) -> np.ndarray:
    """[M] position of every row within its user's log, from 0."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def global_time(times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    """All samples in the order of their targets' time, cut by `split_ratio` (BIGRec, DLLM2Rec).

    Equal seconds keep the order of the canonical table, so of two samples of one user in the same
    second the earlier one never lands in a later split.
    """
    samples = np.flatnonzero(_positions(offsets) >= config.min_history)
    samples = samples[np.argsort(times[samples], kind="stable")]
    # Rounded before the cut: 0.1 + 0.8 is not 0.9 in floating point.
    first, second = (int(round(len(samples) * share, 6)) for share in np.cumsum(config.split_ratio)[:2])
    return {"train": samples[:first], "valid": samples[first:second], "test": samples[second:]}


def leave_one_out(times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    """Each user's last sample is test, the one before it valid, the others train."""
    position = _positions(offsets)
    from_end = np.repeat(np.diff(offsets), np.diff(offsets)) - 1 - position
    sample = position >= config.min_history
    return {
        "train": np.flatnonzero(sample & (from_end >= 2)),
        "valid": np.flatnonzero(sample & (from_end == 1)),
        "test": np.flatnonzero(sample & (from_end == 0)),
    }


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray, DatasetConfig], Splits]] = {
    "global_time": global_time,
    "leave_one_out": leave_one_out,
}


def split_samples(times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    """Sample ids (ascending) of each split.

    Raises:
        UserError: a split is empty.
    """
    splits = {
        name: np.sort(ids).astype(np.int64)
        for name, ids in PROTOCOLS[config.split](times, offsets, config).items()
    }
    for name, ids in splits.items():
        if len(ids) == 0:
            raise UserError(
                f"the {name} split of {config.name} is empty ({ {n: len(i) for n, i in splits.items()} })",
                "samples in every split",
                "dataset.split_ratio, dataset.min_history or dataset.min_rating",
            )
    return splits


def check_no_leaks(
    items: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    splits: Mapping[str, np.ndarray],
    config: DatasetConfig,
) -> None:
    """Raise UserError if a split lets a model see what it is tested on; every run calls this.

    Checked: sample ids are in range, unique and disjoint; rows of a user are in time order (so a
    history lies in the past); every sample has its history; no held-out target stands in the history
    of a training sample; for `global_time`, no target of an earlier split is later than one of a
    later split.
    """
    fix = f"the split protocol {config.split}, and delete the prepared dataset"
    rows = len(items)
    every = np.concatenate([np.asarray(ids) for ids in splits.values()])
    if len(every) and (every.min() < 0 or every.max() >= rows):
        raise UserError(f"sample ids {every.min()}..{every.max()}", f"rows 0..{rows - 1} of the table", fix)
    if len(np.unique(every)) != len(every):
        raise UserError("a sample stands in two splits, or twice in one", "disjoint splits", fix)
    step_back = np.flatnonzero(np.diff(times) < 0) + 1
    if not np.isin(step_back, offsets).all():
        raise UserError("a user's rows are not in time order", "a table sorted by user and time", fix)
    user_start = offsets[np.searchsorted(offsets, every, side="right") - 1]
    if len(every) and (every - user_start).min() < 1:
        raise UserError("a sample has no history", "at least one earlier interaction", fix)
    # The history of a sample is the rows before it: a held-out target leaks when a training sample of
    # the same user comes after it within reach of its history.
    train = np.sort(splits["train"])
    held_out = np.concatenate([splits["valid"], splits["test"]])
    last_seen = np.searchsorted(train, held_out, side="right")
    follower = train[np.minimum(last_seen, len(train) - 1)] if len(train) else held_out
    user_end = offsets[np.searchsorted(offsets, held_out, side="right")]
    seen = (last_seen < len(train)) & (follower < user_end) & (follower - held_out <= config.max_history)
    if seen.any():
        raise UserError(
            f"the held-out target of sample {held_out[seen][0]} stands in the history of training sample "
            f"{follower[seen][0]}",
            "held-out targets that no training sample sees",
            fix,
        )
    if config.split == "global_time":
        for earlier, later in (("train", "valid"), ("valid", "test")):
            if times[splits[earlier]].max() > times[splits[later]].min():
                raise UserError(
                    f"a {earlier} target at {times[splits[earlier]].max()} is later than a {later} target at "
                    f"{times[splits[later]].min()}",
                    "splits in time order",
                    fix,
                )
