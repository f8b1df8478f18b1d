"""Tables of any kind by their ending: delimited text, parquet and JSON lines, packed or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from src.core.datasets.columns import ARROW_TYPES, EXPECTED, PACKED, Id, Time, match_names, require_rows
from src.core.datasets.jsonl import records
from src.core.datasets.text_table import Form, read_table
from src.core.errors import UserError

_TEXT_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
READABLE = (*_TEXT_SEPARATORS, *_JSON_LINES, ".parquet")
ENDINGS = ".csv, .tsv, .parquet or .jsonl"
_SAMPLE = 1000  # records that are looked at to know the types of a JSON file
_BLOCK = 64 * 1024 * 1024  # a JSON record must fit; the longest reviews and descriptions have some 100 kB


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
