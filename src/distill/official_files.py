"""The files of the official DLLM2Rec code, read and written with an explicit sample order.

`myrank_train.txt` [n, >= K] item ids, 0-based, best first; `confidence_train.txt` [n, >= K] distances, smaller
is better; `all_embeddings.pt` [N, D] float32. Row i belongs to the i-th sample id that the caller names: the
files themselves know no ids.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.core.artifacts import fingerprint, now, sha256_file, writing
from src.core.data_utils import InteractionData
from src.core.datasets.columns import require_files
from src.core.errors import UserError
from src.core.git_info import git_info
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows, TeacherStore, check_embeddings, locate

RANKS, DISTANCES, EMBEDDINGS = "myrank_train.txt", "confidence_train.txt", "all_embeddings.pt"


@dataclass(frozen=True)
class OfficialFiles:
    """What the files hold, in this project's conventions.

    Attributes:
        sample_ids: [n] int64; rankings: [n, K] int32 ids 1..N; distances: [n, K] float32, rising;
        item_embeddings: [N+1, D] float32, row 0 zeros.
    """

    sample_ids: np.ndarray
    rankings: np.ndarray
    distances: np.ndarray
    item_embeddings: np.ndarray


def write_official(folder: Path, store: TeacherStore, sample_ids: np.ndarray) -> None:
    """Write a store's training rows, in the order of `sample_ids`, as the official files.

    A log-likelihood is written as the distance -log p.
    """
    rows = store.rows_of("train", sample_ids)
    sign = 1.0 if store.score_kind == "distance" else -1.0
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / RANKS) as path:
        np.savetxt(path, rows.rankings - 1, fmt="%d")
    with writing(folder / DISTANCES) as path:
        np.savetxt(path, sign * rows.scores, fmt="%.9g")  # nine digits restore a float32 exactly
    with writing(folder / EMBEDDINGS) as path:
        torch.save(torch.from_numpy(store.item_embeddings()[1:].copy()), path)


def read_official(folder: Path, sample_ids: np.ndarray, n_items: int) -> OfficialFiles:
    """Read and check the official files.

    Args:
        sample_ids: [n] the sample of every row, each once.
        n_items: catalogue size N.

    Raises:
        UserError: a file is missing or malformed; rows, columns or catalogue differ; ids out of range or
            twice in a row; distances not rising; values not finite.
    """
    sample_ids = np.asarray(sample_ids, np.int64)
    ids = _read_table(folder / RANKS)
    distances = _read_table(folder / DISTANCES).astype(np.float32)
    if len(ids) != len(sample_ids):
        raise UserError(
            f"{folder / RANKS} has {len(ids)} rows", f"{len(sample_ids)}, one per sample id", "the file"
        )
    if distances.shape != ids.shape:
        raise UserError(f"{folder / DISTANCES} is {distances.shape}", f"{ids.shape} as {RANKS}", "the file")
    whole = np.nan_to_num(ids, nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.int64)
    if (whole != ids).any():
        raise UserError(f"{folder / RANKS} holds values that are no integers", "0-based item ids", "the file")
    if whole.min() < 0 or whole.max() >= n_items:
        raise UserError(
            f"{folder / RANKS}: ids {whole.min()}..{whole.max()}", f"0..{n_items - 1}", "the file"
        )
    rankings = (whole + 1).astype(np.int32)
    # The target's distance is not in these files; the checks need some value.
    rows = TeacherRows(sample_ids, rankings, distances, distances[:, 0])
    rows.check(n_items, "distance", str(folder))
    table = _read_embeddings(folder / EMBEDDINGS)
    if table.ndim != 2 or len(table) != n_items:
        raise UserError(
            f"{folder / EMBEDDINGS} is {table.shape}", f"({n_items}, D)", "the file or the dataset"
        )
    table = np.concatenate([np.zeros((1, table.shape[1]), np.float32), table.astype(np.float32)])
    check_embeddings(table, n_items, str(folder / EMBEDDINGS))
    return OfficialFiles(sample_ids, rankings, distances, table)


def files_fingerprint(folder: Path) -> str:
    """What tells one import from another; the store keeps it as the hash of its teacher's weights."""
    paths = require_files(folder, (RANKS, DISTANCES, EMBEDDINGS), "the folder")
    return fingerprint([sha256_file(path) for path in paths])


