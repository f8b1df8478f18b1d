"""What a reader hands over: ids as numbers, times in seconds, titles by raw id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)
_LATEST_SECOND = 10**11  # year 5138; a millisecond count passes it in 1973
_DENSE = 8  # a lookup table of the ids' range costs less than sorting them, up to this many times the log


@dataclass(frozen=True, eq=False)
class Ids:
    """A column of raw ids: `values[codes]`.

    Attributes:
        codes: [M] int32.
        values: [V] ascending raw ids without repeats, int64 or text (numeric order where all are integers).
    """

    codes: np.ndarray
    values: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> Ids:
        return Ids(self.codes[keep], self.values)

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class RawLog:
    """A log in file order.

    Attributes:
        users, items: [M] raw ids.
        timestamps: [M] int64, seconds since 1970 (UTC).
        ratings: [M] float32, or None where the source has none.
        titles: title of each raw item id (index: the id as text, unique).
        path: the file of the log, for messages.
    """

    users: Ids
    items: Ids
    timestamps: np.ndarray
    ratings: np.ndarray | None
    titles: pd.Series
    path: Path


@dataclass(frozen=True)
class RawSplits:
    """Split files: each row is a history and its target, and belongs to a split.

    Attributes:
        items: [M] int32, 0-based position in `raw_items`; the rows one after the other, each its
            history (oldest first) and then its target.
        offsets: [R+1] int64; row r owns items[offsets[r]:offsets[r+1]].
        split: [R] 0 train, 1 valid, 2 test.
        raw_items: [N] raw ids of the whole catalogue, ascending.
        titles: as in `RawLog`.
        path: the folder, for messages.
    """

    items: np.ndarray
    offsets: np.ndarray
    split: np.ndarray
    raw_items: np.ndarray
    titles: pd.Series
    path: Path


def encode(column: np.ndarray | pa.ChunkedArray) -> Ids:
    """Number raw ids in ascending order, in time linear in the log (text ids: dictionary columns)."""
    if isinstance(column, pa.ChunkedArray):
        if not pa.types.is_dictionary(column.type):
            return encode(column.to_numpy())
        one = column.unify_dictionaries().combine_chunks()
        one = one.chunk(0) if isinstance(one, pa.ChunkedArray) else one
        codes, values = one.indices.to_numpy(), _numeric(one.dictionary.to_pylist())
    elif (
        len(column) and (span := int(column.max()) - int(low := column.min())) < _DENSE * len(column) + 2**20
    ):
        used = np.zeros(span + 1, dtype=bool)
        used[column - low] = True
        values = np.flatnonzero(used) + low
        return Ids((np.cumsum(used, dtype=np.int32) - 1)[column - low], values)
    else:
        codes, values = pd.factorize(column)
    order = np.argsort(values)
    rank = np.empty(len(values), dtype=np.int32)
    rank[order] = np.arange(len(values), dtype=np.int32)
    return Ids(rank[codes], values[order])


def _numeric(values: Sequence[str]) -> np.ndarray:
    """int64 if every value is the usual notation of one ("07" and "7" stay different), else text."""
    if all(v.removeprefix("-").isdecimal() and str(int(v)) == v and abs(int(v)) < 2**63 for v in values):
        return np.array([int(v) for v in values], dtype=np.int64)
    return np.array(values, dtype=object)


def seconds(times: np.ndarray, path: Path) -> np.ndarray:
    """[M] int64 seconds from seconds, milli-, micro- or nanoseconds (told apart by their size).

    Raises:
        UserError: the values are not all of one unit.
    """
    unit = 1
    while len(times) and np.median(times) / unit > _LATEST_SECOND:
        unit *= 1000
    if unit > 1:
        log.info("%s: times are in 1/%d s, converted to seconds", path.name, unit)
        times = times // unit
    if (wrong := np.flatnonzero(times > _LATEST_SECOND)).size:
        raise UserError(
            f"{path} row {wrong[0] + 1}: time {times[wrong[0]] * unit} is in another unit than the others",
            "seconds since 1970 in every row",
            str(path),
        )
    return times


def title_series(raw_ids: Sequence, titles: Sequence[str | None], path: Path) -> pd.Series:
    """Titles by raw id as text; white space is tidied, the first of several rows of an item counts."""
    tidy = [" ".join(t.split()) if t else "" for t in titles]
    made = pd.Series(tidy, index=[str(i) for i in raw_ids], dtype=object)
    again = made.index.duplicated()
    if again.any():
        log.info("%s: %d rows repeat an item, the first of each counts", path.name, again.sum())
    return made[~again]
