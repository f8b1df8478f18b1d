"""A disk that fails at any write: nothing half-written counts, and the next try gives the same bytes.

Two kinds of faults: calls (open for writing, fsync, replace, rename, mkdir) that fail at the n-th time, for
every n; and a real limit of the system on the size of a file, which also meets the native writers (parquet,
safetensors, torch) in the middle of a write.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from src.core.artifacts import is_complete, load_manifest, sha256_file
from src.core.data_utils import load_dataset
from src.core.errors import UserError
from src.core.paths import ROOT, processed_dir
from tests.robustness.conftest import DEMO, Artifacts, make_store, make_student

Make = Callable[[Path], Path]  # writes an artifact below a fresh root, returns its folder


class Faults:
    """Counts calls that change the disk; the one numbered `at` fails with `code`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path):
        self.root, self.patch, self.calls, self.at, self.code = root, monkeypatch, 0, -1, 0
        self.failed = ""  # the call that failed
        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir")):
            self._wrap(module, name)
        for module in (builtins, io):
            self._wrap(module, "open")

    def _wrap(self, module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args, **kwargs):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            counted = name != "open" or (isinstance(mode, str) and set(mode) & set("wax+"))
            if counted and (name == "fsync" or str(args[0]).startswith(str(self.root))):
                self.calls += 1
                if self.calls == self.at:
                    self.failed = name
                    raise OSError(self.code, os.strerror(self.code), str(args[0]))
            return None if name == "fsync" else real(*args, **kwargs)  # syncing itself only takes time

        self.patch.setattr(module, name, call)

    @contextmanager
    def failing(self, at: int, code: int) -> Iterator[None]:
        self.calls, self.at, self.code = 0, at, code
        try:
            yield
        finally:
            self.at = -1


def makers(good: Artifacts, patch: pytest.MonkeyPatch) -> dict[str, Make]:
    def dataset(root: Path) -> Path:
        patch.setenv("ANYO_DATA_ROOT", str(root))
        load_dataset(good.config)
        return processed_dir(good.data.name, good.data.fingerprint)

    def store(root: Path) -> Path:
        make_store(root / "store", good.data)
        return root / "store"

    def student(root: Path) -> Path:
        import torch

        torch.manual_seed(0)
        make_student(root / "student", good.data)
        return root / "student"

    return {"dataset": dataset, "store": store, "student": student}


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but the manifest, which tells of the run."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}


def place(root: Path, kind: str, good: Artifacts) -> Path:
    """Where the maker of `kind` publishes."""
    return root / "processed" / good.data.name / good.data.fingerprint if kind == "dataset" else root / kind


def check_after_failure(root: Path, folder: Path, make: Make, expected: dict[str, str]) -> None:
    """What is there after a failed write is nothing or the whole; the next try completes it."""
    if is_complete(folder):
        load_manifest(folder, {}, "nothing")
        assert hashes(folder) == expected
    assert hashes(make(root)) == expected
    load_manifest(folder, {}, "nothing")
    left = list(root.rglob(".*.tmp*")) + list(root.rglob("*.partial"))
    assert not left, f"temporary files stay: {left}"


def fail_at(calls: Callable[[int], range], kind: str, tmp_path: Path, good: Artifacts, patch) -> int:
    """Let the calls that `calls` chooses of all fail, one per try; returns the number of tries."""
    make = makers(good, patch)[kind]
    faults = Faults(patch, tmp_path)
    expected = hashes(make(tmp_path / "good"))
    assert faults.calls > 15
    chosen = calls(faults.calls)
    for at in chosen:
        root, code = tmp_path / str(at), (errno.ENOSPC, errno.EIO)[at % 2]
        raised = False
        with faults.failing(at, code):
            try:
                make(root)
            except (OSError, UserError) as e:
                raised = True
                assert os.strerror(code).lower() in str(e).lower() or "no space left" in str(e)
        # `mkdir` of a folder that is there may fail; every other failure must be heard.
        assert raised or faults.failed == "mkdir", faults.failed
        check_after_failure(root, place(root, kind, good), make, expected)
    return len(chosen)


