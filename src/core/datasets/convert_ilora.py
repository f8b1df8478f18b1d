"""Turn the official split files of iLoRA, LLaRA and DLLM2Rec into the CSV files that `reader: ilora` takes.

    python -m src.core.datasets.convert_ilora data/ref/lastfm data/raw/lastfm_ilora

The official `train_data.df`, `Val_data.df`, `Test_data.df` are pickles, which can run any code when
they are read. This command is the only place that reads one, with an unpickler that knows nothing but
what a pandas table of numbers, texts and lists is made of; anything else stops it before it is called. DLLM2Rec's
`val_data.csv` and `test_data.csv` are copied. The titles come from `id2name.txt` (of BIGRec for DLLM2Rec), or for
MovieLens from `u.item` (item ids there count from 1).
"""

from __future__ import annotations

import argparse
import csv
import pickle
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.compat import pickle_compat

from src.core.artifacts import write_text, writing
from src.core.datasets.columns import require_files
from src.core.datasets.split_files import SPLIT_FILES, TITLES, read_names
from src.core.datasets.tabular import clean_title
from src.core.datasets.text_table import read_lines
from src.core.errors import UserError
from src.core.logging import command, get_logger

log = get_logger(__name__)

_ALLOWED = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"{core}.multiarray", name)
        for core in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("pandas", "DataFrame"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.numeric", "Int64Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.blocks", "new_block"),
    ("pandas._libs.internals", "_unpickle_block"),
}


class _TableUnpickler(pickle_compat.Unpickler):
    """Finds only the parts of a table; the base class maps what older versions of pandas wrote."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickled_table(path: Path) -> pd.DataFrame:
    """The columns `seq`, `len_seq`, `next` of an official file.

    Raises:
        UserError: no such table, or a pickle that holds anything else.
    """
    try:
        with open(path, "rb") as f:
            table = _TableUnpickler(f).load()
    except Exception as e:  # a broken pickle can raise anything, and nothing of it may be run
        raise UserError(
            f"{path} is refused: {type(e).__name__}: {e}",
            "a pickled pandas table of numbers and lists",
            str(path),
        ) from None
    if not isinstance(table, pd.DataFrame) or not {"seq", "len_seq", "next"} <= set(table.columns):
        raise UserError(f"{path} is a {type(table).__name__}", "a table with seq, len_seq, next", str(path))
    return table


def convert(source: Path, target: Path) -> dict[str, int]:
    """Write the CSV files and the titles of `source` to `target`; returns the rows of each file."""
    names = [_official(source, name) for name in SPLIT_FILES]
    paths = require_files(source, names, "the source folder")
    titles = _titles(source)
    rows = {}
    for path, name in zip(paths, SPLIT_FILES, strict=True):
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as f:
                table: list[Any] = list(csv.reader(f))[1:]
        else:
            frame = read_pickled_table(path)
            table = list(zip(frame["seq"], frame["len_seq"], frame["next"], strict=True))
        with writing(target / name) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(["seq", "len_seq", "next"])
            for row, values in enumerate(table, start=1):
                try:
                    seq, length, following = values
                    seq = seq.strip("[] ").split(",") if isinstance(seq, str) else seq
                    out.writerow([str([_item(x) for x in seq]), int(length), _item(following)])
                except (TypeError, ValueError) as e:
                    raise UserError(
                        f"{path} row {row}: {e}", "item ids, or (item id, rating)", str(path)
                    ) from None
        rows[name] = len(table)
        log.info("%s: %d rows", target / name, len(table))
    write_text(target / TITLES, "".join(f"{i}::{title}\n" for i, title in titles))
    return rows


def _official(source: Path, name: str) -> str:
    """The official file of a split: a pickle, or for DLLM2Rec's held-out splits a CSV file."""
    plain = name.lower()
    return plain if (source / plain).is_file() and plain != SPLIT_FILES[0] else name.replace(".csv", ".df")


def _item(value: Any) -> int:
    """An item id, also as text or 4881.0; the MovieLens files pair it with its rating."""
    value = value[0] if isinstance(value, (tuple, list)) else value
    if float(value) != int(float(value)):
        raise ValueError(f"the item id {value!r} is no whole number")
    return int(float(value))


def _titles(source: Path) -> list[tuple[int, str]]:
    if (source / TITLES).is_file():
        return [(i, name.strip()) for i, name in read_names(source / TITLES).items()]
    (path,) = require_files(source, ["u.item"], f"the source folder ({TITLES}, or u.item for MovieLens)")
    rows = read_lines(path, "|", least=2, encoding="latin-1")
    return [(int(row[0]) - 1, clean_title(row[1])) for row in rows]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "source", type=Path, help="folder with train_data.df, Val_data.df, Test_data.df and titles"
    )
    parser.add_argument("target", type=Path, help="folder for the CSV files (dataset.raw_dir)")
    options = parser.parse_args(arguments)
    return command(lambda: convert(options.source, options.target))


if __name__ == "__main__":
    sys.exit(main())
