"""What a reader hands over: ids as numbers, times as counts, titles by raw id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)
# What programs write for a value that is missing: as an id it would be one giant user.
NO_TEXT = {"nan", "NaN", "NaT", "<NA>", "\\N"}
_MISSING = NO_TEXT | {"None", "null", "NULL", "N/A"}
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

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class RawLog:
    """A log in file order.

    Attributes:
        users, items: [M] raw ids.
        timestamps: [M] int64 since 1970 (UTC), `resolution` to the second; all 0: the file's order is all there is.
        ratings: [M] float32, or None where the source has none.
        titles: title of each raw item id (index: the id as text, unique).
        path: the file of the log, for messages.
        resolution: counts of `timestamps` in a second.
        parts: path and rows of each file of a log in several.
    """

    users: Ids
    items: Ids
    timestamps: np.ndarray
    ratings: np.ndarray | None
    titles: pd.Series
    path: Path
    resolution: int = 1
    parts: tuple[tuple[Path, int], ...] = ()

    def place(self, row: int) -> str:
        """File and row (from 1, without the header) of a row of the log."""
        return place(self.parts or ((self.path, len(self.users)),), row)


def place(parts: Sequence[tuple[Path, int]], row: int) -> str:
    for path, rows in parts[:-1]:
        if row < rows:
            return f"{path} row {row + 1}"
        row -= rows
    return f"{parts[-1][0]} row {row + 1}"


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
    """Number raw ids in ascending order, in time linear in the log.

    Args:
        column: integers, or a dictionary of texts.
    """
    values: Any
    if isinstance(column, pa.ChunkedArray):
        if not pa.types.is_dictionary(column.type):
            return encode(column.to_numpy())
        codes, texts = _dictionary(column)
        values = _numeric(texts)
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


def tidy_ids(column: pa.ChunkedArray, at: Callable[[int], str], what: str, key: str) -> pa.ChunkedArray:
    """Ids of unknown origin without the blanks around them.

    Args:
        at, what, key: place of a row, name of the column and the setting to change, for messages.

    Raises:
        UserError: an id that is blank or stands for a missing value; one number as 12 and as 12.0.
    """
    if not pa.types.is_dictionary(column.type):
        return column
    codes, raw = _dictionary(column)
    texts = [text.strip() for text in raw]
    known = set(texts)
    for code, text in enumerate(texts):
        whole, dot, zeros = text.partition(".")
        found, expected = "", "an id in every row"
        if not text or text in _MISSING:
            found = f"is {text!r}, a missing value" if text else "is blank"
        elif dot and whole in known and not zeros.strip("0"):
            found, expected = f"is {text!r}, and {whole!r} in other rows", "one notation"
        if found:
            raise UserError(f"{at(int((codes == code).argmax()))}: {what} {found}", expected, key)
    if texts == raw:
        return column
    merged, values = pd.factorize(np.array(texts, dtype=object))
    indices = pa.array(merged[codes].astype(np.int32))
    return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))])


def _dictionary(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    one = column.unify_dictionaries().combine_chunks()
    one = one.chunk(0) if isinstance(one, pa.ChunkedArray) else one
    return one.indices.to_numpy(), one.dictionary.to_pylist()


def _numeric(values: Sequence[str]) -> np.ndarray:
    """int64 if every value is the usual notation of one ("07" and "7" stay different), else text."""
    if all(v.removeprefix("-").isdecimal() and str(int(v)) == v and abs(int(v)) < 2**63 for v in values):
        return np.array([int(v) for v in values], dtype=np.int64)
    return np.array(values, dtype=object)


def title_series(raw_ids: Sequence, titles: Sequence[str | None], path: Path) -> pd.Series:
    """Titles by raw id as text; white space is tidied, the first of several rows of an item counts.

    Raises:
        UserError: a blank id.
    """
    ids = [str(i).strip() for i in raw_ids]
    if "" in ids:
        raise UserError(
            f"{path} row {ids.index('') + 1}: the item id is blank", "an id in every row", str(path)
        )
    tidy = [" ".join(t.split()) if t else "" for t in titles]
    made = pd.Series(tidy, index=ids, dtype=object)
    again = made.index.duplicated()
    if again.any():
        log.info("%s: %d rows repeat an item, the first of each counts", path.name, again.sum())
    return made[~again]
