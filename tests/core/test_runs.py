"""The registry of runs: what it lists, in which state, and what it refuses to read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.paths import result_root
from src.core.run import Run
from src.core.runs import find_runs, read_run


def make(stage: str = "distill", fingerprint: str = "f", state: str = "completed", seed: int = 1) -> Path:
    """A small run with metrics, as a stage leaves it."""
    run = Run.start(None, stage, fingerprint, seed)
    run.write_metrics({"seed": seed, "valid": {"NDCG@10": 0.5}})
    run.write_times(distill_student_train_time=2.0)
    np.save(run.dir / "metrics" / "test_ranks.npy", np.array([1, 2, 3]), allow_pickle=False)
    run.status(state)
    run.close()
    return run.dir


def change(folder: Path, **fields: object) -> None:
    file = folder / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_finds_by_stage_fingerprint_and_state(roots: Path) -> None:
    made = {
        (stage, fp, state): make(stage, fp, state)
        for stage in ("distill", "teacher")
        for fp in ("a", "b")
        for state in ("completed", "failed")
    }
    assert {r.folder for r in find_runs()} == set(made.values())
    assert [r.folder for r in find_runs("teacher", "b", "failed")] == [made["teacher", "b", "failed"]]
    assert len(find_runs(fingerprint={"a", "b"}, state="completed")) == 4
    assert find_runs(fingerprint=[]) == [] and find_runs(fingerprint="c") == []
    record = find_runs("distill", "a", "completed")[0]
    assert (record.seed, record.metrics["valid"]["NDCG@10"]) == (1, 0.5)
    assert record.times == {"distill_student_train_time": 2.0}
    np.testing.assert_array_equal(record.array("test_ranks.npy"), [1, 2, 3])
    assert record.config == {} and record.setting("student.lr", 7) == 7
    assert (result_root() / "latest").resolve() == max(made.values(), key=lambda p: p.stat().st_mtime_ns)


def test_two_hundred_runs_are_listed_at_once(roots: Path) -> None:
    folder = make()
    text, status = (folder / "status.json").read_text(), "status.json"
    for n in range(200):
        (result_root() / f"copy_{n}").mkdir()
        (result_root() / f"copy_{n}" / status).write_text(text)
    started = time.process_time()
    assert len(find_runs("distill", state="completed")) == 201
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "running"),
        ({"process_started": None, "host": None}, "running"),  # as another version writes it
        ({"pid": 2**22 + 5}, "interrupted"),  # gone
        ({"pid": "x"}, "interrupted"),
        ({"pid": -1}, "interrupted"),
        ({"pid": 10**12}, "interrupted"),
        ({"process_started": "1"}, "interrupted"),  # the number went to another process
        ({"pid": 2**22 + 5, "host": "another-machine"}, "running"),  # nobody here can know
    ],
)
def test_a_run_whose_process_is_gone_is_interrupted(roots: Path, fields: dict, state: str) -> None:
    folder = make(state="running")
    change(folder, **fields)
    (record,) = find_runs()
    assert record.state == state and (record.reason is None) == (state == "running")
    assert [r.folder for r in find_runs(state=state)] == [folder]


def test_a_killed_process_is_interrupted(roots: Path) -> None:
    code = "import time\nfrom src.core.run import Run\nRun.start(None, 'teacher', 'f')\nprint(1, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert [r.state for r in find_runs()] == ["running"]
        process.kill()
        process.wait()
    assert [r.state for r in find_runs()] == ["interrupted"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a list": lambda f: f.write_text("[]"),
    "no JSON": lambda f: f.write_text("{"),
    "empty": lambda f: f.write_text(""),
    "bytes": lambda f: f.write_bytes(b"\xff\xfe\x00"),
    "another program's": lambda f: f.write_text('{"status": "ok"}'),
    "an unknown state": lambda f: f.write_text('{"stage": "teacher", "state": "queued"}'),
    "a stage that is a number": lambda f: f.write_text('{"stage": 3, "state": "completed"}'),
    "a folder": lambda f: (f.unlink(missing_ok=True), f.mkdir()),
    "nothing": lambda f: None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_folders_are_left_out(roots: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = make()
    (result_root() / "notes").mkdir()
    FOREIGN[kind](result_root() / "notes" / "status.json")
    (result_root() / "a_file").write_text("no folder")
    for _ in range(3):
        assert [r.folder for r in find_runs()] == [folder]
    assert sum("ignored" in r.message for r in caplog.records) <= 1
    if kind not in ("nothing", "a folder"):
        with pytest.raises(UserError, match="expected"):
            read_run(result_root() / "notes")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped ranks": (
        lambda m: np.save(m / "test_ranks.npy", np.array([3, 2, 1]), allow_pickle=False),
        "test_ranks.npy does not have the hash",
    ),
    "NaN": (
        lambda m: (m / "metrics.json").write_text('{"valid": {"NDCG@10": NaN}}'),
        "metrics.json does not have the hash",
    ),
    "a metric in words": (
        lambda m: (m / "metrics.json").write_text('{"valid": "good"}'),
        "metrics.json does not have the hash",
    ),
    "another run's times": (lambda m: (m / "time.json").write_text("{}"), "time.json does not have the hash"),
    "no ranks": (lambda m: (m / "test_ranks.npy").unlink(), "test_ranks.npy is missing"),
    "no manifest": (lambda m: (m / "manifest.json").unlink(), "no manifest.json"),
    "half a manifest": (
        lambda m: (m / "manifest.json").write_text('{"files"'),
        "manifest.json cannot be read",
    ),
    "a manifest of another run": (
        lambda m: (m / "manifest.json").write_text(
            (m / "manifest.json").read_text().replace('"fingerprint": "f"', '"fingerprint": "g"')
        ),
        "fingerprint is 'g'; expected 'f'",
    ),
    "no metrics folder": (lambda m: [f.unlink() for f in m.iterdir()], "no manifest.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_changed_metrics_are_one_line(roots: Path, kind: str) -> None:
    folder = make()
    damage, says = DAMAGE[kind]
    damage(folder / "metrics")
    (record,) = find_runs()
    for read in (lambda r: r.metrics, lambda r: r.array("test_ranks.npy")):
        with pytest.raises(UserError) as caught:
            read(record)
        assert says in str(caught.value) and str(folder) in str(caught.value)


def test_what_a_run_does_not_have(roots: Path) -> None:
    make()
    with pytest.raises(UserError, match="has no metrics/other.npy"):
        find_runs()[0].array("other.npy")


def test_latest_is_never_taken_from_the_user(roots: Path) -> None:
    result_root().mkdir()
    (result_root() / "latest").mkdir()
    (result_root() / "latest" / "thesis.txt").write_text("keep")
    make()
    assert (result_root() / "latest" / "thesis.txt").read_text() == "keep"


def test_a_discarded_run_gives_latest_back(roots: Path) -> None:
    run = Run.start(None, "teacher", "f")
    run.discard()
    assert not os.path.lexists(result_root() / "latest") and list(result_root().iterdir()) == []
    first = make()
    run = Run.start(None, "teacher", "f")
    (run.dir / "mine.txt").write_text("the user's")
    run.discard()
    assert (result_root() / "latest").resolve() == first
    assert [p.name for p in run.dir.iterdir()] == ["mine.txt"], "only what the run made is removed"


def test_host_is_this_machine(roots: Path) -> None:
    status = json.loads((make() / "status.json").read_text())
    assert (status["host"], status["pid"], status["seed"]) == (socket.gethostname(), os.getpid(), 1)


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "1"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"WORLD_SIZE": "many"},
    ],
)
def test_a_rank_that_cannot_be(roots: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """A process that takes itself for a second one would train and write nothing."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="WORLD_SIZE.*unset both"):
        Run.start(None, "teacher", "f")
    assert not result_root().exists()
