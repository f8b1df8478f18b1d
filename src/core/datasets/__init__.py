"""Readers of raw interaction logs: one small module per source behind one interface.

A reader has two functions: `files(raw_dir)` names the raw files (their hashes enter the
fingerprint), `read(raw_dir, config)` returns a `RawLog`. To add a source, write such a module and
name it in `READERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from src.core.data_utils import DatasetConfig

# name in `dataset.reader` -> module
READERS = {
    "demo": "src.core.datasets.demo",
    "movielens_100k": "src.core.datasets.movielens",
}


@dataclass(frozen=True)
class RawLog:
    """A log in file order.

    Attributes:
        users, items: [M] raw ids, both int64 or both of any sortable type of their own.
        timestamps: [M] int64, seconds.
        ratings: [M] float32, or None where the source has none.
        titles: title of each raw item id (index); must cover `items`.
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None
    titles: pd.Series


class Reader(Protocol):
    def files(self, raw_dir: Path) -> list[Path]:
        """The raw files; raises UserError when one is missing."""

    def read(self, raw_dir: Path, config: DatasetConfig) -> RawLog:
        """The log; raises UserError with file and line where it cannot be parsed."""


def reader(name: str) -> Reader:
    return import_module(READERS[name])  # type: ignore[return-value]
