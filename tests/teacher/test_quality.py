"""The quality report on a store whose figures can be worked out by hand, and on a real teacher."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.artifacts import load_manifest
from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows, TeacherStore
from src.distill.kd_losses import confidence_weights, scale_distances, weight_entropy
from src.student.config import StudentConfig
from src.teacher import quality
from src.teacher.config import ExportConfig, KnnConfig, SasrecConfig
from src.teacher.factory import build_teacher
from src.teacher.quality import (
    _by_popularity,
    confidence_entropy,
    ensure_quality,
    overlap,
    quality_folder,
    quality_report,
    write_quality,
)
from src.teacher.quality_report import markdown, of_group
from tests.compose import composed

N, L, K = 20, 2, 5
# Sample id -> (history, target, the teacher's list, SASRec's list); users follow from the offsets.
ITEMS = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.int32)
TEACHER = {
    2: [3, 9, 10, 11, 12],  # target 3 first
    3: [2, 9, 4, 11, 12],  # target 4 third; without the history (2, 3) second
    4: [9, 10, 11, 12, 13],  # misses 5
    5: [9, 6, 11, 12, 13],  # target 6 second
    6: [9, 10, 11, 12, 7],  # target 7 last
    7: [8, 10, 11, 12, 13],  # target 8 first
}
SASREC = {i: [9, 10, 11, 12, 13] for i in TEACHER}
SPLITS = {"train": np.array([2, 3, 4]), "valid": np.array([5]), "test": np.array([6, 7])}
TRAINED_ON = np.array([2, 3])


def toy() -> InteractionData:
    titles = ["", *map(str, range(1, N + 1))]
    return InteractionData("toy", "fp", ITEMS, np.arange(8), np.array([0, 8]), SPLITS, titles, titles, L, {})


def rows(lists: dict[int, list[int]], ids: np.ndarray) -> TeacherRows:
    scores = np.tile(np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.05], np.float32)), (len(ids), 1))
    rankings = np.array([lists[int(i)] for i in ids], np.int32)
    return TeacherRows(ids, rankings, scores, np.full(len(ids), -2.0, np.float32))


class Stub:
    """A model with fixed lists."""

    score_kind = "log_likelihood"

    def __init__(self, name: str, lists: dict[int, list[int]]):
        self.name, self.lists = name, lists

    def rank(self, split: str, sample_ids: np.ndarray, k: int) -> TeacherRows:
        assert k == K and np.isin(sample_ids, SPLITS[split]).all()
        return rows(self.lists, sample_ids)


def make_store(folder: Path, lists: dict[int, list[int]] = TEACHER) -> TeacherStore:
    writer = StoreWriter(folder, N, "log_likelihood", 8)
    for split, ids in SPLITS.items():
        writer.export(split, ids, lambda shard: rows(lists, shard))
    table = np.eye(N + 1, 3, -1, dtype=np.float32)
    return writer.finish(SPLITS, table, {"dataset": "toy", "dataset_fingerprint": "fp", "teacher": "stub"})


@pytest.fixture
def report(tmp_path: Path) -> dict:
    others = {"sasrec": Stub("sasrec", SASREC), "popularity": Stub("popularity", SASREC)}
    store = make_store(tmp_path / "abc")
    return quality_report(store, toy(), TRAINED_ON, others, confidence_k=3, max_rows=100, seed=0)


def test_groups_keep_trained_rows_apart(report: dict):
    sizes = {name: (g["n"], g["of"]) for name, g in report["groups"].items()}
    assert sizes == {
        "train, in sample": (2, 2),
        "train, out of sample": (1, 1),
        "valid, out of sample": (1, 1),
        "test, out of sample": (2, 2),
    }
    assert report["trained_on"] == 2


def test_hand_worked_figures(report: dict):
    own = {name: of_group(report, name)["stub"] for name in report["groups"]}
    seen = own["train, in sample"]  # ranks 1 and 3; without the history 1 and 2
    assert seen["HitRatio@1", ""] == 0.5 and seen["HitRatio@3", ""] == 1.0
    assert seen["NDCG@3", ""] == pytest.approx((1 + 0.5) / 2)
    assert seen["NDCG@3", "excl."] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert own["train, out of sample"]["contains target", ""] == 0.0
    test = own["test, out of sample"]  # ranks 5 and 1
    assert test["contains target", ""] == 1.0
    assert test["NDCG@5", ""] == pytest.approx((1 / math.log2(6) + 1) / 2)
    assert test["mean target score", ""] == -2.0
    others = of_group(report, "test, out of sample")
    assert others["sasrec"]["contains target", ""] == others["popularity"]["NDCG@5", ""] == 0.0


def test_no_figure_beyond_the_lists(report: dict):
    figures = of_group(report, "train, in sample")["stub"]

    def largest(part: str) -> int:
        return max(int(m.partition("@")[2]) for m, p in figures if p == part and m.startswith("HitRatio"))

    assert largest("") == K
    # sample 2 lists nothing of its history 1, 2; sample 3 lists the 2 of 2, 3: one list keeps four items
    assert largest("excl.") == 3, "the largest K up to 4"


def test_overlap_with_sasrec(report: dict):
    """Of [9 10 11 12 7] four, of [8 10 11 12 13] four are among SASRec's 9..13."""
    models = of_group(report, "test, out of sample")
    assert models["stub"]["overlap5 with sasrec", ""] == pytest.approx(0.8)
    assert models["sasrec"]["overlap5 with sasrec", ""] == 1.0
    assert [m for m, _ in models["stub"] if m.startswith("overlap")] == ["overlap5 with sasrec"]
    a, b = np.array([[1, 2], [3, 4]]), np.array([[2, 9], [1, 2]])
    assert overlap(a, b) == 0.25, "items count within their own row only"


