"""Columns of raw tables: their types, their names in a file, the files themselves."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)


class Id(str):
    """Column type: raw ids, as integers or as a dictionary of texts (`raw_log.encode` numbers them)."""


class Time(str):
    """Column type: times in any notation, as the file has them (`times.ticks` reads them)."""


ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), Time: pa.string()}
ARROW_TYPES[Id] = pa.dictionary(pa.int32(), pa.string())
EXPECTED = {int: "an integer", float: "a finite number", str: "text", Id: "ids", Time: "a number or ISO 8601"}
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


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


def require_rows(path: Path, table: pa.Table) -> None:
    """Raise UserError for a table without rows."""
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows", "a table with rows", str(path))


def match_names(
    path: Path, wanted: Mapping[str, type], found: Sequence[str], keys: Mapping[str, str]
) -> dict[str, str]:
    """The file's own name of every wanted column."""
    out = {}
    for name in wanted:
        same = [f for f in found if f == name]
        same = same or [f for f in found if f.strip().casefold() == name.strip().casefold()]
        if len(same) != 1:
            columns = ", ".join(found)
            columns = columns if len(columns) <= 200 else columns[:200] + " ..."
            what = f"has the column {name} {len(same)} times" if same else f"has the columns {columns}"
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
