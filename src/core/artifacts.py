"""Files that other stages read: fingerprints, atomic folders, manifests with hashes, locks.

A folder is written under a temporary name beside its final one, its `manifest.json` last, every
file synced, then renamed: a folder without a manifest is never a result.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from src.core.errors import UserError
from src.core.signals import check_stop

MANIFEST = "manifest.json"
_OWN_HASH = "sha256"
_TAKES_NO_WRITES = {errno.EROFS, errno.EACCES, errno.EPERM}


def fingerprint(payload: Any) -> str:
    """12 hex digits of the SHA-256 of `payload` in canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield tmp
        _usual_mode(tmp)
        _fsync(tmp)
        os.replace(tmp, path)
        _fsync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with writing(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing", "the file of a completed run", "the run that writes it"
        ) from None
    except (ValueError, OSError, RecursionError) as e:
        raise UserError(
            f"{path} cannot be read: {e}", "a JSON file", "delete its folder and run again"
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` of a file that holds an object; raises UserError when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}", "a JSON object", "delete its folder and run again"
        )
    return value


def save_npy(path: Path, array: np.ndarray) -> None:
    # Given the file itself, NumPy writes through a C stream of its own and does not notice when closing it
    # fails: on a full disk the file would be short without an error.
    with writing(path) as tmp, open(tmp, "wb") as f:
        np.lib.format.write_array(SimpleNamespace(write=f.write), np.asarray(array), allow_pickle=False)


def load_npy(path: Path, mmap: bool = False) -> np.ndarray:
    """Raises UserError when the file is missing, truncated or holds objects."""
    try:
        with open(path, "rb") as f:
            np.lib.format.read_magic(f)  # np.load would take an archive as well
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except Exception as e:  # a damaged header ends in whatever the parser of its text meets
        raise UserError(
            f"{path} cannot be read: {e}", "a complete .npy file", "delete its folder and run again"
        ) from None


@contextmanager
def artifact_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well (the block writes the manifest).

    When another process finished the same artifact first, its folder is kept: the two are
    identical by determinism.
    """
    tmp = path.with_name(f".{path.name}.tmp{os.getpid()}")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        yield tmp
        if not (tmp / MANIFEST).is_file():
            raise RuntimeError(f"{path}: no manifest was written")
        publish(tmp, path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def publish(tmp: Path, path: Path) -> None:
    """Sync a finished folder and give it its final name."""
    for file in sorted(tmp.rglob("*")):
        _usual_mode(file)
        _fsync(file)
    _fsync(tmp)
    if path.exists() and not (path / MANIFEST).is_file():
        shutil.rmtree(path)  # the remains of a crash: never a result
    try:
        os.rename(tmp, path)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (path / MANIFEST).is_file():
            raise
    _fsync(path.parent)


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `manifest.json` with `fields`, the SHA-256 of every other file below `folder`, and its own."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {name: sha256_file(folder / name) for name in names if name != MANIFEST}
    body = {**{k: v for k, v in fields.items() if k != _OWN_HASH}, "files": files}
    write_json(folder / MANIFEST, {**body, _OWN_HASH: _hash_of(body)})


def _hash_of(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def load_manifest(folder: Path, expect: Mapping[str, Any], fix: str, hashed: bool = True) -> dict[str, Any]:
    """The manifest of `folder`, after checking the fields of `expect` and the hash of every file.

    Args:
        hashed: False where the caller knows that the files are as they were when their hashes were checked.

    Raises:
        UserError: the manifest is missing or malformed, a field differs (both values are named), a
            file is missing or its bytes changed.
    """
    if not is_complete(folder):
        raise UserError(f"{folder} has no {MANIFEST}", "a completed artifact", fix)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{folder / MANIFEST} has no list of files", "a manifest of this project", fix)
    for key, value in expect.items():
        if manifest.get(key) != value:
            raise UserError(f"{folder}: {key} is {manifest.get(key)!r}", repr(value), fix)
    for name, digest in manifest["files"].items():
        if (file := _file_below(folder, name)) is None:
            raise UserError(f"{folder}: {name} is missing", "every file of the manifest", fix)
        if hashed and sha256_file(file) != digest:
            raise UserError(
                f"{file} does not have the hash of its manifest", digest, f"delete {folder}, or {fix}"
            )
    own_hash = manifest.pop(_OWN_HASH, None)
    if own_hash is not None and own_hash != _hash_of(manifest):
        raise UserError(
            f"{folder / MANIFEST} was changed", f"the hash {own_hash}", f"delete {folder}, or {fix}"
        )
    return manifest


def number_in(fields: Mapping[str, Any], key: str, where: Path, fix: str) -> float:
    """The number at `key` of an artifact's notes, which other programs may have written.

    Raises:
        UserError: there is none.
    """
    value = fields.get(key) if isinstance(fields, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        raise UserError(f"{where}: {key} is {value!r}", "a number", fix)
    return float(value)


@contextmanager
def lock(path: Path, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold an exclusive lock for the artifact at `path`; a second process waits and reports it through `notify`.

    Temporary files that a killed writer left beside `path` are removed. On a disk that takes no writes there is
    nothing to guard: the block runs without a lock, and fails where it writes.
    """
    held = FileLock(path.with_name(f".{path.name}.lock"), mode=0o664)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
    except Timeout:
        notify(f"another process is writing {path}: waiting for it")
        started = time.monotonic()
        while True:  # signals are checked between two tries
            check_stop()
            with suppress(Timeout):
                held.acquire(timeout=0.5, poll_interval=0.1)
                break
        notify(f"waited {time.monotonic() - started:.0f} s")
    except OSError as e:
        if e.errno not in _TAKES_NO_WRITES:
            raise
    try:
        if held.is_locked:
            for stale in path.parent.glob(f".{glob.escape(path.name)}.tmp*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        yield
    finally:
        held.release()


def now() -> str:
    """The time as ISO 8601 with its zone, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _file_below(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`; None where there is none, or the name leads out of the folder."""
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, ValueError):  # too long, or with characters that no file name has
        return None


def _usual_mode(path: Path) -> None:
    """Give a file that only its owner may read (safetensors makes such) the mode that the umask leaves."""
    if path.is_file() and path.stat().st_mode & 0o777 == 0o600:
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
