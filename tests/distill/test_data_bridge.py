"""Teacher outputs beside the student's samples: joined by id, checked, controlled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.artifacts import read_json, save_npy, write_json, write_manifest
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.teacher_store import TeacherRows, TeacherStore
from src.distill.data_bridge import join_rows, ranking_signals, scaled_vectors, teacher_item_vectors
from tests.distill.conftest import make_data, make_rows, make_settings, make_store

CPU = torch.device("cpu")


def rewrite(store: TeacherStore, name: str, array: np.ndarray) -> TeacherStore:
    """Replace an array of the store and its hash: a wrong artifact that was not damaged, but made wrong."""
    save_npy(store.folder / name, array)
    manifest = read_json(store.folder / "manifest.json")
    del manifest["files"]
    write_manifest(store.folder, manifest)
    return TeacherStore(store.folder, manifest["dataset_fingerprint"])


def test_rows_are_joined_by_sample_id_not_by_position(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 6)
    store = make_store(tmp_path / "s", small_data, rows)
    joined = join_rows(store, small_data, 4)
    assert np.array_equal(joined.sample_ids, train) and joined.rankings.shape == (len(train), 4)
    config = make_settings("distill", "dllm2rec", top_k=4)
    shuffled = np.random.default_rng(3).permutation(train)
    signals = ranking_signals(joined, shuffled, "distance", config, 0, CPU)
    for i in (0, 7, 30):
        at = int(np.flatnonzero(train == shuffled[i])[0])
        assert signals.candidates[i].tolist() == (rows.rankings[at, :4] - 1).tolist()
        d = rows.scores[at, :4].astype(float)
        q = np.exp(-(d - d.min()) / (d.max() - d.min())) + 1e-8
        np.testing.assert_allclose(signals.confidence[i].numpy(), q / q.sum(), rtol=1e-5)
    assert signals.candidates.dtype == torch.int32 and signals.weights.eq(1).all()


def test_a_log_likelihood_is_a_distance_with_its_sign_turned(
    tmp_path: Path, small_data: InteractionData
) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 5, kind="log_likelihood")
    config = make_settings("distill", "dllm2rec", top_k=5, confidence_scaling="none")
    signals = ranking_signals(rows, train, "log_likelihood", config, 0, CPU)
    expected = np.exp(rows.scores[4].astype(float))
    np.testing.assert_allclose(signals.confidence[4].numpy(), expected / expected.sum(), rtol=1e-5)


def test_target_confidence_is_one_value_per_sample(small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 5)
    config = make_settings("distill", "dllm2rec", top_k=5, confidence="target")
    confidence = ranking_signals(rows, train, "distance", config, 0, CPU).confidence
    assert confidence.shape == (len(train), 1)
    d = rows.target_scores.astype(float)
    q = np.exp(-(d - d.min()) / (d.max() - d.min()))
    np.testing.assert_allclose(confidence[:, 0].numpy(), q / q.mean() / 5, rtol=1e-5)


def test_partial_store_masks_the_rest(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    some = train[1::3]
    store = make_store(tmp_path / "s", small_data, make_rows(small_data, some, 10))
    rows = join_rows(store, small_data, 10)
    signals = ranking_signals(rows, train, "distance", make_settings("distill", "dllm2rec"), 0, CPU)
    assert np.array_equal(train[signals.weights.numpy() == 1], some)
    assert signals.candidates.min() >= 0 and signals.candidates.max() < small_data.n_items


@pytest.mark.parametrize("mode", ["drop", "auto"])
def test_history_items_are_dropped_from_the_candidates(tmp_path: Path, mode: str) -> None:
    """Where nobody takes an item twice (checked here: every user walks through the items once)."""
    data = make_data(n_items=30, users=12, length=8, sequence=lambda rng: rng.permutation(30)[:8] + 1)
    train = data.splits["train"]
    rows = make_rows(data, train, 12)
    store = make_store(tmp_path / "s", data, rows)
    found = join_rows(store, data, 6, mode)
    for i, sample in enumerate(train):
        history = set(data.histories(np.array([sample]))[0].tolist())
        kept = [c for c in range(12) if rows.rankings[i, c] not in history][:6]
        assert found.rankings[i].tolist() == rows.rankings[i, kept].tolist()
        assert found.scores[i].tolist() == rows.scores[i, kept].tolist()
    assert not np.array_equal(found.rankings, rows.rankings[:, :6])
    assert np.array_equal(join_rows(store, data, 6, "keep").rankings, rows.rankings[:, :6])
    with pytest.raises(UserError, match="candidates outside its history; expected distill.top_k=12"):
        join_rows(store, data, 12, mode)


def test_history_items_stay_where_targets_repeat(
    tmp_path: Path, small_data: InteractionData, caplog: pytest.LogCaptureFixture
) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 12)
    repeats = sum(
        int(t in h) for t, h in zip(small_data.targets(train), small_data.histories(train), strict=True)
    )
    with caplog.at_level("INFO"):
        found = join_rows(make_store(tmp_path / "s", small_data, rows), small_data, 6, "auto")
    assert repeats > 0 and f"{repeats} of {len(train)} training targets" in caplog.text
    assert np.array_equal(found.rankings, rows.rankings[:, :6])


@pytest.mark.parametrize("declared", [None, 7])
def test_missing_rows_that_nobody_declared(
    tmp_path: Path, small_data: InteractionData, declared: int | None
) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train[2:], 10)
    store = make_store(tmp_path / "s", small_data, rows, n_train_split=declared)
    with pytest.raises(UserError, match=rf"none for sample {train[0]}.*it says {declared}"):
        join_rows(store, small_data, 10)


def test_foreign_and_duplicate_rows(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    store = make_store(tmp_path / "s", small_data, make_rows(small_data, train, 10))
    ids = train.copy()
    ids[5] = small_data.splits["test"][0]
    foreign = rewrite(store, "train/sample_ids.npy", ids)
    with pytest.raises(UserError, match=rf"sample {ids[5]} is no training sample"):
        join_rows(foreign, small_data, 10)
    ids[5] = train[4]
    with pytest.raises(UserError, match=rf"sample {train[4]} stands 2 times"):
        join_rows(rewrite(store, "train/sample_ids.npy", ids), small_data, 10)


def test_other_k_catalogue_and_width(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    store = make_store(tmp_path / "s", small_data, make_rows(small_data, train, 6))
    with pytest.raises(UserError, match="distill.top_k=10; expected <= 6"):
        join_rows(store, small_data, 10)
    larger = replace(make_data(31, users=12, length=8), fingerprint=small_data.fingerprint)
    with pytest.raises(UserError, match="over 30 items; expected 31"):
        join_rows(store, larger, 5)
    with pytest.raises(UserError, match="over 30 items; expected 31"):
        teacher_item_vectors(store, larger, make_settings("distill", "dllm2rec"), 0)
    manifest = read_json(store.folder / "manifest.json")
    del manifest["sha256"]
    write_json(store.folder / "manifest.json", {**manifest, "embedding_dim": 64})
    other = TeacherStore(store.folder, small_data.fingerprint)
    with pytest.raises(UserError, match="width 12; expected embedding_dim 64"):
        teacher_item_vectors(other, small_data, make_settings("distill", "dllm2rec"), 0)
    write_json(store.folder / "manifest.json", {**manifest, "top_k": 8})
    with pytest.raises(UserError, match="6 items per row; expected top_k 8"):
        join_rows(TeacherStore(store.folder, small_data.fingerprint), small_data, 7)


def test_distances_declared_as_log_likelihoods(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    store = make_store(tmp_path / "s", small_data, make_rows(small_data, train, 6))
    manifest = read_json(store.folder / "manifest.json")
    del manifest["sha256"]
    write_json(store.folder / "manifest.json", {**manifest, "score_kind": "log_likelihood"})
    with pytest.raises(UserError, match="not best first for score_kind=log_likelihood"):
        join_rows(TeacherStore(store.folder, small_data.fingerprint), small_data, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, small_data: InteractionData, bad: float) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 6)
    store = make_store(tmp_path / "s", small_data, rows)
    scores = rows.scores.copy()
    scores[3, 5] = bad
    with pytest.raises(UserError, match=rf"scores of sample {train[3]} are not finite"):
        join_rows(rewrite(store, "train/scores.npy", scores), small_data, 5)
    from safetensors.numpy import save_file

    table = store.item_embeddings()
    table[9, 2] = bad
    save_file({"item_embeddings": table}, store.folder / "item_embeddings.safetensors")
    changed = rewrite(store, "train/scores.npy", rows.scores)
    with pytest.raises(UserError, match="embedding of item 9 is not finite"):
        teacher_item_vectors(changed, small_data, make_settings("distill", "dllm2rec"), 0)


@pytest.mark.parametrize(("dim", "power"), [(40, 0.5), (4, 0.5), (40, 0.0), (40, 1.0)])
def test_principal_directions_against_the_gram_matrix(dim: int, power: float) -> None:
    """T T' = V diag(lambda^power) V' of the centred vectors' Gram matrix, cut to its largest, at unit mean square."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((30, 6)) @ rng.standard_normal((6, 12)) + 50).astype(
        np.float32
    )  # rank 6 of 12
    config = make_settings("distill", "dllm2rec", pca_dim=dim, pca_power=power)
    table = scaled_vectors(vectors, config, "the store").astype(np.float64)
    assert table.shape == (30, min(dim, 6)) and np.square(table).mean() == pytest.approx(1.0, abs=1e-6)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred @ centred.T)
    values, directions = values[-min(dim, 6) :] ** power, directions[:, -min(dim, 6) :]
    expected = (directions * values) @ directions.T
    assert np.allclose(table @ table.T, expected * table.size / np.trace(expected), atol=1e-4)


