"""Every ratio that this project claims, measured in its quick form, beside the last recorded one.

    python -m benchmarks.all --quick [--only NAME ...]   # < 10 minutes; ends with 1 where one got worse by > 15 %
    python -m benchmarks.all --quick --record            # and appends to benchmarks/ratios.csv

Ratios of two things that ran in turns on the same machine, in CPU time of one thread wherever possible: they say the
same on a fast machine, a slow one and a crowded one. Absolute times are for the single scripts.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

from benchmarks.measuring import ROOT, table

CSV = ROOT / "benchmarks" / "ratios.csv"
HEAD = ("date", "machine", "commit", "ratio", "value")
WORSE = 0.15


def _distill(case: str, n_items: int) -> float:
    from benchmarks.distill_speed import pair

    naive, ours = pair(case, n_items, {}, 1, quick=True)
    return naive["cpu_s"] / ours["cpu_s"]


@cache
def _students() -> dict[str, float]:
    from benchmarks.student_speed import over_products

    return over_products(17_408, 5)


def _layer() -> float:
    from benchmarks.teacher_cost import layer

    return layer(512, 512, 8, 7)[0]


def _padding() -> float:
    from benchmarks.teacher_cost import padding

    return padding(64, 2, 1)


def _prefix() -> float:
    from benchmarks.teacher_export import prefix

    return prefix(64, 2, 3)


def _prepare() -> float:
    from benchmarks.prepare_scale import of_size

    return of_size(300_000)["over_reading"]


@cache
def _serving() -> dict[str, float]:
    from benchmarks.serving import measure

    return measure(200_000, 7)[1]


@cache
def _weights() -> dict[str, float]:
    from benchmarks.selection_cost import weight_ratios

    return weight_ratios(1682, 2, 3)


@dataclass(frozen=True)
class Ratio:
    """One figure: what it compares, how it is measured, and whether more is better."""

    what: str
    measure: Callable[[], float]
    more_is_better: bool = True

    def worse_by(self, now: float, before: float) -> float:
        """Share by which `now` is worse; negative where it is better."""
        return before / now - 1 if self.more_is_better else now / before - 1


RATIOS = {
    "distill_all_1682": Ratio("official distillation step over ours", lambda: _distill("all_three", 1682)),
    "distill_all_17408": Ratio("the same, 17,408 items", lambda: _distill("all_three", 17_408)),
    "distill_bce_1682": Ratio("official student step over ours", lambda: _distill("bce", 1682)),
    "student_step": Ratio("SASRec step over its products", lambda: _students()["step"], False),
    "evaluation": Ratio("full ranking over its product", lambda: _students()["evaluation"], False),
    "teacher_layer": Ratio("gated LoRA layer over plain LoRA", _layer, False),
    "teacher_padding": Ratio("tokens/s grouped by length over pad-to-512", _padding),
    "export_prefix": Ratio("one text per title over the shared prefix", _prefix),
    "prepare": Ratio("preparation over reading and sorting", _prepare, False),
    "serving_int8": Ratio("sorting all scores over int8 search", lambda: _serving()["int8_over_sort"]),
    "serving_ann": Ratio("sorting all scores over the index", lambda: _serving()["ann_over_sort"]),
    "reweight": Ratio("learned weights over a plain epoch", lambda: _weights()["learn_to_reweight"], False),
    "weight_net": Ratio("weight net over a plain epoch", lambda: _weights()["meta_weight_net"], False),
}


def recorded(file: Path) -> dict[str, dict[str, str]]:
    """The last row of each ratio."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as text:
        return {row["ratio"]: row for row in csv.DictReader(text)}


def machine() -> str:
    """The processor's name and the cores that this process may use."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def compared(name: str, now: float, before: dict[str, dict[str, str]]) -> tuple[list[str], bool]:
    """The row of the table, and whether the ratio got worse by more than 15 %."""
    ratio, last = RATIOS[name], before.get(name)
    if last is None:
        return [name, ratio.what, f"{now:.2f}", "-", "-", ""], False
    by = ratio.worse_by(now, float(last["value"]))
    mark = "SLOWER" if by > WORSE else ""
    source = f"{last['date']}, {last['machine']}, {last['commit']}"
    return [name, ratio.what, f"{now:.2f}", f"{float(last['value']):.2f}", source, mark], bool(mark)


def record(file: Path, found: dict[str, float]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([HEAD] if new else [])
        writer.writerows(
            (time.strftime("%Y-%m-%d"), machine(), commit or "unknown", name, f"{value:.3f}")
            for name, value in found.items()
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", required=True, help="the only form: small sizes")
    parser.add_argument("--only", nargs="+", choices=tuple(RATIOS), default=list(RATIOS), metavar="NAME")
    parser.add_argument(
        "--record", action="store_true", help="append what was found to benchmarks/ratios.csv"
    )
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    started, before, found = time.perf_counter(), recorded(CSV), {}
    rows, slower = [], False
    for name in options.only:
        found[name] = RATIOS[name].measure()
        row, worse = compared(name, found[name], before)
        rows.append(row)
        slower |= worse
        sys.stderr.write(f"{name}: {found[name]:.2f}\n")
    sys.stdout.write(table(["ratio", "what", "now", "last", "recorded", ""], rows))
    used = sum(getrusage(who).ru_utime + getrusage(who).ru_stime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    sys.stdout.write(f"\n{machine()}, {time.perf_counter() - started:.0f} s, {used:.0f} s of CPU time\n")
    if options.record:
        record(CSV, found)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
