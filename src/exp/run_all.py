"""All stages in one process: teacher, its rivals, baseline, distillation from the teacher and from words alone,
comparison.

`python -m src.exp.run_all [overrides]`; finished stages are skipped, unless skip_if_done=false says otherwise.
Students have `seed`, or all seeds of `compare.seeds`; teachers have a seed of their own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

_OF_A_TEACHER = re.compile(r"[+~]{0,2}teacher([./@=]|$)")


class Job(NamedTuple):
    """One stage: its title, its name, its overrides, and whether it belongs to the words as rival, which a dataset
    without words in its titles does not have."""

    title: str
    stage: str
    arguments: list[str]
    rival: bool = False


def main() -> int:
    mine = sys.argv[1:]
    todo = jobs(mine)
    if (summary := _all_done(todo, mine)) is not None:
        sys.stdout.write(summary)
        return 0
    from src.exp.cli import launch

    words = True
    for number, (title, stage, arguments, rival) in enumerate(todo, 1):
        if rival and not words:
            continue
        sys.stderr.write(f"{number}/{len(todo)} {title}: ")  # the stage's first line goes on behind it
        # Hydra takes the last value of a key: the user's own skip_if_done wins.
        code = launch(stage, ["skip_if_done=true", *arguments], "bash cmd/run_all.sh")
        if code == 2 and rival:
            sys.stderr.write("run_all: goes on without this rival\n")
            words = False
        elif code:
            sys.stderr.write(f"run_all: {title} ended with exit status {code}\n")
            return code
    return 0


def jobs(mine: Sequence[str]) -> list[Job]:
    """What these overrides ask for, in order; what is wrong with them the first stage says."""
    mine, seeds = list(mine), _seeds(mine)
    without = [a for a in mine if not _OF_A_TEACHER.match(a)]
    words = ["teacher=tfidf", *without]
    each = [("", [])] if seeds is None else [(f", seed {s}", [f"seed={s}"]) for s in seeds]
    together = [] if seeds is None else [f"compare.seeds={list(seeds)}".replace(" ", "")]
    asked = [
        Job("teacher", "teacher", mine),
        Job("rival: words alone (tfidf)", "teacher", words, True),
        Job("control teacher (knn)", "teacher", ["teacher=knn", *without]),
        *(Job(f"student baseline{name}", "student_baseline", [*mine, *seed]) for name, seed in each),
        *(Job(f"distillation{name}", "distill", [*mine, *seed]) for name, seed in each),
        *(Job(f"distillation from words{name}", "distill", [*words, *seed], True) for name, seed in each),
        Job("comparison", "eval_all", [*mine, *together]),
    ]
    return [job for job in asked if not (job.rival and "teacher=tfidf" in mine)]


def _seeds(mine: Sequence[str]) -> tuple[int, ...] | None:
    """Several of the students; None: the one that the arguments say (or they are a sweep, or wrong)."""
    from src.core.errors import UserError
    from src.exp.settings import Settings

    try:
        return Settings.compose(mine).compare.seeds
    except UserError:
        return None


def _all_done(todo: Sequence[Job], mine: Sequence[str]) -> str | None:
    """The summary of an earlier comparison where every stage has a completed run: known without what trains."""
    from src.core.errors import UserError
    from src.core.runs import find_runs
    from src.exp.identity import identity_of
    from src.exp.overrides import compose_values
    from src.exp.settings import Settings

    try:
        root = Settings.compose(["skip_if_done=true", *mine]).root
        if root.dry_run or not root.skip_if_done:
            return None
        done = find_runs(state="completed")
        for _, stage, arguments, _ in todo:
            settings = Settings.compose(arguments)
            fingerprint, _ = identity_of(stage, settings, compose_values(arguments))
            runs = [run for run in done if (run.stage, run.fingerprint) == (stage, fingerprint)]
            if not runs:
                return None
    except UserError:
        return None
    summary = runs[0].folder / "metrics" / "summary.md"
    return f"All {len(todo)} stages are done already.\n{summary.read_text()}" if summary.is_file() else None


if __name__ == "__main__":
    if not __package__:
        sys.stderr.write(
            "error: found a file, expected a module: python -m src.exp.run_all, in the repository\n"
        )
        sys.exit(2)
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    sys.exit(main())
