"""The weighted pool of teachers: weights against a search that knows no gradient, scores against the formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from src.core.errors import UserError
from src.teacher.config import teacher_fingerprint
from src.teacher.export import fill_store
from src.teacher.factory import build_teacher
from src.teacher.fused import FusedTeacher, fit_weights
from tests.teacher.test_classical import build, settings_of, toy

PLAIN = (
    "~teacher.members.ilora",
    "~teacher.members.sasrec",
    "~teacher.members.sasrec_b",
    "~teacher.members.sasrec_c",
    "teacher.members.knn.dim=3",
    "teacher.members.markov.dim=4",
    "teacher.embeddings=[markov]",
    "teacher.export.top_k=5",
)


def pool(*overrides: str, train_ids: np.ndarray | None = None) -> FusedTeacher:
    """knn and markov on the toy log."""
    teacher = build("fused", toy(), train_ids, *PLAIN, *overrides)
    assert isinstance(teacher, FusedTeacher)
    return teacher


class TestWeights:
    @staticmethod
    def cross_entropy(weights: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> float:
        pooled = sum(w * s for w, s in zip(weights, scores, strict=True)).astype(np.float64)
        return -np.mean([log_softmax(row)[t] for row, t in zip(pooled, targets, strict=True)])

    def test_least_cross_entropy(self):
        rng = np.random.default_rng(3)
        scores = log_softmax(rng.normal(size=(3, 400, 12)), axis=2).astype(np.float32)
        truth = log_softmax(1.4 * scores[0] + 0.5 * scores[1], axis=1)  # the third says nothing
        targets = np.array([rng.choice(12, p=np.exp(row) / np.exp(row).sum()) for row in truth.astype(float)])
        found = fit_weights(scores, targets)
        searched = minimize(
            lambda w: self.cross_entropy(np.abs(w), scores, targets),
            [0.3, 0.3, 0.3],
            method="Nelder-Mead",
            options={"xatol": 1e-5, "fatol": 1e-9},
        ).x
        np.testing.assert_allclose(found, np.abs(searched), atol=5e-3)
        np.testing.assert_allclose(found, [1.4, 0.5, 0.0], atol=0.25)

    def test_a_member_that_misleads_gets_nothing(self):
        rng = np.random.default_rng(4)
        good = log_softmax(rng.normal(size=(200, 8)), axis=1).astype(np.float32)
        targets = good.argmax(axis=1)
        weights = fit_weights(np.stack([good, -good]), targets)
        assert weights[0] > 1 and weights[1] == 0

    def test_scores_that_are_not_finite(self):
        with pytest.raises(UserError, match="not finite"):
            fit_weights(np.full((1, 2, 3), -np.inf, np.float32), np.array([0, 1]))


def test_scores_are_the_weighted_sum():
    data, teacher = toy(), pool("+teacher.weights={knn:0.7,markov:0.2}")
    ids = np.concatenate(list(data.splits.values()))
    knn, markov = (build(kind, data) for kind in ("knn", "markov"))
    expected = log_softmax(0.7 * knn.score_all(ids) + 0.2 * markov.score_all(ids), axis=1)
    np.testing.assert_allclose(teacher.score_all(ids), expected, atol=1e-6)
    rows = teacher.rank("train", ids, 6)
    rows.check(data.n_items, teacher.score_kind, "train")
    np.testing.assert_array_equal(rows.rankings[:, 0], expected.argmax(axis=1) + 1)
    np.testing.assert_array_equal(
        teacher.item_embeddings(), build("markov", data, None, "teacher.dim=4").item_embeddings()
    )


def test_weights_come_from_validation_and_are_told():
    data, teacher = toy(), pool()
    valid = data.splits["valid"]
    scores = np.stack([build(kind, data).score_all(valid) for kind in ("knn", "markov")])
    expected = fit_weights(scores, data.targets(valid) - 1)
    told = teacher.prepare(None)["weights"]
    np.testing.assert_allclose([told["knn"], told["markov"]], expected)


def test_a_sample_counts_as_seen_where_a_member_learned_from_it():
    data = toy()
    assert not len(pool().train_sample_ids())  # both score a training sample without itself
    seen = pool("teacher.members.knn.leave_one_out=false").train_sample_ids()
    np.testing.assert_array_equal(seen, data.splits["train"])
    some = data.splits["train"][:3]
    assert set(pool("teacher.members.knn.leave_one_out=false", train_ids=some).train_sample_ids()) == set(
        some
    )


def test_the_store_says_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path))
    store, _ = fill_store(settings_of("fused", *PLAIN), toy(), tmp_path / "store", None)
    weights = store.manifest["trained"]["weights"]
    assert set(weights) == {"knn", "markov"} and all(w >= 0 for w in weights.values())


def test_a_retrained_member_is_another_teacher():
    data = toy()
    assert pool().weights() == pool().weights()
    assert pool(train_ids=data.splits["train"][:4]).weights() != pool().weights()
    assert (
        pool("+teacher.weights={knn:1,markov:2}").weights()
        != pool("+teacher.weights={knn:1,markov:1}").weights()
    )


def test_identity_is_what_determines_scores():
    def identity(*overrides: str) -> str:
        return teacher_fingerprint(settings_of("fused", *PLAIN, *overrides), "fp")

    base = identity()
    assert identity("teacher.members.knn.export.top_k=7") == base  # only a store of its own would have it
    assert identity("teacher.members.knn.decay=0.5") != base
    assert identity("teacher.export.top_k=4") != base
    assert identity("+teacher.weights={knn:1,markov:1}") != base


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["teacher.embeddings=[bert]"], r"embeddings: found \['bert'\]"),
        (["+teacher.weights={knn:1}"], "weights: found"),
        (["+teacher.weights={knn:-1,markov:1}"], "weights: found"),
        (["+teacher.weights={knn:0,markov:0}"], "weights: found"),
        (["teacher.members.knn.kind=fused"], "members.knn"),
        (["teacher.members.knn.decay=2"], "members.knn.decay"),
        (["+teacher.members.other=3"], "members.other"),
    ],
)
def test_bad_settings(overrides, message):
    with pytest.raises(AssertionError, match=message):  # settings_of asserts that there are no problems
        settings_of("fused", *PLAIN, *overrides)


def test_an_llm_in_the_pool(trained, make_config, demo_data):
    """The trained iLoRA teacher is taken as it is, and scores as by itself."""
    alone, _ = trained
    config = settings_of(
        "fused", *PLAIN[1:], "teacher.embeddings=[ilora]", "+teacher.weights={ilora:2,knn:1,markov:0}"
    )
    config = replace(config, members={**config.members, "ilora": make_config("teacher.objective.lm=0.5")})
    teacher = build_teacher(config, demo_data)
    assert teacher.prepare(None)["reused"] is False  # the kNN counts anew
    ids = demo_data.splits["test"][:25]
    knn = teacher.members["knn"].score_all(ids)
    listed = alone.rank("test", ids, demo_data.n_items)
    own = np.empty_like(knn)
    np.put_along_axis(own, listed.rankings - 1, listed.scores, axis=1)
    np.testing.assert_allclose(teacher.score_all(ids), log_softmax(2 * own + knn, axis=1), atol=1e-4)
    np.testing.assert_array_equal(teacher.item_embeddings(), alone.item_embeddings())


def test_the_student_seed_is_not_the_pools():
    """One pool serves the students of all seeds."""
    configs = [settings_of("fused", "++teacher.seed=5", f"seed={seed}") for seed in (1, 2)]
    assert configs[0] == configs[1]


def test_vectors_of_several_members_side_by_side():
    teacher = pool("teacher.embeddings=[knn,markov]")
    knn, markov = (teacher.members[name].item_embeddings() for name in ("knn", "markov"))
    table = teacher.item_embeddings()
    assert table.shape == (len(knn), knn.shape[1] + markov.shape[1]) and not table[0].any()
    parts = np.split(table[1:].astype(float), [knn.shape[1]], axis=1)
    for part, own in zip(parts, (knn[1:], markov[1:]), strict=True):
        centred = own - own.mean(0)
        np.testing.assert_allclose(
            part, centred * (part[0] @ centred[0]) / (centred[0] @ centred[0]), atol=1e-5
        )
        assert (part**2).sum(1).mean() == pytest.approx(1, abs=1e-5)
