"""Training by sequences against training by samples: the same targets, students and losses.

    python -m benchmarks.sequence_speed [--histories 50 200] [--students sasrec gru4rec] [--losses ce gbce bce]

Data like ML-1M: 6,040 users with about 165 interactions (log-normal, at least 20), 3,706 items. Figures are targets per
second of CPU time on one thread (other load on the machine changes them little), whole steps with optimizer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product

import numpy as np
import torch

from benchmarks.measuring import group, in_turns
from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.seed import seed_everything
from src.core.selection import Selection
from src.student.config import StudentConfig
from src.student.datamodule import Samples, SequenceSamples
from src.student.models import build_student
from src.student.objective import BaselineObjective
from src.student.trainer_baseline import make_optimizer

CPU = torch.device("cpu")


def movielens_like(history: int, users: int = 6040, n_items: int = 3706) -> InteractionData:
    """Every interaction of a user but the first is a training sample."""
    rng = np.random.default_rng(0)
    counts = np.maximum(20, rng.lognormal(np.log(96), 1.0, users).astype(np.int64).clip(max=2300))
    offsets = np.concatenate([[0], counts.cumsum()])
    share = (np.arange(n_items) + 20.0) ** -0.9
    items = rng.choice(n_items, offsets[-1], p=share / share.sum()).astype(np.int32) + 1
    ids = np.setdiff1d(np.arange(offsets[-1]), offsets)
    names = [str(i) for i in range(n_items + 1)]
    splits = {"train": ids, "valid": ids[:1], "test": ids[:1]}
    times = np.zeros(len(items), np.int64)
    return InteractionData("made", "made", items, times, offsets, splits, names, names, history, {})


def stepper(config: StudentConfig, data: InteractionData, steps: int) -> tuple[Callable[[], None], int]:
    """A function that takes so many steps, and how many targets those have."""
    seed_everything(0)
    student = build_student(config, data.n_items, data.max_history)
    objective = BaselineObjective(student, config, data, seed=0).train()
    arranged = SequenceSamples if config.batching == "sequences" else Samples
    users = np.random.default_rng(0).permutation(len(data.offsets) - 1)[:1000]  # a part has the same lengths
    ids = data.splits["train"][np.isin(data.users_of(data.splits["train"]), users)]
    samples = arranged(data, Selection(ids), CPU)
    optimizer = make_optimizer(objective, config)
    objective.start_epoch(0, samples)
    batches = [b for b, _ in zip(samples.shuffled(config.batch_size, 0, 0), range(steps), strict=False)]

    def run() -> None:
        for batch in batches:
            width = (batch.inputs.shape[1],) if batch.places is not None else ()
            loss, _ = objective(samples.batch(batch.rows, *width))
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()

    return run, sum(map(len, batches))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--students", nargs="+", default=["sasrec", "gru4rec"])
    parser.add_argument("--losses", nargs="+", default=["ce", "gbce", "bce"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(
        "| L | student | loss | by samples, /s | by sequences, /s | ratio |\n|---|---|---|---|---|---|\n"
    )
    for length, student, loss in product(args.histories, args.students, args.losses):
        data, runs, targets = movielens_like(length), {}, {}
        for batching, size, steps in (("samples", 256, 2), ("sequences", 32, 3)):
            values = group("student", student, f"student.loss={loss}", f"student.batching={batching}")
            values |= {"batch_size": size, "learn_repeats": loss == "ce"}
            config = build_or_raise(StudentConfig, values, "student")
            runs[batching], targets[batching] = stepper(config, data, steps)
        seconds = in_turns(runs, args.rounds)
        speed = {name: targets[name] / float(np.median(seconds[name])) for name in runs}
        sys.stdout.write(
            f"| {length} | {student} | {loss} | {speed['samples']:,.0f} | {speed['sequences']:,.0f} | "
            f"{speed['sequences'] / speed['samples']:.1f}x |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
