"""A teacher's quality as people read it: Markdown tables and one plot, cut from the report's long table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.plotting import PAGE, PALETTE, mark, picture

KS = (1, 3, 5, 10, 20, 50)
Cut = dict[str, dict[tuple[str, str], float]]


def of_group(report: Mapping[str, Any], group: str) -> Cut:
    """{model: {(metric, slice): value}}, the teacher first."""
    out: Cut = {}
    for name, model, metric, part, value in report["figures"]:
        if name == group:
            out.setdefault(model, {})[metric, part] = value
    return out


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, two per group, each group with a line that sums it up."""
    k, teacher = report["top_k"], report["teacher"]
    ks = [n for n in (1, 10, 20) if n <= k]
    metrics = [
        *((f"HitRatio@{n}", "") for n in ks),
        *((f"NDCG@{n}", p) for p in ("", "excl.") for n in ks[1:]),
    ]
    lines = [
        f"# Teacher {teacher} on {report['dataset']}",
        "",
        f"Store `{report['store']}`, {k} items per ranking, scores are {report['score_kind']}; "
        f"{report['trained_on']} training samples are in sample for the teacher. Every model is cut to lists of {k}; the others "
        "learned from the whole training split, so all of `train` is in sample for them. NDCG and HitRatio rank "
        "history items like all others; `excl.` leaves them out.",
    ]
    for name, size in report["groups"].items():
        models = of_group(report, name)
        drawn = f", drawn from {size['of']}" if size["of"] > size["n"] else ""
        shares = [c for c in models[teacher] if c[0] == "contains target" or c[0].startswith("overlap")]
        slices = [c for c in models[teacher] if "by training count" in c[0]]
        lines += [
            "",
            f"## {name}: {size['n']} samples{drawn}",
            "",
            *_table("model", models, metrics + shares),
        ]
        lines += ["", *_table(slices[0][0], models, slices)]
        lines += ["", _summary(teacher, models, report["confidence_k"])]
    return "\n".join(lines) + "\n"


def _table(corner: str, models: Cut, columns: list[tuple[str, str]]) -> list[str]:
    """A row per model."""
    head = [corner, *(part if metric == corner else f"{metric} {part}".strip() for metric, part in columns)]
    cells = [[m, *(f"{f[c]:.4f}" if c in f else "–" for c in columns)] for m, f in models.items()]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells]]


def _summary(teacher: str, models: Cut, k: int) -> str:
    metric = ("NDCG@10", "") if ("NDCG@10", "") in models[teacher] else ("NDCG@1", "")
    values = {m: f[metric] for m, f in models.items()}
    ratios = [f"{values[teacher] / v:.2f} times {m}'s" for m, v in values.items() if m != teacher and v > 0]
    line = f"{metric[0]} of {teacher} is {' and '.join(ratios)}. " if ratios else ""
    scaled, raw = (models[teacher][f"confidence entropy, {s}", ""] for s in ("minmax", "none"))
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
    size = (PAGE * 1.4, 0.5 + 2.2 * len(groups))
    with picture(path, *size, len(groups), 3, width_ratios=(1, 1, 1.1)) as (figure, axes):
        figure.suptitle(f"Teacher {teacher} on {report['dataset']}: rankings of {k} items", fontsize=9)
        for name, (ndcg, hits, bars) in zip(groups, axes, strict=True):
            models = of_group(report, name)
            for axis, metric in ((ndcg, "NDCG"), (hits, "HitRatio")):
                ks = [n for n in KS if (f"{metric}@{n}", "") in models[teacher]]
                # The teacher last, hollow and on top: where two models agree, both are seen.
                for number, model in reversed(list(enumerate(models))):
                    style = {"mfc": "none", "ms": 8} if model == teacher else {}
                    values = [models[model][f"{metric}@{n}", ""] for n in ks]
                    axis.plot(ks, values, label=model, **mark(number), **style)
                axis.set(xscale="log", xlabel="K", ylabel=f"{metric}@K", xticks=ks, xticklabels=ks)
                axis.set_title(f"{name}, n = {groups[name]['n']:,}")
                axis.minorticks_off()
            ndcg.legend(loc="upper left")
            _shares(bars, report, models)
        for column in axes.T[:2]:
            top = max(axis.get_ylim()[1] for axis in column)
            for axis in column:
                axis.set_ylim(0, top)


def _shares(axis: Any, report: Mapping[str, Any], models: Cut) -> None:
    """What is a share between 0 and 1, named in full."""
    teacher, k = report["teacher"], report["confidence_k"]
    shares = {
        f"target among the {report['top_k']} of {m}": f["contains target", ""] for m, f in models.items()
    }
    shares |= {f"{teacher}'s {m}": v for (m, _), v in models[teacher].items() if m.startswith("overlap")}
    for scaling, name in (("minmax", "scaled"), ("none", "raw")):
        shares[f"entropy of {k} confidences, {name}*"] = models[teacher][f"confidence entropy, {scaling}", ""]
    axis.barh(list(shares), list(shares.values()), color=[PALETTE[0], *["#999999"] * (len(shares) - 1)])
    axis.bar_label(axis.containers[0], fmt="%.2f", padding=2, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.15), xlabel="share (* 1: all candidates count alike)", xticks=(0, 0.5, 1))
    axis.set_title("targets, overlap, confidence")