def test_confidence_entropy_is_that_of_the_distillation(report: dict):
    for scaling, kind in (("minmax", "log_likelihood"), ("none", "log_likelihood"), ("none", "distance")):
        sign = -1 if kind == "log_likelihood" else 1
        scores = sign * np.sort(np.random.default_rng(0).gamma(2.0, 8.0, (50, 10)), axis=1)
        distances = scale_distances(torch.from_numpy(sign * scores), scaling)
        expected = weight_entropy(confidence_weights(distances)).numpy()
        np.testing.assert_allclose(confidence_entropy(scores, kind, scaling), expected, rtol=1e-9)
    equal = confidence_entropy(np.full((1, 4), -3.0), "log_likelihood", "minmax")
    assert equal.tolist() == pytest.approx([1.0])
    # Raw -log p of .4 .2 .2: weights 1/2 1/4 1/4, entropy 1.5 bits of log2(3).
    got = of_group(report, "test, out of sample")["stub"]
    assert (
        got["confidence entropy, none", ""]
        == got["confidence entropy, none", "p50"]
        == pytest.approx(1.5 / math.log2(3), abs=1e-6)
    )


def test_large_groups_are_drawn_from_by_seed(tmp_path: Path):
    store, others = make_store(tmp_path / "abc"), {"sasrec": Stub("sasrec", SASREC)}
    how = {"confidence_k": 3, "max_rows": 1}
    one, again, other = (quality_report(store, toy(), TRAINED_ON, others, **how, seed=s) for s in (1, 1, 4))
    assert one == again and one["groups"]["test, out of sample"]["n"] == 1
    assert one["groups"]["test, out of sample"]["of"] == 2
    assert one["figures"] != other["figures"], "seeds 1 and 4 draw different rows of two"


def test_more_candidates_than_listed(tmp_path: Path):
    with pytest.raises(UserError, match="confidence_k=6; expected <= top_k 5"):
        quality_report(make_store(tmp_path / "a"), toy(), TRAINED_ON, {}, confidence_k=6, max_rows=9, seed=0)


def test_written_beside_the_store(report: dict, tmp_path: Path):
    folder = quality_folder(tmp_path / "abc")
    write_quality(folder, report)
    assert folder.name == "abc.quality" and folder.parent == tmp_path
    manifest = load_manifest(folder, {"store": "abc", "teacher": "stub", "dataset_fingerprint": "fp"}, "x")
    assert set(manifest["files"]) == {"quality.json", "quality.md", "quality.png", "quality.svg"}
    assert json.loads((folder / "quality.json").read_text()) == report
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")
    TeacherStore(tmp_path / "abc", "fp")  # the store itself is as it was


