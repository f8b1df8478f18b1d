"""Tables of any kind by their ending: delimited text, parquet and JSON lines, packed or not.

Files with one record per line (JSON, and the Python literals of older dumps) are also read record by record.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from src.core.datasets.columns import ARROW_TYPES, EXPECTED, PACKED, Id, Time, match_names, require_rows
from src.core.datasets.text_table import Form, read_table
from src.core.errors import UserError
from src.core.signals import check_stop

_TEXT_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
READABLE = (*_TEXT_SEPARATORS, *_JSON_LINES, ".parquet")
ENDINGS = ".csv, .tsv, .parquet or .jsonl"
_SAMPLE = 1000  # records that are looked at to know the types of a JSON file
_BLOCK = 64 * 1024 * 1024  # a JSON record must fit; the longest reviews and descriptions have some 100 kB
_STOP_EVERY = 10_000  # lines between two looks at the signals


def ending(path: Path) -> str:
    """The ending of the table in lower case, without that of its packing: "LOG.CSV.gz" -> ".csv"."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def read_any(path: Path, columns: Mapping[str, type], form: Form) -> pa.Table:
    """Columns of a file whose ending says what it is; `form.sep` "" means that of the ending.

    Raises:
        UserError: as `read_table`, `read_parquet`, `read_json`; or another ending.
    """
    kind = ending(path)
    if kind == ".parquet":
        return read_parquet(path, columns, form.keys)
    if kind in _JSON_LINES:
        return read_json(path, columns, form.keys)
    if kind not in _TEXT_SEPARATORS:
        raise UserError(f"{path.name} has the ending {path.suffix!r}", ENDINGS, "dataset.csv")
    sep = form.sep or _TEXT_SEPARATORS[kind]
    return read_table(path, columns, replace(form, sep=sep, header=True))


def read_parquet(path: Path, columns: Mapping[str, type], keys: Mapping[str, str] | None = None) -> pa.Table:
    """Some columns of a parquet file as `read_table` does; a text may be null and is empty then.

    Raises:
        UserError: no parquet file, a missing column, a null, a value that is not of its type.
    """
    try:
        file = pa_parquet.ParquetFile(path)
        names = match_names(path, columns, file.schema_arrow.names, keys or {})
        table = file.read(columns=list(names.values()))
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}", "a parquet file", str(path)) from None
    return _conform(path, table, columns, names, keys or {})


def read_json(path: Path, columns: Mapping[str, type], keys: Mapping[str, str] | None = None) -> pa.Table:
    """Some fields of JSON lines as columns; a text may be missing and is empty then.

    The first records say how a field is written and whether ids and times are numbers.

    Raises:
        UserError: no JSON, a missing field, a value of another type; a file that is cut off.
    """
    sample = [record for _, record in islice(records(path, json.loads, "JSON"), _SAMPLE)]
    names = match_names(
        path, columns, list(dict.fromkeys(key for record in sample for key in record)), keys or {}
    )
    schema = []
    for name, kind in columns.items():
        values = [record.get(names[name]) for record in sample]
        arrow = ARROW_TYPES[kind] if kind in (int, float, str) else pa.string()
        if kind in (Id, Time) and not any(isinstance(v, str) for v in values):
            arrow = pa.float64() if any(isinstance(v, float) for v in values) else pa.int64()
        schema.append((names[name], arrow))
    try:
        with pa.input_stream(str(path), compression=PACKED.get(path.suffix.lower())) as stream:
            table = pa_json.read_json(
                stream,
                read_options=pa_json.ReadOptions(block_size=_BLOCK),
                parse_options=pa_json.ParseOptions(
                    explicit_schema=pa.schema(schema), unexpected_field_behavior="ignore"
                ),
            )
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}", "JSON lines", f"{path} (fetch it again)") from None
    return _conform(path, table, columns, names, keys or {})


def _conform(
    path: Path,
    table: pa.Table,
    columns: Mapping[str, type],
    names: Mapping[str, str],
    keys: Mapping[str, str],
) -> pa.Table:
    require_rows(path, table)
    out = {}
    for name, kind in columns.items():
        out[name] = _cast(path, name, table.column(names[name]), kind, keys.get(name, str(path)))
    return pa.table(out)


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: type, fix: str) -> pa.ChunkedArray:
    if column.null_count and kind is not str:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{path} row {row + 1}: {name} is null", "a value in every row", fix)
    given = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    textual = pa.types.is_string(given) or pa.types.is_large_string(given)
    try:
        if kind is str:
            return pc.fill_null(column.cast(pa.string()), "")
        if kind is Time:
            return column.cast(pa.string()) if textual else column
        if kind is Id:
            if textual:
                return column.cast(pa.string()).dictionary_encode()
            column = column.cast(pa.int64())  # 12.0 is 12; 12.5 is refused
        column = column.cast(pa.int64() if kind is Id else ARROW_TYPES[kind])
    except pa.ArrowException as e:
        raise UserError(f"{path}: column {name} ({column.type}): {e}", EXPECTED[kind], fix) from None
    if kind is float and not np.isfinite(values := column.to_numpy()).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{path} row {row + 1}: {name} is {values[row]}", EXPECTED[float], fix)
    return column


def existing(folder: Path, name: str) -> str:
    """`name`, or `name` without `.gz` if only that is there (people unpack what they download)."""
    plain = name.removesuffix(".gz")
    return plain if not (folder / name).exists() and (folder / plain).exists() else name


def records(path: Path, parse: Callable[[str], Any], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and parsed records; blank lines are passed over. Nothing is evaluated.

    About 30,000 Python literals a second.

    Raises:
        UserError: with the line: not a record; a truncated file.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as f:
            for number, raw in enumerate(f, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                record = parse(line)
                if not isinstance(record, dict):
                    raise ValueError(f"a {type(record).__name__}, no record")
                yield number, record
                if number % _STOP_EVERY == 0:
                    check_stop()
    except (EOFError, OSError, zlib.error) as e:
        raise UserError(
            f"{path} ends or breaks after line {number}: {e}", "a complete file", f"{path} (fetch it again)"
        ) from None
    except (ValueError, SyntaxError, RecursionError, MemoryError) as e:
        raise UserError(f"{path} line {number}: {e}", what, str(path)) from None
