"""A teacher's quality as people read it: Markdown tables and one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.core.plotting import PAGE, PALETTE, mark, picture

KS = (1, 3, 5, 10, 20, 50)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, one per group, each with a line that sums it up."""
    k = report["top_k"]
    lines = [
        f"# Teacher {report['teacher']} on {report['dataset']}",
        "",
        f"Store `{report['store']}`, {k} items per ranking, scores are {report['score_kind']}; "
        f"{report['trained_on']} training samples are in sample for the teacher. Every model is cut to lists of {k}; the others "
        "learned from the whole training split, so all of `train` is in sample for them. NDCG and HitRatio rank "
        "history items like all others; `excl.` leaves them out.",
    ]
    for name, group in report["groups"].items():
        lines += ["", f"## {name}: {group['n']} samples" + _drawn(group), "", *_table(group, k), ""]
        lines += [*_popularity_table(group), ""]
        lines.append(_summary(report["teacher"], group, report["confidence_k"]))
    return "\n".join(lines) + "\n"


def _drawn(group: Mapping[str, Any]) -> str:
    return f", drawn from {group['of']}" if group["of"] > group["n"] else ""


def _table(group: Mapping[str, Any], top_k: int) -> list[str]:
    ks = [n for n in (1, 10, 20) if n <= top_k]
    head = ["model", *(f"HitRatio@{n}" for n in ks), *(f"NDCG@{n}" for n in ks[1:])]
    head += [f"NDCG@{n} excl." for n in ks[1:]] + ["contains target"]
    overlaps = list(next(iter(group["models"].values())).get("overlap_with_sasrec", {}))
    head += [f"overlap{n} with sasrec" for n in overlaps]
    rows = []
    for model, f in group["models"].items():
        cells: Sequence[float | None] = [
            *(f["history_ranked"][f"HitRatio@{n}"] for n in ks),
            *(f["history_ranked"][f"NDCG@{n}"] for n in ks[1:]),
            *(f["history_excluded"].get(f"NDCG@{n}") for n in ks[1:]),
            f["contains_target"],
            *(f["overlap_with_sasrec"][n] for n in overlaps),
        ]
        rows.append([model, *("–" if c is None else f"{c:.4f}" for c in cells)])
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _popularity_table(group: Mapping[str, Any]) -> list[str]:
    """How well targets are ranked that are rare in training, and those that never occur there."""
    slices = next(iter(group["models"].values()))["by_popularity"]
    metric = next(name for name in next(iter(slices.values())) if name != "n")
    head = [f"{metric} by training count of the target", *(f"{s} (n {v['n']})" for s, v in slices.items())]
    rows = [
        [model, *(f"{v[metric]:.4f}" for v in f["by_popularity"].values())]
        for model, f in group["models"].items()
    ]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _summary(teacher: str, group: Mapping[str, Any], k: int) -> str:
    metric = "NDCG@10" if "NDCG@10" in group["models"][teacher]["history_ranked"] else "NDCG@1"
    values = {m: f["history_ranked"][metric] for m, f in group["models"].items()}
    ratios = [
        f"{values[teacher] / value:.2f} times {m}'s"
        for m, value in values.items()
        if m != teacher and value > 0
    ]
    line = f"{metric} of {teacher} is {' and '.join(ratios)}. " if ratios else ""
    scaled, raw = (group["confidence"][s]["mean"] for s in ("minmax", "none"))
    return (
        f"{line}Entropy of the confidence weights over {k} candidates, 1 = all alike: "
        f"{scaled:.3f} with scaled distances, {raw:.3f} with raw ones."
    )


def plot(path: Path, report: Mapping[str, Any]) -> None:
    """A row per group: NDCG and HitRatio by K, axes shared between the groups; and the shares of the report.

    Args:
        path: without a suffix; PNG and SVG are written.
    """
    groups, teacher, k = report["groups"], report["teacher"], report["top_k"]
    models = list(next(iter(groups.values()))["models"])
    size = (PAGE * 1.4, 0.5 + 2.2 * len(groups))
    with picture(path, *size, len(groups), 3, width_ratios=(1, 1, 1.1)) as (figure, axes):
        figure.suptitle(f"Teacher {teacher} on {report['dataset']}: rankings of {k} items", fontsize=9)
        for (name, group), (ndcg, hits, bars) in zip(groups.items(), axes, strict=True):
            for axis, metric in ((ndcg, "NDCG"), (hits, "HitRatio")):
                # The teacher last, hollow and on top: where two models agree, both are seen.
                for number in (*range(1, len(models)), 0):
                    curve = group["models"][models[number]]["history_ranked"]
                    ks = [n for n in KS if f"{metric}@{n}" in curve]
                    own = {"mfc": "none", "ms": 8} if models[number] == teacher else {}
                    axis.plot(
                        ks, [curve[f"{metric}@{n}"] for n in ks], label=models[number], **mark(number), **own
                    )
                axis.set(xscale="log", xlabel="K", ylabel=f"{metric}@K", xticks=ks, xticklabels=ks)
                axis.set_title(f"{name}, n = {group['n']:,}")
                axis.minorticks_off()
            ndcg.legend(loc="upper left")
            _shares(bars, report, group)
        for column in axes.T[:2]:
            top = max(axis.get_ylim()[1] for axis in column)
            for axis in column:
                axis.set_ylim(0, top)


def _shares(axis: Any, report: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """What is a share between 0 and 1, named in full."""
    teacher, k = report["teacher"], report["confidence_k"]
    shares = {
        f"target among the {report['top_k']} of {m}": f["contains_target"] for m, f in group["models"].items()
    }
    for n, value in group["models"][teacher].get("overlap_with_sasrec", {}).items():
        shares[f"{teacher}'s top {n[1:]} also in sasrec's"] = value
    for scaling, name in (("minmax", "scaled"), ("none", "raw")):
        shares[f"entropy of {k} confidences, {name}*"] = group["confidence"][scaling]["mean"]
    axis.barh(list(shares), list(shares.values()), color=[PALETTE[0], *["#999999"] * (len(shares) - 1)])
    axis.bar_label(axis.containers[0], fmt="%.2f", padding=2, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.15), xlabel="share (* 1: all candidates count alike)", xticks=(0, 0.5, 1))
    axis.set_title("targets, overlap, confidence")
