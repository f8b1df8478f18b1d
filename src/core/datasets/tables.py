"""Tables as Arrow columns of exact types: delimited text, parquet and JSON lines, packed or not, in one part or several.

pyarrow parses (several threads, exact column counts); when it refuses, the text is read once more, row by row, to
name the line.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from src.core.datasets.jsonl import records
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)


class Id(str):
    """Column type: raw ids, as integers or as a dictionary of texts (`raw_log.encode` numbers them)."""


class Time(str):
    """Column type: times in any notation, as the file has them (`times.ticks` reads them)."""


_ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), Time: pa.string()}
_ARROW_TYPES[Id] = pa.dictionary(pa.int32(), pa.string())
_KINDS = {int: "an integer", float: "a finite number", str: "text", Id: "ids", Time: "a number or ISO 8601"}
_UNIT_SEPARATOR = "\x1f"
_LONGEST_FIELD = 2**31 - 1
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_TEXT_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
READABLE = (*_TEXT_SEPARATORS, *_JSON_LINES, ".parquet")
ENDINGS = ".csv, .tsv, .parquet or .jsonl"
_SAMPLE = 1000  # records that are looked at to know the types of a JSON file
_BLOCK = 64 * 1024 * 1024  # a JSON record must fit; the longest reviews and descriptions have some 100 kB


@dataclass(frozen=True)
class Form:
    """How a text table is written.

    Attributes:
        sep: between fields, one character or more (`::`).
        header: the first line names the columns; else the wanted columns are the first ones.
        quoted: fields may stand in double quotes and hold separators and line breaks.
        encoding: of the bytes.
        width: columns of every line, where no header names them and more than the wanted ones are there.
        keys: column -> the setting that names it, for messages; "separator", "quoting", "encoding" -> theirs.
    """

    sep: str = ","
    header: bool = False
    quoted: bool = False
    encoding: str = "utf8"
    width: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


def require_files(folder: Path, names: Sequence[str], fix: str = "dataset.raw_dir") -> list[Path]:
    """The paths of `names` below `folder`, in this order.

    Raises:
        UserError: one is missing or empty.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            near = sorted(p.name for p in path.parent.glob(f"{glob.escape(path.stem)}*")) if path.stem else []
            there = f" ({', '.join(near[:3])} is there)" if near else ""
            raise UserError(f"{path} is missing{there}", f"the files {', '.join(names)} in {folder}", fix)
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty", "a table with rows", f"{path} (fetch it again)")
    return paths


def ending(path: Path) -> str:
    """The ending of the table in lower case, without that of its packing: "LOG.CSV.gz" -> ".csv"."""
    name = path.name.lower()
    for packed in _PACKED:
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
    return read_table(path, columns, Form(sep, True, form.quoted, form.encoding, keys=form.keys))


def read_table(path: Path, columns: Mapping[str, type], form: Form) -> pa.Table:
    """Some columns of a delimited text file.

    Args:
        columns: name -> int, float, str, Id or Time. With a header they are looked up by name; case and
            blanks around a name do not count where that is unambiguous.

    Raises:
        UserError: with file and line: another number of columns, a value that is not of its type (empty
            and non-finite numbers included), unbalanced quotes, bytes that are not of the encoding; a
            column that is missing or stands twice; no rows.
    """
    sep = form.sep if len(form.sep) == 1 else _UNIT_SEPARATOR
    data = _text(path, form)
    quotes = form.quoted and _check_quotes(path, data, sep, form)
    names = dict(zip(columns, columns, strict=True))
    if form.header:
        first = io.TextIOWrapper(pa.BufferReader(data), "utf-8-sig", errors="replace", newline="")
        quoting = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
        names = _match(path, columns, next(csv.reader(first, delimiter=sep, quoting=quoting), []), form.keys)
    try:
        table = _parse(data, sep, columns, form, quotes, names)
    except pa.ArrowException as e:
        raise _explain(path, data, sep, columns, form, quotes, names, e) from None
    _require_rows(path, table)
    table = table.select(list(names.values())).rename_columns(list(columns))
    for name, kind in columns.items():
        if kind is float and not np.isfinite(table.column(name).to_numpy()).all():
            raise _explain(path, data, sep, columns, form, quotes, names, None)
    if quotes:
        _report_line_breaks(path, table, form)
    return table


