"""Files with one record per line, plain or gzip: JSON, and the Python literals of older dumps."""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from src.core.datasets.tables import Id
from src.core.errors import UserError
from src.core.logging import progress
from src.core.signals import check_stop

_BLOCK = 64 * 1024 * 1024  # a record must fit; the longest reviews and descriptions have some 100 kB
_STOP_EVERY = 10_000  # lines between two looks at the signals
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), Id: pa.string()}


def existing(folder: Path, name: str) -> str:
    """`name`, or `name` without `.gz` if only that is there (people unpack what they download)."""
    plain = name.removesuffix(".gz")
    return plain if not (folder / name).exists() and (folder / plain).exists() else name


def read_json(path: Path, columns: Mapping[str, type]) -> pa.Table:
    """Some fields of JSON lines as columns; every record must have them.

    Raises:
        UserError: with the line: no JSON, a missing field, a value of another type; a truncated file.
    """
    schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            table = pa_json.read_json(
                stream,
                read_options=pa_json.ReadOptions(block_size=_BLOCK),
                parse_options=pa_json.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            )
    except (pa.ArrowException, OSError) as e:
        _explain(path, columns)
        raise UserError(f"{path} cannot be read: {e}", "JSON lines", f"{path} (fetch it again)") from None
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows", "JSON lines", str(path))
    if any(table.column(name).null_count for name in columns):
        _explain(path, columns)
    ids = {name: table.column(name).dictionary_encode() for name, kind in columns.items() if kind is Id}
    return pa.table({name: ids.get(name, table.column(name)) for name in columns})


def _explain(path: Path, columns: Mapping[str, type]) -> None:
    allowed = {int: int, float: (int, float), str: str, Id: str}
    for number, record in records(path, json.loads, "JSON"):
        for name, kind in columns.items():
            value = record.get(name)
            if not isinstance(value, allowed[kind]) or isinstance(value, bool):
                raise UserError(
                    f"{path} line {number}: {name} is {value!r}", f"a {name} in every record", str(path)
                )


def read_literals(path: Path, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """The fields `names` (None where absent) of lines that are Python literals, as McAuley's group ships them.

    Nothing is evaluated. About 30,000 lines a second.

    Raises:
        UserError: with the line: not a dictionary of literals; a truncated file.
    """
    for _, record in progress(records(path, ast.literal_eval, "a Python literal"), path.name, unit="line"):
        yield tuple(record.get(name) for name in names)


def read_titles(path: Path, parse: Callable[[str], Any], what: str) -> tuple[list[str], list[str | None]]:
    """`asin` and `title` of product metadata; a title that is no text counts as none."""
    ids, titles = [], []
    for number, record in progress(records(path, parse, what), path.name, unit="line"):
        if not isinstance(record.get("asin"), str):
            raise UserError(f"{path} line {number}: asin is {record.get('asin')!r}", "an asin", str(path))
        ids.append(record["asin"])
        titles.append(record["title"] if isinstance(record.get("title"), str) else None)
    return ids, titles


def records(path: Path, parse: Callable[[str], Any], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and parsed records; blank lines are passed over."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as f:
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
    except (ValueError, SyntaxError, RecursionError) as e:
        raise UserError(f"{path} line {number}: {e}", what, str(path)) from None
