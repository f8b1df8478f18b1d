"""The figures of a comparison: one long table that every other table, CSV and plot is a pivot of, and differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.core.data_utils import InteractionData
from src.core.metrics import CONVENTIONS, METRICS
from src.core.seed import numpy_stream
from src.core.statistics import Difference, holm, resample_users
from src.exp.compare import Row

# Training targets of the item
_POPULARITY = {"0": (0, 0), "1–4": (1, 4), "5–19": (5, 19), "20–99": (20, 99), "100+": (100, np.inf)}


def long_table(
    rows: Sequence[Row], data: InteractionData, ks: Sequence[int], sliced: Sequence[str]
) -> pd.DataFrame:
    """One line per figure: model, kind, seed, split, history, group, slice, samples, metric, value.

    `split` is `test`, `valid` (as the run reported it) or `time` (seconds). `history` is the convention. Slices of the
    test split belong to a `group` whose slices cover it; the whole split is slice `all`.

    Args:
        ks: list lengths; none beyond a model's own lists.
        sliced: metrics that are given slice by slice.
    """
    masks = slices(data)
    names = dict.fromkeys([*(f"{kind}@{k}" for kind in METRICS for k in ks), *sliced])
    lines = [line for row in rows for line in _lines(row, names, sliced, masks)]
    columns = ["model", "kind", "seed", "split", "history", "group", "slice", "samples", "metric", "value"]
    return pd.DataFrame(lines, columns=columns)


def _lines(
    row: Row, names: Iterable[str], sliced: Sequence[str], masks: dict[tuple[str, str], np.ndarray]
) -> Iterator[tuple[Any, ...]]:
    seeds = [fields.get("seed") for fields in row.metrics]
    for convention in CONVENTIONS:
        for metric in (m for m in names if row.has(m, convention)):
            for seed, values in zip(seeds, row.values(metric, convention), strict=True):
                start = (row.name, row.kind, seed, "test", convention)
                yield (*start, "all", "all", len(values), metric, values.mean())
                for (group, name), mask in masks.items() if metric in sliced else ():
                    yield (*start, group, name, int(mask.sum()), metric, values[mask].mean())
    for seed, fields, run in zip(seeds, row.metrics, row.runs, strict=True):
        run_start = (row.name, row.kind, seed)
        for metric, value in fields["valid"].items():
            yield (
                *run_start,
                "valid",
                fields.get("convention"),
                "all",
                "all",
                fields["n_valid"],
                metric,
                value,
            )
        for name, seconds in run.times.items():
            yield (*run_start, "time", "", "all", "all", 0, name, seconds)


def metric_table(long: pd.DataFrame, convention: str) -> pd.DataFrame:
    """One line per model: test metrics (means over seeds, an `sd` column each where there are several), then times."""
    test = long[(long.split == "test") & (long.history == convention) & (long.slice == "all")]
    shown = long.drop_duplicates("model").set_index("model")[["kind"]]
    shown["seeds"] = long[long.split == "valid"].groupby("model").seed.nunique()
    parts = []
    for part, statistics in ((test, ("mean", "std")), (long[long.split == "time"], ("mean",))):
        by_model = part.groupby(["model", "metric"], sort=False).value.agg(list(statistics)).unstack("metric")
        for metric in part.metric.unique():
            parts.append(by_model["mean"][metric].rename(metric))
            if "std" in statistics and by_model["std"][metric].notna().any():
                parts.append(by_model["std"][metric].rename(f"{metric} sd"))
    return shown.join(parts).reset_index()


def slice_table(long: pd.DataFrame, metric: str, convention: str) -> pd.DataFrame:
    """One line per slice: its number of samples and the metric of every model that has it, means over seeds."""
    part = long[(long.split == "test") & (long.history == convention) & (long.metric == metric)]
    table = part.pivot_table(
        index=["group", "slice", "samples"], columns="model", values="value", aggfunc="mean", sort=False
    )
    return table[list(part.model.unique())].reset_index().rename_axis(columns=None)


def slices(data: InteractionData) -> dict[tuple[str, str], np.ndarray]:
    """[n_test] masks by (group, slice): the target's popularity, length of the history, users seen in training.

    Head items are the most popular ones that together hold half of the training targets.
    """
    test, counts = data.splits["test"], data.train_counts()
    order = np.argsort(-counts, kind="stable")
    head_items = order[: int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)) + 1]
    targets, lengths, longest = data.targets(test), data.history_lengths(test), data.max_history
    seen = np.isin(data.users_of(test), data.users_of(data.splits["train"]))
    head, popularity = np.isin(targets, head_items), counts[targets]
    masks = {("items", "head"): head, ("items", "tail"): ~head}
    masks |= {
        ("training targets of the item", name): (popularity >= low) & (popularity <= high)
        for name, (low, high) in _POPULARITY.items()
    }
    edges = sorted({0, *(longest * i // 4 for i in (1, 2, 3)), longest - 1, longest})
    masks |= {
        ("history length", f"{low + 1}" if high == low + 1 else f"{low + 1}–{high}"): (lengths > low)
        & (lengths <= high)
        for low, high in zip(edges, edges[1:], strict=False)
        if high > 0
    }
    masks |= {("users", "seen in training"): seen, ("users", "not seen in training"): ~seen}
    return {name: mask for name, mask in masks.items() if mask.any()}


def pairs_of(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """What is compared: each model with the baseline, students with their teacher, every other student with the
    first distilled one (the configuration's own)."""
    baselines, distilled = ([r for r in rows if r.kind == kind] for kind in ("baseline", "distilled"))
    pairs = [(baselines[0], b) for b in rows if b is not baselines[0]] if baselines else []
    pairs += [
        (a, b) for a in rows if a.kind == "teacher" for b in distilled if a.teacher == b.teacher is not None
    ]
    others = [*baselines[1:], *distilled[1:]]
    return pairs + [(other, own) for own in distilled[:1] for other in others]


def differences(
    rows: Sequence[Row], data: InteractionData, metrics: Sequence[str], seed: int, draws: int
) -> pd.DataFrame:
    """Paired differences b - a on the test split, with intervals over users and seeds (`core.statistics`).

    `p_holm` is adjusted over the metrics of one pair and convention: what is claimed is a gain of one student, under
    one convention, in any of the metrics. Metrics beyond the length of a model's lists are left out.
    """
    users, lines = data.users_of(data.splits["test"]), []
    for convention in CONVENTIONS:
        for metric in metrics:
            have = [r for r in rows if r.has(metric, convention)]
            places = {id(row): place for place, row in enumerate(have)}
            pairs = [(a, b) for a, b in pairs_of(rows) if id(a) in places and id(b) in places]
            if not pairs:
                continue
            values = [r.values(metric, convention) for r in have]
            at = [(places[id(a)], places[id(b)]) for a, b in pairs]
            found = paired(values, at, users, numpy_stream(seed, "compare"), draws)
            for (a, b), (mean, d) in zip(pairs, found, strict=True):
                relative = d.mean / mean if mean else np.nan
                names = (convention, a.name, b.name, metric, len(a.runs), len(b.runs))
                lines.append((*names, mean, d.mean, d.low, d.high, relative, d.p_value))
    columns_of = ["history", "a", "b", "metric", "runs_a", "runs_b", "mean_a", "difference", "low", "high"]
    table = pd.DataFrame(lines, columns=[*columns_of, "relative", "p"])
    family = table.groupby(["history", "a", "b"], sort=False).p
    return table.assign(p_holm=family.transform(lambda p: holm(p.to_numpy())) if len(table) else [])


def paired(
    values: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    users: np.ndarray,
    rng: np.random.Generator,
    draws: int,
) -> list[tuple[float, Difference]]:
    """(mean of model i, difference j - i) for pairs (i, j) of models, whose `values` are [n_runs, n] each."""
    found = resample_users(np.concatenate(values), users, rng, draws)
    ends = np.cumsum([len(v) for v in values])
    columns = [range(end - len(v), end) for v, end in zip(values, ends, strict=True)]
    return [
        (float(found.means[columns[i]].mean()), found.difference(columns[i], columns[j])) for i, j in pairs
    ]
