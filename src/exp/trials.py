"""The trials of a sweep, best validation first: `python -m src.exp.trials STAGE [override ...]`

Reads the completed runs of STAGE (student_baseline or distill) whose command line had all the overrides given, and
shows what else each had. Only validation is read: a test figure has no place in a choice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import yaml

from src.core.artifacts import read_object
from src.core.paths import result_root

_SHARED = ("skip_if_done=", "dry_run=")  # say nothing about what a run computes


def find_trials(stage: str, wanted: list[str], metric: str) -> pd.DataFrame:
    """One line per trial, best first: its further overrides, seeds, mean validation metric and seconds.

    Runs that differ in `seed` alone are one trial.
    """
    lines = []
    for status in sorted(result_root().glob("*/status.json")):
        fields = read_object(status)
        if (fields["state"], fields["stage"]) != ("completed", stage):
            continue
        overrides = yaml.safe_load((status.parent / ".hydra" / "overrides.yaml").read_text())
        if not set(wanted) <= set(overrides) or any(o.startswith("distill.control=") for o in overrides):
            continue  # another sweep, or a study's control, which is nobody's candidate
        rest = [o for o in overrides if o not in wanted and not o.startswith((*_SHARED, "seed="))]
        metrics = read_object(status.parent / "metrics" / "metrics.json")
        times = read_object(status.parent / "metrics" / "time.json")
        seconds = max(v for k, v in times.items() if k.endswith("_time"))
        lines.append((" ".join(sorted(rest)) or "(as shipped)", fields["fingerprint"], metrics, seconds))
    table = pd.DataFrame(
        [(name, fp, m["seed"], m["valid"][metric], seconds) for name, fp, m, seconds in lines],
        columns=["overrides", "fingerprint", "seed", metric, "seconds"],
    ).drop_duplicates("fingerprint")
    grouped = table.groupby("overrides").agg({"seed": "count", metric: "mean", "seconds": "mean"})
    return grouped.rename(columns={"seed": "seeds"}).sort_values(metric, ascending=False).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("student_baseline", "distill"))
    parser.add_argument("overrides", nargs="*", help="overrides that a run must have had")
    parser.add_argument("--metric", default="NDCG@10", help="validation metric")
    arguments = parser.parse_args()
    table = find_trials(arguments.stage, arguments.overrides, arguments.metric)
    if table.empty:
        sys.exit(
            f"error: found no completed run of {arguments.stage} with {arguments.overrides} below "
            f"{Path(result_root())}, expected at least one: run the sweep first"
        )
    from src.exp.report import markdown

    sys.stdout.write(f"{len(table)} trials of {arguments.stage}, validation {arguments.metric}\n\n")
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    main()
