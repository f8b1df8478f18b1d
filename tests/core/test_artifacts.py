"""Atomic files and folders, manifests with hashes, locks: what a crash, a full disk or a bad disk leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.artifacts import (
    artifact_folder,
    fingerprint,
    is_complete,
    load_manifest,
    load_npy,
    lock,
    now,
    publish,
    read_json,
    save_npy,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
    writing,
)
from src.core.errors import UserError

FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


class TestFingerprint:
    def test_is_the_hash_of_canonical_json(self):
        expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()[:12]
        assert fingerprint({"b": "é", "a": [1, 2.5, None]}) == expected
        assert (
            fingerprint({"a": (1, 2.5, None), "b": "é"}) == expected
        ), "order of keys and tuples do not count"

    def test_values_and_types_count(self):
        prints = [
            fingerprint(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1})
        ]
        assert len(set(prints)) == len(prints)

    def test_what_is_not_json_is_not_hashed_by_accident(self):
        with pytest.raises(TypeError):
            fingerprint({"a": Path("/tmp")})


class TestWriting:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path):
        file = tmp_path / "sub" / "a.txt"
        write_text(file, "old")
        with pytest.raises(RuntimeError), writing(file) as tmp:
            tmp.write_text("half")
            raise RuntimeError
        assert file.read_text() == "old" and names(tmp_path) == ["sub", "sub/a.txt"]

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_a_full_or_broken_disk(self, tmp_path: Path, monkeypatch, call: str, code: int):
        file = tmp_path / "a.npy"
        save_npy(file, np.arange(3))

        def fail(*args: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match=os.strerror(code)):
                save_npy(file, np.arange(9))
        np.testing.assert_array_equal(load_npy(file), np.arange(3))
        assert names(tmp_path) == ["a.npy"]

    def test_json_is_strict_and_readable(self, tmp_path: Path):
        write_json(tmp_path / "a.json", {"title": "Amélie", "x": [1, None]})
        assert read_json(tmp_path / "a.json") == {"title": "Amélie", "x": [1, None]}
        assert "Amélie" in (tmp_path / "a.json").read_text(encoding="utf-8")
        with pytest.raises(ValueError):
            write_json(tmp_path / "b.json", {"x": float("nan")})
        assert names(tmp_path) == ["a.json"]

    def test_arrays_of_objects_are_not_written(self, tmp_path: Path):
        with pytest.raises(ValueError):
            save_npy(tmp_path / "a.npy", np.array([{}], dtype=object))
        assert names(tmp_path) == []

    def test_now_has_a_zone(self):
        time.strptime(now(), "%Y-%m-%dT%H:%M:%S%z")


class TestReading:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff\xfe{}", b'{"a": 1}x', b"[" * 100_000],
        ids=["empty", "cut", "bytes", "more", "deep"],
    )
    def test_json_that_is_none(self, tmp_path: Path, content: bytes):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json cannot be read"):
            read_json(tmp_path / "a.json")

    def test_missing_files_are_named(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"a\.json is missing"):
            read_json(tmp_path / "a.json")
        with pytest.raises(UserError, match=r"a\.npy cannot be read"):
            load_npy(tmp_path / "a.npy")
        with pytest.raises(UserError, match="cannot be read"):
            read_json(tmp_path)

    @pytest.mark.parametrize("mmap", [False, True])
    def test_npy_round_trip(self, tmp_path: Path, mmap: bool):
        array = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        save_npy(tmp_path / "a.npy", array)
        loaded = load_npy(tmp_path / "a.npy", mmap)
        assert loaded.dtype == np.float32 and isinstance(loaded, np.memmap) == mmap
        np.testing.assert_array_equal(loaded, array)

    @pytest.mark.parametrize("mmap", [False, True])
    def test_other_files_under_the_name_of_an_array(self, tmp_path: Path, mmap: bool):
        file = tmp_path / "a.npy"
        np.savez(tmp_path / "archive.npz", a=np.arange(3))
        pickled = tmp_path / "pickled.npy"
        np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
        for content in (
            (tmp_path / "archive.npz").read_bytes(),
            pickled.read_bytes(),
            b"PK\x03\x04",
            b"",
            b"text",
        ):
            file.write_bytes(content)
            with pytest.raises(UserError, match=r"a\.npy cannot be read"):
                load_npy(file, mmap)

    @FUZZ
    @given(data=st.data(), mmap=st.booleans())
    def test_damaged_arrays_are_refused_or_read(self, tmp_path: Path, data, mmap: bool):
        """Cut anywhere or with bytes changed: an array or one line, never another exception."""
        file = tmp_path / "a.npy"
        save_npy(file, np.arange(40, dtype=np.int32).reshape(8, 5))
        blob = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            blob[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
        file.write_bytes(blob[: data.draw(st.integers(0, len(blob)))])
        try:
            assert isinstance(load_npy(file, mmap), np.ndarray)
        except UserError as e:
            assert "\n" not in str(e)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    with artifact_folder(tmp_path / "x" / "fp") as tmp:
        write_text(tmp / "a.txt", "one")
        write_text(tmp / "sub" / "b.txt", "two")
        write_manifest(tmp, {"format_version": 1, "dataset": "toy"})
    return tmp_path / "x" / "fp"


class TestFolders:
    def test_complete_with_hashes(self, artifact: Path):
        assert names(artifact.parent) == ["fp", "fp/a.txt", "fp/manifest.json", "fp/sub", "fp/sub/b.txt"]
        manifest = load_manifest(artifact, {"format_version": 1}, "fix")
        assert (
            manifest["files"]["sub/b.txt"]
            == hashlib.sha256(b"two").hexdigest()
            == sha256_file(artifact / "sub/b.txt")
        )
        assert set(manifest["files"]) == {"a.txt", "sub/b.txt"}

    def test_a_failure_inside_leaves_nothing(self, tmp_path: Path):
        with pytest.raises(KeyError), artifact_folder(tmp_path / "fp") as tmp:
            write_text(tmp / "a.txt", "one")
            raise KeyError
        with pytest.raises(RuntimeError, match="no manifest"), artifact_folder(tmp_path / "fp"):
            pass
        assert names(tmp_path) == []

    def test_remains_of_a_crash_are_replaced_and_results_are_kept(self, tmp_path: Path):
        folder = tmp_path / "fp"
        write_text(folder / "half.txt", "crash")
        assert not is_complete(folder)
        for content in ("first", "second"):  # the second finds a finished folder
            with artifact_folder(folder) as tmp:
                write_text(tmp / "a.txt", content)
                write_manifest(tmp, {})
        assert (folder / "a.txt").read_text() == "first"
        assert names(tmp_path) == ["fp", "fp/a.txt", "fp/manifest.json"]

    def test_the_manifest_is_the_last_thing_to_appear(self, tmp_path: Path, monkeypatch):
        """Whatever call fails on the way, there is no folder with a manifest under the final name."""
        folder = tmp_path / "fp"
        for call in range(12):
            count = 0
            real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

            def failing(name: str, call: int = call, real: dict = real):
                def run(*args: object) -> object:
                    nonlocal count
                    count += 1
                    if count == call + 1:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return real[name](*args)

                return run

            with monkeypatch.context() as patch:
                for name in real:
                    patch.setattr(os, name, failing(name))
                try:
                    with artifact_folder(folder) as tmp:
                        write_text(tmp / "a.txt", "one")
                        write_manifest(tmp, {})
                except OSError:
                    pass
            if is_complete(folder):
                load_manifest(folder, {}, "fix")
                assert (folder / "a.txt").read_text() == "one"
                break
            assert not folder.exists()
        else:
            raise AssertionError("it never finished")
        assert call >= 8, "files, folder and manifest are synced and renamed one by one"

    def test_publish_does_not_hide_other_failures(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError):
            publish(tmp_path / "missing", tmp_path / "fp")


class TestManifest:
    def test_a_field_that_differs_names_both_values(self, artifact: Path):
        with pytest.raises(UserError, match="dataset is 'toy'; expected 'ml'; change teacher"):
            load_manifest(artifact, {"dataset": "ml"}, "teacher")
        with pytest.raises(UserError, match="seed is None; expected 3"):
            load_manifest(artifact, {"seed": 3}, "teacher")

    def test_no_manifest(self, tmp_path: Path):
        with pytest.raises(
            UserError, match=r"has no manifest\.json; expected a completed artifact; change x"
        ):
            load_manifest(tmp_path, {}, "x")

    @pytest.mark.parametrize("content", ["[]", "{}", '{"files": 3}', '{"files": []}', "null"])
    def test_not_a_manifest(self, artifact: Path, content: str):
        (artifact / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="no list of files"):
            load_manifest(artifact, {}, "x")

    @pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub", "gone", "a\0b", "x" * 5000, ""])
    def test_names_that_lead_elsewhere(self, artifact: Path, name: str):
        write_text(artifact.parents[1] / "secret", "s")
        (artifact / "manifest.json").write_text(json.dumps({"files": {name: "0" * 64}}))
        with pytest.raises(UserError, match="missing"):
            load_manifest(artifact, {}, "x")

    @FUZZ
    @given(
        fields=st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        files=st.dictionaries(
            st.text() | st.just("a.txt"), st.text() | st.none() | st.integers(), max_size=3
        ),
    )
    def test_any_json_is_refused_or_read(self, artifact: Path, fields, files):
        (artifact / "manifest.json").write_text(json.dumps({"x": fields, "files": files}))
        try:
            manifest = load_manifest(artifact, {}, "x")
            assert files == {} == manifest["files"]
        except UserError as e:
            assert "\n" not in str(e)


def _in_turn(folder: Path, log: Path) -> None:
    with lock(folder):
        with open(log, "a") as f:
            f.write("in\n")
        time.sleep(0.02)
        with open(log, "a") as f:
            f.write("out\n")


class TestLock:
    def test_processes_take_turns(self, tmp_path: Path):
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=_in_turn, args=(tmp_path / "a", tmp_path / "log")) for _ in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert (tmp_path / "log").read_text().split() == ["in", "out"] * 4

    def test_the_one_that_waits_says_so(self, tmp_path: Path):
        context = multiprocessing.get_context("fork")
        said: list[str] = []
        with lock(tmp_path / "a", said.append):
            assert said == [], "nobody was there"
        holder = context.Process(target=_in_turn, args=(tmp_path / "a", tmp_path / "log"))
        holder.start()
        while not (tmp_path / "log").exists():
            time.sleep(0.001)
        with lock(tmp_path / "a", said.append):
            assert (tmp_path / "log").read_text().split() == ["in", "out"]
        holder.join(30)
        assert said[0].startswith(f"another process is writing {tmp_path / 'a'}") and said[1].startswith(
            "waited"
        )

    def test_other_artifacts_are_not_blocked(self, tmp_path: Path):
        with lock(tmp_path / "a"), lock(tmp_path / "b"):
            assert names(tmp_path) == [".a.lock", ".b.lock"]
