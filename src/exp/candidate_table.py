"""The comparison among few candidates (iLoRA's protocol): every model's choices on the same samples and sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.artifacts import read_object
from src.core.candidates import CandidateSet
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.runs import RunRecord
from src.core.seed import numpy_stream
from src.core.statistics import holm
from src.exp.compare import Row
from src.exp.tables import paired

log = get_logger(__name__)
METRIC = "HitRatio@1"
FROZEN = "frozen_sasrec"
WAYS = ("scores", "generation", "likelihood", "item_scores", FROZEN)


@dataclass(frozen=True)
class Line:
    """One model asked in one way, with one run per seed.

    Attributes:
        row: the model.
        way: how it was asked, out of WAYS.
        figures: per run, of `core.candidates.Choices.figures`.
        hits: [n_seeds, D, n] right choices.
    """

    row: Row
    way: str
    figures: tuple[dict, ...]
    hits: np.ndarray

    @property
    def name(self) -> str:
        if self.way == FROZEN:
            return f"frozen SASRec of {self.row.metrics[0].get('teacher', self.row.name)}"
        return self.row.name if self.way == "scores" else f"{self.row.name}, {self.way}"


@dataclass(frozen=True)
class CandidateReport:
    """The comparison among few candidates.

    Attributes:
        shape: (draws, samples, candidates).
        table: a line per model and way of asking.
        pairs: paired differences of HitRatio@1.
    """

    shape: tuple[int, ...]
    table: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def title(self) -> str:
        draws, n, count = self.shape
        return f"Test, {count} candidates ({n} samples x {draws} draws)"


def candidate_report(
    rows: Sequence[Row], data: InteractionData, candidates: CandidateSet | None, seed: int, draws: int
) -> CandidateReport | None:
    """What the rows' runs chose among these candidates; None where no row was asked about them."""
    lines = find_lines(rows, candidates) if candidates is not None else []
    if candidates is None or not lines:
        return None
    pairs = candidate_differences(lines, data, candidates, seed, draws)
    return CandidateReport(candidates.items.shape, candidate_table(lines), pairs)


def find_lines(rows: Sequence[Row], candidates: CandidateSet) -> list[Line]:
    """The rows' answers; a row whose runs were asked about other candidates is left out."""
    lines = []
    for row in rows:
        found = [ways for run in row.runs if (ways := _ways(run, candidates)) is not None]
        if len(found) < len(row.runs):
            log.info("%s was not asked about the candidates %s: not shown", row.name, candidates.fingerprint)
            continue
        for way in (w for w in WAYS if all(w in f for f in found)):
            hits = [_hits(run, f"candidate_hits_{way}.npy", candidates) for run in row.runs]
            lines.append(Line(row, way, tuple(f[way] for f in found), np.stack(hits)))
    return lines


def _ways(run: RunRecord, candidates: CandidateSet) -> dict[str, dict] | None:
    """Figures by way of asking; None where the run was not asked about these candidates."""
    file = run.folder / "metrics" / "candidates.json"
    fields = read_object(file) if file.name in run.manifest["files"] else {}
    if fields.get("candidates") != candidates.fingerprint:
        return None
    ways = fields.get("ways")
    if not isinstance(ways, dict) or not all(way in WAYS and _is_figures(f) for way, f in ways.items()):
        raise UserError(
            f"{file}: figures that cannot be read",
            f"ways out of {', '.join(WAYS)}",
            f"delete {run.folder}",
        )
    return ways


def _is_figures(figures: object) -> bool:
    return (
        isinstance(figures, dict)
        and {METRIC, "ValidRatio"} <= figures.keys()
        and all(isinstance(f, dict) and isinstance(f.get("mean"), float) for f in figures.values())
    )


def _hits(run: RunRecord, file: str, candidates: CandidateSet) -> np.ndarray:
    hits, asked = run.array(file), run.array("candidate_sample_ids.npy")
    if not np.array_equal(asked, candidates.sample_ids):
        raise UserError(
            f"{run.folder}: its candidates are of {len(asked)} other samples",
            f"the {len(candidates.sample_ids)} of eval.candidates",
            f"delete {run.folder}",
        )
    if hits.shape != candidates.items.shape[:2] or hits.dtype != bool:
        raise UserError(
            f"{run.folder}/metrics/{file}: {hits.dtype} {hits.shape}",
            f"bool {candidates.items.shape[:2]}, draws x samples",
            f"delete {run.folder}",
        )
    return hits


def candidate_table(lines: Sequence[Line]) -> pd.DataFrame:
    """One line per model and way: means over draws and seeds, sd over draws, and over seeds where there are several."""
    out = []
    for line in lines:
        row = {
            "model": line.row.name,
            "kind": line.row.kind,
            "asked by": line.way,
            "seeds": len(line.figures),
        }
        for name in (METRIC, "ValidRatio", "HitRatio@1 valid"):
            means = [f[name]["mean"] for f in line.figures if name in f]
            row[name] = float(np.mean(means)) if len(means) == len(line.figures) else np.nan
        by_draw, by_seed = line.hits.mean(axis=(0, 2)), line.hits.mean(axis=(1, 2))
        for what, values in (("draws", by_draw), ("seeds", by_seed)):
            row[f"sd over {what}"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        out.append(row)
    return pd.DataFrame(out)


def candidate_differences(
    lines: Sequence[Line], data: InteractionData, candidates: CandidateSet, seed: int, draws: int
) -> pd.DataFrame:
    """Paired differences of HitRatio@1: every model against the baseline, and every way of asking a teacher against
    its own frozen SASRec. Per-sample hits are averaged over draws; intervals over users and seeds, Holm over all.
    """
    numbered = list(enumerate(lines))
    bases, others = ([i for i, a in numbered if (a.row.kind == "baseline") is base] for base in (True, False))
    pairs = [(i, j) for i in bases for j in others]
    pairs += [(i, j) for j, b in numbered for i, a in numbered if a.way == FROZEN != b.way and a.row is b.row]
    users, rng = data.users_of(candidates.sample_ids), numpy_stream(seed, "compare_candidates")
    found = paired([line.hits.mean(axis=1) for line in lines], pairs, users, rng, draws)
    out = [
        (lines[i].name, lines[j].name, METRIC, d.mean, d.low, d.high, d.p_value)
        for (i, j), (_, d) in zip(pairs, found, strict=True)
    ]
    table = pd.DataFrame(out, columns=["a", "b", "metric", "difference", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"]) if len(table) else [])