def test_a_store_exported_anew_gets_a_report_of_its_own(tmp_path: Path, monkeypatch):
    """Under the same fingerprint: the store was deleted, and a teacher of other weights filled it."""
    monkeypatch.setattr(quality, "references", lambda *a: {"sasrec": Stub("sasrec", SASREC)})
    how = {"export": None, "seed": 0, "encoder": None}
    store = make_store(tmp_path / "abc")
    folder = ensure_quality(store, toy(), TRAINED_ON, **how)
    first, written = (folder / "quality.json").read_text(), folder.stat().st_mtime_ns
    assert ensure_quality(store, toy(), TRAINED_ON, **how).stat().st_mtime_ns == written, "kept"
    shutil.rmtree(store.folder)
    anew = make_store(tmp_path / "abc", SASREC)
    ensure_quality(anew, toy(), TRAINED_ON, **how)
    second = json.loads((folder / "quality.json").read_text())
    assert second != json.loads(first)
    models = {m: without_confidence(f) for m, f in of_group(second, "test, out of sample").items()}
    assert models["stub"] == models["sasrec"], "the new rows are SASRec's"


def without_confidence(figures: dict) -> dict:
    return {c: v for c, v in figures.items() if not c[0].startswith("confidence")}


def test_markdown_says_what_the_numbers_are(report: dict):
    text = markdown(report)
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    for table in blocks:
        assert {line.count("|") for line in table} == {table[0].count("|")}, "every row as wide as its head"
    assert len(blocks) == 2 * len(report["groups"]) and "by training count of the target" in text
    assert "## train, in sample: 2 samples\n" in text
    assert "NDCG@1 of stub is" not in text, "nothing is divided by a zero"
    drawn = {"test, out of sample": {"n": 2, "of": 77}}
    assert "2 samples, drawn from 77" in markdown({**report, "groups": drawn})


def test_of_a_real_teacher(demo_data: InteractionData, roots: Path):
    splits = ("train", "valid", "test")
    export = ExportConfig(splits=splits, top_k=30, train_share=1.0, shard_size=512, batch_size=256)
    teacher = build_teacher(
        KnnConfig(
            name="knn",
            kind="knn",
            seed=1,
            decay=0.8,
            damping=0.45,
            floor=0.01,
            leave_one_out=False,
            dim=8,
            export=export,
        ),
        demo_data,
    )
    teacher.prepare(None)
    writer = StoreWriter(roots / "fp", demo_data.n_items, teacher.score_kind, export.shard_size)
    for split, ids in demo_data.splits.items():
        writer.export(split, ids, lambda shard, split=split: teacher.rank(split, shard, 30))
    fields = {"dataset": "demo", "dataset_fingerprint": demo_data.fingerprint, "teacher": "knn"}
    store = writer.finish(dict(demo_data.splits), teacher.item_embeddings(), fields)

    folder = ensure_quality(store, demo_data, teacher.train_sample_ids(), export, 1, encoder())
    report = json.loads((folder / "quality.json").read_text())
    assert set(report["groups"]) == {"train, in sample", "valid, out of sample", "test, out of sample"}
    models = {name: of_group(report, name) for name in report["groups"]}
    assert all(list(m) == ["knn", "sasrec", "popularity", "tfidf"] for m in models.values())
    ndcg = {name: m["knn"]["NDCG@10", ""] for name, m in models.items()}
    assert ndcg["train, in sample"] > ndcg["test, out of sample"], "a co-occurrence model knows its own rows"
    written = (folder / "quality.json").stat().st_mtime_ns
    assert ensure_quality(store, demo_data, teacher.train_sample_ids(), export, 1, None) == folder
    assert (folder / "quality.json").stat().st_mtime_ns == written, "a report that is there is kept"


def encoder() -> StudentConfig:
    """`conf/teacher/sasrec.yaml`'s, small."""
    small = [f"teacher.encoder.{o}" for o in ("max_epochs=2", "width=8", "heads=1", "device=cpu")]
    values = composed("teacher", "teacher=sasrec", "seed=1", *small)
    return build_or_raise(SasrecConfig, values, "teacher").encoder


def test_slices_by_the_targets_training_count():
    ranked, counts = np.array([1, 3, 2, 50, 1]), np.array([0, 1, 4, 5, 20])
    found = list(_by_popularity(ranked, counts, 100))
    assert {metric for metric, _, _ in found} == {"NDCG@20 by training count of the target"}
    values = {part: value for _, part, value in found}
    assert list(values) == ["0 (n 1)", "1–4 (n 2)", "5–19 (n 1)", "20+ (n 1)"]
    assert values["1–4 (n 2)"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(3)) / 2)
    assert values["0 (n 1)"] == 1.0 and values["5–19 (n 1)"] == 0.0
    empty = list(_by_popularity(ranked[1:2], counts[1:2], 7))  # empty slices are not shown
    assert [part for _, part, _ in empty] == ["1–4 (n 1)"]
