"""What the benchmark scripts share: settings from conf/, made data, turns, processes of their own, tables."""

from __future__ import annotations

import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from src.core.data_utils import InteractionData
from src.core.paths import ROOT
from src.core.teacher_store import TeacherRows
from src.exp.overrides import compose_values


def group(name: str, choice: str, *overrides: str) -> dict[str, Any]:
    """The values of `conf/<name>/<choice>.yaml` with overrides ("student.width=64")."""
    return copy.deepcopy(compose_values((f"{name}={choice}", *overrides))[name])


def made_data(n_items: int, n_samples: int, history: int = 10, per_user: int = 40) -> InteractionData:
    """Users of `history` + `per_user` interactions; every row behind the first `history` is a sample.

    Popularity falls as (rank + 20) ** -0.9; the last user's samples are for validation and test.
    """
    rng = np.random.default_rng(0)
    share = (np.arange(n_items) + 20.0) ** -0.9
    users, width = -(-n_samples // per_user) + 1, history + per_user
    items = rng.choice(n_items, size=users * width, p=share / share.sum()).astype(np.int32) + 1
    ids = np.arange(len(items)).reshape(users, width)[:, history:]
    half = per_user // 2
    return InteractionData(
        name="made",
        fingerprint="made",
        items=items,
        times=np.zeros(len(items), np.int64),
        offsets=np.arange(users + 1, dtype=np.int64) * width,
        splits={"train": ids[:-1].ravel()[:n_samples], "valid": ids[-1, :half], "test": ids[-1, half:]},
        titles=[""] * (n_items + 1),
        raw_items=[str(i) for i in range(n_items + 1)],
        max_history=history,
        info={},
    )


def made_rows(ids: np.ndarray, n_items: int, k: int = 10) -> TeacherRows:
    """Rankings without repeats, scored by distances: a stride of distinct items from a random start."""
    rng, n = np.random.default_rng(1), len(ids)
    start, step = rng.integers(0, n_items, (n, 1)), rng.integers(1, n_items // k, (n, 1))
    rankings = (start + step * np.arange(k)) % n_items + 1
    scores = np.sort(rng.random((n, k)), axis=1).astype(np.float32) * 3
    return TeacherRows(ids, rankings.astype(np.int32), scores, scores[:, 0].copy())


def in_turns(
    variants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one round that warms up; the order turns from round to round, so
    that other load on the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for call in variants.values():
        call()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = clock()
            variants[name]()
            times[name].append(clock() - started)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def lines_of_own_process(module: str, *arguments: object, **environment: str) -> Iterator[Any]:
    """Each line that `python -m MODULE --one JSON` prints, as JSON, as soon as it is there."""
    command = [sys.executable, "-m", module, "--one", json.dumps(arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    yield from map(json.loads, process.stdout)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def in_own_process(module: str, *arguments: object, **environment: str) -> Any:
    """The last of those lines: of a process whose peak memory is its own."""
    return list(lines_of_own_process(module, *arguments, **environment))[-1]


def answer(value: object) -> None:
    """The other side of `lines_of_own_process`."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