@pytest.mark.parametrize("kind", ["dataset", "store", "student"])
def test_calls_that_fail(kind: str, tmp_path: Path, artifacts: Artifacts, monkeypatch) -> None:
    """Some of them; an odd step meets both errors."""
    tries = fail_at(lambda n: range(3, n + 1, max(1, n // 6) | 1), kind, tmp_path, artifacts, monkeypatch)
    assert tries >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "store", "student"])
def test_every_call_that_fails(kind: str, tmp_path: Path, artifacts: Artifacts, monkeypatch) -> None:
    fail_at(lambda n: range(1, n + 1), kind, tmp_path, artifacts, monkeypatch)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes (EFBIG from the kernel)."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def break_off(kind: str, tmp_path: Path, good: Artifacts, patch: pytest.MonkeyPatch, step: int) -> None:
    """Cut writes one byte before the end of every `step`-th size of file, the smallest first."""
    make = makers(good, patch)[kind]
    patch.setattr(os, "fsync", lambda fd: None)
    whole = make(tmp_path / "good")
    expected = hashes(whole)
    sizes = sorted({p.stat().st_size for p in whole.rglob("*") if p.is_file()})
    for number, size in enumerate(sizes[::step]):
        root = tmp_path / str(number)
        with pytest.raises(Exception) as caught, file_size_limit(size - 1):  # the writers' own kinds
            make(root)
        assert not isinstance(caught.value, AssertionError)
        check_after_failure(root, place(root, kind, good), make, expected)


@pytest.mark.parametrize(("kind", "step"), [("dataset", 4), ("store", 2), ("student", 1)])
def test_writes_that_break_off(
    kind: str, step: int, tmp_path: Path, artifacts: Artifacts, monkeypatch
) -> None:
    break_off(kind, tmp_path, artifacts, monkeypatch, step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "store", "student"])
def test_every_write_that_breaks_off(kind: str, tmp_path: Path, artifacts: Artifacts, monkeypatch) -> None:
    break_off(kind, tmp_path, artifacts, monkeypatch, 1)


def _complete_folders(good: Artifacts) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    from src.core.data_utils import _open
    from src.core.teacher_store import TeacherStore
    from src.distill.selection import read_selection
    from src.student.serving import load_student

    def store(folder: Path) -> None:
        opened = TeacherStore(folder, good.data.fingerprint)
        opened.item_embeddings()
        for split, ids in good.data.splits.items():
            opened.rows_of(split, ids)

    train = good.data.splits["train"]
    return {
        "dataset": (good.dataset, lambda f: _open(good.config, good.data.fingerprint, f)),
        "store": (good.store, store),
        "student": (good.student, load_student),
        "selection": (good.selection, lambda f: read_selection(f, good.data.fingerprint, train)),
    }


def _same(a: object, b: object) -> bool:
    import json

    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@pytest.mark.parametrize("kind", ["dataset", "store", "student", "selection"])
