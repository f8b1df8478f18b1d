"""A table of experiments as a file (CSV or YAML) and as rows of Hydra overrides; nothing is composed or run here.

CSV: a column is a Hydra key, a cell its value as on the command line, an empty cell the default. Lines `# short -> key,
key` above the header name columns; a row whose first cell starts with `+` is a product: its cells may hold several
values (`"+0,1,2"`, `"+range(0,4)"`). YAML: `names`, `vars`, `common`, `products`, `rows`, `equal_trials`, `summary`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.errors import ConfigError

STAGES = (
    "distill",
    "student_baseline",
    "teacher",
    "eval_all",
)  # that a row can ask for; the first is the default
_OWN = ("name", "stage")  # columns that are no Hydra keys
_YAML_KEYS = ("names", "vars", "common", "products", "rows", "equal_trials", "summary")
_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./+-]*", re.IGNORECASE)
_FOLDER = re.compile(r"[^/\\\s.][^/\\\x00-\x1f]{0,99}")
Cells = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        where: its place in the file ("line 5").
        name: of its folder and of its lines in the log.
        stage: the last one that it needs, of STAGES.
        cells: value as written by column as the table names it; empty cells are left out.
        overrides: its own, for every stage.
        common: the table's, which its own go before.
    """

    where: str
    name: str
    stage: str
    cells: Mapping[str, str]
    overrides: tuple[str, ...]
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """All rows of a file; `summary` holds default options of its summary (`split`, `by`, `metric`)."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    summary: Mapping[str, str]


@dataclass
class _File:
    """What a file says before its rows are checked: (place, cells) of every row, and what is wrong."""

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    raw: list[tuple[str, Cells]] = field(default_factory=list)
    options: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_table(path: Path, common: Sequence[str] = (), variables: Sequence[str] = ()) -> Table:
    """Read a table.

    Args:
        common: overrides for every row; a row's own go before them, and they before those of the file.
        variables: `vars.NAME=VALUE` of a YAML table.

    Raises:
        ConfigError: all that is wrong with the file, each with its line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError([f"{path}: {e.reason} at byte {e.start}, expected UTF-8 text"]) from None
    except OSError as e:
        raise ConfigError([f"{path}: {e.strerror}, expected a table (CSV or YAML)"]) from None
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    file = _read_yaml(text, variables) if is_yaml else _read_csv(text)
    problems = file.problems
    if variables and not is_yaml:
        problems.append(f"found {variables[0]}, which only a YAML table has")
    columns = tuple(dict.fromkeys([*file.columns, *(c for _, cells in file.raw for c in cells)]))
    keys = Counter(key for column in columns for key in file.names.get(column, (column,)))
    problems += [f"columns: {key} is set by two columns, expected one" for key, n in keys.items() if n > 1]
    problems += [f"names: {short} names no column" for short in file.names if short not in columns]
    rows = _named([_row(w, cells, file, (*file.common, *common)) for w, cells in file.raw], columns)
    problems += _twice(rows)
    if not rows and not problems:
        problems.append("found no rows, expected at least one")
    counts = Counter(row.stage for row in rows)
    if file.options.get("equal_trials") and len(set(counts.values())) > 1:
        problems.append(f"equal_trials: found {dict(counts)}, expected equally many rows of each stage")
    if problems:
        raise ConfigError([f"{path.name}: {p}" for p in problems])
    return Table(path.stem, columns, tuple(rows), file.options.get("summary") or {})


def _read_csv(text: str) -> _File:
    file, lines = _File(), text.splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), None)
    for line in lines[:at]:
        short, arrow, keys = line.strip().lstrip("#").partition("->")
        if arrow:
            file.names[short.strip()] = tuple(k.strip() for k in keys.split(","))
    if at is None:
        return replace(file, problems=["found no header, expected a line of column names"])
    separators = [s for s in ",\t;" if s in re.sub(r'"[^"]*"', "", lines[at])]
    if len(separators) > 1:
        found = " and ".join(map(repr, separators))
        file.problems.append(f"line {at + 1}: found {found} between columns, expected one separator")
    separator = (*separators, ",")[0]
    records = csv.reader(io.StringIO("".join(lines[at:]), newline=""), delimiter=separator, strict=True)
    try:
        file.columns = header = [h.strip() for h in next(records)]
        twice = [h for h, n in Counter(header).items() if n > 1 and h]
        file.problems += [f"line {at + 1}: column {h} stands twice" for h in twice]
        file.problems += [f"line {at + 1}: column {i} has no name" for i, h in enumerate(header, 1) if not h]
        for record in records:
            if record and not record[0].lstrip().startswith("#"):
                where = f"line {at + records.line_num}"
                cells = dict(zip(header, (c.strip() for c in record), strict=False))
                if len(record) != len(header):
                    file.problems.append(
                        f"{where}: found {len(record)} cells, expected {len(header)}, as in the header"
                    )
                elif separator != "\t" and any("\t" in cell for cell in record):
                    file.problems.append(f"{where}: found a tab in a table separated by {separator!r}")
                elif not any(c.lstrip("+") for c in cells.values()):
                    file.problems.append(f"{where}: all cells are empty, expected a value (or no line)")
                else:
                    file.raw += [(where, c) for c in _expanded(where, cells, file.problems)]
    except csv.Error as e:
        file.problems.append(f"line {at + records.line_num}: {e}, expected cells with balanced quotes")
    return file