def training_order(folder: Path, data: InteractionData) -> np.ndarray:
    """[n] sample ids of the files' rows, as the official code has them: the rows of the training table.

    Split files may hold rows that are no samples (their history is too short); the official files have a row for
    them all the same, which `import_official` leaves out.

    Raises:
        UserError: another number of rows.
    """
    train, rows = data.splits["train"], len(_read_table(folder / RANKS))
    if rows == len(train):
        return train
    held_out = min(int(data.splits[name].min()) for name in ("valid", "test"))
    if data.own_rows and train.max() < rows <= held_out:
        return np.arange(rows)
    raise UserError(
        f"{folder / RANKS} has {rows} rows",
        f"{len(train)}, one per training sample of {data.name}",
        "the file, dataset.min_history, or --order",
    )


def import_official(
    folder: Path,
    sample_ids: np.ndarray,
    data: InteractionData,
    store_folder: Path,
    teacher: str = "official_files",
) -> TeacherStore:
    """Make a teacher-output store (training rows only) of official files.

    Args:
        sample_ids: [n] the sample of every row; rows of split files that are no samples are left out.
        teacher: name in the manifest.

    The files lack the distance of the true next item: it is that of the ranking where the target is
    listed, else the row's largest; the manifest says so (`target_scores`), and what needs the exact value
    refuses.
    """
    sample_ids = np.asarray(sample_ids, np.int64)
    _, known = locate(data.splits["train"], sample_ids)
    whole_table = data.own_rows and np.array_equal(sample_ids, np.arange(len(sample_ids)))
    if not known.all() and not whole_table:
        raise UserError(
            f"sample {sample_ids[~known][0]} is no training sample", "ids of the train split", "the order"
        )
    files = read_official(folder, sample_ids, data.n_items)
    hit = files.rankings == data.targets(sample_ids)[:, None]
    column = np.where(hit.any(axis=1), hit.argmax(axis=1), hit.shape[1] - 1)
    order = np.argsort(sample_ids)
    order = order[known[order]]
    rows = TeacherRows(
        sample_ids[order],
        files.rankings[order],
        files.distances[order],
        files.distances[np.arange(len(column)), column][order],
    )
    writer = StoreWriter(store_folder, data.n_items, "distance", shard_size=len(rows.sample_ids))
    shutil.rmtree(writer.partial)  # read in one go: rows of another import must not be taken for these
    writer.partial.mkdir()
    writer.export("train", rows.sample_ids, lambda _: rows, weights=files_fingerprint(folder))
    fields = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "teacher": teacher,
        "teacher_fingerprint": store_folder.name,
        "n_train_split": len(data.splits["train"]),
        "target_scores": "listed",
        "in_sample": {},
        "git_commit": git_info()["commit"],
        "created_at": now(),
        "export_seconds": 0.0,
    }
    return writer.finish({"train": rows.sample_ids}, files.item_embeddings, fields)


def _read_table(path: Path) -> np.ndarray:
    """[n, K] float64 of a text file with white space between the numbers."""
    try:
        with warnings.catch_warnings(action="ignore"):  # an empty file is refused below
            table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}", "a table of numbers", "the file") from None
    if not table.size:
        raise UserError(f"{path} is empty", "a row per sample", "the file")
    return table


def _read_embeddings(path: Path) -> np.ndarray:
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds: missing, truncated, refused objects
        raise UserError(f"{path} cannot be read: {e}", "one tensor saved by torch.save", "the file") from None
    if not isinstance(table, torch.Tensor):
        raise UserError(f"{path} holds a {type(table).__name__}", "one tensor [N, D]", "the file")
    return table.float().numpy()
