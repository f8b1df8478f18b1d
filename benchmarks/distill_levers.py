"""What each lever of the distillation step brings: the official operation against ours, forward and backward.

    python -m benchmarks.distill_levers [--items 1682 17408] [--rounds 7]

CPU milliseconds of one thread (so that other work on the machine does not count), batch 256, history 10, width
64, teacher width 4096, K = 10; the two forms take turns and the smallest of the rounds is shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.distill_speed import BATCH, DIM, LENGTH, WIDTH, K
from src.distill.kd_losses import top_k_threshold
from src.student.fused_losses import catalogue_terms
from src.student.losses import sample_negatives


def levers(n_items: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """name -> (official form, our form)."""
    torch.manual_seed(0)
    popularity = (torch.arange(n_items) + 20.0) ** -0.9
    history = torch.multinomial(popularity, BATCH * LENGTH, replacement=True).view(BATCH, LENGTH) + 1
    target = torch.randint(1, n_items + 1, (BATCH,))
    scores = torch.randn(BATCH, n_items)
    columns = torch.randint(0, n_items, (BATCH, K + 1))
    ps = torch.rand(n_items) * 0.2 + 0.6
    states = torch.randn(BATCH, LENGTH, WIDTH)
    vectors, layer = torch.randn(n_items + 1, DIM), torch.nn.Linear(DIM, WIDTH)
    generator = torch.Generator().manual_seed(0)

    def leaf(x: Tensor) -> Tensor:
        return x.detach().clone().requires_grad_()

    def dense_multinomial() -> Tensor:
        allowed = torch.ones(BATCH, n_items + 1)
        allowed.scatter_(1, history, 0).scatter_(1, target[:, None], 0)
        return torch.multinomial(allowed[:, 1:], 1)

    def gather_rows() -> None:
        z = leaf(states)
        torch.stack([z[i, LENGTH - 1, :] for i in range(BATCH)]).sum().backward()

    def take_column() -> None:
        leaf(states)[:, -1].sum().backward()

    def dro_each() -> None:
        s, weights = leaf(scores), ps.double()
        total = 0.0
        for k in range(K + 1):
            item = columns[:, k : k + 1]
            own = torch.gather(torch.mul(s * s, weights), 1, item)
            instead = torch.gather(torch.mul((s - 1) * (s - 1), weights), 1, item)
            z = torch.sum(torch.exp(torch.mul(s * s, weights)), 1, keepdim=True)
            total = total + torch.log(z - torch.exp(own) + torch.exp(instead)).mean()
        total.backward()

    def dro_once() -> None:
        catalogue_terms(leaf(scores), columns, propensity=ps).dro.mean().backward()

    def ce_apart() -> None:
        s = leaf(scores)
        loss = F.cross_entropy(s, columns[:, 0]) + (s.logsumexp(1)[:, None] - s.gather(1, columns)).mean()
        loss.backward()

    def ce_once() -> None:
        terms = catalogue_terms(leaf(scores), columns, log_z=True)
        loss = (terms.log_z - terms.values[:, 0]).mean() + (terms.log_z[:, None] - terms.values).mean()
        loss.backward()

    def project_batch() -> None:
        layer.zero_grad()
        layer(vectors[history]).sum().backward()

    def project_rows() -> None:
        layer.zero_grad()
        rows, local = torch.unique(history, return_inverse=True)
        F.embedding(local, layer(vectors.index_select(0, rows))).sum().backward()

    return {
        "negatives: dense multinomial / shifted uniform draw": (
            dense_multinomial,
            lambda: sample_negatives(torch.cat([history, target[:, None]], 1), n_items, 1, generator),
        ),
        "newest position: gather per row / one column": (gather_rows, take_column),
        "DRO terms: K + 1 float64 passes / one pass": (dro_each, dro_once),
        "softmax terms: separate / one pass (not in the official profile)": (ce_apart, ce_once),
        "student's top K: argsort / blocked top-k": (
            lambda: scores.argsort(dim=1, descending=True)[:, :K],
            lambda: top_k_threshold(scores, K),
        ),
        "projection: [B, 10, 4096] / rows that occur": (project_batch, project_rows),
    }


def cpu_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1682, 17408])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(
        "| items | lever: official / ours | official ms | ours ms | ratio |\n|---|---|---|---|---|\n"
    )
    for n_items in arguments.items:
        for name, (official, ours) in levers(n_items).items():
            times = [(cpu_ms(official), cpu_ms(ours)) for _ in range(arguments.rounds + 1)][1:]
            a, b = (min(column) for column in zip(*times, strict=True))
            sys.stdout.write(f"| {n_items} | {name} | {a:.1f} | {b:.1f} | {a / b:.1f}x |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
