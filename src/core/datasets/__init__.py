"""Readers of raw interaction logs: one small module per source behind one interface.

To add a source, write a module with the two functions of `Reader` and name it in `READERS` (and its
addresses in `sources.py` if it can be downloaded).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from src.core.datasets.raw_log import Ids, RawLog, RawSplits, encode, seconds, title_series

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

# name in `dataset.reader` -> module
READERS = {
    "demo": "src.core.datasets.demo",
    "csv": "src.core.datasets.csv_log",
    "movielens_100k": "src.core.datasets.movielens",
    "movielens_1m": "src.core.datasets.movielens",
    "movielens_10m": "src.core.datasets.movielens",
    "movielens_20m": "src.core.datasets.movielens",
    "movielens_32m": "src.core.datasets.movielens",
    "movietweetings": "src.core.datasets.movietweetings",
    "lastfm_hetrec": "src.core.datasets.lastfm_hetrec",
    "ilora": "src.core.datasets.ilora",
    "steam": "src.core.datasets.steam",
    "amazon_2014": "src.core.datasets.amazon",
    "amazon_2018": "src.core.datasets.amazon",
}

__all__ = ["READERS", "Ids", "RawLog", "RawSplits", "Reader", "encode", "reader", "seconds", "title_series"]


class Reader(Protocol):
    def files(self, raw_dir: Path, config: DatasetConfig) -> list[Path]:
        """The raw files (their hashes enter the fingerprint); raises UserError when one is missing."""

    def read(self, raw_dir: Path, config: DatasetConfig) -> RawLog | RawSplits:
        """The data; raises UserError with file and line where it cannot be parsed."""


def reader(name: str) -> Reader:
    return import_module(READERS[name])  # type: ignore[return-value]
