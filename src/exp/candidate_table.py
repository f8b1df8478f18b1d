"""The comparison among few candidates (iLoRA's protocol): every model's choices on the same samples and sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.artifacts import load_npy, read_object
from src.core.candidates import CandidateSet
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.seed import numpy_stream
from src.core.statistics import holm, paired_difference
from src.exp.compare import TEACHER, Row

log = get_logger(__name__)
METRIC = "HitRatio@1"
WAYS = ("scores", "generation", "likelihood", "item_scores", "frozen_sasrec")


@dataclass(frozen=True)
class Line:
    """One model asked in one way, with one run per seed.

    Attributes:
        model: as in the other tables.
        kind: `baseline`, `teacher` or `distilled`.
        way: how it was asked, out of WAYS.
        figures: per run, of `core.candidates.Choices.figures`.
        hits: [D, n] right choices, averaged over the runs.
    """

    model: str
    kind: str
    way: str
    figures: tuple[dict, ...]
    hits: np.ndarray


def find_lines(rows: list[Row], candidates: CandidateSet) -> list[Line]:
    """What the rows' runs chose among these candidates; a row whose runs were asked about others is left out."""
    lines = []
    for row in rows:
        found = [_ways(run / "metrics" / "candidates.json", candidates) for run in row.runs]
        if None in found:
            log.info("%s was not asked about the candidates %s: not shown", row.name, candidates.fingerprint)
            continue
        for way in (w for w in WAYS if all(w in f for f in found)):
            hits = [_hits(run / "metrics" / f"candidate_hits_{way}.npy", candidates) for run in row.runs]
            lines.append(Line(row.name, row.kind, way, tuple(f[way] for f in found), np.mean(hits, axis=0)))
    return lines


def _ways(file: Path, candidates: CandidateSet) -> dict[str, dict] | None:
    """Figures by way of asking; None where the run was not asked about these candidates."""
    fields = read_object(file) if file.is_file() else {}
    if fields.get("candidates") != candidates.fingerprint:
        return None
    ways = fields.get("ways")
    if not isinstance(ways, dict) or not all(way in WAYS and _is_figures(f) for way, f in ways.items()):
        raise UserError(
            f"{file}: figures that cannot be read",
            f"ways out of {', '.join(WAYS)}",
            f"delete {file.parents[1]}",
        )
    return ways


def _is_figures(figures: object) -> bool:
    return (
        isinstance(figures, dict)
        and {METRIC, "ValidRatio"} <= figures.keys()
        and all(isinstance(f, dict) and isinstance(f.get("mean"), float) for f in figures.values())
    )


def _hits(file: Path, candidates: CandidateSet) -> np.ndarray:
    hits = load_npy(file)
    if hits.shape != candidates.items.shape[:2] or hits.dtype != bool:
        raise UserError(
            f"{file}: {hits.dtype} {hits.shape}",
            f"bool {candidates.items.shape[:2]}, draws x samples",
            f"delete {file.parents[1]}",
        )
    return hits


def candidate_table(lines: list[Line]) -> pd.DataFrame:
    """One line per model and way: means over draws and seeds, sd over draws, and over seeds where there are several."""
    out = []
    for line in lines:
        row = {"model": line.model, "kind": line.kind, "asked by": line.way, "seeds": len(line.figures)}
        for name in (METRIC, "ValidRatio", "HitRatio@1 valid"):
            means = [f[name]["mean"] for f in line.figures if name in f]
            row[name] = float(np.mean(means)) if len(means) == len(line.figures) else float("nan")
        per_draw = line.hits.mean(axis=1)
        row["sd over draws"] = float(per_draw.std(ddof=1)) if len(per_draw) > 1 else float("nan")
        if len(line.figures) > 1:
            row["sd over seeds"] = float(np.std([f[METRIC]["mean"] for f in line.figures], ddof=1))
        out.append(row)
    return pd.DataFrame(out)


def candidate_differences(
    lines: list[Line], data: InteractionData, candidates: CandidateSet, seed: int, draws: int
) -> pd.DataFrame:
    """Paired differences of HitRatio@1: every model against the baseline, and every way of asking a teacher against
    its own frozen SASRec. Per-sample hits are averaged over draws and seeds; intervals over users, Holm over all.
    """
    users = data.users_of(candidates.sample_ids)
    pairs = [(a, b) for a in lines if a.kind == "baseline" for b in lines if b.kind != "baseline"]
    frozen = {line.model: line for line in lines if line.way == "frozen_sasrec"}
    pairs += [(frozen[b.model], b) for b in lines if b.model in frozen and b.way != "frozen_sasrec"]
    out = []
    for a, b in pairs:
        left, right = a.hits.mean(axis=0), b.hits.mean(axis=0)
        rng = numpy_stream(seed, "compare_candidates", a.model, a.way, b.model, b.way)
        d = paired_difference(left, right, users, rng, draws)
        names = {"a": _name(a), "b": _name(b), "metric": METRIC}
        out.append({**names, "difference": d.mean, "low": d.low, "high": d.high, "p": d.p_value})
    table = pd.DataFrame(out)
    if len(table):
        table["p_holm"] = holm(table["p"])
    return table


def _name(line: Line) -> str:
    if line.way == "frozen_sasrec":
        return f"frozen SASRec of {line.model.removeprefix(TEACHER)}"
    return line.model if line.way == "scores" else f"{line.model}, {line.way}"
