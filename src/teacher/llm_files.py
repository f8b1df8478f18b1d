"""The files of a language model: whether they are what their names say, and their hash. Nothing heavy is imported.

Everything here reads headers only, except the hash, which is remembered by size, time and inode.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.core.artifacts import fingerprint, read_object, sha256_file, write_json
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import data_root

_KEY = "teacher.llm.path"
# What loading may read.
_READ = {".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".gguf", ".py"}
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")
_LFS = b"version https://git-lfs"
_REMEMBERED = 2**26  # bytes: smaller files are hashed each time
log = get_logger(__name__)


def check_files(path: Path, merge_adapter: bool = False) -> None:
    """Refuse a folder (or GGUF file) that cannot be a whole model; headers only, no weights are read.

    Raises:
        UserError: naming the first file that is missing, empty, cut short, a Git LFS pointer, pickled, or an adapter
            that no key asks for.
    """
    if path.suffix == ".gguf":
        _check_gguf(path)
        return
    config = path / "config.json"
    if not config.is_file():
        raise _no_model(path)
    files = list(_files(path))
    for file in files:
        _check_whole(file)
    read_object(config)
    _check_adapter(path, merge_adapter)
    _check_weights(path)
    if not any(f.name in _TOKENIZERS or f.suffix in (".model", ".tiktoken") for f in files):
        raise UserError(f"{path} holds no tokenizer", "tokenizer.json or tokenizer.model", _KEY)


def files_hash(path: Path, remember: bool = False) -> str:
    """12 hex digits over the names and SHA-256 of all files that loading may read (of a GGUF file: its own).

    Args:
        remember: keep the hashes of large files in `data/models/file_hashes.json`; known ones are used in any case.

    Raises:
        UserError: neither a folder nor a GGUF file.
    """
    if not (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        raise _no_model(path)
    files = sorted(_files(path)) if path.is_dir() else [path]
    memory = data_root() / "models" / "file_hashes.json"
    known = read_object(memory) if memory.is_file() else {}
    before, hashes = dict(known), {}
    for file in files:
        stat, key = file.stat(), str(file.resolve())
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        if stat.st_size < _REMEMBERED:
            hashes[file.name] = sha256_file(file)
            continue
        if known.get(key, [])[:3] != mark:
            log.info("hashing %s (%.1f GiB)", file, stat.st_size / 2**30)
            known[key] = [*mark, sha256_file(file)]
        hashes[file.name] = known[key][3]
    if remember and known != before:
        write_json(memory, known)
    return fingerprint(hashes)


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.iterdir():
        if file.suffix in _READ and file.name != "manifest.json" and file.is_file():
            yield file


def _no_model(path: Path) -> UserError:
    """Why `path` is no folder of a model, by what lies there."""
    found, expected, fix = f"{path} holds no config.json", "a folder in Hugging Face layout", _KEY
    if not path.exists():
        found += ": there is no such folder"
    elif path.is_file():
        found = f"{path} is a file"
        if path.suffix == ".gguf":
            expected, fix = "the whole file of a model", "teacher/llm to gguf"
    elif (path / "adapter_config.json").is_file():
        base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
        found, expected = f"{path} holds an adapter without config.json", f"the folder of its base ({base})"
    elif any(path.glob("*.gguf")):
        found, fix = f"{found} but a GGUF file", "teacher/llm to gguf, and path to that file"
    return UserError(found, expected, fix)


def _refuse_pointer(file: Path) -> None:
    with open(file, "rb") as f:
        if f.read(len(_LFS)) == _LFS:
            fix = "its folder: run `git lfs pull` there"
            raise UserError(f"{file} is a Git LFS pointer", "the file itself", fix)


def _check_whole(file: Path) -> None:
    """Not empty, no pointer of Git LFS, JSON where its name says so, of the length that a safetensors header says."""
    size, again = file.stat().st_size, f"{_KEY}, or copy it again"
    if size == 0:
        raise UserError(f"{file} is empty", "the file of a whole model", _KEY)
    _refuse_pointer(file)
    with open(file, "rb") as f:
        if file.suffix == ".json":
            try:
                json.load(f)
            except (ValueError, RecursionError) as e:
                raise UserError(f"{file} cannot be read: {e}", "JSON", again) from None
        if file.suffix != ".safetensors":
            return
        length = int.from_bytes(f.read(8), "little")
        try:
            header: Any = json.loads(f.read(length)) if 8 + length <= size else None
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        except (AttributeError, KeyError, TypeError, ValueError):
            found = f"{file} has no safetensors header"
            raise UserError(found, "a whole safetensors file", again) from None
    if not ends:
        raise UserError(f"{file} holds no tensor", "the weights of a model", _KEY)
    if size != (whole := 8 + length + max(ends)):
        raise UserError(f"{file} has {size} bytes", f"{whole}, as its header says", again)


def _check_adapter(path: Path, merge: bool) -> None:
    there, key = (path / "adapter_config.json").is_file(), "teacher.llm.merge_adapter"
    if there and not merge:
        fix = f"{key} to true to add it to them, or move the adapter's files away"
        found = f"{path} holds an adapter (adapter_config.json) beside the weights"
        raise UserError(found, "weights alone", fix)
    if merge and not there:
        found = f"{key}=true, but {path} holds no adapter_config.json"
        raise UserError(found, "an adapter beside the weights", key)


def _check_weights(path: Path) -> None:
    """model.safetensors, or an index and all of its shards."""
    if (path / "model.safetensors").is_file():
        return
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index} has no weight_map", "the index of the shards", _KEY)
        for name in sorted(set(map(str, shards.values()))):
            if os.sep in name or not (path / name).is_file():
                raise UserError(f"{path / name} is missing", f"every file of {index.name}", _KEY)
        return
    weights = [f for f in _files(path) if f.suffix == ".safetensors" and not f.name.startswith("adapter_")]
    if weights:
        raise UserError(f"{index} is missing", f"the index of {min(weights).name}", _KEY)
    if pickles := sorted(p for kind in ("bin", "pt", "pth", "ckpt") for p in path.glob(f"*.{kind}")):
        expected = "model.safetensors (load it once with transformers and `save_pretrained`)"
        raise UserError(f"{pickles[0]} is pickled, and pickles are not read", expected, _KEY)
    raise UserError(f"{path} cannot be loaded: it holds no weights", "model.safetensors", _KEY)


def _check_gguf(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "a GGUF file", _KEY)
    _refuse_pointer(path)
    with open(path, "rb") as f:
        if f.read(4) != b"GGUF":
            raise UserError(f"{path} does not begin with GGUF", "a GGUF file", _KEY)
    if "-of-" in path.stem:
        raise UserError(f"{path} is a part of a split GGUF file", "one file (gguf-split --merge)", _KEY)