def _text(path: Path, form: Form) -> pa.Buffer:
    """The bytes of a file as UTF-8 with one-character separators; a plain file is mapped, not copied."""
    try:
        if path.suffix.lower() in _PACKED:
            with pa.input_stream(str(path), compression=_PACKED.get(path.suffix.lower())) as stream:
                data = pa.py_buffer(stream.read())
        else:
            data = pa.memory_map(str(path)).read_buffer()
    except (pa.ArrowException, OSError) as e:
        raise UserError(
            f"{path} cannot be read: {e}", "a complete file", f"{path} (fetch it again)"
        ) from None
    if form.encoding != "utf8":
        data = _transcode(path, data.to_pybytes(), form)
    if len(form.sep) > 1:
        data = pa.py_buffer(data.to_pybytes().replace(form.sep.encode(), _UNIT_SEPARATOR.encode()))
    return data


def _transcode(path: Path, raw: bytes, form: Form) -> pa.Buffer:
    """Bytes of another encoding are hardly ever valid UTF-8; most encodings accept any bytes."""
    fix = form.keys.get("encoding", str(path))
    narrow = len("a".encode(form.encoding)) == 1
    if not (raw.isascii() if narrow else b"\0" in raw) and _is_utf8(raw):
        line = raw[: next((i for i, b in enumerate(raw) if b > 127), 0)].count(b"\n") + 1
        raise UserError(f"{path} line {line}: the text is UTF-8", f"text in {form.encoding}, as set", fix)
    try:
        return pa.py_buffer(raw.decode(form.encoding).encode("utf-8", "surrogatepass"))
    except UnicodeError as e:
        raise _wrong_byte(path, raw, e, form) from None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _wrong_byte(path: Path, raw: bytes, e: UnicodeError, form: Form) -> UserError:
    fix, expected = form.keys.get("encoding", str(path)), f"text in {form.encoding}"
    if not isinstance(e, UnicodeDecodeError):
        return UserError(f"{path}: {e}", expected, fix)
    line = raw[: e.start].count(b"\n") + 1
    return UserError(f"{path} line {line}: byte 0x{raw[e.start]:02x} is not {form.encoding}", expected, fix)


def _parse(
    data: pa.Buffer, sep: str, columns: Mapping[str, type], form: Form, quotes: bool, names: Mapping[str, str]
) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(data),
        read_options=pa_csv.ReadOptions(column_names=_positions(columns, form), block_size=1 << 24),
        parse_options=pa_csv.ParseOptions(
            delimiter=sep, quote_char='"' if form.quoted else False, newlines_in_values=quotes
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={names[name]: _ARROW_TYPES[kind] for name, kind in columns.items()},
            include_columns=list(names.values()),
            null_values=[],
            strings_can_be_null=False,
        ),
    )


def _positions(columns: Mapping[str, type], form: Form) -> list[str] | None:
    """Names of all columns where no header has them."""
    if form.header:
        return None
    return [*columns, *(f"_unused{i}" for i in range((form.width or len(columns)) - len(columns)))]


