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

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from src.core.errors import UserError

_ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
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
) -> pd.DataFrame:
    """Read some columns of a delimited text file with exact types.

    Args:
        sep: separator, one character or more (`::`).
        columns: name -> int, float or str. With `header` they are looked up by name, else they are
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
    frame = table.to_pandas()
    if frame.empty:
        raise UserError(f"{path} has no rows", "a table with rows", str(path))
    for name, kind in columns.items():
        if kind is float and not (abs(frame[name]) < math.inf).all():
            _explain(path, sep, columns, n_columns, encoding, header, quoted)
    return frame


def read_parquet(path: Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """Read some columns of a parquet file as `read_table` does: exact types, nothing missing.

    Raises:
        UserError: no parquet file, a missing column, a null, a value that is not of its type.
    """
    try:
        table = pa_parquet.read_table(path, columns=None)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}", "a parquet file", str(path)) from None
    _require_columns(path, columns, table.column_names)
    out = {}
    for name, kind in columns.items():
        column = table.column(name)
        if pa.types.is_timestamp(column.type) and kind is int:
            column = column.cast(pa.timestamp("s"), safe=False)
        if column.null_count:
            row = column.combine_chunks().is_null().index(True).as_py()
            raise UserError(
                f"{path} row {row + 1}: {name} is null", f"{kind.__name__} in every row", str(path)
            )
        try:
            out[name] = column.cast(_ARROW_TYPES[kind])
        except pa.ArrowException as e:
            raise UserError(f"{path}: column {name} ({column.type}): {e}", kind.__name__, str(path)) from None
    frame = pa.table(out).to_pandas()
    if frame.empty:
        raise UserError(f"{path} has no rows", "a table with rows", str(path))
    return frame


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
        _require_columns(path, columns, _header(path, sep, encoding))
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


def _header(path: Path, sep: str, encoding: str) -> list[str]:
    with open(path, encoding="utf-8-sig" if encoding == "utf8" else encoding, newline="") as f:
        return next(csv.reader(f, delimiter=sep), [])


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
            if kind is not str and not _is_number(value, kind):
                raise UserError(f"{path} line {line}: {name} is {value!r}", _KINDS[kind], str(path))


_KINDS = {int: "an integer", float: "a finite number"}


def _is_number(text: str, kind: type) -> bool:
    try:
        value = kind(text)
    except ValueError:
        return False
    return abs(value) < 2**63 if kind is int else math.isfinite(value)
