"""Fetching raw files with pooch: over TLS, of bounded size, verified, unpacked without trust.

`checksums.json` in the raw folder records the SHA-256 of every download; a file without a published
checksum must have the recorded one when it is fetched again.
"""

from __future__ import annotations

import gzip
import os
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from src.core.artifacts import lock, read_json, sha256_file, write_json, writing
from src.core.datasets.config import DatasetConfig
from src.core.datasets.sources import Download, Source, source
from src.core.datasets.tables import existing
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.signals import check_stop

log = get_logger(__name__)
_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_RECORD = "checksums.json"
_AGAIN = "nothing yet: run it again to fetch it anew"


def fetch_missing(config: DatasetConfig, folder: Path) -> None:
    """Fetch what the reader of `config` needs and `folder` lacks; nothing for readers without a source.

    Raises:
        UserError: no connection, a wrong checksum or count, an archive that cannot be used.
    """
    origin = source(config)
    if origin is None or not _missing(origin, folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder} cannot be made: {e}", "a folder to write", "dataset.raw_dir") from None
    if not os.access(folder, os.W_OK):
        return  # the reader says which file it lacks
    with lock(folder / "download", log.info):
        for download in _missing(origin, folder):
            log.info("fetching %s; terms: %s (%s)", download.url, origin.terms, origin.page)
            fetch(download, folder)


def missing_files(config: DatasetConfig, folder: Path) -> list[str]:
    """Addresses of what `fetch_missing` would fetch now."""
    origin = source(config) if config.download else None
    return [] if origin is None else [download.url for download in _missing(origin, folder)]


def _missing(origin: Source, folder: Path) -> list[Download]:
    return [
        d
        for d in origin.downloads
        if not all((folder / existing(folder, name)).is_file() for name in d.files)
    ]


def fetch(download: Download, folder: Path) -> None:
    """Download, verify, unpack one file into `folder`; nothing is left of one that fails.

    Raises:
        UserError: no connection after four attempts, no TLS, a size or checksum that does not fit, an archive that
            cannot be used.
    """
    import pooch
    import requests

    _require_tls(download.url)
    record = folder / _RECORD
    recorded = read_json(record) if record.is_file() else {}
    known = f"sha256:{recorded[download.name]}" if download.name in recorded else None
    stage = folder / ".download"
    pup = pooch.create(
        stage,
        base_url="",
        registry={download.name: download.checksum or known},
        urls={download.name: download.url},
        retry_if_failed=_ATTEMPTS - 1,
    )
    part = stage / download.name
    pooch.get_logger().setLevel("WARNING")
    try:
        pup.fetch(download.name, downloader=_Capped(download.max_bytes))
        digest = sha256_file(part)
        if download.members:
            _unpack(download, part, folder)
        else:
            part.replace(folder / download.name)
        _count_lines(download, folder)
    except (requests.RequestException, ConnectionError, TimeoutError) as e:
        raise UserError(
            f"{download.url} cannot be fetched: {e}",
            f"a connection, or {', '.join(download.files)} in {folder}",
            "dataset.raw_dir or dataset.download",
        ) from None
    except ValueError as e:
        if "hash of downloaded file" not in str(e):
            raise
        what = "the published checksum" if download.checksum else f"the checksum recorded in {record}"
        raise UserError(f"{download.url}: {e}", f"{download.checksum or known}, {what}", _AGAIN) from None
    finally:
        for rest in stage.glob("*"):
            rest.unlink()
        if stage.is_dir():
            stage.rmdir()
    write_json(record, {**recorded, download.name: digest})


class _Capped:
    """pooch's downloader with a size limit, TLS on every hop, and a stop on signals."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes

    def __call__(self, url: str, output_file: str, pup: Any) -> None:
        import pooch

        with open(output_file, "wb") as f:
            get = pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(),
                chunk_size=_CHUNK,
                timeout=_TIMEOUT_S,
                headers={"Accept-Encoding": "identity"},  # a .gz file stays packed
                hooks={"response": self._check},
            )
            get(url, _Bounded(f, url, self.max_bytes), pup)

    def _check(self, response: Any, *args: Any, **kwargs: Any) -> None:
        if response.is_redirect:
            _require_tls(urljoin(response.url, response.headers["location"]))
        elif 400 <= response.status_code < 500:  # trying again would not help
            raise ConnectionError(f"{response.status_code} {response.reason}")
        elif int(size := response.headers.get("content-length", 0)) > self.max_bytes:
            raise _too_large(response.url, f"has {size} bytes", self.max_bytes)


class _Bounded:
    """A file that accepts at most `max_bytes`, whatever size was announced."""

    def __init__(self, file: IO[bytes], url: str, max_bytes: int):
        self._file, self._url, self._max = file, url, max_bytes

    def write(self, data: bytes) -> int:
        check_stop()
        if self._file.tell() + len(data) > self._max:
            raise _too_large(self._url, f"sends more than {self._max} bytes", self._max)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _too_large(url: str, found: str, most: int) -> UserError:
    return UserError(f"{url} {found}", f"at most {most}", "src/core/datasets/sources.py")


def _require_tls(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise UserError(f"{url} is not encrypted", "https", "src/core/datasets/sources.py")


def _unpack(download: Download, archive: Path, folder: Path) -> None:
    """Take the known members of a zip, each to its known name; refuse archives that try to place files elsewhere."""
    try:
        with zipfile.ZipFile(archive) as z:
            for info in z.infolist():
                if _escapes(info):
                    raise UserError(
                        f"{archive} has the member {info.filename!r}", "names inside the archive", _AGAIN
                    )
            left = download.max_bytes
            for member, name in download.members.items():
                if member not in z.namelist():
                    raise UserError(f"{archive} has no member {member}", ", ".join(download.members), _AGAIN)
                left -= _extract(z, member, folder / name, left)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error) as e:
        raise UserError(f"{archive} cannot be unpacked: {e}", "a complete zip archive", _AGAIN) from None


def _escapes(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link


def _extract(z: zipfile.ZipFile, member: str, target: Path, limit: int) -> int:
    """Write one member; the size is counted, not believed (a small archive can hold terabytes)."""
    size = 0
    with z.open(member) as source_file, writing(target) as tmp, open(tmp, "wb") as out:
        while chunk := source_file.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise UserError(
                    f"{member} unpacks to more than {limit} bytes", "a file of the known size", _AGAIN
                )
            out.write(chunk)
    return size


def _count_lines(download: Download, folder: Path) -> None:
    for name, expected in download.lines.items():
        path = folder / name
        lines, last = 0, b"\n"
        try:
            with gzip.open(path, "rb") if name.endswith(".gz") else open(path, "rb") as f:
                while chunk := f.read(_CHUNK):
                    lines, last = lines + chunk.count(b"\n"), chunk
        except (EOFError, OSError, zlib.error) as e:
            path.unlink()
            raise UserError(f"{path} cannot be read: {e}", "a complete file", _AGAIN) from None
        lines += not last.endswith(b"\n")
        if lines != expected:
            path.unlink()
            raise UserError(
                f"{path} has {lines} lines", f"{expected}, the known count", "the source has changed"
            )
