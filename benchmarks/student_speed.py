"""Speed of the students: training steps and full-ranking evaluation, on the CPU.

    python -m benchmarks.student_speed [--threads 2] [--steps 100] [--students sasrec sasrec_dllm2rec ...]

Training: samples/s of whole steps (batch, negatives, forward, backward, optimizer), batch 256, history
10, width 64, over made interactions. Evaluation: samples x catalogue, both history conventions.
Serving: median latency of one user's top 10. Peak memory is the process's own, read after each part.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measuring import group, in_turns, made_data, peak_gib, ratio
from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.seed import seed_everything
from src.core.selection import Selection
from src.student.checkpoint import save_student
from src.student.config import StudentConfig
from src.student.datamodule import Samples
from src.student.evaluator import rank_samples
from src.student.models import build_student
from src.student.objective import BaselineObjective
from src.student.serving import load_student
from src.student.trainer_baseline import make_optimizer

HISTORY, BATCH, WIDTH = 10, 256, 64
CPU = torch.device("cpu")


def student_config(name: str, *overrides: str) -> StudentConfig:
    settings = [f"student.{o}" for o in (f"width={WIDTH}", f"batch_size={BATCH}", *overrides)]
    return build_or_raise(StudentConfig, group("student", name, *settings), "student")


def training(config: StudentConfig, data: InteractionData) -> Iterator[None]:
    """Training steps, one per item of the iterator, epoch after epoch."""
    seed_everything(0)
    objective = BaselineObjective(build_student(config, data.n_items, HISTORY), config, data, seed=0).train()
    samples = Samples(data, Selection(data.splits["train"]), CPU)
    optimizer = make_optimizer(objective, config)
    for epoch in itertools.count():
        objective.start_epoch(epoch, samples)
        for batch in samples.shuffled(BATCH, seed=0, epoch=epoch):
            loss, _ = objective(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
            yield


def training_speed(config: StudentConfig, data: InteractionData, steps: int) -> float:
    """Samples per second over `steps` steps, after ten steps that warm up."""
    work = training(config, data)
    for _ in range(10):
        next(work)
    started = time.perf_counter()
    for _ in range(steps):
        next(work)
    return steps * BATCH / (time.perf_counter() - started)


def over_products(n_items: int, rounds: int) -> dict[str, float]:
    """CPU time of SASRec's training step and of its evaluation, over that of the products with the item table that
    they cannot do without: [B, D] x [D, N] forward and two of its size backward; the forward one alone."""
    config, data = student_config("sasrec", "loss=ce", "device=cpu"), made_data(n_items, 20 * BATCH)
    work, student = training(config, data), build_student(config, n_items, HISTORY).eval()
    hidden, vectors, scores = (
        torch.randn(BATCH, WIDTH),
        torch.randn(n_items, WIDTH),
        torch.randn(BATCH, n_items),
    )
    rows = data.splits["train"][:BATCH]

    def products() -> None:
        hidden @ vectors.T
        scores @ vectors
        scores.T @ hidden

    variants: dict[str, Callable[[], object]] = {
        "step": lambda: next(work),
        "products": products,
        "evaluation": lambda: rank_samples(student, data, rows, BATCH, CPU),
        "scores": lambda: hidden @ vectors.T,
    }
    times = in_turns(variants, rounds)
    return {"step": ratio(times, "step", "products"), "evaluation": ratio(times, "evaluation", "scores")}


def evaluation_seconds(config: StudentConfig, data: InteractionData, batch_size: int) -> float:
    seed_everything(0)
    student = build_student(config, data.n_items, HISTORY)
    started = time.perf_counter()
    rank_samples(student, data, data.splits["train"], batch_size, CPU)
    return time.perf_counter() - started


def serving_latency(config: StudentConfig, data: InteractionData, calls: int) -> float:
    """Median seconds of one `recommend`, from a saved and loaded student."""
    with tempfile.TemporaryDirectory() as folder:
        save_student(Path(folder) / "s", build_student(config, data.n_items, HISTORY), config, data, {})
        recommender = load_student(Path(folder) / "s")
    history = [str(i) for i in range(1, HISTORY + 1)]
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        recommender.recommend(history, k=10)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--students", nargs="+", default=["sasrec", "sasrec_dllm2rec", "gru4rec", "caser"])
    parser.add_argument("--items", nargs="+", type=int, default=[1682, 17408])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    say(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, {args.threads} threads, torch {torch.__version__}"
    )
    say("| student | loss | items | training samples/s |\n|---|---|---|---|")
    for n_items in args.items:
        data = made_data(n_items, (args.steps + 10) * BATCH)
        for name in args.students:
            for loss in ("ce", "bce", "dros"):
                repeats = name == "sasrec" and loss != "bce"  # bce cannot teach them
                config = student_config(name, f"loss={loss}", f"learn_repeats={str(repeats).lower()}")
                say(f"| {name} | {loss} | {n_items} | {training_speed(config, data, args.steps):,.0f} |")
    data = made_data(17408, 14980)
    for name in args.students:
        seconds = evaluation_seconds(student_config(name), data, batch_size=512)
        latency = serving_latency(student_config(name), data, calls=50)
        say(
            f"{name}: evaluation 14,980 x 17,408 in {seconds:.2f} s; one user's top 10 in {latency * 1e3:.2f} ms"
        )
    say(f"peak memory {peak_gib():.2f} GiB")


if __name__ == "__main__":
    main()
