"""From the command line of a table to its end: read, plan, run with one progress for all, link, summarise."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.core.artifacts import lock
from src.core.logging import get_logger
from src.core.paths import resolve, result_root
from src.core.run import point
from src.core.runs import RunRecord, find_runs
from src.exp.costs import Sizes, export_bytes, sizes_of, student_bytes
from src.exp.summary import summarise_table
from src.exp.table.engines import Outcome, engine_config, run_jobs
from src.exp.table.plan import Job, Plan, make_plan
from src.exp.table.reading import STAGES, Table, read_table

_OURS = ("engine=", "engine.", "vars.", "dry_run=")
log = get_logger(__name__)


def run_table(path: str, arguments: Sequence[str]) -> int:
    """Run what a table asks for and write its summary; returns the exit code.

    Raises:
        UserError: the table, the engine or an override is wrong; nothing has run.
    """
    common = [a for a in arguments if not a.startswith(_OURS)]
    table = read_table(resolve(path), common, [a for a in arguments if a.startswith("vars.")])
    config = engine_config([a for a in arguments if a.startswith("engine")])
    plan, records = make_plan(table.rows), find_runs(state="completed")
    for line in [*_describe(plan, table), *_costs(plan, records)]:
        log.info("plan: %s", line)
    if [a for a in arguments if a.startswith("dry_run=")][-1:] == ["dry_run=true"]:
        return 0
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    folder = result_root() / table.name
    with lock(folder, log.info):
        for mark in (folder / ".running").glob("*"):  # of a driver that was killed
            mark.unlink()
        progress = Progress(plan.jobs, folder, _seconds(records))
        try:
            for outcome in run_jobs(plan.jobs, config, folder):
                log.info(progress.add(outcome))
        except KeyboardInterrupt:
            log.error("interrupted: %s; the same command goes on", progress.line())
            return 130
        return _finish(table, progress)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _finish(table: Table, progress: Progress) -> int:
    """Links, summary, and the list of what failed."""
    plan = make_plan(table.rows)
    for row, targets in plan.targets.items():
        for name in set(targets) & plan.done.keys():
            point(progress.folder / row / plan.nodes[name].job.stage, plan.done[name])
    failed = [o for o in progress.ended.values() if o.state != "completed"]
    reasons = {row: f"{o.id} {o.state}: {o.reason}" for o in failed for row in progress.jobs[o.id].rows}
    summary = summarise_table(table, plan, reasons)
    sys.stdout.write(summary.read_text().partition("## Rows")[0])
    log.info("summary: %s", summary)
    for outcome in failed:
        job = progress.jobs[outcome.id]
        log.error("%s: %s of %s: %s", outcome.state, job.stage, ", ".join(job.rows), outcome.reason)
    log.info("%d of %d rows are complete", len(table.rows) - len(reasons), len(table.rows))
    return 1 if failed else 0


class Progress:
    """Counts of done, running, waiting and failed jobs, and the time left.

    Args:
        folder: of the table's results.
        expected: seconds of a job by stage; jobs of this table count from the first one on.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, expected: Mapping[str, float]):
        self.jobs, self.folder, self.expected = {job.id: job for job in jobs}, folder, dict(expected)
        self.ended: dict[str, Outcome] = {}
        self.started = time.monotonic()

    def add(self, outcome: Outcome) -> str:
        """Count a job that ended; returns the line about it."""
        self.ended[outcome.id] = outcome
        job = self.jobs[outcome.id]
        spent = [o.seconds for o in self.ended.values() if self.jobs[o.id].stage == job.stage and o.seconds]
        if spent:
            self.expected[job.stage] = sum(spent) / len(spent)
        done = outcome.state == "completed"
        told = f"completed in {outcome.seconds:.0f} s" if done else f"{outcome.state}: {outcome.reason}"
        return f"[{job.rows[0]} {job.stage}] {told} | {self.line()}"

    def line(self) -> str:
        """ "12 done, 2 running, 30 waiting, 1 failed, about 120 s left": at the rate so far, with so many at once."""
        count = Counter(o.state for o in self.ended.values())
        left = [job for job in self.jobs.values() if job.id not in self.ended]
        running = len([*(self.folder / ".running").glob("*")])
        failed = len(self.ended) - count["completed"]
        told = f"{count['completed']} done, {running} running, {len(left) - running} waiting, {failed} failed"
        if spent := sum(o.seconds for o in self.ended.values()):
            usual = sum(self.expected.values()) / len(self.expected)
            ahead = sum(self.expected.get(job.stage, usual) for job in left)
            told += f", about {(time.monotonic() - self.started) * ahead / spent:.0f} s left" if left else ""
        return told


def _describe(plan: Plan, table: Table) -> list[str]:
    """What there is and what would be run."""
    wanted = Counter(n.job.stage for n in plan.nodes.values())
    todo, done = Counter(j.stage for j in plan.jobs), Counter(plan.nodes[i].job.stage for i in plan.done)
    lines = [f"{table.name}: {len(table.rows)} rows, {len(plan.jobs)} jobs to run"]
    for stage, n in wanted.items():
        rest = n - todo[stage] - done[stage]
        within = f", {rest} within another job or not needed" if rest else ""
        lines.append(f"{stage}: {n}, {done[stage]} there already, {todo[stage]} jobs{within}")
    return [*lines, *plan.notes]


def _seconds(records: Sequence[RunRecord]) -> dict[str, float]:
    """Mean seconds of completed runs, by stage."""
    found: dict[str, list[float]] = {}
    for run in records:
        if run.seconds:
            found.setdefault(run.stage, []).append(run.seconds)
    return {stage: sum(v) / len(v) for stage, v in found.items()}


def _costs(plan: Plan, records: Sequence[RunRecord]) -> list[str]:
    """Hours by what earlier runs of the stages took, and on which device; bytes by the settings."""
    if not plan.jobs:
        return []
    seconds, need, sizes = _seconds(records), 0, dict[int, Sizes]()
    for job in plan.jobs:
        settings = plan.nodes[job.id].settings
        size = sizes.setdefault(id(settings.dataset), sizes.get(id(settings.dataset)) or sizes_of(settings))
        if job.stage == "teacher":
            need += export_bytes(settings, size)
        elif job.stage in ("student_baseline", "distill"):
            need += student_bytes(settings.student, size)
    devices = {str(r.usage.get("gpu", "CPU")) for r in records if r.stage in seconds}
    total = sum(seconds.get(job.stage, 0.0) for job in plan.jobs)
    hours = f"time: about {total / 3600:.2f} h one after the other, measured on {', '.join(sorted(devices))}"
    unknown = sorted({job.stage for job in plan.jobs if job.stage in STAGES} - seconds.keys())
    more = (
        f"not known of {', '.join(unknown)}: no run yet (dry_run=true of the stage estimates)"
        if unknown
        else ""
    )
    told = [hours if total else "", more]
    return ["; ".join(filter(None, told)), f"bytes: about {need / 2**30:.2f} GiB"]
