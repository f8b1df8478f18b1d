"""What models list for single users: history, lists with scores, the true item. For the report's page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.artifacts import is_complete
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.metrics import MISSED
from src.core.paths import processed_dir, teacher_output_dir
from src.core.seed import numpy_stream
from src.core.teacher_store import TeacherStore
from src.exp.compare import Row

_LISTED = 10


@dataclass(frozen=True)
class Ranking:
    """The best items of one model for one sample.

    Attributes:
        model: the row's name.
        rank: of the true item over the whole catalogue (or the teacher's list); None: not listed.
        items: (item id, score), best first.
    """

    model: str
    rank: int | None
    items: list[tuple[int, float]]


@dataclass(frozen=True)
class Example:
    """One user's last test sample.

    Attributes:
        user: raw user id.
        why: why it is shown.
        history: item ids, newest last, as models see them.
        target: item id of the true next item.
    """

    user: str
    why: str
    history: list[int]
    target: int
    rankings: list[Ranking]


def raw_users(data: InteractionData) -> list[str]:
    """[U] raw user ids of a prepared dataset."""
    return list(pd.read_parquet(processed_dir(data.name, data.fingerprint) / "users.parquet")["raw_id"])


def examples(
    rows: Sequence[Row],
    data: InteractionData,
    convention: str,
    chosen: Sequence[str | int],
    seed: int,
    drawn: int = 18,
) -> list[Example]:
    """Users that were asked for, those whom distillation helped and harmed most, and others drawn by seed.

    Args:
        chosen: raw user ids.
        drawn: users beside the chosen ones, a third of each kind.

    Raises:
        UserError: a chosen user has no test sample.
    """
    users, test = raw_users(data), data.splits["test"]
    owners = data.users_of(test)
    shown = [next((r for r in rows if r.kind == kind), None) for kind in ("baseline", "teacher", "distilled")]
    of_user = {users[owner]: place for place, owner in enumerate(owners)}  # the last sample of each
    if unknown := [u for u in chosen if str(u) not in of_user]:
        raise UserError(
            f"user {unknown[0]!r}", f"a user with a test sample, e.g. {next(iter(of_user))}", "compare.users"
        )
    picked = {of_user[str(u)]: "chosen" for u in chosen}
    places = np.array(sorted(of_user.values()))
    baseline, _, distilled = shown
    if baseline is not None and distilled is not None:
        of = [1 / np.log2(1 + r.ranks[convention][0][places].astype(float)) for r in (distilled, baseline)]
        gain = of[0] - of[1]  # NDCG without a cut
        order = np.argsort(-gain, kind="stable")
        for best, sign, why in ((order, 1, "helped"), (order[::-1], -1, "harmed")):
            part = places[best[sign * gain[best] > 0]][: drawn // 3]
            picked = {**{int(p): f"distillation {why} most" for p in part}, **picked}
    left = np.setdiff1d(places, list(picked))
    random = numpy_stream(seed, "examples").permutation(left)[: drawn // 3]
    picked |= {int(p): "drawn at random" for p in random}
    found = list(picked)
    lists = {row.name: _lists(row, data, test[found]) for row in shown if row is not None}
    ranks = {row.name: row.ranks[convention][0][found] for row in shown if row is not None}
    histories, targets = data.histories(test[found]), data.targets(test[found])
    return [
        Example(
            users[owners[place]],
            picked[place],
            [int(i) for i in histories[n] if i],
            int(targets[n]),
            [
                Ranking(name, None if ranks[name][n] == MISSED else int(ranks[name][n]), listed[n])
                for name, listed in lists.items()
                if listed
            ],
        )
        for n, place in enumerate(found)
    ]


def store_of(row: Row, data: InteractionData) -> TeacherStore | None:
    """The outputs of a teacher's row; None where they are not there any more."""
    name, fp = (row.metrics[0].get(key) for key in ("teacher", "teacher_fingerprint"))
    if name is None or fp is None:
        return None
    folder = teacher_output_dir(data.name, name, fp)
    return TeacherStore(folder, data.fingerprint) if is_complete(folder) else None


def costs(rows: Sequence[Row], data: InteractionData) -> pd.DataFrame:
    """A line per model: `ms per user` (a student: median of 20 calls for one user on this CPU; a teacher: its export's
    time per sample) and `MiB` of a student's weights; NaN where it is not known."""
    users = [h[h > 0] for h in data.histories(data.splits["test"][:20])]
    lines = []
    for row in rows:
        ms = size = np.nan
        folder = row.runs[0].folder / "models" / "student"
        if row.kind == "teacher":
            if (store := store_of(row, data)) is not None and (
                n := sum(store.manifest["n_samples"].values())
            ):
                ms = 1000 * store.seconds("export_seconds") / n
        elif folder.is_dir():
            from src.student.serving import load_student

            student, seconds = load_student(folder), []
            for history in users:
                started = time.perf_counter()
                student.recommend([data.raw_items[i] for i in history], min(10, data.n_items))
                seconds.append(time.perf_counter() - started)
            ms, size = 1000 * float(np.median(seconds)), (folder / "model.safetensors").stat().st_size / 2**20
        lines.append((row.name, row.kind, ms, size))
    return pd.DataFrame(lines, columns=["model", "kind", "ms per user", "MiB"])


def _lists(row: Row, data: InteractionData, sample_ids: np.ndarray) -> list[list[tuple[int, float]]]:
    """The best items and scores of the row's first run; empty where its store or student is not there any more."""
    run = row.runs[0]
    if row.kind == "teacher":
        if (store := store_of(row, data)) is None:
            return []
        order = np.argsort(sample_ids)
        stored = store.rows_of("test", sample_ids[order])
        back = np.argsort(order)
        items, scores = stored.rankings[back, :_LISTED], stored.scores[back, :_LISTED]
    else:
        if not (folder := run.folder / "models" / "student").is_dir():
            return []
        import torch

        from src.student.serving import load_student

        with torch.inference_mode():
            student = load_student(folder).student
            best = student(torch.from_numpy(data.histories(sample_ids)).long()).topk(
                min(_LISTED, data.n_items)
            )
        items, scores = best.indices.numpy() + 1, best.values.numpy()
    return [list(zip(map(int, i), map(float, s), strict=True)) for i, s in zip(items, scores, strict=True)]
