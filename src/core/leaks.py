"""The checks that a split passes once before it is used: nothing held out can be seen in training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from src.core.datasets.config import DatasetConfig
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)

_CHANCE = 5  # users can share a shorter history and target by chance


def check_no_leaks(
    items: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    splits: Mapping[str, np.ndarray],
    config: DatasetConfig,
) -> None:
    """Raise UserError if a split lets a model see what it is tested on.

    Args:
        items, times: [M] the canonical table.
        offsets: [U+1] rows of every user.
        splits: the rows (not sample ids) of the targets of `train`, `valid`, `test`.

    Checked for every protocol: rows are in range, ascending, in one split once; a user's rows are in
    time order, so that a history lies in the past; every sample has a history; no held-out target
    stands in the history of a training sample. For `global_time`: no target of an earlier split is
    later than one of a later split. For `user_split`: no user is in two splits. For `official`: no
    target is its own newest history item, and no row (at least five history items
    and the target) is in two splits; with `ilora.allow_repeats` these two are only said in the log.
    """
    fix = f"the split protocol {config.split}, and delete the prepared dataset"
    used = np.zeros(len(items), dtype=bool)
    first = np.zeros(len(items), dtype=bool)
    first[offsets[:-1]] = True
    if not first[1:][times[1:] < times[:-1]].all():
        raise UserError("a user's rows are not in time order", "a table sorted by user and time", fix)
    for name, rows in splits.items():
        if len(rows) and (rows[0] < 0 or rows[-1] >= len(items) or (np.diff(rows) <= 0).any()):
            raise UserError(
                f"the {name} targets are not ascending rows of the table",
                f"rows 0..{len(items) - 1}, each once",
                fix,
            )
        if used[rows].any():
            raise UserError(f"a {name} sample stands in two splits", "disjoint splits", fix)
        used[rows] = True
        if first[rows].any():
            raise UserError(f"a {name} sample has no history", "at least one earlier interaction", fix)
    _no_held_out_target_in_training(offsets, splits, config, fix)
    if config.split == "global_time":
        _splits_in_time_order(times, splits, fix)
    elif config.split == "user_split":
        _users_disjoint(offsets, splits, fix)
    elif config.split == "official":
        _official_rows(items, offsets, splits, config.ilora is not None and config.ilora.allow_repeats)


def _no_held_out_target_in_training(
    offsets: np.ndarray, splits: Mapping[str, np.ndarray], config: DatasetConfig, fix: str
) -> None:
    """The history of a sample is the rows before it: look from each held-out row to the next training row."""
    train = splits["train"]
    held_out = np.concatenate([splits["valid"], splits["test"]])
    if not len(train) or not len(held_out):
        return
    after = np.searchsorted(train, held_out, side="right")
    follower = train[np.minimum(after, len(train) - 1)]
    user_end = offsets[np.searchsorted(offsets, held_out, side="right")]
    seen = (after < len(train)) & (follower < user_end) & (follower - held_out <= config.max_history)
    if seen.any():
        raise UserError(
            f"the held-out target in row {held_out[seen][0]} stands in the history of the training sample in row "
            f"{follower[seen][0]}",
            "held-out targets that no training sample sees",
            fix,
        )


def _splits_in_time_order(times: np.ndarray, splits: Mapping[str, np.ndarray], fix: str) -> None:
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        if len(splits[earlier]) and len(splits[later]):
            last, first = times[splits[earlier]].max(), times[splits[later]].min()
            if last > first:
                raise UserError(
                    f"a {earlier} target at {last} is later than a {later} target at {first}",
                    "splits in time order",
                    fix,
                )


def _users_disjoint(offsets: np.ndarray, splits: Mapping[str, np.ndarray], fix: str) -> None:
    owner = np.zeros(len(offsets) - 1, dtype=np.int8)
    for number, (name, rows) in enumerate(splits.items(), start=1):
        users = np.searchsorted(offsets, rows, side="right") - 1
        if ((owner[users] != 0) & (owner[users] != number)).any():
            raise UserError(f"a user of the {name} split is in another split too", "disjoint users", fix)
        owner[users] = number


def _official_rows(
    items: np.ndarray, offsets: np.ndarray, splits: Mapping[str, np.ndarray], allow_repeats: bool
) -> None:
    fix = "the split files, or dataset.ilora.strip_target=true or allow_repeats=true"
    seen: dict[bytes, str] = {}
    for name, rows in splits.items():
        if wrong := np.count_nonzero(items[rows] == items[rows - 1]):
            found = f"{wrong} of {len(rows)} {name} rows have their target as the newest history item"
            if not allow_repeats:
                raise UserError(found, "targets outside the history's end", fix)
            log.info("%s", found)
    # The smaller splits are remembered, the large one is only looked up.
    shared = 0
    for name in sorted(splits, key=lambda n: len(splits[n])):
        starts = offsets[np.searchsorted(offsets, splits[name], side="right") - 1]
        for start, row in zip(starts.tolist(), splits[name].tolist(), strict=True):
            if row - start < _CHANCE:
                continue
            key = items[start : row + 1].tobytes()
            if seen.setdefault(key, name) != name:
                shared += 1
                if not allow_repeats:
                    raise UserError(f"a {name} row stands in {seen[key]} too", "rows of one split only", fix)
    if shared:
        log.info("%d rows stand in two splits", shared)
