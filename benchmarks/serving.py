"""Serving: CPU time of one user's top 10, users per second in batches, and what an approximate index misses.

    python -m benchmarks.serving [--items 17408 1000000] [--threads 1] [--rounds 9]

A random SASRec of width 64 over item vectors around 1,000 centres (an index finds no lists among wholly random ones).
`scores, sort` scores the catalogue and takes `torch.topk`; the searches are those of `search=` (item_search.py).
CPU time of the process; with one thread it is what a quiet machine's clock would show.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from benchmarks.measuring import group, in_turns, peak_gib, ratio, table
from src.core.config import build_or_raise
from src.student.architectures import Student
from src.student.config import StudentConfig
from src.student.models import build_student
from src.student.serving import SEARCHES, StudentRecommender

HISTORY, USERS, K = 10, 256, 10


def clustered_student(n_items: int, centres: int = 1000) -> Student:
    """A SASRec whose item vectors lie around centres."""
    torch.manual_seed(0)
    config = build_or_raise(StudentConfig, group("student", "sasrec", "student.width=64"), "student")
    student = build_student(config, n_items, HISTORY).eval()
    with torch.no_grad():
        vectors = student.items.weight[1:]
        vectors.add_(torch.randn(centres, 64)[torch.randint(centres, (n_items,))] / 8)
    return student


def measure(n_items: int, rounds: int) -> tuple[list[list[str]], dict[str, float]]:
    """Rows of the table, and the figures that benchmarks.all records."""
    student, names = clustered_student(n_items), [str(i) for i in range(1, n_items + 1)]
    histories = torch.randint(1, n_items + 1, (USERS, HISTORY)).tolist()
    built, recommenders = {"scores, sort": 0.0}, {}
    for search in SEARCHES:
        started = time.process_time()
        recommenders[search] = StudentRecommender(student, names, names, search)
        built[search] = time.process_time() - started
    number = iter(range(10**9))

    def user() -> list[int]:
        return histories[next(number) % USERS]

    @torch.inference_mode()
    def before() -> None:
        student(torch.tensor([user()]))[0].topk(K)

    one = {"scores, sort": before}
    one |= {name: lambda r=r: r.recommend(user(), K) for name, r in recommenders.items()}
    times = in_turns(one, rounds)
    together = in_turns({n: lambda r=r: r.recommend_many(histories, K) for n, r in recommenders.items()}, 3)
    lists = {n: r.recommend_many(histories, K) for n, r in recommenders.items()}
    exact = [{r.raw_id for r in row} for row in lists["float32"]]
    rows = []
    for name, seconds in times.items():
        recall = rate = "-"
        if name in lists:
            found = sum(len(a & {r.raw_id for r in b}) for a, b in zip(exact, lists[name], strict=True))
            recall = f"{found / (USERS * K):.4f}"
            rate = f"{USERS / statistics.median(together[name]):,.0f}"
        milliseconds = f"{1e3 * statistics.median(seconds):.2f}"
        rows.append([f"{n_items:,}", name, milliseconds, rate, recall, f"{built[name]:.1f}"])
    return rows, {
        "int8_over_sort": ratio(times, "scores, sort", "int8"),
        "ann_over_sort": ratio(times, "scores, sort", "ann"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[17_408, 1_000_000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for n_items in options.items for row in measure(n_items, options.rounds)[0]]
    head = ["items", "search", "ms a user", f"users/s ({USERS} at once)", f"recall@{K}", "s to build"]
    sys.stdout.write(table(head, rows) + f"\npeak memory {peak_gib():.1f} GiB\n")


if __name__ == "__main__":
    main()
