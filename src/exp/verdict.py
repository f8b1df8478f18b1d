"""Whether a comparison shows that distillation helps: interval, correction, seeds and controls taken together."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from src.exp.compare import Row

_LEVEL, _SEEDS = 0.05, 3


def verdicts(rows: Sequence[Row], pairs: pd.DataFrame, metrics: Sequence[str], convention: str) -> list[str]:
    """A sentence per metric on the configuration's own distilled student; none where the table has no such pair.

    A gain is one whose interval lies above 0, whose p-value stands after Holm's correction, over at least three
    seeds, and that a control of the table (`distill.control`: the same distillation with a part of its teacher's
    knowledge shuffled) loses. Rivals that it does not beat are named: what a control shuffles without loss is not
    used, and what a plain teacher gives as well is not the LLM's.

    Args:
        pairs: of `compare.differences`.
        convention: `history_ranked` or `history_excluded`.
    """
    baseline = next((r for r in rows if r.kind == "baseline"), None)
    distilled = [r for r in rows if r.kind == "distilled"]
    if baseline is None or not distilled or _is_control(own := distilled[0]):
        return []
    controls = [r for r in distilled[1:] if _is_control(r)]
    rivals = [r for r in distilled[1:] if " <- " in r.name and not _is_control(r)] + controls
    of = pairs[pairs["history"] == convention].set_index(["a", "b", "metric"])
    out = []
    for metric in metrics:
        if (key := (baseline.name, own.name, metric)) not in of.index:
            continue
        pair = of.loc[key]
        against = {c.name: of.loc[(c.name, own.name, metric)] for c in controls}
        equal = [r.name for r in rivals if not _better(of.loc[(r.name, own.name, metric)])]
        after = ", ".join(f"{name} {line['mean_a']:.4f}" for name, line in against.items())
        if pair["high"] < 0 and pair["p_holm"] < _LEVEL:
            found = "a loss"
        else:
            missing = _missing(pair, against, min(len(baseline.runs), len(own.runs)))
            gain = "a gain" + "".join(f", not shown to be more than that of {name}" for name in equal)
            found = "no gain shown: " + "; ".join(missing) if missing else gain
        out.append(
            f"{metric} {pair['mean_a']:.4f} -> {pair['mean_a'] + pair['difference']:.4f} "
            f"({pair['difference']:+.4f}, interval {pair['low']:+.4f} to {pair['high']:+.4f}, Holm p "
            f"{pair['p_holm']:.4f}{f'; controls: {after}' if after else ''}): {found}"
        )
    return out


def _is_control(row: Row) -> bool:
    return any(m.get("control", "none") != "none" for m in row.metrics)


def _missing(pair: pd.Series, against: dict[str, pd.Series], seeds: int) -> list[str]:
    """What a gain lacks to be one."""
    out = []
    if pair["low"] <= 0:
        out.append("the interval lies below 0" if pair["high"] < 0 else "the interval holds 0")
    if pair["p_holm"] >= _LEVEL:
        out.append(f"p is not below {_LEVEL} after Holm's correction")
    if seeds < _SEEDS:
        out.append(f"{seeds} of {_SEEDS} seeds (compare.seeds)")
    if not against:
        out.append("no control in the table (cmd/run_study.sh)")
    elif not any(map(_better, against.values())):
        out.append(f"it is not better than {', '.join(against)}")
    return out


def _better(pair: pd.Series) -> bool:
    """Whether b of the pair is better than a."""
    return pair["low"] > 0 and pair["p_holm"] < _LEVEL
