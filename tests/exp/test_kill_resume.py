"""SIGKILL at random points: the same command goes on, and ends with the same bytes as an undisturbed run.

A stage runs as a process of its own and is killed after its k-th line on stderr, so the points do not
depend on the machine's speed. The long version: `pytest -m slow tests/exp/test_kill_resume.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.artifacts import sha256_file
from src.core.paths import ROOT
from tests.exp.conftest import TINY, TINY_TEACHER

OVERRIDES = (
    *TINY,
    *TINY_TEACHER,
    "student.max_epochs=6",
    "teacher.export.shard_size=40",
    "teacher.train.epochs=2",
)
STAGES = ("run_teacher", "run_student_baseline", "run_distill")
# Of a manifest, what tells of the run and not of the result.
OF_THE_RUN = ("created_at", "export_seconds", "trained", "git_commit", "sha256")


def run(
    root: Path, stage: str, kill_after: int | None = None, signum: int = signal.SIGKILL
) -> tuple[int, int]:
    """Run a stage with data and results below `root`; returns its exit code and its lines on stderr."""
    env = {**os.environ, "ANYO_DATA_ROOT": str(root / "data"), "ANYO_RESULT_ROOT": str(root / "result")}
    command = [sys.executable, "-m", f"src.exp.{stage}", *OVERRIDES]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**env, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    lines = 0
    assert process.stderr is not None
    for lines, _ in enumerate(process.stderr, start=1):
        if lines == kill_after:
            process.send_signal(signum)
    return process.wait(timeout=300), lines


def results(root: Path) -> dict[str, object]:
    """Everything a completed pipeline leaves, in a form that two equal pipelines share."""
    out: dict[str, object] = {}
    for status in sorted((root / "result").glob("*/status.json")):
        fields, folder = json.loads(status.read_text()), status.parent
        if fields["state"] != "completed":
            continue
        metrics = json.loads((folder / "metrics" / "metrics.json").read_text())
        metrics.pop("store", None)
        out[f"{fields['stage']} metrics"] = metrics
        for file in sorted(folder.glob("models/student/*.safetensors")):
            out[f"{fields['stage']} {file.name}"] = sha256_file(file)
    for manifest in sorted((root / "data" / "teacher_outputs").rglob("manifest.json")):
        store = json.loads(manifest.read_text())
        out[f"store {store['teacher']}"] = {k: v for k, v in store.items() if k not in OF_THE_RUN}
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], dict[str, int]]:
    root = tmp_path_factory.mktemp("undisturbed")
    lines = {}
    for stage in STAGES:
        code, lines[stage] = run(root, stage)
        assert code == 0
    return results(root), lines


def kill_and_compare(
    root: Path, undisturbed: tuple[dict[str, object], dict[str, int]], kills: int, seed: int
) -> None:
    expected, lines = undisturbed
    rng = random.Random(seed)
    for stage in STAGES:
        for _ in range(kills):
            code, _ = run(root, stage, kill_after=rng.randint(1, lines[stage]))
            assert code in (-signal.SIGKILL, 0)  # 0: it was past its last line
        assert run(root, stage)[0] == 0
    assert results(root) == expected
    left = [p for p in (root / "data" / "work").glob("*/*") if p.is_dir()]
    assert not left, f"checkpoints left behind: {left}"


def test_one_kill_per_stage(tmp_path: Path, undisturbed: tuple[dict[str, object], dict[str, int]]) -> None:
    kill_and_compare(tmp_path, undisturbed, kills=1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_per_stage(
    tmp_path: Path, undisturbed: tuple[dict[str, object], dict[str, int]], seed: int
) -> None:
    kill_and_compare(tmp_path, undisturbed, kills=10, seed=seed)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_at_the_next_step(tmp_path: Path, signum: int, code: int) -> None:
    ended, _ = run(tmp_path, "run_student_baseline", kill_after=2, signum=signum)
    assert ended == code
    (status,) = (tmp_path / "result").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
