"""How a command begins and ends: folders it may touch, words it explains, sweeps, signals, disks that refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.core.artifacts import lock, writing
from src.core.errors import DoneAlready, disk_error
from src.core.paths import ROOT, data_root, result_root, work_dir
from src.core.run import Run
from src.core.runs import find_runs
from tests.exp.conftest import TINY, Stage

BASELINE = "run_student_baseline"


@pytest.fixture
def folder(roots: Path) -> Path:
    """A folder of the user's with a file in it."""
    (roots / "mine").mkdir()
    (roots / "mine" / "thesis.txt").write_text("keep")
    return roots / "mine"


@pytest.mark.parametrize(
    "extra", [[], ["dry_run=true"], ["skip_if_done=true"], ["student.lr=-1"], ["--multirun"]]
)
def test_a_folder_with_files_is_left_as_it_is(stage: Stage, folder: Path, extra: list[str]) -> None:
    keys = ("hydra.run.dir", "hydra.sweep.dir")
    ended = stage(BASELINE, *TINY, *(f"{key}={folder}" for key in keys), *extra)
    assert ended.code == (0 if extra == ["dry_run=true"] else 2)
    if ended.code and extra != ["student.lr=-1"]:
        assert "is not empty" in ended.err and str(folder) in ended.err
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    assert (folder / "thesis.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["file", "completed"])
def test_a_file_or_a_completed_run_is_no_place_for_a_run(stage: Stage, roots: Path, place: str) -> None:
    target = roots / place
    if place == "file":
        target.write_text("x")
    else:
        Run.start(target, "teacher", "f").status("completed")
    before = {p: p.stat().st_mtime_ns for p in [target, *target.rglob("*")]}
    ended = stage(BASELINE, *TINY, f"hydra.run.dir={target}")
    assert ended.code == 2 and "expected a new or empty folder" in ended.error_line
    assert {p: p.stat().st_mtime_ns for p in [target, *target.rglob("*")]} == before


@pytest.mark.parametrize(
    "extra",
    [
        ["dry_run=true"],
        ["student.widht=3"],
        ["student.lr=-1"],
        ["dataset=nosuch"],
        ["hydra.run.dir={new}", "dry_run=true"],
        ["hydra.run.dir={new}", "student.lr=-1"],
        ["--multirun", "student.lr=-1,-2"],
        ["--multirun", "student.widht=1,2"],
        ["--multirun", "seed=1,2", "dry_run=true"],
    ],
    ids=" ".join,
)
def test_a_dry_run_and_a_typo_leave_nothing(stage: Stage, roots: Path, extra: list[str]) -> None:
    ended = stage(BASELINE, *TINY, *(o.format(new=roots / "new" / "er") for o in extra))
    assert ended.code == (0 if "dry_run=true" in extra else 2)
    left = [p for p in roots.rglob("*") if not p.is_relative_to(data_root())]
    assert [p for p in left if p != result_root()] == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student=[sasrec,gru4rec]", "--multirun student=a,b"),
        ("student=null", "one of caser, "),
        ("student=", "one of caser"),
        ("~student", "one of caser"),
        ("dataset=null", "one of"),
        ("teacher=[knn]", "--multirun teacher=a,b"),
        ("teacher/llm=[local,hub]", "--multirun teacher/llm=a,b"),
        ("~teacher/llm", "one of"),
        ("distill=None", "one of dllm2rec"),
        ("active=~", "one of all"),
        ("compare=[default,study]", "one of default, study"),
        ("student.lr=０.1", "put a value with such characters in quotes"),
        ("dataset.raw_dir=データ/生", "'dataset.raw_dir=\"データ/生\"'"),
        ("dataset.raw_dir=~/data(1)", "in quotes"),
        ("student.name=a b}", "in quotes"),
        ("student.widht=3", "did you mean student.width?"),
        ("student.learning_rate=3", "student.learning_rate"),
        ("stduent.lr=3", "did you mean student.lr?"),
        ("teacher.lora.rnak=3", "did you mean teacher.lora.rank?"),
        ("eval.k=3", "did you mean eval.ks?"),
        ("student=sasrek", "did you mean sasrec?"),
        ("dataset=movilens", "did you mean movielens?"),
        ("skip_if_dnoe=true", "did you mean skip_if_done?"),
    ],
)
def test_what_hydra_takes_amiss_is_explained(stage: Stage, override: str, says: str) -> None:
    ended = stage(BASELINE, *TINY, override)
    assert ended.code == 2 and says in ended.error_line
    assert ended.folder is None


def test_one_failing_job_does_not_end_a_sweep(stage: Stage) -> None:
    """The bad job comes first; the other runs, the sweep ends non-zero and says what failed."""
    ended = stage(BASELINE, "--multirun", *TINY, "student.max_epochs=1", "student.dropout=7,0.1")
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if "jobs failed" in line]
    assert line.startswith("error: 1 of 2 jobs failed: student.dropout=7: configuration: student.dropout")
    assert [r.setting("student.dropout") for r in find_runs(state="completed")] == [0.1]
    (sweep,) = result_root().glob("sweep_*")
    jobs = [json.loads(line) for line in (sweep / "jobs.jsonl").read_text().splitlines()]
    assert [(job["code"], bool(job["folder"])) for job in jobs] == [(2, False), (0, True)]


