"""Split protocols.

A sample is a row of the canonical table (users one after the other, each in time order) with at
least `min_history` earlier rows of its user; a protocol says which samples are train, valid, test.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from src.core.datasets.config import DatasetConfig
from src.core.datasets.times import parse_time
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.seed import numpy_stream

log = get_logger(__name__)

Splits = dict[str, np.ndarray]
NAMES = ("train", "valid", "test")


def eligible_rows(
    offsets: np.ndarray, config: DatasetConfig, target_allowed: np.ndarray | None = None
) -> np.ndarray:
    """Ascending rows that can be targets.

    Rows with `min_history` earlier ones; with `short_users=last` also the last row of a user who has
    none (BIGRec's rule for Amazon Games); of these, rows where `target_allowed` [M].
    """
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1], dtype=np.int32 if offsets[-1] < 2**31 else np.int64)
    position -= np.repeat(offsets[:-1].astype(position.dtype), lengths)
    good = position >= config.min_history
    if config.short_users == "last":
        last = offsets[1:] - 1
        good[last[(lengths >= 2) & (lengths <= config.min_history)]] = True
    if target_allowed is not None:
        good &= target_allowed
    return np.flatnonzero(good)


def global_time(samples: np.ndarray, times: np.ndarray, config: DatasetConfig, resolution: int = 1) -> Splits:
    """All samples in the order of their targets' time, cut by `split_ratio` (BIGRec, DLLM2Rec) or `split_times`.

    Equal times keep the order of the canonical table, so of two samples of one user at the same time the earlier
    one never lands in a later split.

    Raises:
        UserError: all samples have one time.
    """
    when = times[samples]
    if len(when) > 1 and when.min() == when.max():
        raise UserError(
            f"all {len(when)} samples have the same time {when[0]}",
            "times that differ, to cut by",
            "dataset.csv.timestamp, or dataset.split=leave_one_out",
        )
    if config.split_times is not None:
        bounds = [parse_time(t) * resolution for t in config.split_times]
        part = np.searchsorted(bounds, when, side="right")
        return {name: samples[part == i] for i, name in enumerate(NAMES)}
    first, second = (_first_in_time(when, n) for n in _shares(len(when), config))
    if len(when) and when[first].max(initial=when.min()) == when[~second].min(initial=when.max()):
        log.info("train and test meet at the same time: within it the order of users decides the split")
    return {"train": samples[first], "valid": samples[second & ~first], "test": samples[~second]}


def _first_in_time(when: np.ndarray, n: int) -> np.ndarray:
    """[S] bool, the n earliest; of equal times the first ones. Without sorting them all."""
    if n >= len(when):
        return np.ones(len(when), bool)
    bound = np.partition(when, n)[n]
    out = when < bound
    out[np.flatnonzero(when == bound)[: n - np.count_nonzero(out)]] = True
    return out


def leave_one_out(samples: np.ndarray, offsets: np.ndarray) -> Splits:
    """Each user's last sample is test, the one before it valid, the others train."""
    per_user = np.diff(np.searchsorted(samples, offsets))
    end = np.repeat(np.cumsum(per_user), per_user)
    from_end = end - 1 - np.arange(len(samples))
    return {"train": samples[from_end >= 2], "valid": samples[from_end == 1], "test": samples[from_end == 0]}


def user_split(samples: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    """Users are disjoint: all samples of a training user, one seeded sample of every other user.

    In the manner of iLoRA (its data files hold one row per held-out user; its own draw is unpublished).
    """
    rng = numpy_stream(config.split_seed, "user_split")
    first = np.searchsorted(samples, offsets)
    per_user = np.diff(first)
    users = np.flatnonzero(per_user)
    part = _cut(rng.permutation(users), config)
    drawn = first[:-1] + rng.integers(np.maximum(per_user, 1))
    train = np.zeros(len(per_user), dtype=bool)
    train[part["train"]] = True
    return {
        "train": samples[np.repeat(train, per_user)],
        "valid": samples[drawn[part["valid"]]],
        "test": samples[drawn[part["test"]]],
    }


def _cut(values: np.ndarray, config: DatasetConfig) -> Splits:
    return dict(zip(NAMES, np.split(values, _shares(len(values), config)), strict=True))


def _shares(n: int, config: DatasetConfig) -> list[int]:
    """How many of n are train, and train or valid. Rounded first: 0.1 + 0.8 is not 0.9 in floating point."""
    return [int(round(n * share, 6)) for share in np.cumsum(config.split_ratio)[:2]]


def split_samples(
    times: np.ndarray,
    offsets: np.ndarray,
    config: DatasetConfig,
    target_allowed: np.ndarray | None = None,
    resolution: int = 1,
) -> Splits:
    """Ascending sample ids (rows) of each split of a log.

    Args:
        times: [M] int64, `resolution` to the second.

    Raises:
        UserError: a split is empty, or nothing tells samples apart.
    """
    samples = eligible_rows(offsets, config, target_allowed)
    if config.split == "global_time":
        splits = global_time(samples, times, config, resolution)
    elif config.split == "leave_one_out":
        splits = leave_one_out(samples, offsets)
    else:
        splits = {name: np.sort(ids) for name, ids in user_split(samples, offsets, config).items()}
    require_samples(splits, config)
    return splits


def require_samples(splits: Mapping[str, np.ndarray], config: DatasetConfig) -> None:
    for name, ids in splits.items():
        if len(ids) == 0:
            sizes = ", ".join(f"{n} {len(i)}" for n, i in splits.items())
            raise UserError(
                f"the {name} split of {config.name} is empty ({sizes})",
                "samples in every split",
                "dataset.split_ratio, dataset.split_times, dataset.min_history or the filters",
            )
