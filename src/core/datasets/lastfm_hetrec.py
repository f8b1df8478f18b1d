"""Last.fm of HetRec 2011: tag assignments as a log of users and artists, in the order of their times.

`user_taggedartists-timestamps.dat` has the source's only times (milliseconds, by month; some lie
before 1970). A user tags an artist with several tags at once: `dataset.repeats=first` keeps one.
Non-commercial use. I. Cantador, P. Brusilovsky, T. Kuflik: Second Workshop on Information
Heterogeneity and Fusion in Recommender Systems (HetRec 2011). RecSys 2011.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from src.core.datasets import RawLog, encode, title_series
from src.core.datasets.tables import read_lines, read_table, require_files

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    return require_files(raw_dir, ["user_taggedartists-timestamps.dat", "artists.dat"])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    path, items_path = files(raw_dir, config)
    names = ("userID", "artistID", "tagID", "timestamp")
    log = read_table(path, "\t", dict.fromkeys(names, int), header=True)
    # Pictures are missing in some rows of the artists, with or without their tab.
    artists = [row[:2] for row in read_lines(items_path, "\t", least=2, header=True)]
    return RawLog(
        users=encode(log.column("userID").to_numpy()),
        items=encode(log.column("artistID").to_numpy()),
        timestamps=log.column("timestamp").to_numpy() // 1000,
        ratings=None,
        titles=title_series([a for a, _ in artists], [name for _, name in artists], items_path),
        path=path,
    )