def test_joblib_lists_what_failed_too(stage: Stage) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    grid = (
        "student.max_epochs=1",
        "student.dropout=7,0.1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )
    ended = stage(BASELINE, "--multirun", *TINY, *grid)
    assert ended.code == 2 and "1 of 2 jobs failed: student.dropout=7" in ended.err
    assert [r.setting("student.dropout") for r in find_runs(state="completed")] == [0.1]


def test_the_check_is_repeated_after_the_lock(roots: Path) -> None:
    """Two identical runs: what the other one completed meanwhile is not trained again."""
    from src.exp.stages import training_folder

    mine, started = Run.start(None, "distill", "f"), threading.Event()

    def other() -> None:
        with lock(work_dir("distill", "f")):
            started.set()
            time.sleep(0.5)
            Run.start(None, "distill", "f").status("completed")

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    with pytest.raises(DoneAlready) as found, training_folder(mine):
        pytest.fail("trained again")
    thread.join()
    assert found.value.folder == find_runs(state="completed")[0].folder


def test_relative_roots_are_below_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, place in (("ANYO_DATA_ROOT", data_root), ("ANYO_RESULT_ROOT", result_root)):
        monkeypatch.setenv(name, "some/where")
        assert place() == ROOT / "some" / "where"
        monkeypatch.setenv(name, "~/x")
        assert place() == Path.home() / "x"
        monkeypatch.setenv(name, "")
        assert place().parent == ROOT


@pytest.mark.parametrize("name", ["run_teacher", BASELINE, "run_distill", "run_eval_all", "run_all"])
def test_started_as_a_file(name: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "src" / "exp" / f"{name}.py"],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"python -m src.exp.{name}" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_first_second(signum: signal.Signals, roots: Path) -> None:
    # The tests may run under nohup or in the background, where signals are ignored.
    command = ["env", "--default-signal", sys.executable, "-m", f"src.exp.{BASELINE}", *TINY]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    handled = f"/proc/{process.pid}/status"
    deadline = time.monotonic() + 60
    while not _catches(handled, signal.SIGTERM):  # Python itself catches SIGINT only
        assert time.monotonic() < deadline
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err and len(err.splitlines()) <= 2 and signum.name in err


def _catches(status: str, signum: int) -> bool:
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(status).read_text())
    return found is not None and bool(int(found[1], 16) >> (signum - 1) & 1)


def test_nohup_keeps_its_meaning() -> None:
    from src.core.signals import _handled

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in _handled()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in _handled()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_run_says_how_to_go_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.core.errors import Interrupted
    from src.exp import stages

    def stopped(*args: object, **kwargs: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(stages, "train_student", stopped)
    ended = stage(BASELINE, *TINY, 'student.name="a b"')
    assert ended.code == 130
    assert f"go on from the last checkpoint with: python -m src.exp.{BASELINE} {TINY[0]}" in ended.err
    assert """'student.name="a b"'""" in ended.err


def test_run_log_on_a_full_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.core.logging import log_to_file
    from src.exp import cli

    monkeypatch.setattr(cli, "log_to_file", lambda file: log_to_file(Path("/dev/full")))
    ended = stage(BASELINE, *TINY)
    assert ended.code == 2 and "No space left on device" in ended.error_line
    assert "Logging error" not in ended.err
    assert [r.state for r in find_runs()] == ["failed"]


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device",  # pyarrow
    ],
)
def test_native_writers_on_a_full_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from src.exp import stages

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(stages, "train_student", full)
    ended = stage(BASELINE, *TINY)
    assert ended.code == 2 and "expected a disk that takes writes" in ended.error_line
    assert disk_error(RuntimeError("os error 2")) is None and disk_error(ValueError("x")) is None


def test_every_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for mask in (0o022, 0o002, 0o077):
        before = os.umask(mask)
        try:
            with writing(tmp_path / f"{mask}.safetensors") as tmp:
                save_file({"x": torch.zeros(2)}, tmp)
            with writing(tmp_path / f"{mask}.txt") as tmp:
                tmp.write_text("x")
        finally:
            os.umask(before)
        assert {p.stat().st_mode & 0o777 for p in tmp_path.glob(f"{mask}.*")} == {0o666 & ~mask}


