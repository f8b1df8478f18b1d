"""Whether a comparison shows that distillation helps: interval, correction, seeds and controls taken together."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from src.exp.compare import Row

_LEVEL, _SEEDS = 0.05, 3


def verdicts(rows: Sequence[Row], pairs: pd.DataFrame, metrics: Sequence[str], convention: str) -> list[str]:
    """A sentence per metric on the configuration's own distilled student; none where the table has no such pair.

    A gain is one whose interval over users and seeds lies above 0, whose p-value stands after Holm's correction over
    `metrics`, over at least three seeds, and that every control of the table loses that shuffles something the
    student reads (`distill.control`). All these must hold at once, so that no further correction is due
    (intersection-union test: Berger, Technometrics 24, 1982). A student of another teacher, or another baseline, that
    it does not beat is named: what a plain teacher gives as well is not the LLM's.

    Args:
        pairs: of `tables.differences`.
        convention: out of `core.metrics.CONVENTIONS`.
    """
    baselines, distilled = ([r for r in rows if r.kind == kind] for kind in ("baseline", "distilled"))
    if not baselines or not distilled or distilled[0].control:
        return []
    own, others = distilled[0], [*baselines[1:], *distilled[1:]]
    controls = [r for r in others if r.control & own.knowledge]
    rivals = [r for r in others if not r.control and (r.kind == "baseline" or r.teacher != own.teacher)]
    found = pairs[pairs["history"] == convention].set_index(["a", "b", "metric"])
    out = []
    for metric in metrics:
        if (key := (baselines[0].name, own.name, metric)) not in found.index:
            continue
        pair = found.loc[key]
        against = {r.name: found.loc[(r.name, own.name, metric)] for r in controls}
        beaten = {r.name: _better(found.loc[(r.name, own.name, metric)]) for r in rivals}
        said = _conclusion(pair, against, [name for name, better in beaten.items() if not better])
        after = ", ".join(f"{name} {line['mean_a']:.4f}" for name, line in against.items())
        out.append(
            f"{metric} {pair['mean_a']:.4f} -> {pair['mean_a'] + pair['difference']:.4f} "
            f"({pair['difference']:+.4f}, interval {pair['low']:+.4f} to {pair['high']:+.4f}, Holm p "
            f"{pair['p_holm']:.2g}{f'; controls: {after}' if after else ''}): {said}"
        )
    return out


def _conclusion(pair: pd.Series, against: dict[str, pd.Series], equal: Sequence[str]) -> str:
    """`a gain`, `a loss`, or what stands against either; `equal` are rivals that are not beaten."""
    if pair["high"] < 0 and pair["p_holm"] < _LEVEL:
        return "a loss"
    if unable := _unable(pair, against):
        return "no gain can be shown: " + "; ".join(unable)
    missing = []
    if pair["low"] <= 0:
        missing.append("the interval lies below 0" if pair["high"] < 0 else "the interval holds 0")
    if pair["p_holm"] >= _LEVEL:
        missing.append(f"p is not below {_LEVEL} after Holm's correction")
    if kept := [name for name, line in against.items() if not _better(line)]:
        missing.append(f"it is not better than {', '.join(kept)}")
    if missing:
        return "no gain shown: " + "; ".join(missing)
    return "a gain" + "".join(f", not shown to be more than that of {name}" for name in equal)


def _unable(pair: pd.Series, against: dict[str, pd.Series]) -> list[str]:
    """Why this comparison could not say "a gain", whatever its figures."""
    out = []
    if (seeds := min(pair["runs_a"], pair["runs_b"])) < _SEEDS:
        out.append(f"{seeds} of {_SEEDS} seeds (compare.seeds)")
    if not against:
        out.append("no control in the table of what the student reads (cmd/run_study.sh)")
    if pair["high"] == float("inf"):
        out.append("one user cannot tell")
    return out


def _better(pair: pd.Series) -> bool:
    """Whether b of the pair is better than a."""
    return pair["low"] > 0 and pair["p_holm"] < _LEVEL
