"""Cross-fitting: who is held out, that nothing of them was seen, and what the store says about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.core.artifacts import sha256_file
from src.core.errors import Interrupted, UserError
from src.core.teacher_store import TeacherStore
from src.teacher import export as export_module
from src.teacher.export import fill_store, split_folds
from src.teacher.factory import build_teacher
from tests.teacher.conftest import compose_teacher

SASREC = (
    "teacher=sasrec",
    "teacher.encoder.width=16",
    "teacher.encoder.blocks=1",
    "teacher.encoder.max_epochs=2",
)


def files(folder: Path) -> dict[str, str]:
    """Hashes of everything but the manifest (which holds times)."""
    return {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }


@pytest.mark.parametrize("n", [2, 3, 7])
def test_folds_are_whole_users_of_equal_share(demo_data, n):
    train, folds = demo_data.splits["train"], split_folds(demo_data, n, 3)
    assert len(folds) == n
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), train)
    owners = [set(demo_data.users_of(f).tolist()) for f in folds]
    assert sum(map(len, owners)) == len(set.union(*owners))
    sizes = [len(f) for f in folds]
    assert max(sizes) - min(sizes) <= int(np.bincount(demo_data.users_of(train)).max())
    assert all((np.diff(f) > 0).all() for f in folds)
    again = split_folds(demo_data, n, 3)
    assert all(np.array_equal(a, b) for a, b in zip(folds, again, strict=True))
    other = split_folds(demo_data, n, 4)
    assert not all(np.array_equal(a, b) for a, b in zip(folds, other, strict=True))


def test_more_folds_than_users(demo_data):
    with pytest.raises(UserError, match=r"teacher.folds=1000; expected <= \d+ users"):
        split_folds(demo_data, 1000, 0)


def test_every_row_comes_from_the_teacher_that_did_not_see_its_user(demo_data, teacher_roots, tmp_path):
    config = compose_teacher(
        *SASREC, "teacher.folds=3", "teacher.export.top_k=20", "teacher.export.shard_size=100"
    )
    store, reused = fill_store(config, demo_data, tmp_path / "fp", None)
    assert not reused
    manifest = store.manifest
    assert manifest["folds"] == 3 and manifest["in_sample"] == {"train": 0, "valid": 0, "test": 0}
    assert len(store.in_sample_ids()) == 0 and len(manifest["trained"]["folds"]) == 3
    rows = store.rows("train")
    np.testing.assert_array_equal(rows.sample_ids, demo_data.splits["train"])
    for held_out in split_folds(demo_data, 3, config.seed):
        learned = np.setdiff1d(demo_data.splits["train"], held_out)
        teacher = build_teacher(config, demo_data, learned)
        assert teacher.prepare(None)["reused"], "the fold's own model is kept"
        expected, found = teacher.rank("train", held_out, 20), store.rows_of("train", held_out)
        np.testing.assert_allclose(found.target_scores, expected.target_scores, atol=1e-5)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    # validation, test and embeddings: the teacher of all training samples, as without folds
    plain, _ = fill_store(
        compose_teacher(*SASREC, "teacher.export.top_k=20"), demo_data, tmp_path / "plain", None
    )
    for split in ("valid", "test"):
        np.testing.assert_allclose(store.rows(split).scores, plain.rows(split).scores, atol=1e-5)
    np.testing.assert_array_equal(store.item_embeddings(), plain.item_embeddings())
    np.testing.assert_array_equal(plain.in_sample_ids(), demo_data.splits["train"])
    assert plain.manifest["in_sample"] == {"train": len(demo_data.splits["train"]), "valid": 0, "test": 0}
    assert np.abs(store.rows("train").target_scores - plain.rows("train").target_scores).max() > 1e-3


def test_an_interrupted_fold_goes_on_to_the_same_bytes(demo_data, teacher_roots, tmp_path, monkeypatch):
    config = compose_teacher(
        *SASREC, "teacher.folds=3", "teacher.export.top_k=20", "teacher.export.shard_size=50"
    )
    whole, _ = fill_store(config, demo_data, tmp_path / "whole", None)
    built, ranked = [], []

    def counting(config, data, train_ids=None, tuned_ids=None):
        built.append(train_ids)
        teacher = build_teacher(config, data, train_ids, tuned_ids)
        rank = teacher.rank

        def stop_in_the_second_fold(split, ids, k):
            if len(ranked) == 12:
                raise Interrupted(15)
            ranked.append(len(ids))
            return rank(split, ids, k)

        teacher.rank = stop_in_the_second_fold
        return teacher

    monkeypatch.setattr(export_module, "build_teacher", counting)
    with pytest.raises(Interrupted):
        fill_store(config, demo_data, tmp_path / "parted", None)
    assert len(built) == 3, "the teacher of all, and two folds"
    assert (tmp_path / "parted.partial").is_dir() and not (tmp_path / "parted").exists()
    built.clear()
    monkeypatch.setattr(
        export_module,
        "build_teacher",
        lambda c, d, t=None, tuned_ids=None: built.append(t) or build_teacher(c, d, t, tuned_ids),
    )
    store, _ = fill_store(config, demo_data, tmp_path / "parted", None)
    assert len(built) == 3, "the finished fold needs no teacher"
    weights = store.manifest["weights"]
    assert weights == whole.manifest["weights"] and weights["valid"] == weights["test"]
    assert len(set(weights.values())) == 4, "three folds and the teacher of all"
    assert files(store.folder) == files(whole.folder)
    assert not (tmp_path / "parted.partial").exists()


def test_folds_of_the_llm_teacher(make_config, demo_data, teacher_roots, tmp_path):
    config = make_config(
        "teacher.folds=2",
        "teacher.train.samples=96",
        "teacher.encoder.max_epochs=1",
        "teacher.export.top_k=10",
        "teacher.export.train_share=0.3",
    )
    store, _ = fill_store(config, demo_data, tmp_path / "fp", None)
    assert store.manifest["n_samples"]["train"] == round(0.3 * len(demo_data.splits["train"]))
    assert len(store.in_sample_ids()) == 0
    rows = store.rows("train")
    for held_out in split_folds(demo_data, 2, config.seed):
        learned = np.setdiff1d(demo_data.splits["train"], held_out)
        teacher = build_teacher(config, demo_data, learned)
        teacher.prepare(None)
        own = np.intersect1d(rows.sample_ids, held_out)
        assert len(own) and not np.isin(own, teacher.train_sample_ids()).any()
        expected = teacher.rank("train", own, 10)
        np.testing.assert_allclose(store.rows_of("train", own).scores, expected.scores, atol=1e-4)


def test_a_store_that_does_not_know_its_training_rows(tmp_path):
    from tests.core.test_teacher_store import make

    with pytest.raises(UserError, match="in_sample.npy cannot be read"):
        make(tmp_path / "store").in_sample_ids()
    assert isinstance(make(tmp_path / "other"), TeacherStore)