def test_vectors_are_standardized(tmp_path: Path, small_data: InteractionData) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((31, 12)) * 3 + 50).astype(np.float32)  # one large common direction
    vectors[0] = 0
    rows = make_rows(small_data, small_data.splits["train"], 10)
    store = make_store(tmp_path / "s", small_data, rows, vectors)
    table = teacher_item_vectors(store, small_data, make_settings("distill", "dllm2rec"), 0)
    assert not table[0].any() and table.dtype == torch.float32
    assert table[1:].mean(0).abs().max() < 1e-5 and table[1:].square().mean().item() == pytest.approx(
        1.0, abs=1e-5
    )
    raw = teacher_item_vectors(store, small_data, make_settings("distill", "dllm2rec_official"), 0)
    assert np.array_equal(raw.numpy(), vectors)
    vectors[1:] = 2.0
    flat = make_store(tmp_path / "flat", small_data, rows, vectors)
    with pytest.raises(UserError, match="all item embeddings are equal"):
        teacher_item_vectors(flat, small_data, make_settings("distill", "dllm2rec"), 0)


def test_controls_shuffle_whole_rows_by_seed(tmp_path: Path, small_data: InteractionData) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 10)
    store = make_store(tmp_path / "s", small_data, rows)

    def signals(control: str, seed: int = 1):
        config = make_settings("distill", "dllm2rec", control=control)
        return ranking_signals(rows, train, "distance", config, seed, CPU)

    plain, shuffled, again, other = (
        signals("none"),
        signals("shuffle_rankings"),
        signals("both"),
        signals("both", 2),
    )
    assert torch.equal(shuffled.candidates, again.candidates)
    assert not torch.equal(shuffled.candidates, other.candidates)
    moved = (plain.candidates != shuffled.candidates).any(1)
    assert moved.float().mean() > 0.8
    # The same rankings with their own weights, only elsewhere.
    whole = [torch.cat([s.candidates.float(), s.confidence], 1).tolist() for s in (plain, shuffled)]
    assert sorted(whole[0]) == sorted(whole[1])
    assert torch.equal(signals("permute_embeddings").candidates, plain.candidates)

    def table(control: str):
        return teacher_item_vectors(
            store, small_data, make_settings("distill", "dllm2rec", control=control), 1
        )

    permuted = table("permute_embeddings")
    assert not permuted[0].any() and not torch.equal(permuted, table("none"))
    assert sorted(permuted.tolist()) == sorted(table("none").tolist())
    assert torch.equal(table("shuffle_rankings"), table("none"))


def test_entropy_of_the_confidence_weights_is_logged(
    small_data: InteractionData, caplog: pytest.LogCaptureFixture
) -> None:
    train = small_data.splits["train"]
    rows = make_rows(small_data, train, 10)
    far = TeacherRows(rows.sample_ids, rows.rankings, rows.scores + 60, rows.target_scores)
    with caplog.at_level("INFO"):
        official = make_settings("distill", "dllm2rec_official")
        ranking_signals(far, train, "distance", official, 0, CPU)
        assert "entropy of the weights 1.000" in caplog.text
        ranking_signals(far, train, "distance", make_settings("distill", "dllm2rec"), 0, CPU)
        assert "entropy of the weights 0.9" in caplog.text
