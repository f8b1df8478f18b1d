"""The trials of a sweep, best validation first: `python -m src.exp.trials STAGE [override ...]`

Reads the completed runs of STAGE (student_baseline or distill) whose command line had all the overrides given, and
shows what else each had. Only validation is read: a test figure has no place in a choice.
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

from src.core.errors import UserError
from src.core.paths import result_root
from src.core.runs import RunRecord, find_runs

_NO_RESULT = ("seed", "skip_if_done", "dry_run", "plan", "compare")  # parts of a configuration


def find_trials(stage: str, wanted: list[str], metric: str) -> pd.DataFrame:
    """One line per trial, best first: its further overrides, seeds, mean validation metric and seconds.

    Runs whose saved configurations differ in `seed` alone are one trial; damaged or foreign folders are none.

    Raises:
        UserError: a run's validation has no such metric.
    """
    lines = []
    for run in find_runs(stage=stage, state="completed"):
        if not set(wanted) <= set(run.overrides) or run.setting("distill.control", "none") != "none":
            continue  # another sweep, or a study's control, which is nobody's candidate
        if metric not in run.metrics["valid"]:
            raise UserError(f"--metric={metric}", f"one of {', '.join(run.metrics['valid'])}", "--metric")
        settings = json.dumps({k: v for k, v in run.config.items() if k not in _NO_RESULT}, sort_keys=True)
        value, seconds = run.metrics["valid"][metric], max(run.times.values(), default=0.0)
        lines.append((settings, _label(run, wanted), run.fingerprint, value, seconds))
    table = pd.DataFrame(lines, columns=["settings", "overrides", "seeds", metric, "seconds"])
    grouped = table.drop_duplicates("seeds").groupby("settings")
    trials = grouped.agg({"overrides": "first", "seeds": "count", metric: "mean", "seconds": "mean"})
    return trials.sort_values(metric, ascending=False).reset_index(drop=True)


def _label(run: RunRecord, wanted: list[str]) -> str:
    """The overrides that a trial had beyond `wanted`."""
    shared = (*(f"{key}=" for key in _NO_RESULT), "plan.", "compare.")
    rest = [o for o in run.overrides if o not in wanted and not o.startswith(shared)]
    return " ".join(sorted(rest)) or "(as shipped)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("student_baseline", "distill"))
    parser.add_argument("overrides", nargs="*", help="overrides that a run must have had")
    parser.add_argument("--metric", default="NDCG@10", help="validation metric")
    arguments = parser.parse_args()
    try:
        table = find_trials(arguments.stage, arguments.overrides, arguments.metric)
    except UserError as e:
        sys.stderr.write(f"error: {e}\n")
        sys.exit(2)
    if table.empty:
        sys.exit(
            f"error: found no completed run of {arguments.stage} with {arguments.overrides} below "
            f"{result_root()}, expected at least one: run the sweep first"
        )
    from src.exp.report import markdown

    sys.stdout.write(f"{len(table)} trials of {arguments.stage}, validation {arguments.metric}\n\n")
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    main()
