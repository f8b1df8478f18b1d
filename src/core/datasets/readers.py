"""Readers of raw logs by the name in `dataset.reader`.

To add a source of two tables, add a line to `tabular._SOURCES`; for any other, a module with the two functions of
`Reader`. Name it in `config.READERS` and here, and its addresses in `sources.py` if it can be downloaded.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from src.core.datasets.config import DatasetConfig

if TYPE_CHECKING:
    from src.core.datasets.raw_log import RawLog, RawSplits


class Reader(Protocol):
    def files(self, raw_dir: Path, config: DatasetConfig) -> list[Path]:
        """The raw files (their hashes enter the fingerprint); raises UserError when one is missing."""

    def read(self, raw_dir: Path, config: DatasetConfig) -> RawLog | RawSplits:
        """The data; raises UserError with file and line where it cannot be parsed."""


_OTHERS = {
    "demo": "demo",
    "ilora": "split_files",
    "steam": "reviews",
    "amazon_2014": "reviews",
    "amazon_2018": "reviews",
}


def reader(name: str) -> Reader:
    """Imported now: a run that finds everything done needs no pandas."""
    return cast(Reader, import_module(f"src.core.datasets.{_OTHERS.get(name, 'tabular')}"))