def _match(
    path: Path, wanted: Mapping[str, type], found: Sequence[str], keys: Mapping[str, str]
) -> dict[str, str]:
    """The file's own name of every wanted column."""
    out = {}
    for name in wanted:
        same = [f for f in found if f == name]
        same = same or [f for f in found if f.strip().casefold() == name.strip().casefold()]
        if len(same) != 1:
            shown = ", ".join(found)
            shown = shown if len(shown) <= 200 else shown[:200] + " ..."
            what = f"has the column {name} {len(same)} times" if same else f"has the columns {shown}"
            fix = keys.get(name, str(path))
            if len(found) == 1 and "separator" in keys and (other := [c for c in ";,\t|" if c in found[0]]):
                fix = f"{keys['separator']} ({other[0]!r} stands in the header), or {fix}"
            raise UserError(f"{path} {what}", f"a column {name}", fix)
        if same[0] != name:
            log.info("%s: the column %r is read as %s", path.name, same[0], name)
        out[name] = same[0]
    if len(set(out.values())) < len(out):
        raise UserError(
            f"{path}: one column for {', '.join(out)}", "a column each", keys.get(name, str(path))
        )
    return out


def _check_quotes(path: Path, data: pa.Buffer, sep: str, form: Form) -> bool:
    """Whether the text has quotes; they must open and close at the edges of fields.

    The quick look takes the quotes in pairs; where that fails (a lone quote inside a field is fine), the
    standard library's strict reader decides and knows the line.
    """
    raw = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(raw == ord('"'))
    if not len(at):
        return False
    padded = np.concatenate([[10], raw[-1:], [10]]).astype(np.uint8)  # stands in for the edges of the file
    edge = np.frombuffer(f'{sep}\r\n"'.encode(), np.uint8)
    before = np.where(at[::2] > 0, raw[at[::2] - 1], padded[0])
    after = np.where(at[1::2] + 1 < len(raw), raw[np.minimum(at[1::2] + 1, len(raw) - 1)], padded[0])
    if len(at) % 2 == 0 and np.isin(before, edge).all() and np.isin(after, edge).all():
        return True
    csv.field_size_limit(_LONGEST_FIELD)
    lines = io.TextIOWrapper(pa.BufferReader(data), "utf-8-sig", errors="replace", newline="")
    reader, start = csv.reader(lines, delimiter=sep, strict=True), 1
    try:
        for _ in reader:
            start = reader.line_num + 1
    except csv.Error as e:
        fix = form.keys.get("quoting", str(path))
        raise UserError(f"{path} line {start}: {e}", "well-formed quotes", fix) from None
    return True


