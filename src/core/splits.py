"""Split protocols, and the checks that every run makes against leaks.

A sample is a row of the canonical table (users one after the other, each in time order) with at
least `min_history` earlier rows of its user; a protocol says which samples are train, valid, test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from src.core.errors import UserError
from src.core.seed import numpy_stream

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

Splits = dict[str, np.ndarray]
NAMES = ("train", "valid", "test")


def parse_time(text: str) -> int:
    """Seconds since 1970 of "2018-01-31", "2018-01-31T12:00:00" (UTC) or "1517400000".

    Raises ValueError.
    """
    if text.lstrip("-").isdecimal():
        return int(text)
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def positions(offsets: np.ndarray) -> np.ndarray:
    """[M] position of every row within its user's log, from 0."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def eligible_rows(
    offsets: np.ndarray, config: DatasetConfig, target_allowed: np.ndarray | None = None
) -> np.ndarray:
    """Ascending rows that can be targets.

    Rows with `min_history` earlier ones; with `short_users=last` also the last row of a user who has
    none (BIGRec's rule for Amazon Games); of these, rows where `target_allowed` [M].
    """
    position = positions(offsets)
    good = position >= config.min_history
    if config.short_users == "last":
        lengths = np.diff(offsets)
        last = offsets[1:] - 1
        good[last[(lengths >= 2) & (lengths <= config.min_history)]] = True
    if target_allowed is not None:
        good &= target_allowed
    return np.flatnonzero(good)


def global_time(samples: np.ndarray, times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    """All samples in the order of their targets' time, cut by `split_ratio` (BIGRec, DLLM2Rec) or `split_times`.

    Equal seconds keep the order of the canonical table, so of two samples of one user in the same
    second the earlier one never lands in a later split.
    """
    if config.split_times is not None:
        bounds = [parse_time(t) for t in config.split_times]
        part = np.searchsorted(bounds, times[samples], side="right")
        return {name: samples[part == i] for i, name in enumerate(NAMES)}
    samples = samples[np.argsort(times[samples], kind="stable")]
    return _cut(samples, config)


def leave_one_out(
    samples: np.ndarray, times: np.ndarray, offsets: np.ndarray, config: DatasetConfig
) -> Splits:
    """Each user's last sample is test, the one before it valid, the others train."""
    per_user = np.diff(np.searchsorted(samples, offsets))
    end = np.repeat(np.cumsum(per_user), per_user)
    from_end = end - 1 - np.arange(len(samples))
    return {"train": samples[from_end >= 2], "valid": samples[from_end == 1], "test": samples[from_end == 0]}


def user_split(samples: np.ndarray, times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
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
    # Rounded before the cut: 0.1 + 0.8 is not 0.9 in floating point.
    first, second = (int(round(len(values) * share, 6)) for share in np.cumsum(config.split_ratio)[:2])
    return dict(zip(NAMES, np.split(values, [first, second]), strict=True))


def _official(samples: np.ndarray, times: np.ndarray, offsets: np.ndarray, config: DatasetConfig) -> Splits:
    raise AssertionError("split files carry their own splits")


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, DatasetConfig], Splits]] = {
    "global_time": global_time,
    "leave_one_out": leave_one_out,
    "user_split": user_split,
    "official": _official,
}


def split_samples(
    times: np.ndarray, offsets: np.ndarray, config: DatasetConfig, target_allowed: np.ndarray | None = None
) -> Splits:
    """Ascending sample ids (rows) of each split of a log.

    Raises:
        UserError: a split is empty.
    """
    samples = eligible_rows(offsets, config, target_allowed)
    made = PROTOCOLS[config.split](samples, times, offsets, config)
    splits = {name: np.sort(ids).astype(np.int64) for name, ids in made.items()}
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
