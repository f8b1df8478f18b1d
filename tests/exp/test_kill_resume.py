"""SIGKILL at random points: the same command goes on, and ends with the same bytes as an undisturbed run.

A stage runs as a process of its own (`forking`) and is killed a random time after a line of its log that says that the
stage has begun, so that the points spread over its work and not over the imports. What comes out does not
depend on where a kill falls. The long version, 50 kills per stage, tells where they fell:

    python -m pytest -m slow -rP tests/exp/test_kill_resume.py
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from src.core.artifacts import sha256_file
from tests.exp.conftest import TINY, TINY_TEACHER
from tests.exp.forking import Forker

OVERRIDES = (
    *TINY,
    *TINY_TEACHER,
    "student.max_epochs=20",
    "student.patience=20",
    "teacher.train.epochs=3",
    "teacher.train.batch_size=16",
    "teacher.train.checkpoint_minutes=1e-6",  # after every step
    "teacher.export.shard_size=10",
)
# Of a manifest, what tells of the run and not of the result.
OF_THE_RUN = ("created_at", "export_seconds", "trained", "training", "train_seconds", "git_commit", "sha256")
OF_THE_RUN += ("files", "valid_seconds", "seconds")


@dataclass(frozen=True)
class Part:
    """A stage that is killed: the entry point, and the lines of its log between which it works."""

    entry: str
    begins: str
    ends: str
    needs: tuple[str, ...]  # entry points that run before it


PARTS = {
    "teacher": Part("run_teacher", "frozen encoder", "forecast:|there already", ()),
    "export": Part("run_teacher", "forecast:|there already", "quality:", ()),
    "baseline": Part("run_student_baseline", "dataset demo", "test: ", ("run_teacher",)),
    "distill": Part("run_distill", "dataset demo", "test: ", ("run_teacher",)),
}


@dataclass
class Ended:
    """Exit code of a process and its lines on stderr with their times."""

    code: int
    lines: list[tuple[float, str]] = field(default_factory=list)

    def first(self, pattern: str) -> float | None:
        return next((t for t, line in self.lines if re.search(pattern, line)), None)


Run = Callable[..., Ended]


def _send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signum)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`run(root, entry, begins, delay, signum)`: an entry point with data and results below `root`.

    `begins`: the process is sent `signum` `delay` seconds after the first line that matches; "": never.
    """
    forker, pipe = Forker(), tmp_path_factory.mktemp("pipe") / "stderr"
    os.mkfifo(pipe)

    def call(
        root: Path, entry: str, begins: str = "", delay: float = 0.0, signum: int = signal.SIGKILL
    ) -> Ended:
        env = {
            "ANYO_VERBOSE": "1",
            "ANYO_DATA_ROOT": str(root / "data"),
            "ANYO_RESULT_ROOT": str(root / "result"),
        }
        pid, ended, timer = forker.start(entry, list(OVERRIDES), env, str(pipe)), Ended(0), None
        with open(pipe) as stderr:
            for line in stderr:
                ended.lines.append((time.monotonic(), line.rstrip()))
                if begins and timer is None and re.search(begins, line):
                    timer = threading.Timer(delay, _send, [pid, signum])
                    timer.start()
        if timer is not None:
            timer.cancel()
            timer.join()
        ended.code = forker.wait()
        return ended

    yield call
    forker.close()


def results(root: Path) -> dict[str, object]:
    """Everything a completed pipeline leaves, in a form that two equal pipelines share."""
    out: dict[str, object] = {}
    for status in sorted((root / "result").glob("result_*/status.json")):
        fields, folder = json.loads(status.read_text()), status.parent
        if fields["state"] != "completed":
            continue
        metrics = json.loads((folder / "metrics" / "metrics.json").read_text())
        metrics.pop("store", None)
        out[f"{fields['stage']} metrics"] = metrics
        for file in sorted([*folder.glob("metrics/*.npy"), *folder.glob("models/student/*.safetensors")]):
            out[f"{fields['stage']} {file.name}"] = sha256_file(file)
    for kind in ("teacher_outputs", "models"):
        for manifest in sorted((root / "data" / kind).rglob("manifest.json")):
            fields, place = json.loads(manifest.read_text()), manifest.parent
            out[str(place.relative_to(root))] = {k: v for k, v in fields.items() if k not in OF_THE_RUN}
            for file in sorted(
                [*place.rglob("*.npy"), *place.rglob("*.safetensors"), *place.glob("q*.json")]
            ):
                out[str(file.relative_to(root))] = sha256_file(file)
    return out