def test_truncated_or_one_byte_flipped(kind: str, tmp_path: Path, artifacts: Artifacts) -> None:
    """Every file of every artifact, cut at four places and flipped at five."""
    import json
    import shutil

    source, load = _complete_folders(artifacts)[kind]
    folder = tmp_path / kind
    shutil.copytree(source, folder)
    load(folder)
    tried = 0
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = file.read_bytes()
        n = len(content)
        damaged = [content[:k] for k in {0, 1, n // 2, n - 1}]
        for place_ in {0, n // 4, n // 2, 3 * n // 4, n - 1}:
            flipped = bytearray(content)
            flipped[place_] ^= 1 << (place_ % 8)
            damaged.append(bytes(flipped))
        for bad in damaged:
            file.write_bytes(bad)
            tried += 1
            try:
                load(folder)
            except UserError as e:
                assert "\n" not in str(e)
                continue
            # Only white space of the manifest may differ unnoticed.
            assert file.name == "manifest.json" and _same(json.loads(bad), json.loads(content)), (file, bad)
        file.write_bytes(content)
    load(folder)
    assert tried >= 9 * 3


@pytest.mark.parametrize("change", ["cut", "flip"])
def test_a_damaged_checkpoint(change: str, tmp_path: Path) -> None:
    import torch

    from src.student.checkpoint import load_checkpoint, save_checkpoint

    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"fingerprint": "f", "weights": torch.arange(100.0)})
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        flipped = bytearray(content)
        flipped[at] ^= 4
        path.write_bytes(content[:at] if change == "cut" else bytes(flipped))
        with pytest.raises(UserError, match=r"checkpoint\.pt.*to train anew"):
            load_checkpoint(path, "f")
    path.write_bytes(content)
    assert torch.equal(load_checkpoint(path, "f")["weights"], torch.arange(100.0))


# -- two at once, and clocks ------------------------------------------------------------------------------


def test_two_processes_prepare_one_dataset(tmp_path: Path, artifacts: Artifacts) -> None:
    code = (
        "from tests.conftest import make_dataset_config; from src.core.data_utils import load_dataset;"
        f"print(load_dataset(make_dataset_config('demo', *{list(DEMO)!r})).fingerprint)"
    )
    env = {**os.environ, "ANYO_DATA_ROOT": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == artifacts.data.fingerprint
    folder = tmp_path / "processed" / artifacts.data.name / artifacts.data.fingerprint
    assert hashes(folder) == hashes(artifacts.dataset)
    assert not [p for p in folder.parent.iterdir() if ".tmp" in p.name]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, artifacts: Artifacts, monkeypatch) -> None:
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path))
    folder = processed_dir(artifacts.data.name, artifacts.data.fingerprint)
    killed = folder.with_name(f".{folder.name}.tmp99999999")
    killed.mkdir(parents=True)
    (killed / "items.npy").write_bytes(b"half")
    folder.mkdir()
    (folder / "items.npy").write_bytes(b"half")
    load_dataset(artifacts.config)
    assert not killed.exists() and hashes(folder) == hashes(artifacts.dataset)


def test_runs_of_one_second_and_a_clock_that_jumps_back(roots: Path, monkeypatch) -> None:
    from src.core.run import Run
    from src.core.runs import completed_run

    stamps = ["20260102_030405", "20260102_030405", "20260101_000000", "20260102_030405"]
    stamp = iter(stamps)
    real = time.strftime
    with monkeypatch.context() as patch:
        patch.setattr(
            time, "strftime", lambda form, *a: next(stamp) if form == "%Y%m%d_%H%M%S" else real(form)
        )
        runs = [Run.start(None, "teacher", "f" * 12) for _ in stamps]
    folders = [run.dir for run in runs]
    assert len(set(folders)) == 4
    for run in runs:
        run.status("completed")
        run.close()
    assert completed_run("teacher", "f" * 12) == min(folders)


def test_twenty_starts_at_once_get_twenty_folders(roots: Path) -> None:
    from src.core.run import Run

    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(str(Run.start(None, "distill", "").dir)))
        for _ in range(20)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(made)) == 20


def test_a_clock_that_jumps_back_does_not_change_times(monkeypatch) -> None:
    from src.core.run import Stopwatch

    watch = Stopwatch(5.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 5.0 <= watch.seconds() < 6.0


def test_a_store_whose_embeddings_cannot_be_written_keeps_its_shards(
    tmp_path: Path, artifacts: Artifacts, monkeypatch
) -> None:
    """The costly part of an export, the ranking, is not repeated after a failure at the end."""
    from src.core import store_writer

    ranked: list[int] = []
    real = store_writer.StoreWriter.export

    def counting(self, split, ids, rank, *args, **kwargs):
        done = real(self, split, ids, rank, *args, **kwargs)
        ranked.append(done)
        return done

    monkeypatch.setattr(store_writer.StoreWriter, "export", counting)
    with monkeypatch.context() as patch:
        patch.setattr(store_writer, "check_embeddings", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError):
            make_store(tmp_path / "store", artifacts.data)
    first = sum(ranked)
    ranked.clear()
    make_store(tmp_path / "store", artifacts.data)
    assert first == sum(map(len, artifacts.data.splits.values())) and sum(ranked) == 0
    assert np.array_equal(ranked, [0, 0, 0])
