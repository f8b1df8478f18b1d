"""The comparison: hand-worked tables and differences from written runs, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.metrics import MISSED, EvalConfig
from src.core.run import Run
from src.exp import compare, report
from src.exp.results import record
from src.exp.verdict import verdicts

EVAL = EvalConfig(ks=(1, 10), select_metric="NDCG@10", exclude_history=False, batch_size=10, candidates=None)


@dataclass(frozen=True)
class FixedRanks:
    ranked: np.ndarray
    history_excluded: np.ndarray


def write_run(
    folder: Path, stage: str, data: InteractionData, rank: int, seed: int = 0, lists: int | None = None
) -> Path:
    """A completed run whose model puts every target at `rank` (one better without the history)."""

    def ranks(split: str) -> FixedRanks:
        n = len(data.splits[split])
        return FixedRanks(np.full(n, rank, np.int32), np.full(n, max(rank - 1, 1), np.int32))

    run = Run.start(folder, stage, f"{stage}{seed}")
    lengths = (lists, lists - 2 if lists else None)
    record(run, data, EVAL, seed, ranks("valid"), ranks("test"), lengths)
    run.write_times(**({"teacher_train_time_total": 2.0} if stage == "teacher" else {}))
    run.status("completed")
    run.close()
    return folder


def settings(**changes: object) -> SimpleNamespace:
    compare_config = SimpleNamespace(metrics=("NDCG@10", "Recall@1"), draws=200, runs=None)
    return SimpleNamespace(seed=1, compare=SimpleNamespace(**{**vars(compare_config), **changes}))


@pytest.fixture
def rows(demo_data: InteractionData, tmp_path: Path) -> list[compare.Row]:
    base = [write_run(tmp_path / f"b{s}", "student_baseline", demo_data, rank=3, seed=s) for s in (0, 1)]
    teacher = write_run(tmp_path / "t", "teacher", demo_data, rank=1, lists=11)
    student = write_run(tmp_path / "d", "distill", demo_data, rank=2)
    named = {"base": base, "llm": [teacher], "base <- llm": [student]}
    return [compare.load_row(name, runs, demo_data) for name, runs in named.items()]


def test_table_by_hand(rows: list[compare.Row]) -> None:
    table = compare.metric_table(rows, "history_ranked").set_index("model")
    # rank 3: gain 1 / log2(4); rank 2: 1 / log2(3); one relevant item each
    assert table.loc["base", "NDCG@10"] == pytest.approx(0.5)
    assert table.loc["base", "NDCG@10 sd"] == 0.0 and table.loc["base", "seeds"] == 2
    assert table.loc["base <- llm", "NDCG@10"] == pytest.approx(1 / np.log2(3))
    assert table.loc["llm", "Recall@1"] == 1.0 and table.loc["base", "Recall@1"] == 0.0
    assert table.loc["llm", "teacher_train_time_total"] == 2.0
    # lists of 11 less 2 history items: no metric beyond K = 9
    excluded = compare.metric_table(rows, "history_excluded").set_index("model")
    assert np.isnan(excluded.loc["llm", "NDCG@10"]) and excluded.loc["base", "NDCG@10"] == pytest.approx(
        1 / np.log2(3)
    )


def test_differences_by_hand(rows: list[compare.Row], demo_data: InteractionData) -> None:
    pairs = compare.differences(rows, demo_data, settings())
    found = pairs[(pairs.a == "base") & (pairs.b == "base <- llm") & (pairs.metric == "NDCG@10")]
    ranked = found[found.history == "history_ranked"].iloc[0]
    gain = 1 / np.log2(3) - 0.5
    assert (ranked.difference, ranked.low, ranked.high) == pytest.approx((gain, gain, gain))
    assert ranked.relative == pytest.approx(gain / 0.5)
    # every draw lies on one side: p = 2 / (draws + 1), and Holm over the family of 6
    assert ranked.p == pytest.approx(2 / 201) and ranked.p_holm >= ranked.p
    assert not (
        (pairs.b == "llm") & (pairs.metric == "NDCG@10") & (pairs.history == "history_excluded")
    ).any()
    assert ((pairs.a == "llm") & (pairs.b == "base <- llm")).any()


def seeded(
    demo_data: InteractionData, folder: Path, ranks: dict[str, int], seeds: int = 3
) -> list[compare.Row]:
    """Rows whose models put every target at a rank; `control` rows are marked as controls."""
    rows = []
    for name, rank in ranks.items():
        stage = "student_baseline" if name == "base" else "distill"
        made = [write_run(folder / f"{name}{s}", stage, demo_data, rank, seed=s) for s in range(seeds)]
        row = compare.load_row(name, made, demo_data)
        control = "shuffle_rankings" if name.startswith("control") else "none"
        rows.append(replace(row, metrics=tuple({**m, "control": control} for m in row.metrics)))
    return rows


@pytest.mark.parametrize(
    "ranks, seeds, said",
    [
        (
            {"base": 3, "own": 2, "control": 3, "part": 2},
            3,
            r"\(\+0.1309, .*controls: control 0.5000\): a gain$",
        ),
        ({"base": 3, "own": 2, "control": 3, "base <- knn": 3}, 3, "a gain$"),
        (
            {"base": 3, "own": 2, "control": 3, "base <- knn": 2},
            3,
            "a gain, not shown to be more than that of base <- knn$",
        ),
        ({"base": 3, "own": 2, "control": 3, "control b": 2}, 3, "a gain, .*more than that of control b$"),
        ({"base": 3, "own": 2, "control": 2}, 3, "no gain shown: it is not better than control$"),
        ({"base": 3, "own": 2, "part": 3}, 3, "no gain shown: no control in the table"),
        ({"base": 3, "own": 2, "control": 3}, 2, "no gain shown: 2 of 3 seeds"),
        ({"base": 2, "own": 2, "control": 3}, 3, "no gain shown: the interval holds 0; p is not below 0.05"),
        ({"base": 2, "own": 3, "control": 3}, 3, r"\(-0.1309.*: a loss$"),
    ],
)
def test_a_gain_needs_interval_seeds_and_controls(
    demo_data: InteractionData, tmp_path: Path, ranks: dict[str, int], seeds: int, said: str
) -> None:
    rows = seeded(demo_data, tmp_path, ranks, seeds)
    pairs = compare.differences(rows, demo_data, settings(metrics=("NDCG@10",), draws=2000))
    (line,) = verdicts(rows, pairs, ("NDCG@10",), "history_ranked")
    assert re.search(said, line), line


def test_worse_by_chance_is_no_loss(demo_data: InteractionData, tmp_path: Path) -> None:
    rows = seeded(demo_data, tmp_path, {"base": 2, "own": 3})
    pairs = compare.differences(rows, demo_data, settings(metrics=("NDCG@10",))).assign(p_holm=0.2)
    (line,) = verdicts(rows, pairs, ("NDCG@10",), "history_ranked")
    assert "no gain shown: the interval lies below 0; p is not below 0.05" in line


def test_no_verdict_on_a_control_or_without_a_student(demo_data: InteractionData, tmp_path: Path) -> None:
    for ranks in ({"base": 3, "control": 2}, {"base": 3}, {"own": 3}):
        rows = seeded(demo_data, tmp_path / "-".join(ranks), ranks)
        pairs = compare.differences([*rows, *rows[:1]], demo_data, settings(metrics=("NDCG@10",)))
        assert verdicts(rows, pairs, ("NDCG@10",), "history_ranked") == []


def test_slices_cover_the_test_split(rows: list[compare.Row], demo_data: InteractionData) -> None:
    masks = compare.slices(demo_data)
    n = len(demo_data.splits["test"])
    assert masks["head items"].sum() + masks["tail items"].sum() == n
    table = compare.slice_table(rows, demo_data, "NDCG@10", "history_ranked")
    assert np.allclose(table["base"], 0.5)


def test_report_files(rows: list[compare.Row], demo_data: InteractionData, tmp_path: Path) -> None:
    folder = Run.start(tmp_path / "e", "eval_all", "").dir
    tables = {c: compare.metric_table(rows, c) for c in compare.CONVENTIONS}
    pairs = compare.differences(rows, demo_data, settings())
    report.write_report(folder, rows, demo_data, tables, pairs, {})
    text = (folder / "metrics" / "comparison.md").read_text()
    assert (
        "| metric | base | llm | base <- llm |" in text and "| NDCG@10 | 0.5000 | 1.0000 | 0.6309 |" in text
    )
    for plot in ("metrics.png", "differences.png"):
        assert (folder / "plots" / plot).read_bytes().startswith(b"\x89PNG")


def test_run_of_another_dataset(rows: list[compare.Row], demo_data: InteractionData, tmp_path: Path) -> None:
    metrics = rows[0].runs[0] / "metrics" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(demo_data.fingerprint, "0" * 12))
    with pytest.raises(UserError, match="000000000000.*expected.*compare.runs.x"):
        compare.load_row("x", [rows[0].runs[0]], demo_data)


def test_run_with_other_samples(rows: list[compare.Row], demo_data: InteractionData) -> None:
    ids = rows[0].runs[0] / "metrics" / "test_sample_ids.npy"
    np.save(ids, np.load(ids)[:-1])
    with pytest.raises(UserError, match="other samples"):
        compare.load_row("x", [rows[0].runs[0]], demo_data)


def test_unfinished_run(rows: list[compare.Row], demo_data: InteractionData) -> None:
    run = Run(rows[0].runs[0], "student_baseline", "")
    run.status("interrupted")
    with pytest.raises(UserError, match="'interrupted'; expected a completed run"):
        compare.load_row("x", [run.dir], demo_data)


def test_missed_targets_count_as_zero() -> None:
    ranks = {"history_ranked": np.array([[1, MISSED], [2, MISSED]])}
    row = compare.Row("x", "baseline", (), (), ranks)
    assert row.values("Recall@1", "history_ranked") == pytest.approx([0.5, 0.0])