@dataclass
class Undisturbed:
    """A pipeline without kills.

    Attributes:
        root: its data and results.
        results: of `results`, by entry point: after that entry point and those before it.
        seconds: how long each part worked.
    """

    root: Path
    results: dict[str, dict[str, object]]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed")
    seconds: dict[str, float] = {}
    for entry in ("run_teacher", "run_student_baseline", "run_distill"):
        ended = run(root, entry)
        assert ended.code == 0, ended.lines
        for name, part in PARTS.items():
            if part.entry == entry:
                begin, end = ended.first(part.begins), ended.first(part.ends)
                assert begin is not None and end is not None, ended.lines
                seconds[name] = end - begin
    return Undisturbed(root, results(root), seconds)


def expected_of(made: Undisturbed, part: Part) -> dict[str, object]:
    """What a root holds that ran `part` and what it needs, and nothing else."""
    others = {"run_student_baseline": "student_baseline ", "run_distill": "distill "}
    names = tuple(prefix for entry, prefix in others.items() if entry != part.entry)
    return {k: v for k, v in made.results.items() if not k.startswith(names)}


def fresh(made: Undisturbed, part: Part, root: Path) -> None:
    """A root in which `part` is still to be run."""
    shutil.rmtree(root, ignore_errors=True)
    if part is PARTS["export"]:  # the teacher is trained already
        not_there = shutil.ignore_patterns("work", "teacher_outputs")
        shutil.copytree(made.root / "data", root / "data", ignore=not_there)
    if part.needs:
        shutil.copytree(made.root / "data", root / "data", ignore=shutil.ignore_patterns("work"))
        shutil.copytree(made.root / "result", root / "result")
        for status in (root / "result").glob("result_*/status.json"):
            if f"run_{json.loads(status.read_text())['stage']}" not in part.needs:
                shutil.rmtree(status.parent)


def check(root: Path, expected: dict[str, object]) -> None:
    """Everything is as if nothing had ever been killed, and nothing lies about."""
    assert results(root) == expected
    work = [p for p in (root / "data" / "work").glob("*/*") if p.is_dir()]
    assert not work, f"checkpoints left behind: {work}"
    left = [p for p in (root / "data").rglob("*") if ".tmp" in p.name or p.name.endswith(".partial")]
    assert not left, f"temporary files left behind: {left}"


def kill_and_compare(
    name: str, run: Run, made: Undisturbed, root: Path, kills: int, rng: random.Random
) -> None:
    """Kill a part `kills` times while it works; where it ends all the same, compare and start anew."""
    part, where, compared = PARTS[name], Counter[str](), 0
    fresh(made, part, root)
    while where.total() < kills:
        ended = run(root, part.entry, part.begins, rng.uniform(0.0, made.seconds[name]))
        assert ended.code in (-signal.SIGKILL, 0), ended.lines
        last = re.sub(r"/\S+", "…", ended.lines[-1][1][9:])
        # Past the end of its own work a teacher's run is in the next part of it: no kill of this one.
        beyond = part.entry == "run_teacher" and ended.first(part.ends) is not None
        if ended.code and not beyond:
            where[re.sub(r"\d[\da-f.]*", "#", last)[:40]] += 1
            if where.total() % 10 == 0:
                print(f"{name}: {where.total()} kills, {compared} ends compared", flush=True)
            continue
        assert run(root, part.entry).code == 0
        check(root, expected_of(made, part))
        compared += 1
        fresh(made, part, root)
    assert run(root, part.entry).code == 0
    check(root, expected_of(made, part))
    print(f"\n{name}: {where.total()} kills, {compared + 1} ends compared; last lines before them:")
    for line, count in where.most_common():
        print(f"  {count:3d} {line}")


def test_one_kill_per_stage(tmp_path: Path, run: Run, undisturbed: Undisturbed) -> None:
    """One pipeline; the teacher's entry point is killed while it trains, and again while it ranks."""
    rng = random.Random(1)
    for part in PARTS.values():
        ended = run(tmp_path, part.entry, part.begins, rng.uniform(0.0, 0.5))
        assert ended.code in (-signal.SIGKILL, 0), ended.lines
        if part is not PARTS["teacher"]:
            assert run(tmp_path, part.entry).code == 0
    check(tmp_path, undisturbed.results)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_fifty_kills_per_stage(tmp_path: Path, run: Run, undisturbed: Undisturbed, name: str) -> None:
    kill_and_compare(name, run, undisturbed, tmp_path / "root", 50, random.Random(2))


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_at_the_next_step(tmp_path: Path, run: Run, signum: int, code: int) -> None:
    ended = run(tmp_path, "run_student_baseline", "epoch 1/", signum=signum)
    assert ended.code == code
    (status,) = (tmp_path / "result").glob("result_*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