def _expanded(where: str, cells: Cells, problems: list[str]) -> Iterator[Cells]:
    """The row, or the rows of a product; empty cells are left out."""
    first = next(iter(cells))
    is_product, cells[first] = cells[first].startswith("+"), cells[first].removeprefix("+").strip()
    axes = {}
    for column, cell in cells.items():
        if cell:
            parsed = None if column in _OWN else _parsed(f"x={cell}")
            several = parsed is not None and parsed.is_sweep_override()
            if several and not is_product:
                problems.append(
                    f"{where}: {column}: found several values {cell}, expected one ([a,b] is a list; + at the "
                    "beginning of the row's first cell makes a product)"
                )
                return
            axes[column] = [*parsed.sweep_string_iterator()] if several else [cell]  # type: ignore[union-attr]
    yield from (dict(zip(axes, chosen, strict=True)) for chosen in product(*axes.values()))


def _read_yaml(text: str, variables: Sequence[str]) -> _File:
    file = _File()
    try:
        loaded = OmegaConf.create(text)  # refuses a key that stands twice
        root = yaml.compose(text, yaml.SafeLoader)
        plain: Any = loaded
        if isinstance(loaded, DictConfig):
            unknown = [v for v in variables if OmegaConf.select(loaded, v.partition("=")[0]) is None]
            file.problems += [f"found {v}, expected a variable of the table" for v in unknown]
            merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist([*variables]))
            plain = OmegaConf.to_container(merged, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as e:
        return replace(file, problems=[" ".join(str(e).split())])
    kinds = dict.fromkeys(("names", "vars", "common", "summary"), dict) | dict.fromkeys(
        ("products", "rows"), list
    )
    if not isinstance(plain, dict):
        return replace(file, problems=["found a list, expected keys among " + ", ".join(_YAML_KEYS)])
    file.problems += [
        f"{k}: unknown key, expected one of {', '.join(_YAML_KEYS)}" for k in plain if k not in _YAML_KEYS
    ]
    wrong = [k for k, kind in kinds.items() if not isinstance(plain.get(k) or kind(), kind)]
    if wrong:
        return replace(
            file, problems=[*file.problems, *(f"{k}: expected a {kinds[k].__name__}" for k in wrong)]
        )
    names = (plain.get("names") or {}).items()
    file.names = {short: tuple(keys) if isinstance(keys, list) else (keys,) for short, keys in names}
    file.common = [f"{key}={hydra_text(v)}" for key, v in (plain.get("common") or {}).items()]
    file.options = plain
    places = {key.value: [f"line {item.start_mark.line + 1}" for item in node.value if hasattr(item, "start_mark")]
              for key, node in (root.value if root else ())}  # fmt: skip
    for group in ("products", "rows"):
        for where, entry in zip(places.get(group, ()), plain.get(group) or (), strict=True):
            if not isinstance(entry, dict):
                file.problems.append(f"{where}: found {entry!r}, expected columns with values")
                continue
            axes = [v if isinstance(v, list) and group == "products" else [v] for v in entry.values()]
            file.raw += [(where, dict(zip(entry, map(hydra_text, c), strict=True))) for c in product(*axes)]
    return file


def hydra_text(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _WORD.fullmatch(value):
        return value
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"


@lru_cache(maxsize=4096)
def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _row(where: str, cells: Cells, file: _File, common: tuple[str, ...]) -> Row:
    overrides = []
    for column, cell in cells.items():
        for name in file.names.get(column, (column,)) if column not in _OWN else ():
            key = "+experiment" if name == "experiment" else name
            plain = _parsed(f"{key}={cell}") is None and cell[0] not in "[{'\""
            override = f"{key}={hydra_text(cell) if plain else cell}"
            parsed = _parsed(override)
            if parsed is None or parsed.is_sweep_override():
                file.problems.append(f"{where}: {column}: found {cell}, expected one value as after `{key}=`")
            else:
                overrides.append(override)
    stage, name = cells.get("stage", STAGES[0]), cells.get("name", "").strip("'")
    if stage not in STAGES:
        file.problems.append(f"{where}: stage: found {stage}, expected one of {', '.join(STAGES)}")
    if name and not _FOLDER.fullmatch(name):
        file.problems.append(f"{where}: name: found {name!r}, expected a name that a folder can have")
    return Row(where, name, stage, cells, tuple(overrides), common)


def _named(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Rows without a name are called by their number and what differs among them."""
    varying = [c for c in columns if c != "name" and len({r.cells.get(c) for r in rows}) > 1]
    out, digits = [], len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        parts = [f"{c.rpartition('.')[2]}{row.cells[c]}" for c in varying if c in row.cells]
        made = re.sub(r"[^\w.+-]+", "-", "_".join([f"{number:0{digits}}", *parts]))[:80].rstrip("-_")
        out.append(replace(row, name=row.name or made))
    return out


def _twice(rows: Sequence[Row]) -> Iterator[str]:
    first: dict[tuple[str, frozenset[str]], Row] = {}
    for row in rows:
        before = first.setdefault((row.stage, frozenset(row.overrides)), row)
        if before is not row:
            yield f"{row.where}: the same row as {before.where}, expected each once"
    names = Counter(row.name for row in rows)
    yield from (f"name: {name} names two rows, expected each once" for name, n in names.items() if n > 1)
