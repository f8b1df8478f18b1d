"""The user's own log and items, as .csv, .tsv or .parquet, with the columns that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.core.datasets import RawLog, encode, seconds, title_series
from src.core.datasets.tables import Id, read_parquet, read_table, require_files
from src.core.errors import UserError

if TYPE_CHECKING:
    from src.core.datasets.config import CsvConfig, DatasetConfig


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    assert config.csv is not None  # DatasetConfig.problems
    return require_files(raw_dir, [config.csv.interactions, config.csv.items])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    form = config.csv
    assert form is not None
    path, items_path = files(raw_dir, config)
    columns: dict[str, type] = {form.user: Id, form.item: Id, form.timestamp: str}
    if form.rating is not None:
        columns[form.rating] = float
    log = _table(path, columns, form)
    items = _table(items_path, {form.item_id: str, form.title: str}, form)
    ratings = None if form.rating is None else log.column(form.rating).to_numpy().astype(np.float32)
    return RawLog(
        users=encode(log.column(form.user)),
        items=encode(log.column(form.item)),
        timestamps=seconds(_times(log.column(form.timestamp), path), path),
        ratings=ratings,
        titles=title_series(
            items.column(form.item_id).to_pylist(), items.column(form.title).to_pylist(), items_path
        ),
        path=path,
    )


def _table(path: Path, columns: dict[str, type], form: CsvConfig) -> pa.Table:
    if path.suffix == ".parquet":
        return read_parquet(path, columns)
    if path.suffix not in (".csv", ".tsv"):
        raise UserError(
            f"{path.name} has the ending {path.suffix!r}", ".csv, .tsv or .parquet", "dataset.csv"
        )
    sep = "\t" if path.suffix == ".tsv" else ","
    encoding = "utf8" if form.encoding.lower().replace("-", "") == "utf8" else form.encoding
    return read_table(path, sep, columns, encoding=encoding, header=True, quoted=True)


def _times(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """[M] int64 from numbers (any unit: `raw.seconds`) or ISO 8601 texts; without a zone they are UTC."""
    text = pc.utf8_trim_whitespace(column)
    for convert in (_integers, _decimals, _iso):
        try:
            return convert(text)
        except pa.ArrowInvalid:
            continue
    for row, value in enumerate(text.to_pylist()):
        alone = pa.chunked_array([[value]])
        if not any(_converts(convert, alone) for convert in (_integers, _decimals, _iso)):
            raise UserError(
                f"{path} row {row + 1}: time {value!r}", "a number or ISO 8601", "dataset.csv.timestamp"
            )
    raise UserError(
        f"{path}: times are partly numbers, partly dates", "one notation", "dataset.csv.timestamp"
    )


def _integers(text: pa.ChunkedArray) -> np.ndarray:
    return text.cast(pa.int64()).to_numpy()


def _decimals(text: pa.ChunkedArray) -> np.ndarray:
    values = text.cast(pa.float64()).to_numpy()
    if not (np.abs(values) < 2.0**63).all():
        raise pa.ArrowInvalid("not finite")
    return np.floor(values).astype(np.int64)


def _iso(text: pa.ChunkedArray) -> np.ndarray:
    # Arrow takes an offset only for zoned types and none only for plain ones; fractions of seconds are cut.
    zoned = pc.any(pc.match_substring_regex(text, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
    made = text.cast(pa.timestamp("us", "UTC" if zoned else None))
    return made.cast(pa.int64()).to_numpy() // 1_000_000


def _converts(convert, text: pa.ChunkedArray) -> bool:
    try:
        convert(text)
    except pa.ArrowInvalid:
        return False
    return True
