"""Which training samples follow the teacher's rankings: those where it ranks better than the student does alone.

A ranking of a teacher that knows no more than the student takes away what the embeddings bring. So a student is first
trained without rankings; the validation rows, by how often their target was a training target, then say where the
teacher is better, and only training samples of those slices follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from src.core.data_utils import InteractionData
from src.core.metrics import EvalConfig, Ranks, per_sample, ranks_in_lists
from src.core.seed import numpy_stream
from src.core.statistics import resample_users
from src.core.teacher_store import TeacherStore, locate

SLICES = {"0": 1, "1-4": 5, "5-19": 20, "20+": None}  # training targets of the row's item: name -> end
# Four slices are looked at, and small ones have unsure intervals.
_DRAWS, _LEVEL, _LEAST_ROWS = 2000, 0.99, 50


@dataclass(frozen=True)
class RankingGate:
    """What the validation rows say of a teacher's rankings.

    Attributes:
        follow: [n] float32 of the training samples, 1 where the ranking is followed.
        report: plain values for `metrics.json`: `used`, whether any ranking is followed; `note`, one line for a
            reader; `slices`, what was compared.
    """

    follow: np.ndarray
    report: dict[str, Any]


def popularity_slice(counts: np.ndarray) -> np.ndarray:
    """[n] position in `SLICES` of items with these numbers of training targets [n]."""
    return np.digitize(counts, [end for end in SLICES.values() if end is not None])


def why_unused(store: TeacherStore) -> str | None:
    """Why a store's rankings cannot be weighed against the student; None where they can."""
    missing = [split for split in ("train", "valid") if split not in store.splits]
    return f"the teacher's store has no rankings of {' and '.join(missing)}" if missing else None


def ranking_gate(
    store: TeacherStore,
    data: InteractionData,
    student: Ranks,
    eval_config: EvalConfig,
    seed: int,
    shuffled: bool,
) -> RankingGate:
    """Compare teacher and student on the store's validation rows.

    Args:
        student: ranks of all validation samples by the student that was trained without rankings.
        eval_config: for `select_metric` (at most at the K of the store's lists).
        seed: of the bootstrap and of the shuffling.
        shuffled: the control `shuffle_rankings` holds for these rows too.
    """
    rows = store.rows("valid")
    kind, _, k = eval_config.select_metric.partition("@")
    metric, ids = f"{kind}@{min(int(k), store.top_k)}", np.asarray(rows.sample_ids)
    source = numpy_stream(seed, "control", "valid").permutation(len(ids)) if shuffled else slice(None)
    targets, counts = data.targets(ids), data.train_counts()
    teacher = per_sample(ranks_in_lists(rows.rankings[source], rows.scores[source], targets), metric)
    position, _ = locate(student.sample_ids, ids)
    own = per_sample(student.ranked[position], metric)
    by_count = np.sort(counts[1:])
    popularity = per_sample(data.n_items - np.searchsorted(by_count, counts[targets]), metric).mean()
    users, slices = data.users_of(ids), popularity_slice(counts[targets])
    report: dict[str, Any] = {"metric": metric, "popularity": float(popularity), "slices": {}}
    report |= {"teacher": float(teacher.mean()), "student": float(own.mean())}
    better = np.zeros(len(SLICES), bool)
    for at, name in enumerate(SLICES):
        if not (among := slices == at).any():
            continue
        found: dict[str, Any] = {"rows": int(among.sum()), "followed": False}
        found |= {"teacher": float(teacher[among].mean()), "student": float(own[among].mean())}
        if found["rows"] >= _LEAST_ROWS:
            both, rng = np.stack([own[among], teacher[among]]), numpy_stream(seed, "gate", name)
            d = resample_users(both, users[among], rng, _DRAWS).difference([0], [1], _LEVEL)
            better[at] = d.low > 0 and report["teacher"] > popularity
            found |= {"interval": [float(d.low), float(d.high)], "followed": bool(better[at])}
        report["slices"][name] = found
    follow = better[popularity_slice(counts[data.targets(data.splits["train"])])]
    report |= {"used": bool(follow.any()), "train_share": float(follow.mean())}
    report["note"] = _note(report)
    return RankingGate(follow.astype(np.float32), report)


def _note(report: dict[str, Any]) -> str:
    """One line: what the teacher's rankings are worth here and what was done with them."""
    measured = f"validation {report['metric']} {report['teacher']:.4f}, the student without them {report['student']:.4f}"
    if report["teacher"] <= report["popularity"]:
        return f"rankings not used: the teacher is no better than popularity ({measured}, popularity {report['popularity']:.4f})"
    if report["train_share"] == 0:
        return f"rankings not used: the teacher is nowhere better than the student ({measured})"
    names = ", ".join(name for name, s in report["slices"].items() if s["followed"])
    return f"rankings followed for targets seen {names} times, {report['train_share']:.0%} of the training samples ({measured})"
