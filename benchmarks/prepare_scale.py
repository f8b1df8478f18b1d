"""Time and memory of preparing generated logs of growing size.

    python -m benchmarks.prepare_scale 1000209 25000000
    python -m benchmarks.prepare_scale --csv 1000209 25000000   # text ids, quoted CSV, repeats and 5-core

Each size runs in a process of its own, so that its peak memory is its own: the log is written as
MovieLens CSV files (not counted), then prepared from nothing (hashing, parsing, filters, sorting,
splitting, checks, statistics, plots, writing) and opened once more as every later run does. `over_reading` is the CPU
time of preparing over that of reading and sorting the same file with pyarrow, which no preparation can go below.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import answer, group, in_own_process, peak_gib


def generate(folder: Path, interactions: int, text_ids: bool) -> None:
    """MovieLens-like: lengths and popularity are skewed, users come in blocks, times within a user are shuffled."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    rng = np.random.default_rng(0)
    users, items = max(interactions // 165, 10), min(max(interactions // 250, 100), 60_000)
    weight = rng.lognormal(0, 1.2, users)
    user = np.sort(rng.choice(users, size=interactions, p=weight / weight.sum())) + 1
    popularity = 1.0 / (np.arange(items) + 20.0)
    item = rng.permutation(items)[rng.choice(items, size=interactions, p=popularity / popularity.sum())] + 1
    start = rng.integers(8e8, 1.5e9, users + 1)
    seconds = start[user] + rng.integers(0, 3e7, interactions) // 30 * 30
    stars = rng.integers(1, 11, interactions) / 2
    folder.mkdir()
    if text_ids:
        user, item = (pa.array(np.char.add("id-", ids.astype(str))) for ids in (user, item))
    log = pa.table({"userId": user, "movieId": item, "rating": stars, "timestamp": seconds})
    plain = pa.csv.WriteOptions(quoting_style="none", quoting_header="none")  # as GroupLens writes it
    pa.csv.write_csv(log, folder / "ratings.csv", plain)
    names = pa.table(
        {
            "movieId": [f"id-{i}" if text_ids else i for i in range(1, items + 1)],
            "title": [f"Film {i}, The ({1950 + i % 70})" for i in range(1, items + 1)],
            "genres": ["Drama"] * items,
        }
    )
    pa.csv.write_csv(names, folder / "movies.csv", pa.csv.WriteOptions(quoting_header="none"))


CSV = (
    "dataset.csv.interactions=ratings.csv",
    "dataset.csv.items=movies.csv",
    "dataset.csv.user=userId",
    "dataset.csv.item=movieId",
    "dataset.csv.rating=rating",
    "dataset.csv.item_id=movieId",
    "dataset.repeats=first",
    "dataset.k_core_users=5",
    "dataset.k_core_items=5",
    "dataset.min_history=10",
)


def read_and_sort(folder: Path) -> None:
    """What a bare reader does: the file's columns, and their order by user and time."""
    import pyarrow.compute as pc
    from pyarrow import csv

    log = csv.read_csv(folder / "ratings.csv")
    log.take(pc.sort_indices(log, [("userId", "ascending"), ("timestamp", "ascending")]))


def measure(folder: Path, csv: bool) -> dict[str, Any]:
    """Prepare and open."""
    from src.core.config import build_or_raise
    from src.core.data_utils import DatasetConfig, load_dataset

    name, extra = ("csv", CSV) if csv else ("movielens_20m", ("dataset.download=false",))
    values = group("dataset", name, f"dataset.raw_dir={folder}", *extra)
    config = build_or_raise(DatasetConfig, values, "dataset")
    clocks = [(time.perf_counter(), time.process_time())]

    def lap() -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    data = load_dataset(config)
    lap()
    peak = peak_gib()
    load_dataset(config)
    lap()
    data.histories(data.splits["train"][:100_000])
    lap()
    read_and_sort(folder)
    lap()
    wall, cpu = ([b - a for a, b in itertools.pairwise(column)] for column in zip(*clocks, strict=True))
    return {
        "interactions": len(data.items),
        "samples": {name: len(ids) for name, ids in data.splits.items()},
        "prepare_s": round(wall[0], 2),
        "prepare_cpu_s": round(cpu[0], 3),
        "over_reading": round(cpu[0] / cpu[3], 2),
        "reopen_s": round(wall[1], 2),
        "histories_per_s": round(100_000 / wall[2]),
        "peak_gib": round(peak, 2),
    }


def of_size(interactions: int, csv: bool = False) -> dict[str, Any]:
    """`measure` of a generated log in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw"
        generate(raw, interactions, csv)
        return in_own_process("benchmarks.prepare_scale", str(raw), csv, ANYO_DATA_ROOT=scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[250_000, 1_000_209, 4_000_000])
    parser.add_argument(
        "--csv", action="store_true", help="the csv reader with text ids and every costly filter"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, csv = json.loads(options.one)
        return answer(measure(Path(folder), csv))
    for size in options.sizes:
        answer(of_size(size, options.csv))
    return None


if __name__ == "__main__":
    main()
