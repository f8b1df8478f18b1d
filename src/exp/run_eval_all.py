"""Stage 4: the comparison of baseline, teacher and distilled. `python -m src.exp.run_eval_all [overrides]`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> None:
    from src.core.artifacts import fingerprint
    from src.core.candidates import load_candidates
    from src.core.data_utils import load_dataset
    from src.exp import candidate_table, compare, report
    from src.exp.verdict import verdicts

    compare.check_variants(settings)
    data = load_dataset(settings.dataset)
    rows = compare.find_rows(settings, data)
    run.fingerprint = fingerprint([row.name for row in rows] + [str(r) for row in rows for r in row.runs])
    tables = {c: compare.metric_table(rows, c) for c in compare.CONVENTIONS}
    pairs = compare.differences(rows, data, settings)
    metrics = settings.compare.metrics
    sliced = {m: compare.slice_table(rows, data, m, "history_ranked") for m in metrics}
    candidates = load_candidates(settings.eval.candidates, data)
    among = None
    if candidates is not None and (lines := candidate_table.find_lines(rows, candidates)):
        found = candidate_table.candidate_differences(
            lines, data, candidates, settings.seed, settings.compare.draws
        )
        among = report.Among(candidates.items.shape, candidate_table.candidate_table(lines), found)
    shown = "history_excluded" if settings.eval.exclude_history else "history_ranked"
    said = verdicts(rows, pairs, metrics, shown)
    report.write_report(run.dir, rows, data, tables, pairs, sliced, among, said)
    run.write_metrics(
        {
            "dataset": data.name,
            "dataset_fingerprint": data.fingerprint,
            "n_test": len(data.splits["test"]),
            "models": {row.name: [str(r) for r in row.runs] for row in rows},
            "test": {row.name: [m["test"] for m in row.metrics] for row in rows},
        }
    )
    first = {}  # the configuration's own rows come first
    for row in rows:
        first = {**row.times(), **first}
    run.write_times(**first)
    sys.stdout.write(f"\n{report.headline(tables[shown], metrics)}\n{report.notes(rows)}")
    if among is not None:
        sys.stdout.write(f"{among.title}:\n\n{report.markdown(among.table)}\n")
    if said:
        sys.stdout.write("Does distillation help?\n" + "".join(f"- {line}\n" for line in said) + "\n")
    sys.stdout.write(f"Everything: {run.dir}/metrics/comparison.md and {run.dir}/plots/\n")


def main() -> None:
    run_stage("eval_all", work)


if __name__ == "__main__":
    main()