def test_a_disk_that_takes_no_writes_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", refused)
        with lock(tmp_path / "x"):
            pass
        patch.setattr(FileLock, "acquire", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"), lock(tmp_path / "x"):
            pass


def test_run_all_in_order_with_its_rivals(monkeypatch: pytest.MonkeyPatch, roots: Path) -> None:
    """Overrides of the teacher do not reach rival and control; three seeds are asked for; the first failure ends the command."""
    from src.exp import cli, run_all

    mine = [
        "dataset=demo_study",
        "teacher.train.lr=1e-3",
        "teacher/llm=local",
        "teacher.llm.path=x",
        "compare.seeds=[4,5,6]",
    ]
    rest, skip, calls, failing = ["dataset=demo_study", mine[-1]], ["skip_if_done=true"], [], ""

    def launch(stage: str, arguments: list[str], command: str) -> int:
        calls.append((stage, arguments))
        assert command == "bash cmd/run_all.sh"
        return 3 if stage == failing else 0

    monkeypatch.setattr(cli, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["run_all", *mine])
    assert run_all.main() == 0
    seeds = ["seed=4", "seed=5", "seed=6"]
    assert calls == [
        ("teacher", skip + mine),
        ("teacher", [*skip, "teacher=tfidf", *rest]),
        ("teacher", [*skip, "teacher=knn", *rest]),
        *(("student_baseline", [*skip, *mine, seed]) for seed in seeds),
        *(("distill", [*skip, *mine, seed]) for seed in seeds),
        *(("distill", [*skip, "teacher=tfidf", *rest, seed]) for seed in seeds),
        ("eval_all", [*skip, *mine, "compare.seeds=[4,5,6]"]),
    ]
    failing = "student_baseline"
    assert run_all.main() == 3 and calls[-1][0] == "student_baseline"


def test_run_all_without_words_in_the_titles(monkeypatch: pytest.MonkeyPatch, roots: Path) -> None:
    """Where TF-IDF cannot be had (exit code 2) the rest runs on; and it is no rival of itself."""
    from src.exp import cli, run_all

    calls: list[list[str]] = []

    def launch(stage: str, arguments: list[str], command: str) -> int:
        calls.append(arguments)
        return 2 if "teacher=tfidf" in arguments else 0

    monkeypatch.setattr(cli, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["run_all", "teacher=sasrec"])
    assert run_all.main() == 0
    assert sum("teacher=tfidf" in arguments for arguments in calls) == 1
    assert calls[-1] == ["skip_if_done=true", "teacher=sasrec"]
    assert not any(job.rival for job in run_all.jobs(["teacher=tfidf"]))


@pytest.mark.parametrize(
    "mine, seeds",
    [
        (["compare.seeds=[7]"], ["seed=7"]),
        (["seed=7"], []),
        (["-m", "seed=1,2"], []),  # a sweep is Hydra's
        (["dataset.no_such_key=1"], []),  # the first stage says what is wrong
    ],
)
def test_seeds_of_run_all(mine: list[str], seeds: list[str]) -> None:
    from src.exp.run_all import jobs

    found = [job.arguments for job in jobs(mine) if job.stage == "student_baseline"]
    assert found == [[*mine, seed] for seed in seeds] or found == [mine] and not seeds


def test_run_all_with_nothing_to_do_imports_nothing_that_trains(roots: Path) -> None:
    """Every stage has a completed run: the earlier summary, without torch, transformers or pandas; else no answer."""
    from src.exp.identity import identity_of
    from src.exp.overrides import compose_values
    from src.exp.run_all import jobs
    from src.exp.settings import Settings

    for number, job in enumerate(jobs([])):
        settings, values = Settings.compose(job.arguments), compose_values(job.arguments)
        fingerprint, _ = identity_of(job.stage, settings, values)
        folder = result_root() / f"result_{number:02}"
        (folder / "metrics").mkdir(parents=True)
        status = {"stage": job.stage, "state": "completed", "fingerprint": fingerprint}
        (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics" / "summary.md").write_text("the table\n")
    code = (
        "import sys; from src.exp import run_all; sys.argv = ['run_all', *sys.argv[1:]]; todo = run_all.jobs(sys.argv[1:]);"
        "print(run_all._all_done(todo, sys.argv[1:]));"
        "print([m for m in ('torch', 'transformers', 'pandas', 'sklearn') if m in sys.modules])"
    )

    def asked(*overrides: str) -> list[str]:
        command = [sys.executable, "-c", code, *overrides]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert asked() == [f"All {number + 1} stages are done already.", "the table", "", "[]"]
    assert asked("skip_if_done=false") == ["None", "[]"]
    assert asked("dry_run=true") == ["None", "[]"]
    assert asked("distill.lam=0") == ["None", "[]"]


def test_an_unusable_gpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from src.core.device import unusable_gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unusable_gpu(tmp_path / "nothing") is None
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    said = unusable_gpu(driver)
    assert said is not None and all(part in said for part in ("550.54.14", "CUDA 13.0", "580"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CPU build" in (unusable_gpu(driver) or "")


def test_nothing_heavy_before_a_run_begins(stage: Stage) -> None:
    """A finished stage, a typo and --help load neither torch nor matplotlib."""
    code = (
        "import sys\nfrom src.exp.cli import launch\n"
        "launch('student_baseline', ['student.widht=1'], '')\n"
        "import src.exp.identity, src.exp.settings, src.core.runs\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
