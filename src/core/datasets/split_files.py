"""Split files as iLoRA and DLLM2Rec publish them: `train_data.csv`, `val_data.csv`, `test_data.csv`, `id2name.txt`.

Columns `seq` (item ids, padded on the right with the item count), `len_seq`, `next` (an id, also as 4881.0); item ids
count from 0; `id2name.txt` has `id::name` (iLoRA) or `name<TAB>id` (DLLM2Rec, BIGRec) lines. `convert_ilora.py` makes
these files from the official pickles. Rows keep their place: the sample id is the row over train, valid, test.
Padding decides the history (the files store an empty one with len_seq 1).

X. Kong et al.: Customizing Language Models with Instance-wise LoRA for Sequential Recommendation. NeurIPS 2024 (the
LastFM log comes from HetRec 2011: non-commercial research). Y. Cui et al.: Distillation Matters. RecSys 2024.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.core.datasets.columns import require_files
from src.core.datasets.config import DatasetConfig
from src.core.datasets.raw_log import RawSplits, title_series
from src.core.datasets.text_table import Form, read_lines, read_table
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)
SPLIT_FILES = ("train_data.csv", "Val_data.csv", "Test_data.csv")
TITLES = "id2name.txt"


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    fix = "dataset.raw_dir (python -m src.core.datasets.convert_ilora makes the files from the official ones)"
    return require_files(raw_dir, [*(_spelled(raw_dir, name) for name in SPLIT_FILES), TITLES], fix)


def _spelled(folder: Path, name: str) -> str:
    """iLoRA writes Val_data, DLLM2Rec val_data."""
    return name.lower() if not (folder / name).exists() and (folder / name.lower()).exists() else name


def read(raw_dir: Path, config: DatasetConfig) -> RawSplits:
    assert config.ilora is not None  # DatasetConfig.problems
    *split_paths, titles_path = files(raw_dir, config)
    names = read_names(titles_path)
    n_items, ids = len(names), np.array(list(names))
    if not np.array_equal(np.sort(ids), np.arange(n_items)):
        raise UserError(
            f"{titles_path} lists ids {ids.min()}..{ids.max()}", f"0..{n_items - 1}, once", str(titles_path)
        )
    rows = [_rows(path, n_items, config.ilora.strip_target) for path in split_paths]
    lengths = np.concatenate([length for _, length in rows])
    return RawSplits(
        items=np.concatenate([items for items, _ in rows]).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        split=np.repeat(np.arange(3), [len(length) for _, length in rows]),
        raw_items=np.arange(n_items),
        titles=title_series(list(names), list(names.values()), titles_path),
        path=raw_dir,
    )


def read_names(path: Path) -> dict[int, str]:
    """Titles by id, of either form; a title may hold the separator.

    Raises:
        UserError: with the line: no id, or one that was there before.
    """
    rows = read_lines(path, "\t", least=1)
    tabs = bool(rows) and len(rows[0]) > 1 and rows[0][-1].strip().isdecimal()
    names: dict[int, str] = {}
    for number, row in enumerate(rows, start=1):
        if tabs:
            name, text = "\t".join(row[:-1]), row[-1].strip()
        else:
            text, _, name = "\t".join(row).partition("::")
        if not text.isdecimal() or not text.isascii() or int(text) in names:
            raise UserError(
                f"{path} entry {number} has the id {text[:40]!r} where another is expected",
                "each id once, as id::name or name<TAB>id",
                str(path),
            )
        names[int(text)] = name
    if not names:
        raise UserError(f"{path} has no rows", "id::name or name<TAB>id", str(path))
    return names


def _rows(path: Path, n_items: int, strip_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """Items of all rows, each its history and its target, and the length of each row."""
    table = read_table(path, {"seq": str, "next": float}, Form(header=True, quoted=True))
    target = table.column("next").to_numpy()
    seq = _lists(table.column("seq"), path)
    _refuse(target != np.floor(target), path, "next is no whole number")
    wrong = (seq < 0).any(axis=1) | (seq > n_items).any(axis=1) | (target < 0) | (target >= n_items)
    _refuse(wrong, path, f"an item id is outside 0..{n_items - 1} (padding {n_items})")
    target = target.astype(np.int64)
    real = seq != n_items
    length = real.sum(axis=1)
    # Padding is on the right: after the first padding no item may follow.
    _refuse((~real[:, :-1] & real[:, 1:]).any(axis=1), path, "an item follows the padding of seq")
    repeated = np.zeros(len(seq), dtype=bool)
    some = np.flatnonzero(length)
    repeated[some] = seq[some, length[some] - 1] == target[some]
    if repeated.any() and strip_target:
        log.info("%s: %d rows lose a newest history item that is their target", path.name, repeated.sum())
        real[np.flatnonzero(repeated), length[repeated] - 1] = False
    flat = np.column_stack([seq, target])
    keep = np.column_stack([real, np.ones(len(seq), dtype=bool)])
    return flat[keep], keep.sum(axis=1)


def _lists(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """[R, L] from "[1, 2, 3]" texts of one length, without evaluating them."""
    good = pc.match_substring_regex(column, r"^\[\s*-?\d{1,18}(\s*,\s*-?\d{1,18})*\s*\]$").to_numpy()
    _refuse(~good, path, "seq is not a list of integers")
    width = pc.count_substring(column, ",").to_numpy() + 1
    _refuse(width != width[0], path, f"seq has not {width[0]} entries as in the first row")
    inner = pc.utf8_trim(column, "[] ")
    values = pc.cast(pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(inner, ","))), pa.int64())
    return values.to_numpy().reshape(-1, width[0])


def _refuse(wrong: np.ndarray, path: Path, reason: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(f"{path} row {row + 1}: {reason}", "iLoRA's form (seq, len_seq, next)", str(path))
