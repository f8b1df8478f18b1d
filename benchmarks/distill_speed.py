"""Training speed and peak memory of DLLM2Rec's official objective: this project against the official operations.

    python -m benchmarks.distill_speed                     # both catalogues, four objectives, in turn
    python -m benchmarks.distill_speed --items 1682 --cases all_three --rounds 5

The work is that of the official profile (SASRec of the official code, batch 256, history 10, width 64, teacher
vectors of width 4096, K = 10, Adam) on generated histories and rankings. Each measurement is a process of its
own, so that its peak memory is its own; ours and the naive form take turns. `naive` is written here with the
operations that the official code uses: a dense multinomial for one negative, a gather per row for the newest
position, K float64 passes over the catalogue for the DRO terms, a full argsort, and a [B, 10, 4096] tensor of
teacher vectors projected in every step. On a machine that does other work too the ratio of CPU times is the one
to look at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import answer, group, in_own_process, made_data, made_rows, peak_gib, table
from src.core.config import build_or_raise
from src.core.memory import keep_freed_memory
from src.core.selection import Selection
from src.distill.config import DistillConfig
from src.distill.data_bridge import ranking_signals
from src.distill.objective import DistillObjective
from src.student.config import StudentConfig
from src.student.datamodule import Samples
from src.student.losses import propensity
from src.student.models import build_student
from src.student.objective import BaselineObjective
from src.student.trainer_baseline import make_optimizer

BATCH, LENGTH, WIDTH, DIM, K = 256, 10, 64, 4096, 10
# case: (DROS, ranking + embedding)
CASES = {
    "bce": (False, False),
    "bce+dros": (True, False),
    "ranking+embedding": (False, True),
    "all_three": (True, True),
}


def made_vectors(n_items: int) -> Tensor:
    vectors = torch.randn(n_items + 1, DIM, generator=torch.Generator().manual_seed(2))
    vectors[0] = 0
    return vectors


def settings(dros: bool, kd: bool, changes: dict) -> tuple[StudentConfig, DistillConfig]:
    values = {
        "student": group("student", "sasrec_dllm2rec"),
        "distill": group("distill", "dllm2rec_official"),
    }
    values["student"] |= {"loss": "dros" if dros else "bce", "dros_alpha": 1.0, "device": "cpu"}
    values["distill"] |= {"alpha": 1.0 if dros and kd else 0.0}
    for key, value in changes.items():
        where, _, name = key.partition(".")
        values[where][name] = value
    return (
        build_or_raise(StudentConfig, values["student"], "student"),
        build_or_raise(DistillConfig, values["distill"], "distill"),
    )


def ours(case: str, n_items: int, steps: int, changes: dict) -> Iterator[None]:
    """The training steps of this project, one per item of the iterator, over and over."""
    keep_freed_memory()  # as the trainer does
    dros, kd = CASES[case]
    student_config, config = settings(dros, kd, changes)
    n = steps * BATCH
    data = made_data(n_items, n)
    torch.manual_seed(0)
    student = build_student(student_config, n_items, LENGTH)
    if kd:
        train = data.splits["train"]
        signals = ranking_signals(
            made_rows(train, n_items), train, "distance", config, 0, torch.device("cpu")
        )
        vectors = made_vectors(n_items)
        objective = DistillObjective(student, student_config, config, data, 0, signals, vectors)
        del vectors
    else:
        objective = BaselineObjective(student, student_config, data, 0)
    samples = Samples(data, Selection(data.splits["train"]), torch.device("cpu"))
    optimizer = make_optimizer(objective, student_config)
    compute = torch.compile(objective, dynamic=False) if student_config.compile else objective
    objective.train()
    for epoch in itertools.count():
        objective.start_epoch(epoch, samples)
        for batch in samples.shuffled(BATCH, 0, epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=student_config.precision == "bf16"):
                loss, _ = compute(batch)
            optimizer.zero_grad(set_to_none=True)
            (loss * batch.weight).mean().backward()
            optimizer.step()
            yield


class NaiveSASRec(nn.Module):
    """The official student with the official operations; ids are 0-based, padding is N."""

    def __init__(self, n_items: int, vectors: Tensor | None):
        super().__init__()
        self.items = nn.Embedding(n_items + 1, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.items.weight, 0, 0.01)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.ffn_in, self.ffn_out = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(WIDTH, n_items)
        self.vectors = vectors
        if vectors is not None:
            self.project = nn.Linear(DIM, WIDTH)

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        embedded = self.items(history)
        if self.vectors is not None:
            embedded = embedded + 0.2 * self.project(self.vectors[history])
        x = self.dropout(embedded + self.positions(torch.arange(LENGTH)))
        mask = history.ne(len(self.items.weight) - 1).float().unsqueeze(-1)
        x = x * mask
        h = self.norms[0](x)
        q, k, v = self.query(h), self.key(x), self.value(x)
        weights = q @ k.transpose(1, 2) / WIDTH**0.5
        weights = weights.masked_fill(mask.transpose(1, 2) == 0, -(2**32) + 1)
        weights = weights.masked_fill(torch.ones(LENGTH, LENGTH).tril() == 0, -(2**32) + 1)
        attended = self.dropout(weights.softmax(-1)) @ v + h
        g = self.norms[1](attended)
        f = self.ffn_out(F.relu(self.ffn_in(g.transpose(1, 2)))).transpose(1, 2)
        z = self.norms[3](self.norms[2](self.dropout(f) + g) * mask)
        newest = torch.stack([z[i, length[i] - 1, :] for i in range(len(z))])
        return self.output(newest)


def naive(case: str, n_items: int, steps: int, changes: dict) -> Iterator[None]:
    """Training steps with the official operations."""
    dros, kd = CASES[case]
    assert not changes
    n = steps * BATCH
    data = made_data(n_items, n)
    train = data.splits["train"]
    histories, targets = torch.from_numpy(data.histories(train)).long() - 1, data.targets(train)
    targets = torch.from_numpy(targets.astype(np.int64)) - 1
    rows = made_rows(train, n_items)
    rankings, distances = torch.from_numpy(rows.rankings).long() - 1, torch.from_numpy(rows.scores)
    ps = torch.from_numpy(propensity(data.train_counts()[1:]))  # float64, as in the official code
    torch.manual_seed(0)
    model = NaiveSASRec(n_items, made_vectors(n_items)[1:] if kd else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    position = torch.exp(-torch.arange(1, K + 1).float())
    position = position / position.sum()

    def dro(scores: Tensor, item: Tensor) -> Tensor:
        """[B, 1]; three passes over the catalogue in float64 for every call."""
        own = torch.gather(torch.mul(scores * scores, ps), 1, item)
        instead = torch.gather(torch.mul((scores - 1) * (scores - 1), ps), 1, item)
        total = torch.sum(torch.exp(torch.mul(scores * scores, ps)), 1, keepdim=True)
        return torch.log(total - torch.exp(own) + torch.exp(instead) + 1e-24)

    def step() -> None:
        batch = torch.randint(0, n, (BATCH,))
        history, target = histories[batch], targets[batch].unsqueeze(1)
        length = torch.full((BATCH,), LENGTH)
        allowed = torch.ones(BATCH, n_items + 1)
        allowed.scatter_(1, history, 0).scatter_(1, target, 0)
        drawn = torch.multinomial(allowed[:, :n_items], 1)
        scores = model(history, length)
        positive, negative = scores.gather(1, target), scores.gather(1, drawn)
        both = torch.cat([positive, negative])
        labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        loss = F.binary_cross_entropy_with_logits(both, labels)
        if dros:
            loss = loss + dro(scores, target).mean()
        if kd:
            candidates = rankings[batch]
            confidence = torch.exp(-distances[batch]) + 1e-8
            confidence = confidence / confidence.sum(1, keepdim=True)
            own = torch.argsort(scores.detach(), dim=1, descending=True)[:, :K]
            consistent = (candidates.unsqueeze(2) == own.unsqueeze(1)).any(2).float() + 1e-8
            weights = 0.3 * position + 0.5 * confidence + 0.1 * consistent
            weights = weights / weights.sum(1, keepdim=True)
            ranking = torch.zeros(())
            for k in range(K):
                item = candidates[:, k : k + 1]
                term = -torch.log(torch.sigmoid(scores.gather(1, item)))
                term = term - torch.log(torch.sigmoid(1 - negative))
                ranking = ranking + (weights[:, k : k + 1] * term).mean()
                if dros:
                    ranking = ranking + (weights[:, k : k + 1] * dro(scores, item).squeeze(1)).mean()
            loss = loss + 0.8 * ranking
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    while True:
        step()
        yield


def timed(what: str, case: str, n_items: int, steps: int, changes: dict) -> dict[str, float]:
    """Medians over four chunks of steps after a first one: samples/s, and CPU seconds of a step."""
    work = {"ours": ours, "naive": naive}[what](case, n_items, steps, changes)
    walls, cpus = [], []
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(work)
        walls.append(steps * BATCH / (time.perf_counter() - wall))
        cpus.append((time.process_time() - cpu) / steps)
    return {
        "samples_per_s": statistics.median(walls[1:]),
        "cpu_s": statistics.median(cpus[1:]),
        "peak_gib": peak_gib(),
    }


def measure(what: str, case: str, n_items: int, steps: int, changes: dict, threads: int) -> dict:
    """One measurement in a process of its own."""
    return in_own_process("benchmarks.distill_speed", what, case, n_items, steps, changes, threads)


def pair(case: str, n_items: int, changes: dict, threads: int, quick: bool = False) -> tuple[dict, dict]:
    """The naive form, then ours."""
    steps = (1, 5) if quick else (8 if n_items < 5000 else 2, 30)
    naive = measure("naive", case, n_items, steps[0], {}, threads)
    return naive, measure("ours", case, n_items, steps[1], changes, threads)


def one(argument: str) -> None:
    *work, threads = json.loads(argument)
    torch.set_num_threads(threads)
    answer(timed(*work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1682, 17408])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="settings of ours, e.g. student.compile=true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one)
        return
    changes = OmegaConf.to_container(OmegaConf.from_dotlist(arguments.set))
    changes = {f"{g}.{k}": v for g, values in changes.items() for k, v in values.items()}
    heads = [
        "items",
        "objective",
        "naive samples/s",
        "ours",
        "ratio",
        "ratio of CPU time",
        "peak GiB naive",
        "ours",
    ]
    rows = []
    for n_items, case in itertools.product(arguments.items, arguments.cases):
        pairs = [pair(case, n_items, changes, arguments.threads) for _ in range(arguments.rounds)]
        naive, own = zip(*pairs, strict=True)
        faster = statistics.median(b["samples_per_s"] / a["samples_per_s"] for a, b in pairs)
        cheaper = statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs)
        rates = [f"{middle(side, 'samples_per_s'):.0f}" for side in (naive, own)]
        peaks = [f"{middle(side, 'peak_gib'):.2f}" for side in (naive, own)]
        rows.append([n_items, case, *rates, f"{faster:.1f}x", f"{cheaper:.1f}x", *peaks])
        sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(table(heads, rows))


def middle(results: Sequence[dict], key: str) -> float:
    return statistics.median(r[key] for r in results)


if __name__ == "__main__":
    main()
