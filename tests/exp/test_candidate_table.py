"""The table among few candidates: by hand from written runs, and what it leaves out or refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.core.artifacts import read_json, write_json
from src.core.candidates import CandidateConfig, CandidateSet, Choices, Written, load_candidates
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.run import Run
from src.exp import compare, report
from src.exp.candidate_table import candidate_differences, candidate_report, candidate_table, find_lines
from src.exp.examples import costs
from src.exp.results import record_choices
from src.exp.tables import differences, long_table
from tests.exp.test_compare import METRICS, seal, write_run


@pytest.fixture
def candidates(demo_data: InteractionData, roots: Path) -> CandidateSet:
    found = load_candidates(CandidateConfig(10, 2, 8, 0), demo_data)
    assert found is not None
    return found


def chosen(*right: int, valid: int = 8, written: tuple[Written, ...] = ()) -> Choices:
    """Two draws; `right[d]` of the 8 answers of draw d hit, and `valid` are valid."""
    rows = np.arange(8)
    hits = np.stack([rows < n for n in right])
    return Choices(hits, np.stack([rows < valid] * len(right)), written)


def choose(folder: Path, stage: str, seed: int, data, candidates: CandidateSet, choices: dict) -> None:
    """Add these choices to a run."""
    record_choices(Run(folder, stage, ""), data, candidates, choices)
    seal(folder, stage, f"{stage}{seed}2")


@pytest.fixture
def rows(demo_data: InteractionData, candidates: CandidateSet, tmp_path: Path) -> list[compare.Row]:
    def row(name: str, stage: str, *choices: dict[str, Choices]) -> compare.Row:
        folders = []
        for seed, own in enumerate(choices):
            folder = write_run(tmp_path / f"{stage}{seed}", stage, demo_data, 2, seed, teacher="llm")
            choose(folder, stage, seed, demo_data, candidates, own)
            folders.append(folder)
        return compare.load_row(name, folders, demo_data)

    shown = (
        Written(5, "… Picked:", " The <b>Thing\n", None, "Alien"),
        Written(6, "Picked:", "Alien", "Alien", "Alien"),
    )
    ways = {
        "generation": chosen(4, 2, valid=6, written=shown),
        "likelihood": chosen(4, 4),
        "frozen_sasrec": chosen(6, 6),
    }
    return [
        row("base", "student_baseline", {"scores": chosen(4, 2)}, {"scores": chosen(2, 0)}),
        row("teacher llm", "teacher", ways),
        row("base <- llm", "distill", {"scores": chosen(8, 8)}, {"scores": chosen(8, 8)}),
    ]


def test_table_by_hand(rows, candidates):
    table = candidate_table(find_lines(rows, candidates)).set_index(["model", "asked by"])
    base = table.loc["base", "scores"]
    # seed 0: 4/8 and 2/8, seed 1: 2/8 and 0/8; per draw over seeds 3/8 and 1/8
    assert base["HitRatio@1"] == pytest.approx((3 / 8 + 1 / 8) / 2) and base["seeds"] == 2
    assert base["sd over draws"] == pytest.approx(np.std([3 / 8, 1 / 8], ddof=1))
    assert base["sd over seeds"] == pytest.approx(np.std([3 / 8, 1 / 8], ddof=1))
    assert base["ValidRatio"] == 1.0
    generated = table.loc["teacher llm", "generation"]
    assert generated["HitRatio@1"] == pytest.approx(3 / 8) and generated["ValidRatio"] == pytest.approx(6 / 8)
    assert generated["HitRatio@1 valid"] == pytest.approx((4 / 6 + 2 / 6) / 2)
    assert generated["kind"] == "teacher" and np.isnan(generated["sd over seeds"]), "one run"
    assert ("teacher llm", "frozen_sasrec") in table.index


def test_differences_by_hand(rows, candidates, demo_data):
    pairs = candidate_differences(find_lines(rows, candidates), demo_data, candidates, 1, 200)
    pairs = pairs.set_index(["a", "b"])["difference"]
    assert pairs["base", "base <- llm"] == pytest.approx(1 - 2 / 8)
    assert pairs["base", "teacher llm, generation"] == pytest.approx(1 / 8)
    assert pairs["base", "frozen SASRec of llm"] == pytest.approx(6 / 8 - 2 / 8)
    # a teacher against its own SASRec, by every way of asking it
    assert pairs["frozen SASRec of llm", "teacher llm, generation"] == pytest.approx(3 / 8 - 6 / 8)
    assert pairs["frozen SASRec of llm", "teacher llm, likelihood"] == pytest.approx(4 / 8 - 6 / 8)
    assert len(pairs) == 6


def test_report_and_files(rows, candidates, demo_data, tmp_path):
    metrics = rows[1].runs[0].folder / "metrics"
    assert np.load(metrics / "candidate_hits_generation.npy").tolist() == chosen(4, 2).hits.tolist()
    np.testing.assert_array_equal(np.load(metrics / "candidate_sample_ids.npy"), candidates.sample_ids)
    text = (metrics / "generated.md").read_text()
    assert "## sample 5: invalid" in text and "- written: `The <b>Thing`" in text
    assert "## sample 6: right" in text and "- target: Alien" in text
    among = candidate_report(rows, demo_data, candidates, 1, 200)
    long = long_table(rows, demo_data, (1, 10), METRICS)
    pairs = differences(rows, demo_data, METRICS, 1, 200)
    folder = Run.start(tmp_path / "e", "eval_all", "").dir
    found = report.Comparison(rows, "history_ranked", METRICS, long, pairs, among, costs(rows, demo_data), ())
    report.write_report(folder, found, demo_data)
    text = (folder / "metrics" / "comparison.md").read_text()
    assert "## Test, 10 candidates (8 samples x 2 draws)" in text
    assert "| teacher llm | teacher | generation | 1 | 0.3750 | 0.7500 | 0.5000 |" in text
    assert "| frozen SASRec of llm | teacher llm, likelihood | HitRatio@1 | -0.2500 |" in text
    for name in ("table", "differences"):
        assert (folder / "metrics" / f"{name}_candidates.csv").read_text().count("\n") > 4


def test_runs_that_were_asked_about_other_candidates_are_left_out(rows, candidates, demo_data):
    other = load_candidates(CandidateConfig(10, 2, 8, 1), demo_data)
    assert find_lines(rows, other) == []
    student = rows[2].runs[1]
    (student.folder / "metrics" / "candidates.json").unlink()
    seal(student.folder, student.stage, student.fingerprint)
    again = compare.load_row("base <- llm", [run.folder for run in rows[2].runs], demo_data)
    found = find_lines([*rows[:2], again], candidates)
    assert {line.row.name for line in found} == {"base", "teacher llm"}


def test_hits_of_another_shape_are_refused(rows, candidates):
    file = rows[0].runs[0].folder / "metrics" / "candidate_hits_scores.npy"
    np.save(file, np.load(file)[:, :-1])
    with pytest.raises(UserError, match=r"bool \(2, 7\); expected bool \(2, 8\), draws x samples"):
        find_lines(rows, candidates)


def test_one_draw_has_no_sd(rows, candidates, demo_data, tmp_path):
    one = replace(candidates, items=candidates.items[:1])
    folder = write_run(tmp_path / "one", "teacher", demo_data, rank=2)
    choose(folder, "teacher", 0, demo_data, one, {"scores": chosen(3)})
    table = candidate_table(find_lines([compare.load_row("t", [folder], demo_data)], one))
    assert table["HitRatio@1"].item() == 3 / 8 and np.isnan(table["sd over draws"].item())


@pytest.mark.parametrize("ways", [None, [], {"telepathy": {}}, {"scores": {"HitRatio@1": {"mean": "high"}}}])
def test_figures_that_cannot_be_read_are_refused(rows, candidates, ways):
    file = rows[0].runs[0].folder / "metrics" / "candidates.json"
    write_json(file, {**read_json(file), "ways": ways})
    with pytest.raises(UserError, match=r"candidates\.json: figures that cannot be read"):
        find_lines(rows, candidates)
