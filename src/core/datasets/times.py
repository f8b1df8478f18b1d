"""Times of a log: in any usual notation and unit, to whole numbers that keep the source's order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.core.errors import UserError

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LATEST_SECOND = 10**11  # year 5138; a millisecond count passes it in 1973
_MICRO = 10**6
Place = Callable[[int], str]


def parse_time(text: str) -> int:
    """Seconds since 1970 of "2018-01-31", "2018-01-31T12:00:00" (UTC) or "1517400000".

    Raises ValueError.
    """
    if text.lstrip("-").isdecimal():
        return int(text)
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def ticks(
    column: pa.ChunkedArray | np.ndarray, place: Place, unit: str | None = None, key: str = "the file"
) -> tuple[np.ndarray, int]:
    """Times as counts since 1970 (UTC), as fine as the source has them.

    Args:
        column: numbers, texts (numbers or ISO 8601; without a zone they are UTC) or Arrow's times and dates.
        place: names the file and row of a row number, for messages.
        unit: of numbers: s, ms, us or ns; None: told by their size.
        key: the setting or file to change.

    Returns:
        [M] int64, and how many of them make a second.

    Raises:
        UserError: a value that is no time; values in several units or notations.
    """
    if isinstance(column, np.ndarray):
        return _whole(column, place, unit, key)
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.int64()).to_numpy(), UNITS[kind.unit]
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy(), 1
    if pa.types.is_integer(kind):
        return _whole(column.cast(pa.int64()).to_numpy(), place, unit, key)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _decimal(column.cast(pa.float64()).to_numpy(), place, unit, key)
    if pa.types.is_string(kind):
        return _texts(pc.utf8_trim_whitespace(column), place, unit, key)
    raise UserError(f"{place(0)}: times are of the type {kind}", "numbers, dates or ISO 8601", key)


def _whole(values: np.ndarray, place: Place, unit: str | None, key: str) -> tuple[np.ndarray, int]:
    low, high = int(values.min()), int(values.max())
    if unit is None:
        _refuse_calendar_numbers(values, low, high, place, key)
        if low >= -_LATEST_SECOND and high <= _LATEST_SECOND:
            return values, 1
        each = np.searchsorted([_LATEST_SECOND * u for u in (1, 10**3, 10**6)], np.abs(values))
        usual = int(np.bincount(each).argmax())
        unit, wrong = list(UNITS)[usual], each != usual
    else:
        wrong = np.abs(values) / UNITS[unit] > _LATEST_SECOND
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{place(row)}: time {values[row]} is in another unit than {unit}, the unit of most rows",
            "one unit in every row",
            f"{key}, or dataset.csv.time_unit where small numbers are meant so",
        )
    return values, UNITS[unit]


def _refuse_calendar_numbers(values: np.ndarray, low: int, high: int, place: Place, key: str) -> None:
    """20200131 and 20200131120000 are dates, not seconds or milliseconds."""
    for scale in (1, 10**6):
        if not (low // scale >= 19000101 and high // scale <= 20991231):
            continue
        month, day = values // scale // 100 % 100, values // scale % 100
        if ((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
            raise UserError(
                f"{place(0)}: time {values[0]} reads like a date without separators",
                "ISO 8601 (2020-01-31) or a count of seconds",
                f"{key}, or dataset.csv.time_unit=s",
            )


def _decimal(values: np.ndarray, place: Place, unit: str | None, key: str) -> tuple[np.ndarray, int]:
    bad = ~(np.abs(values) < 2.0**63)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(f"{place(row)}: time {values[row]}", "a finite number", key)
    whole, resolution = _whole(np.floor(values).astype(np.int64), place, unit, key)
    if resolution > 1 or (whole == values).all():
        return whole, resolution
    return np.floor(values * _MICRO).astype(np.int64), _MICRO


def _texts(text: pa.ChunkedArray, place: Place, unit: str | None, key: str) -> tuple[np.ndarray, int]:
    for kind, convert in ((pa.int64(), _whole), (pa.float64(), _decimal)):
        try:
            values = text.cast(kind).to_numpy()
        except pa.ArrowInvalid:
            continue
        if np.isfinite(values).all():
            return convert(values, place, unit, key)
    try:
        return _iso(text), _MICRO
    except pa.ArrowInvalid:
        pass
    for row, value in enumerate(text.to_pylist()):
        if not _is_time(value):
            raise UserError(f"{place(row)}: time {value!r}", "a number or ISO 8601", key)
    raise UserError(
        f"{place(0)}: times are partly numbers, partly dates, or partly without a zone", "one notation", key
    )


def _iso(text: pa.ChunkedArray) -> np.ndarray:
    """[M] int64 microseconds; finer fractions are cut. Raises pa.ArrowInvalid."""
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    text = pc.replace_substring_regex(text, r"\s*(UTC|GMT)$", "Z")
    text = pc.replace_substring_regex(text, r"(:\d\d(\.\d+)?) ([+-]\d\d)", r"\1\3")
    # Arrow takes an offset only for zoned types and none only for plain ones.
    zoned = pc.any(pc.match_substring_regex(text, r":\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)$")).as_py()
    return text.cast(pa.timestamp("us", "UTC" if zoned else None)).cast(pa.int64()).to_numpy()


def _is_time(value: str) -> bool:
    try:
        return abs(float(value)) < 2.0**63
    except ValueError:
        pass
    try:
        _iso(pa.chunked_array([[value]]))
    except pa.ArrowInvalid:
        return False
    return True
