"""The comparison: hand-worked tables and differences from written runs, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.core.artifacts import write_manifest
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.metrics import MISSED, EvalConfig, Ranks
from src.core.run import Run
from src.exp import compare, report
from src.exp.examples import costs
from src.exp.results import record, report_again
from src.exp.tables import differences, long_table, metric_table, pairs_of, slice_table, slices
from src.exp.verdict import verdicts

EVAL = EvalConfig(ks=(1, 10), select_metric="NDCG@10", exclude_history=False, batch_size=10, candidates=None)
METRICS = ("NDCG@10", "Recall@1")


def write_run(
    folder: Path,
    stage: str,
    data: InteractionData,
    rank: int,
    seed: int = 0,
    lists: int | None = None,
    **extra: Any,
) -> Path:
    """A completed run whose model puts every target at `rank`, one better without the history, two without the past."""

    def ranks(split: str) -> Ranks:
        n, lengths = len(data.splits[split]), {} if lists is None else {"history_excluded": lists - 2}
        by_convention = (np.full(n, max(rank - less, 1), np.int32) for less in range(3))
        return Ranks(data.splits[split], *by_convention, lengths)

    run = Run.start(folder, stage, f"{stage}{seed}{rank}", seed)
    record(run, data, EVAL, seed, ranks("valid"), ranks("test"), extra)
    run.write_times(**({"teacher_train_time_total": 2.0} if stage == "teacher" else {}))
    run.status("completed")
    run.close()
    return folder


def seal(folder: Path, stage: str, fingerprint: str) -> None:
    """The manifest of changed metrics, as if they had been written so."""
    write_manifest(folder / "metrics", {"stage": stage, "fingerprint": fingerprint})


@pytest.fixture
def rows(demo_data: InteractionData, tmp_path: Path) -> list[compare.Row]:
    base = [write_run(tmp_path / f"b{s}", "student_baseline", demo_data, rank=3, seed=s) for s in (0, 1)]
    teacher = write_run(tmp_path / "t", "teacher", demo_data, rank=1, lists=11, teacher_fingerprint="f1")
    student = write_run(tmp_path / "d", "distill", demo_data, rank=2, teacher_fingerprint="f1")
    named = {"base": base, "llm": [teacher], "small": [student]}
    return [compare.load_row(name, runs, demo_data) for name, runs in named.items()]


@pytest.fixture
def long(rows: list[compare.Row], demo_data: InteractionData) -> pd.DataFrame:
    return long_table(rows, demo_data, EVAL.ks, ("NDCG@10",))


def test_table_by_hand(long: pd.DataFrame) -> None:
    table = metric_table(long, "history_ranked").set_index("model")
    # rank 3: gain 1 / log2(4); rank 2: 1 / log2(3); one relevant item each
    assert table.loc["base", "NDCG@10"] == pytest.approx(0.5)
    assert table.loc["base", "NDCG@10 sd"] == 0.0 and table.loc["base", "seeds"] == 2
    assert table.loc["small", "NDCG@10"] == pytest.approx(1 / np.log2(3))
    assert table.loc["llm", "Recall@1"] == 1.0 and table.loc["base", "Recall@1"] == 0.0
    assert table.loc["llm", "teacher_train_time_total"] == 2.0 and list(table.index) == [
        "base",
        "llm",
        "small",
    ]
    # lists of 11 less 2 history items: no metric beyond K = 9
    excluded = metric_table(long, "history_excluded").set_index("model")
    assert np.isnan(excluded.loc["llm", "NDCG@10"])
    assert excluded.loc["base", "NDCG@10"] == pytest.approx(1 / np.log2(3))
    past = metric_table(long, "past_excluded").set_index("model")
    assert past.loc["base", "NDCG@10"] == 1.0, "rank 3, two better without the past"


def test_other_list_lengths_are_read_from_the_ranks(
    rows: list[compare.Row], demo_data: InteractionData, caplog: pytest.LogCaptureFixture
) -> None:
    """`eval.ks` and `eval.exclude_history` are only reported: a finished run answers for any."""
    table = metric_table(long_table(rows, demo_data, (2, 3), ("NDCG@2",)), "history_ranked").set_index(
        "model"
    )
    assert (table.loc["base", "Recall@2"], table.loc["base", "Recall@3"]) == (0.0, 1.0)
    caplog.set_level("INFO")
    other = replace(EVAL, ks=(2,), select_metric="NDCG@2", exclude_history=True)
    report_again(rows[0].runs[0].folder, other)
    assert "test, history excluded: Recall@2 1.0000, NDCG@2 0.6309, HitRatio@2 1.0000" in caplog.text


def test_differences_by_hand(rows: list[compare.Row], demo_data: InteractionData) -> None:
    pairs = differences(rows, demo_data, METRICS, 1, 200)
    found = pairs[(pairs.a == "base") & (pairs.b == "small") & (pairs.metric == "NDCG@10")]
    ranked = found[found.history == "history_ranked"].iloc[0]
    gain = 1 / np.log2(3) - 0.5
    assert (ranked.difference, ranked.low, ranked.high) == pytest.approx((gain, gain, gain))
    assert ranked.relative == pytest.approx(gain / 0.5) and (ranked.runs_a, ranked.runs_b) == (2, 1)
    assert ranked.p == 0.0 and set(pairs.history) == {"history_ranked", "history_excluded", "past_excluded"}
    assert not (
        (pairs.b == "llm") & (pairs.metric == "NDCG@10") & (pairs.history == "history_excluded")
    ).any()
    assert ((pairs.a == "llm") & (pairs.b == "small")).any(), "a student and its teacher, by fingerprint"


def test_the_family_is_what_is_claimed(rows: list[compare.Row], demo_data: InteractionData) -> None:
    """Holm over the metrics of one pair and convention, however many other rows stand in the table."""
    rng = np.random.default_rng(0)
    noisy = [replace(r, ranks={c: rng.integers(1, 30, v.shape) for c, v in r.ranks.items()}) for r in rows]
    few, many = (differences(rs, demo_data, METRICS, 1, 200) for rs in (noisy[::2], [*noisy, *noisy[1:]]))
    for _, line in few.iterrows():
        same = many[(many.history == line.history) & (many.a == line.a) & (many.b == line.b)]
        assert line.p <= line.p_holm <= 2 * line.p + 1e-12
        assert (same[same.metric == line.metric].p_holm <= 2 * line.p + 0.05).all()


def test_what_is_compared(demo_data: InteractionData, tmp_path: Path) -> None:
    """Nothing is read from names: two students of one teacher are told from that of another by fingerprints."""
    made = [
        ("x", "student_baseline", {}),
        ("text", "student_baseline", {}),
        ("A <- B", "teacher", {"teacher_fingerprint": "1"}),
        ("own", "distill", {"teacher_fingerprint": "1"}),
        ("A", "distill", {"teacher_fingerprint": "2"}),
    ]
    rows = [
        compare.load_row(name, [write_run(tmp_path / str(i), stage, demo_data, 3, **extra)], demo_data)
        for i, (name, stage, extra) in enumerate(made)
    ]
    found = [(a.name, b.name) for a, b in pairs_of(rows)]
    assert found == [("x", b) for b in ("text", "A <- B", "own", "A")] + [
        ("A <- B", "own"),
        ("text", "own"),
        ("A", "own"),
    ]


def seeded(
    demo_data: InteractionData, folder: Path, ranks: dict[str, int], seeds: int = 3
) -> list[compare.Row]:
    """Rows whose models put every target at a rank; names say what the rows are, for these tests only."""
    controls = {"control": "shuffle_rankings", "control b": "permute_embeddings"}
    rows = []
    for number, (name, rank) in enumerate(ranks.items()):
        stage = "student_baseline" if name in ("base", "text") else "distill"
        extra = {"control": controls.get(name, "none"), "teacher_fingerprint": "k" if name == "knn" else "l"}
        made = [write_run(folder / f"{number}-{s}", stage, demo_data, rank, s, **extra) for s in range(seeds)]
        rows.append(compare.load_row(name, made, demo_data))
    return rows


@pytest.mark.parametrize(
    "ranks, seeds, said",
    [
        (
            {"base": 3, "own": 2, "control": 3, "part": 2},
            3,
            r"\(\+0.1309, .*controls: control 0.5000\): a gain$",
        ),
        ({"base": 3, "own": 2, "control": 3, "knn": 3}, 3, "a gain$"),
        ({"base": 3, "own": 2, "control": 3, "knn": 2}, 3, "a gain, not shown to be more than that of knn$"),
        (
            {"base": 3, "own": 2, "control": 3, "text": 2},
            3,
            "a gain, not shown to be more than that of text$",
        ),
        ({"base": 3, "own": 2, "control": 3, "control b": 3}, 3, "a gain$"),
        (
            {"base": 3, "own": 2, "control": 3, "control b": 2},
            3,
            "no gain shown: it is not better than control b$",
        ),
        ({"base": 3, "own": 2, "control": 2}, 3, "no gain shown: it is not better than control$"),
        ({"base": 3, "own": 2, "part": 3}, 3, "no gain can be shown: no control in the table"),
        ({"base": 3, "own": 2, "control": 3}, 2, "no gain can be shown: 2 of 3 seeds"),
        ({"base": 2, "own": 2, "control": 3}, 3, "no gain shown: the interval holds 0; p is not below 0.05"),
        ({"base": 2, "own": 3, "control": 3}, 3, r"\(-0.1309.*: a loss$"),
    ],
)
def test_a_gain_needs_interval_seeds_and_controls(
    demo_data: InteractionData, tmp_path: Path, ranks: dict[str, int], seeds: int, said: str
) -> None:
    rows = seeded(demo_data, tmp_path, ranks, seeds)
    pairs = differences(rows, demo_data, ("NDCG@10",), 1, 200)
    (line,) = verdicts(rows, pairs, ("NDCG@10",), "history_ranked")
    assert re.search(said, line), line


def test_a_control_of_what_the_student_does_not_read_is_none(
    demo_data: InteractionData, tmp_path: Path
) -> None:
    """Embeddings were permuted for a student that reads rankings alone: it loses nothing, and is asked nothing."""
    rows = seeded(demo_data, tmp_path, {"base": 3, "own": 2, "control": 3, "control b": 2})
    own = replace(rows[1], metrics=tuple({**m, "knowledge": ["rankings"]} for m in rows[1].metrics))
    rows = [rows[0], own, *rows[2:]]
    pairs = differences(rows, demo_data, ("NDCG@10",), 1, 200)
    (line,) = verdicts(rows, pairs, ("NDCG@10",), "history_ranked")
    assert line.endswith("controls: control 0.5000): a gain")


def test_a_gain_can_be_said_with_few_draws_and_many_metrics(
    demo_data: InteractionData, tmp_path: Path
) -> None:
    """With noise of users and seeds, ten metrics and 200 draws: a large effect is one after Holm."""
    rows = seeded(demo_data, tmp_path, {"base": 3, "own": 3, "control": 3})
    rng, sure = np.random.default_rng(0), {"base": 30, "own": 6, "control": 30}
    rows = [
        replace(r, ranks={c: rng.integers(1, sure[r.name], v.shape) for c, v in r.ranks.items()})
        for r in rows
    ]
    metrics = [f"{name}@{k}" for name in ("NDCG", "Recall") for k in (1, 3, 5, 10, 20)]
    pairs = differences(rows, demo_data, metrics, 1, 200)
    said = verdicts(rows, pairs, metrics, "history_ranked")
    assert [line.endswith("): a gain") for line in said] == [True] * 10, said


def test_worse_by_chance_is_no_loss(demo_data: InteractionData, tmp_path: Path) -> None:
    rows = seeded(demo_data, tmp_path, {"base": 2, "own": 3, "control": 3})
    pairs = differences(rows, demo_data, ("NDCG@10",), 1, 200).assign(p_holm=0.2)
    (line,) = verdicts(rows, pairs, ("NDCG@10",), "history_ranked")
    assert "no gain shown: the interval lies below 0; p is not below 0.05" in line


def test_no_verdict_on_a_control_or_without_a_student(demo_data: InteractionData, tmp_path: Path) -> None:
    for ranks in ({"base": 3, "control": 2}, {"base": 3}, {"own": 3}):
        rows = seeded(demo_data, tmp_path / "-".join(ranks), ranks)
        pairs = differences([*rows, *rows[:1]], demo_data, ("NDCG@10",), 1, 200)
        assert verdicts(rows, pairs, ("NDCG@10",), "history_ranked") == []


def test_slices_cover_the_test_split(long: pd.DataFrame, demo_data: InteractionData) -> None:
    masks, n = slices(demo_data), len(demo_data.splits["test"])
    for group in {group for group, _ in masks}:
        assert sum(mask.sum() for (g, _), mask in masks.items() if g == group) == n, group
    counts = demo_data.train_counts()[demo_data.targets(demo_data.splits["test"])]
    for name, inside in (
        *(("0", counts == 0), ("1–4", (counts >= 1) & (counts <= 4))),
        *(("20–99", (counts >= 20) & (counts < 100)), ("100+", counts >= 100)),
    ):
        found = masks.get(("training targets of the item", name), np.zeros(n, bool))
        np.testing.assert_array_equal(found, inside)
    table = slice_table(long, "NDCG@10", "history_ranked")
    assert np.allclose(table["base"], 0.5) and len(table) == 1 + len(masks), "the whole and its slices"


def test_report_files(
    rows: list[compare.Row], long: pd.DataFrame, demo_data: InteractionData, tmp_path: Path
):
    folder = Run.start(tmp_path / "e", "eval_all", "").dir
    pairs = differences(rows, demo_data, METRICS, 1, 200)
    found = report.Comparison(
        rows, "history_ranked", METRICS[:1], long, pairs, None, costs(rows, demo_data), ["so it is"]
    )
    report.write_report(folder, found, demo_data)
    text = (folder / "metrics" / "comparison.md").read_text()
    assert "| metric | base | llm | small |" in text and "| NDCG@10 | 0.5000 | 1.0000 | 0.6309 |" in text
    assert "- so it is" in text and "| base | baseline | 2 | 0.5000 |" in found.summary
    written = pd.read_csv(folder / "metrics" / "results.csv", na_filter=False)
    assert len(written) == len(long)
    for plot in ("comparison", "differences", "by_k", "slices"):
        assert (folder / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "plots" / f"{plot}.svg").read_text()


def test_run_of_another_dataset(rows: list[compare.Row], demo_data: InteractionData) -> None:
    run = rows[0].runs[0]
    metrics = run.folder / "metrics" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(demo_data.fingerprint, "0" * 12))
    with pytest.raises(UserError, match="metrics.json does not have the hash of its manifest"):
        compare.load_row("x", [run.folder], demo_data)
    seal(run.folder, run.stage, run.fingerprint)
    with pytest.raises(UserError, match="000000000000.*expected.*compare.runs.x"):
        compare.load_row("x", [run.folder], demo_data)


def test_run_with_other_samples(rows: list[compare.Row], demo_data: InteractionData) -> None:
    run = rows[0].runs[0]
    ids = run.folder / "metrics" / "test_sample_ids.npy"
    np.save(ids, np.load(ids)[:-1])
    seal(run.folder, run.stage, run.fingerprint)
    with pytest.raises(UserError, match="other samples"):
        compare.load_row("x", [run.folder], demo_data)


def test_three_seeds_are_three_runs(
    rows: list[compare.Row], demo_data: InteractionData, tmp_path: Path
) -> None:
    base = rows[0].runs
    for folders, says in (
        ([base[0].folder] * 3, "3 runs with fingerprint student_baseline03.*one per seed.*compare.runs.x"),
        ([write_run(tmp_path / "s", "student_baseline", demo_data, 4), base[0].folder], "2 runs with seed 0"),
        ([base[0].folder, rows[2].runs[0].folder], "runs of distill and student_baseline in one row"),
    ):
        with pytest.raises(UserError, match=says):
            compare.load_row("x", folders, demo_data)


def test_unfinished_run(rows: list[compare.Row], demo_data: InteractionData) -> None:
    run = Run(rows[0].runs[0].folder, "student_baseline", "")
    run.status("interrupted")
    with pytest.raises(UserError, match="'interrupted'; expected a completed run"):
        compare.load_row("x", [run.dir], demo_data)


def test_missed_targets_count_as_zero() -> None:
    ranks = {"history_ranked": np.array([[1, MISSED], [2, MISSED]])}
    row = compare.Row("x", "baseline", (), (), ranks)
    assert row.values("Recall@1", "history_ranked").tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_table_of_runs_in_tensorboard(rows: list[compare.Row]) -> None:
    """The event files, read back: final figures and settings of the run, no card of a single test point."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(rows[2].runs[0].folder / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        f"4_final/{name}" for name in ("test NDCG@1", "test NDCG@10", "valid NDCG@10")
    }
    assert events.Scalars("4_final/test NDCG@10")[0].value == pytest.approx(1 / np.log2(3))
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    found = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert found["stage"].string_value == "distill" and found["seed"].number_value == 0
