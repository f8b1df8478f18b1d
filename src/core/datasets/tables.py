"""Raw text tables: a strict columnar parser, and a slow scan that names the line when it refuses.

The parser is pyarrow's (several threads, exact column counts, BOM and CRLF handled); it says little
about where it stopped, so on any trouble the file is read again line by line to find the place.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from src.core.errors import UserError


class Id(str):
    """Column type: raw ids of any kind, read as a dictionary (`raw.encode` numbers them)."""


_ARROW_TYPES = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    Id: pa.dictionary(pa.int32(), pa.string()),
}
_UNIT_SEPARATOR = "\x1f"
_LONGEST_FIELD = 64 * 1024 * 1024


def require_files(folder: Path, names: Sequence[str], fix: str = "dataset.raw_dir") -> list[Path]:
    """The paths of `names` below `folder`, in this order.

    Raises:
        UserError: one is missing or empty.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing", f"the files {', '.join(names)} in {folder}", fix)
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty", "a table with rows", f"{path} (fetch it again)")
    return paths


def read_table(
    path: Path,
    sep: str,
    columns: Mapping[str, type],
    n_columns: int | None = None,
    encoding: str = "utf8",
    header: bool = False,
    quoted: bool = False,
) -> pa.Table:
    """Read some columns of a delimited text file with exact types.

    Args:
        sep: separator, one character or more (`::`).
        columns: name -> int, float, str or Id. With `header` they are looked up by name, else they are
            the file's first columns.
        n_columns: columns of every line, when there are more than `columns` names.
        quoted: fields may be in double quotes and hold separators and line breaks.

    Raises:
        UserError: with file and line: another number of columns, a value that is not of its type
            (empty and non-finite numbers included), bytes that are not of `encoding`; a missing
            column; no rows.
    """
    try:
        table = _parse(path, sep, columns, n_columns, encoding, header, quoted)
    except (pa.ArrowException, UnicodeDecodeError) as e:
        _explain(path, sep, columns, n_columns, encoding, header, quoted)
        raise UserError(f"{path} cannot be parsed: {e}", "a text table", str(path)) from None
    _require_rows(path, table)
    if quoted and _quotes(path) % 2:  # the parser takes all that follows an open quote for one field
        _explain(path, sep, columns, n_columns, encoding, header, quoted)
    for name, kind in columns.items():
        if kind is float and not np.isfinite(table.column(name).to_numpy()).all():
            _explain(path, sep, columns, n_columns, encoding, header, quoted)
    return table


def read_parquet(path: Path, columns: Mapping[str, type]) -> pa.Table:
    """Read some columns of a parquet file as `read_table` does: exact types, nothing missing.

    Raises:
        UserError: no parquet file, a missing column, a null, a value that is not of its type.
    """
    try:
        file = pa_parquet.ParquetFile(path)
        _require_columns(path, columns, file.schema_arrow.names)
        table = file.read(columns=list(dict.fromkeys(columns)))
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}", "a parquet file", str(path)) from None
    _require_rows(path, table)
    return pa.table({name: _cast(path, name, table.column(name), kind) for name, kind in columns.items()})


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: type) -> pa.ChunkedArray:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{path} row {row + 1}: {name} is null", "a value in every row", str(path))
    try:
        if kind is str and pa.types.is_timestamp(column.type):
            return pc.strftime(column, "%Y-%m-%dT%H:%M:%S")
        if kind is Id:
            return column.cast(pa.string()).dictionary_encode()
        column = column.cast(_ARROW_TYPES[kind])
    except pa.ArrowException as e:
        raise UserError(f"{path}: column {name} ({column.type}): {e}", _KINDS[kind], str(path)) from None
    if kind is float and not np.isfinite(values := column.to_numpy()).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{path} row {row + 1}: {name} is {values[row]}", _KINDS[float], str(path))
    return column


def _require_rows(path: Path, table: pa.Table) -> None:
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows", "a table with rows", str(path))


def read_lines(
    path: Path, sep: str, least: int, header: bool = False, encoding: str = "utf8"
) -> list[list[str]]:
    """Fields of every line, for small tables whose lines differ in width.

    Raises:
        UserError: with the line: fewer than `least` fields, bytes that are not of `encoding`.
    """
    out = []
    for line, row in list(_rows(path, sep, encoding, quoted=False))[1 if header else 0 :]:
        if len(row) < least:
            raise UserError(f"{path} line {line}: {len(row)} columns", f"{least} or more", str(path))
        out.append(row)
    return out


