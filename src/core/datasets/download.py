"""Fetching raw files: resumed where it stopped, over TLS, verified, unpacked without trust.

`checksums.json` in the raw folder records the SHA-256 of every download; a file without a published
checksum must have the recorded one when it is fetched again.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from src.core.artifacts import lock, read_json, sha256_file, write_json, writing
from src.core.datasets.jsonl import existing
from src.core.datasets.sources import Download, Source, source
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.signals import check_stop

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

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
    """Download, verify, unpack one file into `folder`.

    What was fetched of an interrupted download stays as `<name>.part` and is continued.
    """
    part = folder / f"{download.name}.part"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(download, part)
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
            final = isinstance(e, urllib.error.HTTPError) and e.code < 500
            if final or attempt == _ATTEMPTS:
                names = ", ".join(download.files)
                raise UserError(
                    f"{download.url} cannot be fetched: {e}",
                    f"a connection, or {names} in {folder}",
                    "dataset.raw_dir or dataset.download",
                ) from None
            log.info("%s: %s; attempt %d of %d", download.name, e, attempt + 1, _ATTEMPTS)
            time.sleep(2.0**attempt / 2)
    _tag(part).unlink(missing_ok=True)  # complete, or useless: never continued
    try:
        digest = _verify(download, part, folder)
        if download.members:
            _unpack(download, part, folder)
        else:
            part.replace(folder / download.name)
        _count_lines(download, folder)
    finally:
        part.unlink(missing_ok=True)
    record = folder / _RECORD
    write_json(record, {**(read_json(record) if record.is_file() else {}), download.name: digest})


class _SameSecurity(urllib.request.HTTPRedirectHandler):
    """Refuses a redirection that leaves TLS."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_tls(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_tls(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise UserError(f"{url} is not encrypted", "https", "src/core/datasets/sources.py")


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _transfer(download: Download, part: Path) -> None:
    """Append to `part` what it lacks; start anew when the file on the server is another one by now."""
    _require_tls(download.url)
    tag = _tag(part)
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    request = urllib.request.Request(download.url, headers={"User-Agent": "anyo-datasets"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    opener = urllib.request.build_opener(_SameSecurity)
    try:
        response = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:  # nothing is left to send: complete, or the checksum will say
            return
        raise
    with response:
        if have and response.status == 206:
            log.info("%s: going on after %d bytes", download.name, have)
        else:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is not None and total > download.max_bytes:
            raise UserError(
                f"{download.url} has {total} bytes",
                f"at most {download.max_bytes}",
                "src/core/datasets/sources.py",
            )
        strong = response.headers.get("ETag", "")
        mark = strong if strong and not strong.startswith("W/") else response.headers.get("Last-Modified", "")
        if mark:
            tag.write_text(mark)
        else:
            tag.unlink(missing_ok=True)  # without a mark the rest of another file could follow
        _write(response, part, have, total, download)


def _write(response: Any, part: Path, have: int, total: int | None, download: Download) -> None:
    chunks = None if total is None else -(-(total - have) // _CHUNK)
    with open(part, "ab" if have else "wb") as f:
        for chunk in progress(_chunks(response), download.name, total=chunks, unit="MiB"):
            have += len(chunk)
            if have > download.max_bytes:
                raise UserError(
                    f"{download.url} sends more than {download.max_bytes} bytes",
                    "a file of the known size",
                    "src/core/datasets/sources.py",
                )
            f.write(chunk)
            check_stop()
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _chunks(response: Any) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK):
        yield chunk


def _verify(download: Download, part: Path, folder: Path) -> str:
    """The SHA-256 of `part`, which has the published checksum, or the one recorded on first use."""
    digest = sha256_file(part)
    record = folder / _RECORD
    if download.checksum is not None:
        kind, expected = download.checksum.split(":")
        with open(part, "rb") as f:
            found = hashlib.file_digest(f, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        what = "the published checksum"
    else:
        kind, found = "sha256", digest
        expected = (read_json(record) if record.is_file() else {}).get(download.name, digest)
        what = f"the checksum recorded in {record}"
    if found != expected:
        raise UserError(f"{download.url} has {kind} {found}", f"{expected}, {what}", _AGAIN)
    return digest


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
