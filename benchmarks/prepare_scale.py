"""Time and memory of preparing generated logs of growing size.

    python benchmarks/prepare_scale.py 1000209 25000000
    python benchmarks/prepare_scale.py --csv 1000209 25000000   # text ids, quoted CSV, repeats and 5-core

Each size runs in a process of its own, so that its peak memory is its own: the log is written as
MovieLens CSV files (not counted), then prepared from nothing (hashing, parsing, filters, sorting,
splitting, checks, statistics, plots, writing) and opened once more as every later run does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


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


def measure(folder: Path, csv: bool) -> None:
    """Prepare and open; prints one JSON line."""
    started = time.perf_counter()
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from src.core.config import build_or_raise
    from src.core.data_utils import DatasetConfig, load_dataset

    name, extra = ("csv", CSV) if csv else ("movielens_20m", ("dataset.download=false",))
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        group = compose(overrides=[f"+dataset={name}", f"dataset.raw_dir={folder}", *extra]).dataset
    config = build_or_raise(DatasetConfig, OmegaConf.to_container(group), "dataset")
    imported = time.perf_counter()
    data = load_dataset(config)
    prepared = time.perf_counter()
    load_dataset(config)
    opened = time.perf_counter()
    data.histories(data.splits["train"][:100_000])
    line = {
        "interactions": len(data.items),
        "samples": {name: len(ids) for name, ids in data.splits.items()},
        "import_s": round(imported - started, 1),
        "prepare_s": round(prepared - imported, 1),
        "reopen_s": round(opened - prepared, 1),
        "histories_per_s": round(100_000 / (time.perf_counter() - opened)),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    sys.stdout.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[250_000, 1_000_209, 4_000_000])
    parser.add_argument(
        "--csv", action="store_true", help="the csv reader with text ids and every costly filter"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.csv)
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch) / "raw", size, options.csv)
            environment = {**os.environ, "ANYO_DATA_ROOT": scratch}
            command = [sys.executable, __file__, "--measure", str(Path(scratch) / "raw")]
            command += ["--csv"] if options.csv else []
            subprocess.run(command, env=environment, check=True)
    return None


if __name__ == "__main__":
    main()
