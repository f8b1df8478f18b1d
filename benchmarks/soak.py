"""Soak: the demo pipeline again and again with changing seeds and kills; what may not grow is measured.

    python -m benchmarks.soak --rounds 10 --root /tmp/soak

Each round runs the four stages with a seed of its own, every stage killed once (SIGKILL) after a random line of
its log, then completed. Between rounds the finished artifacts are removed as a user would (`data/teacher_outputs`,
`data/models`, `result/*`; the prepared dataset stays): what is left then must stay flat. While a stage runs,
its open files and resident memory are sampled. Writes one JSON line per round, and exits with 1 where something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("run_teacher", "run_student_baseline", "run_distill", "run_eval_all")
TINY = (
    *("dataset.demo.users=60", "dataset.demo.items=40", "dataset.demo.groups=4"),
    *(
        "dataset.demo.interactions_per_user=8",
        "student.max_epochs=3",
        "eval.ks=[1,10,20]",
        "compare.draws=200",
    ),
    *("teacher.train.epochs=1", "teacher.train.samples=64", "teacher.train.eval_samples=32"),
    *("teacher.encoder.max_epochs=2", "teacher.llm.tiny.layers=1", "teacher.llm.tiny.hidden_size=32"),
    *("teacher.llm.tiny.heads=2", "teacher.llm.tiny.vocab_size=300", "teacher.llm.tiny.words.epochs=1"),
    *("teacher.export.top_k=30", "teacher.export.shard_size=40"),
)


class Watch(threading.Thread):
    """Samples a process's open files and resident memory until it ends."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.files, self.rss = psutil.Process(pid), 0, 0

    def run(self) -> None:
        while True:
            try:
                self.files = max(self.files, self.process.num_fds())
                self.rss = max(self.rss, self.process.memory_info().rss)
            except psutil.Error:
                return
            time.sleep(0.1)


def stage(root: Path, name: str, seed: int, kill_after: int | None) -> tuple[int, int, Watch]:
    """Run a stage; returns its exit code, its log lines, and what was seen of it."""
    env = {**os.environ, "ANYO_DATA_ROOT": str(root / "data"), "ANYO_RESULT_ROOT": str(root / "result")}
    command = [sys.executable, "-m", f"src.exp.{name}", *TINY, f"seed={seed}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    watch = Watch(process.pid)
    watch.start()
    assert process.stderr is not None
    lines, last = 0, ""
    for lines, last in enumerate(process.stderr, start=1):  # noqa: B007 (told below)
        if lines == kill_after:
            process.send_signal(signal.SIGKILL)
    code = process.wait(timeout=600)
    watch.join()
    process.stderr.close()
    if kill_after is None and code != 0:
        raise SystemExit(f"{name} with seed {seed} ended with {code}: {last.strip()}")
    return code, lines, watch


def size(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files below a folder."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return len(files), sum(p.stat().st_size for p in files)


def remove_artifacts(root: Path) -> None:
    for folder in (root / "data" / "teacher_outputs", root / "data" / "models", root / "result"):
        shutil.rmtree(folder, ignore_errors=True)


def soak_round(root: Path, seed: int, rng: random.Random, lengths: dict[str, int]) -> dict[str, float]:
    """One round; what it measured. `lengths`: the most log lines seen of each stage, to draw the kill from."""
    started, kills, files, rss = time.monotonic(), 0, 0, 0
    for name in STAGES:
        code, _, seen = stage(root, name, seed, kill_after=rng.randint(1, lengths.get(name, 2)))
        kills += code == -signal.SIGKILL
        _, lines, whole = stage(root, name, seed, kill_after=None)
        lengths[name] = max(lengths.get(name, 1), lines - 1)
        files, rss = max(files, seen.files, whole.files), max(rss, seen.rss, whole.rss)
    full = size(root)
    remove_artifacts(root)
    left = [p for p in root.rglob("*") if ".tmp" in p.name or p.name.endswith(".partial")]
    rest = size(root)
    return {
        "seed": seed,
        "kills": kills,
        "open_files": files,
        "rss_mib": round(rss / 2**20, 1),
        "files_before": full[0],
        "mib_before": round(full[1] / 2**20, 3),
        "files_after": rest[0],
        "mib_after": round(rest[1] / 2**20, 3),
        "temporary": len(left),
        "own_files": psutil.Process().num_fds(),
        "seconds": round(time.monotonic() - started, 1),
    }


def grown(rounds: list[dict[str, float]]) -> list[str]:
    """What the last round has more of than the first. Empty lock files, one per fingerprint, are expected."""
    first, last = rounds[0], rounds[-1]
    out = [f"{last['temporary']:.0f} temporary files"] if last["temporary"] else []
    for key, factor, more in (("open_files", 1.0, 3), ("rss_mib", 1.1, 20), ("mib_after", 1.0, 0.01)):
        if last[key] > first[key] * factor + more:
            out.append(f"{key} grew from {first[key]} to {last[key]}")
    if last["mib_before"] > first["mib_before"] * 1.1 + 0.5:
        out.append(f"one round's artifacts grew from {first['mib_before']} to {last['mib_before']} MiB")
    if last["own_files"] > first["own_files"]:
        out.append("open files of this script")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--root", type=Path, required=True, help="an empty folder for data and results")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    rng, rounds, lengths = random.Random(0), [], {}
    for number in range(options.rounds):
        rounds.append(soak_round(options.root, 100 + number, rng, lengths))
        sys.stdout.write(json.dumps(rounds[-1]) + "\n")
        sys.stdout.flush()
    problems = grown(rounds)
    sys.stdout.write("; ".join(problems) + "\n" if problems else "flat\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