def _parse(
    path: Path,
    sep: str,
    columns: Mapping[str, type],
    n_columns: int | None,
    encoding: str,
    header: bool,
    quoted: bool,
) -> pa.Table:
    source: io.BytesIO | str = str(path)
    if len(sep) > 1:
        source = io.BytesIO(path.read_bytes().replace(sep.encode(), _UNIT_SEPARATOR.encode()))
        sep = _UNIT_SEPARATOR
    names = None if header else _padded(columns, n_columns)
    if header:
        _require_columns(path, columns, _header(path, sep, encoding, quoted))
    return pa_csv.read_csv(
        source,
        read_options=pa_csv.ReadOptions(column_names=names, encoding=encoding, block_size=1 << 24),
        parse_options=pa_csv.ParseOptions(
            delimiter=sep, quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: _ARROW_TYPES[kind] for name, kind in columns.items()},
            include_columns=list(columns),
            null_values=[],
            strings_can_be_null=False,
        ),
    )


def _padded(columns: Mapping[str, type], n_columns: int | None) -> list[str]:
    extra = (n_columns or len(columns)) - len(columns)
    return [*columns, *(f"_unused{i}" for i in range(extra))]


def _quotes(path: Path) -> int:
    with open(path, "rb") as f:
        return sum(chunk.count(b'"') for chunk in iter(lambda: f.read(1 << 22), b""))


def _header(path: Path, sep: str, encoding: str, quoted: bool) -> list[str]:
    with open(path, encoding="utf-8-sig" if encoding == "utf8" else encoding, newline="") as f:
        return next(csv.reader(f, delimiter=sep, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE), [])


def _require_columns(path: Path, columns: Mapping[str, type], found: Sequence[str]) -> None:
    for name in columns:
        if name not in found:
            raise UserError(f"{path} has the columns {', '.join(found)}", f"a column {name}", str(path))


def _rows(path: Path, sep: str, encoding: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Line numbers (from 1) and fields, decoded line by line so that a wrong byte has a place."""

    def lines() -> Iterator[str]:
        with open(path, "rb") as f:
            for number, raw in enumerate(f, start=1):
                try:
                    text = raw.decode(encoding)
                except UnicodeDecodeError as e:
                    raise UserError(
                        f"{path} line {number}: byte 0x{raw[e.start]:02x} is not {encoding}",
                        f"text in {encoding}",
                        str(path),
                    ) from None
                yield text.removeprefix("\ufeff") if number == 1 else text

    if quoted:
        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(lines(), delimiter=sep, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as e:
                raise UserError(
                    f"{path} line {reader.line_num}: {e}", "well-formed quotes", str(path)
                ) from None
            if row:
                yield reader.line_num, row
    else:
        for number, text in enumerate(lines(), start=1):
            if stripped := text.rstrip("\r\n"):
                yield number, stripped.split(sep)


def _explain(
    path: Path,
    sep: str,
    columns: Mapping[str, type],
    n_columns: int | None,
    encoding: str,
    header: bool,
    quoted: bool,
) -> None:
    """Raise UserError at the first line that cannot be parsed; return when there is none."""
    rows = _rows(path, sep, encoding, quoted)
    if header:
        names = next(rows, (0, []))[1]
        width = len(names)
    else:
        names = _padded(columns, n_columns)
        width = len(names)
    place = {name: names.index(name) for name in columns}
    for line, row in rows:
        if len(row) != width:
            raise UserError(f"{path} line {line}: {len(row)} columns", f"{width} columns", str(path))
        for name, kind in columns.items():
            value = row[place[name]]
            if kind in (int, float) and not _is_number(value, kind):
                raise UserError(f"{path} line {line}: {name} is {value!r}", _KINDS[kind], str(path))


_KINDS = {int: "an integer", float: "a finite number", str: "text", Id: "ids"}


def _is_number(text: str, kind: type) -> bool:
    try:
        value = kind(text)
    except ValueError:
        return False
    return abs(value) < 2**63 if kind is int else math.isfinite(value)
