"""What choosing samples costs: learned weights against a plain epoch, and memory at ten million samples.

    python -m benchmarks.selection_cost                          # both parts
    python -m benchmarks.selection_cost --part weights [--items 1682 17408] [--steps 20] [--rounds 7]
    python -m benchmarks.selection_cost --part memory [--samples 10000000] [--policies loss coverage ...]

weights: CPU time of a chunk of distillation steps (SASRec, loss ce, rankings and fused vectors, batch 256) with
    `active=learn_to_reweight` and `active=meta_weight_net`, against the same steps with `active=all`; required <= 3x.
memory: peak RSS of one process for each strategy that selects half of the samples before training, over made
    histories with a small untrained student (what it takes is that of one batch, whatever the number of samples);
    required < 4 GiB. Strategies that choose one by one (O(pool x count)) are asked for 2,000.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measuring import (
    answer,
    group,
    in_own_process,
    in_turns,
    made_data,
    made_rows,
    peak_gib,
    ratio,
    table,
)
from src.core.config import build_or_raise
from src.core.memory import keep_freed_memory
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows
from src.distill.config import ActiveConfig, DistillConfig
from src.distill.data_bridge import ranking_signals
from src.distill.meta_weights import LearnedWeights
from src.distill.objective import DistillObjective
from src.distill.scoring import StudentScorer
from src.distill.selection_policy import POLICIES, SelectionContext
from src.distill.strategies import make_policy
from src.student.config import StudentConfig
from src.student.datamodule import Samples
from src.student.models import build_student
from src.student.trainer_baseline import make_optimizer

BATCH, CPU = 256, torch.device("cpu")
METHODS = ("all", "learn_to_reweight", "meta_weight_net")


def steps_of(method: str, n_items: int, steps: int) -> Callable[[], None]:
    """Training steps of the shipped distillation, `steps` at each call."""
    student_config = build_or_raise(
        StudentConfig, group("student", "sasrec", "student.device=cpu"), "student"
    )
    config = build_or_raise(DistillConfig, group("distill", "dllm2rec"), "distill")
    active = build_or_raise(ActiveConfig, group("active", method), "active")
    data = made_data(n_items, steps * BATCH)
    train = data.splits["train"]
    torch.manual_seed(0)
    student = build_student(student_config, n_items, data.max_history)
    signals = ranking_signals(made_rows(train, n_items), train, "distance", config, 0, CPU)
    vectors = torch.randn(n_items + 1, 256)
    objective = DistillObjective(student, student_config, config, data, 0, signals, vectors)
    if method != "all":
        objective.learn_weights(LearnedWeights(active, data, made_held_out(data.splits["train"]), 0, CPU))
    samples, optimizer = Samples(data, Selection(train), CPU), make_optimizer(objective, student_config)
    objective.train()
    epochs = itertools.count()

    def run() -> None:
        epoch = next(epochs)
        objective.start_epoch(epoch, samples)
        for batch in samples.shuffled(BATCH, 0, epoch):
            loss, _ = objective(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()

    return run


def made_held_out(train: np.ndarray) -> np.ndarray:
    """As many rows as a validation split would hold; which ones does not change the time."""
    return train[:: max(1, len(train) // 1024)]


def weight_ratios(n_items: int, steps: int, rounds: int) -> dict[str, float]:
    """Median CPU time of each method's steps over the plain ones."""
    keep_freed_memory()  # as the trainer does
    times = in_turns({m: steps_of(m, n_items, steps) for m in METHODS}, rounds)
    return {method: ratio(times, method, "all") for method in METHODS[1:]}


def offline() -> list[str]:
    """Strategies that select before training."""
    return sorted(name for name, policy in POLICIES.items() if policy.subset and not policy.online)


def memory(policy: str, samples: int, n_items: int) -> dict[str, float]:
    """Peak GiB of the process before and with one selection, and its CPU seconds."""
    data = made_data(n_items, samples, history=4)
    train = data.splits["train"]
    settings = ("student.width=16", "student.device=cpu")
    config = build_or_raise(StudentConfig, group("student", "sasrec_dllm2rec", *settings), "student")
    student = build_student(config, n_items, data.max_history)

    def teacher(ids: np.ndarray) -> TeacherRows:
        return made_rows(ids, n_items)

    context = SelectionContext(
        sample_ids=train,
        targets=data.targets(train),
        item_counts=data.train_counts(),
        seed=0,
        users=data.users_of(train),
        histories=data.histories,
        title_vectors=lambda: np.random.default_rng(0).random((n_items + 1, 64), np.float32),
        teacher=teacher,
        score_kind="distance",
        scorer=StudentScorer(student, data, CPU, 4096),
    )
    one_by_one = ("active.share=null", "active.count=2000") if policy in ("badge", "coreset") else ()
    active = build_or_raise(ActiveConfig, group("active", policy, *one_by_one), "active")
    before, started = peak_gib(), time.process_time()
    chosen = make_policy(active, context).select(0)
    seconds = time.process_time() - started
    assert len(chosen.sample_ids) == (active.count or int(active.share * len(train) + 0.5))
    return {"before_gib": before, "gib": peak_gib(), "cpu_s": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("weights", "memory"))
    parser.add_argument("--items", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--policies", nargs="+", default=offline(), choices=offline())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        answer(memory(*json.loads(options.one)))
        return 0
    torch.set_num_threads(1)
    failed = False
    if options.part in (None, "weights"):
        rows = [(n, weight_ratios(n, options.steps, options.rounds)) for n in options.items or (1682, 17_408)]
        failed |= any(r > 3 for _, found in rows for r in found.values())
        head = ["items", *METHODS[1:]]
        sys.stdout.write(table(head, [[n, *(f"{r:.2f}x" for r in found.values())] for n, found in rows]))
    if options.part in (None, "memory"):
        sys.stdout.write(
            table(["strategy", "peak GiB with the dataset alone", "with the selection", "CPU s"], [])
        )
        for policy in options.policies:
            found = in_own_process(
                "benchmarks.selection_cost", policy, options.samples, (options.items or [100])[0]
            )
            failed |= found["gib"] >= 4
            row = f"| {policy} | {found['before_gib']:.2f} | {found['gib']:.2f} | {found['cpu_s']:.0f} |\n"
            sys.stdout.write(row)
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