def _report_line_breaks(path: Path, table: pa.Table, form: Form) -> None:
    """Quoted line breaks are allowed in texts and said: quotes that belong to a text can swallow rows."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string(column.type) and not pa.types.is_dictionary(column.type):
            continue
        broken = pc.match_substring(column.cast(pa.string()), "\n")
        if first := pc.index(broken, True).as_py() + 1:
            fix = form.keys.get("quoting", "quotes")
            if pa.types.is_dictionary(column.type):
                raise UserError(f"{path} row {first}: {name} holds a line break", "an id on one line", fix)
            count = pc.sum(broken).as_py()
            log.info(
                "%s: %d values of %s hold line breaks, the first in row %d (%s=false if quotes are part of the text)",
                *(path.name, count, name, first, fix),
            )


def _explain(
    path: Path,
    data: pa.Buffer,
    sep: str,
    columns: Mapping[str, type],
    form: Form,
    quotes: bool,
    names: Mapping[str, str],
    error: Exception | None,
) -> UserError:
    """What stands at the first line that cannot be read."""
    try:
        data.to_pybytes().decode("utf-8")
    except UnicodeDecodeError as e:
        return _wrong_byte(path, data.to_pybytes(), e, form)
    odd: list[pa_csv.InvalidRow] = []  # blank lines and lines of another width
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(
                column_names=_positions(columns, form), use_threads=False, block_size=_LONGEST_FIELD
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=sep,
                quote_char='"' if form.quoted else False,
                newlines_in_values=quotes,
                ignore_empty_lines=False,
                invalid_row_handler=lambda row: (odd.append(row), "skip")[1],
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(_positions(columns, form) or names.values(), pa.string())
            ),
        )
    except pa.ArrowException:
        return UserError(f"{path} cannot be parsed: {error}", "a text table", str(path))
    found: list[tuple[int, UserError]] = []
    wrong = next((row for row in odd if row.text.strip()), None)
    if wrong is not None:
        before = sum(row.number < wrong.number for row in odd)
        row = wrong.number - 1 - form.header - before
        line = wrong.number + _breaks(table, row)
        text = f"{path} line {line}: {wrong.actual_columns} columns"
        found.append((line, UserError(text, f"{wrong.expected_columns} columns", str(path))))
    for name, kind in columns.items():
        values = table.column(names[name])
        row = _first_bad(values, kind)
        if row is not None:
            number = row + 1 + form.header
            for skipped in odd:
                number += skipped.number <= number
            line = number + _breaks(table, row)
            text = f"{path} line {line}: {name} is {values[row].as_py()!r}"
            found.append((line, UserError(text, _KINDS[kind], form.keys.get(name, str(path)))))
    if not found:
        return UserError(f"{path} cannot be parsed: {error}", "a text table", str(path))
    return min(found, key=lambda pair: pair[0])[1]


def _breaks(table: pa.Table, rows: int) -> int:
    """Line breaks inside the fields of the first rows."""
    texts = [c.slice(0, rows) for c in table.columns if pa.types.is_string(c.type)]
    return sum(pc.sum(pc.count_substring(c, "\n")).as_py() or 0 for c in texts)


def _first_bad(values: pa.ChunkedArray, kind: type) -> int | None:
    """The first row that is no number of this kind; None for other kinds."""
    if kind not in (int, float):
        return None
    texts = values.to_pandas()
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = ~np.isfinite(numbers)
    if kind is int:
        bad |= ~texts.str.fullmatch(re.compile(r"\s*[+-]?[0-9]+\s*")).to_numpy(dtype=bool)
        bad |= np.abs(numbers) >= 2.0**63
    return int(np.flatnonzero(bad)[0]) if bad.any() else None


def read_parquet(path: Path, columns: Mapping[str, type], keys: Mapping[str, str] | None = None) -> pa.Table:
    """Some columns of a parquet file as `read_table` does; a text may be null and is empty then.

    Raises:
        UserError: no parquet file, a missing column, a null, a value that is not of its type.
    """
    try:
        file = pa_parquet.ParquetFile(path)
        names = _match(path, columns, file.schema_arrow.names, keys or {})
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
    names = _match(path, columns, list(dict.fromkeys(key for record in sample for key in record)), keys or {})
    schema = []
    for name, kind in columns.items():
        values = [record.get(names[name]) for record in sample]
        arrow = _ARROW_TYPES[kind] if kind in (int, float, str) else pa.string()
        if kind in (Id, Time) and not any(isinstance(v, str) for v in values):
            arrow = pa.float64() if any(isinstance(v, float) for v in values) else pa.int64()
        schema.append((names[name], arrow))
    try:
        with pa.input_stream(str(path), compression=_PACKED.get(path.suffix.lower())) as stream:
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
    _require_rows(path, table)
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
        column = column.cast(pa.int64() if kind is Id else _ARROW_TYPES[kind])
    except pa.ArrowException as e:
        raise UserError(f"{path}: column {name} ({column.type}): {e}", _KINDS[kind], fix) from None
    if kind is float and not np.isfinite(values := column.to_numpy()).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{path} row {row + 1}: {name} is {values[row]}", _KINDS[float], fix)
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
    form, raw = Form(sep, encoding=encoding), path.read_bytes()
    try:
        text = raw.decode("utf-8-sig" if encoding == "utf8" else encoding)
    except UnicodeDecodeError as e:
        raise _wrong_byte(path, raw, e, form) from None
    out = []
    for number, line in enumerate(re.split(r"\r\n|\n", text), start=1):
        row = line.split(sep)
        if not line or (header and number == 1):
            continue
        if len(row) < least:
            raise UserError(f"{path} line {number}: {len(row)} columns", f"{least} or more", str(path))
        out.append(row)
    return out
