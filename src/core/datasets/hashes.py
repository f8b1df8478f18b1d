"""Hashes of files that were read before, known again by size, time of change and inode.

The record only saves time: it is made anew where it is missing or damaged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from src.core.artifacts import sha256_file, write_json
from src.core.paths import data_root

_RECORD = ".file_hashes.json"
# A change within the clock tick of the file system leaves no trace in a time: younger files are not remembered.
_TICK_NS = 50_000_000


class FileHashes:
    """The record of the data folder, read once."""

    def __init__(self) -> None:
        self._path = data_root() / _RECORD
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._known: dict[str, list] = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def sha256(self, paths: Iterable[Path]) -> list[str]:
        """The hash of every file; computed where the file is new or has changed."""
        out, fresh = [], {}
        for path in paths:
            stamp = _stamp(path)
            known = self._known.get(str(path.absolute()))
            if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
                out.append(known[-1])
            else:
                out.append(sha256_file(path))
                fresh[path] = [*stamp, out[-1]]
        self._save(fresh)
        return out

    def unchanged(self, paths: Iterable[Path]) -> bool:
        """Whether every file is as it was when `remember` was told."""
        return all(self._known.get(str(p.absolute())) == [*_stamp(p), "checked"] for p in paths)

    def remember(self, paths: Iterable[Path]) -> None:
        """These files passed their checks."""
        self._save({path: [*_stamp(path), "checked"] for path in paths})

    def _save(self, entries: dict[Path, list]) -> None:
        settled = time.time_ns() - _TICK_NS
        new = {str(p.absolute()): entry for p, entry in entries.items() if entry[1] < settled}
        if not new:
            return
        self._known = {p: e for p, e in self._known.items() if Path(p).exists()} | new
        if os.access(self._path.parent, os.W_OK):  # a read-only folder: the next run hashes again
            write_json(self._path, self._known)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
