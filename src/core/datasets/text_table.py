"""Delimited text as Arrow columns of exact types.

pyarrow parses (several threads, exact column counts); where it refuses, the standard library's csv reader goes
through the rows and names the line.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from src.core.datasets.columns import ARROW_TYPES, EXPECTED, PACKED, match_names, require_rows
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)
_UNIT_SEPARATOR = "\x1f"
_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")


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
    data = _bytes(path, form)
    sep = form.sep if len(form.sep) == 1 else _UNIT_SEPARATOR
    quotes = form.quoted and bool((np.frombuffer(data, np.uint8) == ord('"')).any())
    if quotes:
        _check_quotes(path, data, sep, form)
    if form.header:
        _, header = next(_rows(data, sep, form.quoted), (1, []))
        names = match_names(path, columns, header, form.keys)
    else:
        header = [*columns, *(f"_unused{i}" for i in range((form.width or 0) - len(columns)))]
        names = dict(zip(columns, columns, strict=True))
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            pa_csv.ReadOptions(column_names=None if form.header else header, block_size=1 << 24),
            pa_csv.ParseOptions(
                delimiter=sep, quote_char='"' if form.quoted else False, newlines_in_values=quotes
            ),
            pa_csv.ConvertOptions(
                null_values=[],
                strings_can_be_null=False,
                column_types={names[name]: ARROW_TYPES[kind] for name, kind in columns.items()},
                include_columns=list(names.values()),
            ),
        )
    except pa.ArrowException as e:
        raise _explain(path, data, sep, header, columns, names, form, str(e)) from None
    require_rows(path, table)
    table = table.select(list(names.values())).rename_columns(list(columns))
    if not all(np.isfinite(table[name]).all() for name, kind in columns.items() if kind is float):
        raise _explain(path, data, sep, header, columns, names, form, "a number is not finite")
    if quotes:
        _report_line_breaks(path, table, form)
    return table


def _rows(data: pa.Buffer, sep: str, quoted: bool, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Every row with the line it starts on (from 1)."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(pa.BufferReader(data), "utf-8-sig", errors="replace", newline="")
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader, line = csv.reader(text, delimiter=sep, quoting=quoting, strict=strict), 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as e:
        raise csv.Error(f"line {line}: {e}") from None


def _check_quotes(path: Path, data: pa.Buffer, sep: str, form: Form) -> None:
    """Quotes open and close at the edges of fields (a lone quote inside a field is text)."""
    try:
        for _ in _rows(data, sep, quoted=True, strict=True):
            pass
    except csv.Error as e:
        raise UserError(f"{path} {e}", "well-formed quotes", form.keys.get("quoting", str(path))) from None


def _explain(
    path: Path,
    data: pa.Buffer,
    sep: str,
    header: Sequence[str],
    columns: Mapping[str, type],
    names: Mapping[str, str],
    form: Form,
    error: str,
) -> UserError:
    """What stands at the first line that cannot be read."""
    raw = data.to_pybytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as e:
        return _wrong_byte(path, raw, e, form)
    wanted = [(name, kind, header.index(names[name])) for name, kind in columns.items()]
    for line, row in _rows(data, sep, form.quoted):
        if not row or (form.header and line == 1):
            continue
        if len(row) != len(header):
            found = f"{path} line {line}: {len(row)} columns"
            return UserError(found, f"{len(header)} columns", str(path))
        for name, kind, at in wanted:
            if not _is_a(kind, row[at]):
                found = f"{path} line {line}: {name} is {row[at]!r}"
                return UserError(found, EXPECTED[kind], form.keys.get(name, str(path)))
    return UserError(f"{path} cannot be parsed: {error}", "a text table", str(path))


def _is_a(kind: type, text: str) -> bool:
    """Whether a text is an integer of 64 bits or a finite number, where `kind` asks for one."""
    try:
        if kind is int:
            return bool(_INTEGER.fullmatch(text)) and abs(int(text)) < 2**63
        return kind is not float or math.isfinite(float(text if "_" not in text else ""))
    except ValueError:
        return False


def _bytes(path: Path, form: Form) -> pa.Buffer:
    """The bytes of a file as UTF-8 with one-character separators; a plain file is mapped, not copied."""
    try:
        if path.suffix.lower() in PACKED:
            with pa.input_stream(str(path), compression=PACKED[path.suffix.lower()]) as stream:
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


def _report_line_breaks(path: Path, table: pa.Table, form: Form) -> None:
    """Line breaks are refused in ids, and logged in texts: quotes that belong to a text can swallow rows."""
    fix = form.keys.get("quoting", "quotes")
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_id = pa.types.is_dictionary(column.type)
        if not (is_id or pa.types.is_string(column.type)):
            continue
        broken = pc.match_substring(column.cast(pa.string()), "\n")
        first = pc.index(broken, True).as_py() + 1
        if first and is_id:
            raise UserError(f"{path} row {first}: {name} holds a line break", "an id on one line", fix)
        if first:
            log.info(
                "%s: %d values of %s hold line breaks, the first in row %d (%s=false if quotes are part of the text)",
                *(path.name, pc.sum(broken).as_py(), name, first, fix),
            )


def read_lines(
    path: Path, sep: str, least: int, header: bool = False, encoding: str = "utf8"
) -> list[list[str]]:
    """Fields of every line, for small tables whose lines differ in width.

    Raises:
        UserError: with the line: fewer than `least` fields, bytes that are not of `encoding`.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig" if encoding == "utf8" else encoding)
    except UnicodeDecodeError as e:
        raise _wrong_byte(path, raw, e, Form(encoding=encoding)) from None
    out = []
    for number, line in enumerate(re.split(r"\r\n|\n", text), start=1):
        row = line.split(sep)
        if not line or (header and number == 1):
            continue
        if len(row) < least:
            raise UserError(f"{path} line {number}: {len(row)} columns", f"{least} or more", str(path))
        out.append(row)
    return out
