"""Delimited text as Arrow columns of exact types.

pyarrow parses (several threads, exact column counts); when it refuses, the text is read once more, row by row, to
name the line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from src.core.datasets.columns import ARROW_TYPES, EXPECTED, PACKED, match_names, require_rows
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)
_UNIT_SEPARATOR = "\x1f"
_LONGEST_FIELD = 2**31 - 1


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
    text = _Text(path, columns, form)
    try:
        table = text.parse(
            column_types={text.names[name]: ARROW_TYPES[kind] for name, kind in columns.items()},
            include_columns=list(text.names.values()),
        )
    except pa.ArrowException as e:
        raise text.explain(e) from None
    require_rows(path, table)
    table = table.select(list(text.names.values())).rename_columns(list(columns))
    for name, kind in columns.items():
        if kind is float and not np.isfinite(table.column(name).to_numpy()).all():
            raise text.explain(None)
    if text.quotes:
        _report_line_breaks(path, table, form)
    return table


class _Text:
    """A text on its way into columns.

    Attributes:
        data: the bytes as UTF-8 with one-character separators.
        quotes: there are any, and they count.
        names: the file's own name of every wanted column.
        positions: names of all columns where no header has them.
    """

    def __init__(self, path: Path, columns: Mapping[str, type], form: Form):
        self.path, self.columns, self.form = path, columns, form
        self.sep = form.sep if len(form.sep) == 1 else _UNIT_SEPARATOR
        self.data = _bytes(path, form)
        self.quotes = form.quoted and _check_quotes(path, self.data, self.sep, form)
        self.names: Mapping[str, str] = dict(zip(columns, columns, strict=True))
        self.positions: list[str] | None = None
        if form.header:
            first = io.TextIOWrapper(pa.BufferReader(self.data), "utf-8-sig", errors="replace", newline="")
            quoting: Any = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
            header = next(csv.reader(first, delimiter=self.sep, quoting=quoting), [])
            self.names = match_names(path, columns, header, form.keys)
        else:
            unused = (form.width or len(columns)) - len(columns)
            self.positions = [*columns, *(f"_unused{i}" for i in range(unused))]

    def parse(
        self, read: Mapping[str, Any] | None = None, parse: Mapping[str, Any] | None = None, **convert: Any
    ) -> pa.Table:
        read = {"block_size": 1 << 24, **(read or {})}
        return pa_csv.read_csv(
            pa.BufferReader(self.data),
            read_options=pa_csv.ReadOptions(column_names=self.positions, **read),
            parse_options=pa_csv.ParseOptions(
                delimiter=self.sep,
                quote_char='"' if self.form.quoted else False,
                newlines_in_values=self.quotes,
                **(parse or {}),
            ),
            convert_options=pa_csv.ConvertOptions(null_values=[], strings_can_be_null=False, **convert),
        )

    def explain(self, error: Exception | None) -> UserError:
        """What stands at the first line that cannot be read."""
        raw = self.data.to_pybytes()
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as e:
            return _wrong_byte(self.path, raw, e, self.form)
        odd: list[pa_csv.InvalidRow] = []  # blank lines and lines of another width

        def keep(row: pa_csv.InvalidRow) -> str:
            odd.append(row)
            return "skip"

        skip = {"ignore_empty_lines": False, "invalid_row_handler": keep}
        texts = dict.fromkeys(self.positions or self.names.values(), pa.string())
        unknown = UserError(f"{self.path} cannot be parsed: {error}", "a text table", str(self.path))
        try:
            table = self.parse({"use_threads": False, "block_size": _LONGEST_FIELD}, skip, column_types=texts)
        except pa.ArrowException:
            return unknown
        found: list[tuple[int, UserError]] = []
        for wrong in (row for row in odd if row.text.strip()):
            before = sum(row.number < wrong.number for row in odd)
            line = wrong.number + _breaks(table, wrong.number - 1 - self.form.header - before)
            text = f"{self.path} line {line}: {wrong.actual_columns} columns"
            found.append((line, UserError(text, f"{wrong.expected_columns} columns", str(self.path))))
            break
        for name, kind in self.columns.items():
            values = table.column(self.names[name])
            if (row := _first_bad(values, kind)) is not None:
                number = row + 1 + self.form.header
                for skipped in odd:
                    number += skipped.number <= number
                line = number + _breaks(table, row)
                text = f"{self.path} line {line}: {name} is {values[row].as_py()!r}"
                fix = self.form.keys.get(name, str(self.path))
                found.append((line, UserError(text, EXPECTED[kind], fix)))
        return min(found, key=lambda pair: pair[0])[1] if found else unknown


def _bytes(path: Path, form: Form) -> pa.Buffer:
    """The bytes of a file as UTF-8 with one-character separators; a plain file is mapped, not copied."""
    try:
        if path.suffix.lower() in PACKED:
            with pa.input_stream(str(path), compression=PACKED.get(path.suffix.lower())) as stream:
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
