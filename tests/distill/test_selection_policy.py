"""Selection policies: exact counts, determinism, what each prefers, artifacts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.artifacts import read_json
from src.core.config import config_group, setting
from src.core.errors import UserError
from src.core.teacher_store import TeacherRows
from src.distill.config import ActiveConfig
from src.distill.scoring import StudentScorer, uncertainty
from src.distill.selection_files import (
    offline_selection,
    read_selection,
    selection_fingerprint,
    write_selection,
)
from src.distill.selection_policy import (
    POLICIES,
    Selection,
    SelectionContext,
    SelectionPolicy,
    make_policy,
    register,
)
from src.student.models import build_student
from tests.distill.conftest import make_data, make_settings

N_ITEMS = 20


class KnownScorer:
    """Vectors in three far-apart groups; uncertainty rises with the sample id."""

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        centre = np.where(sample_ids % 10 == 0, 0, np.where(sample_ids % 10 == 1, 1, 2))
        return (centre[:, None] * 100 + rng.normal(size=(len(sample_ids), 4))).astype(np.float32)

    def uncertainty(self, sample_ids: np.ndarray, measure: str) -> np.ndarray:
        return sample_ids.astype(np.float32)


def context(n: int = 200, seed: int = 1) -> SelectionContext:
    """Samples with ids 5, 10, ...; item 1 is the target of every second of them."""
    ids = np.arange(1, n + 1) * 5
    targets = np.where(np.arange(n) % 2 == 0, 1, np.arange(n) % (N_ITEMS - 1) + 2)

    def teacher(sample_ids: np.ndarray) -> TeacherRows:
        empty = np.zeros((len(sample_ids), 1))
        return TeacherRows(
            sample_ids, empty.astype(np.int32), empty.astype(np.float32), -sample_ids.astype(np.float32)
        )

    counts = np.bincount(targets, minlength=N_ITEMS + 1)
    return SelectionContext(ids, targets, counts, seed, teacher, "log_likelihood", KnownScorer())


def active(policy: str, **changes: object) -> ActiveConfig:
    defaults = {} if policy == "all" else {"share": None, "count": 40}
    return make_settings("active", policy, **{**defaults, "refresh_every": None, **changes})


@pytest.mark.parametrize("policy", list(POLICIES))
@settings(max_examples=12, derandomize=True, deadline=None)
@given(n=st.integers(3, 90), share=st.floats(0.001, 1.0), weighted=st.booleans())
def test_exact_counts_and_unit_mean_weights(policy: str, n: int, share: float, weighted: bool) -> None:
    config = replace(make_settings("active", policy, refresh_every=None), weighted=weighted)
    config = config if policy == "all" else replace(config, share=share)
    ctx = context(n)
    found = make_policy(config, ctx).select(0)
    expected = n if policy == "all" else max(1, int(np.floor(share * n + 0.5)))
    assert len(found.sample_ids) == len(found.weights) == expected
    assert (np.diff(found.sample_ids) > 0).all() and np.isin(found.sample_ids, ctx.sample_ids).all()
    assert found.weights.dtype == np.float32 and (found.weights > 0).all()
    assert found.weights.mean() == pytest.approx(1.0, abs=1e-5)
    if not weighted:
        assert (found.weights == 1).all()


@pytest.mark.parametrize("policy", list(POLICIES))
def test_same_seed_same_selection(policy: str) -> None:
    one, two = (make_policy(active(policy), context()).select(0) for _ in range(2))
    assert np.array_equal(one.sample_ids, two.sample_ids) and np.array_equal(one.weights, two.weights)


def test_seeds_and_refreshes_differ_where_chance_decides() -> None:
    config = active("random", refresh_every=2)
    policy = make_policy(config, context())
    draws = [policy.select(e).sample_ids for e in (0, 2)] + [
        make_policy(config, context(seed=2)).select(0).sample_ids
    ]
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert [policy.due(e) for e in range(5)] == [True, False, True, False, True]
    once = make_policy(active("random"), context())
    assert [once.due(e) for e in range(3)] == [True, False, False]


def test_random_is_uniform() -> None:
    hits, config = np.zeros(50), active("random", count=10)
    for seed in range(400):
        found = make_policy(config, context(50, seed)).select(0)
        hits[found.sample_ids // 5 - 1] += 1
    # Binomial(400, 0.2): mean 80, sd 8; the largest of 50 deviations stays below 4 sd.
    assert np.abs(hits - 80).max() < 32


def test_popularity_inverse_prefers_rare_targets_and_weighs_by_them() -> None:
    ctx = context(400)
    picks = {}
    for power in (0.0, 1.0, 3.0):
        found = make_policy(active("popularity_inverse", options={"power": power}), ctx).select(0)
        popular = np.isin(found.sample_ids, ctx.sample_ids[ctx.targets == 1])
        picks[power] = popular.mean()
    assert 0.3 < picks[0.0] < 0.7 and picks[1.0] < 0.2 and picks[3.0] == 0.0
    everything = active("popularity_inverse", count=400, weighted=True, options={"power": 1.0})
    weights = make_policy(everything, ctx).select(0).weights
    rare = ctx.targets == 2
    ratio = weights[rare][0] / weights[ctx.targets == 1][0]
    assert ratio == pytest.approx(ctx.item_counts[1] / ctx.item_counts[2], rel=1e-4)


def test_teacher_confidence_takes_the_best_or_the_worst_in_either_kind_of_score() -> None:
    ctx = context(100)  # target scores are minus the sample id
    best = make_policy(active("teacher_confidence", count=10), ctx).select(0).sample_ids
    assert best.tolist() == ctx.sample_ids[:10].tolist()
    unsure = active("teacher_confidence", count=10, options={"prefer": "unsure"})
    assert make_policy(unsure, ctx).select(0).sample_ids.tolist() == ctx.sample_ids[-10:].tolist()
    distance = replace(ctx, score_kind="distance")
    worst = make_policy(active("teacher_confidence", count=10), distance).select(0).sample_ids
    assert worst.tolist() == ctx.sample_ids[-10:].tolist()


def test_equal_scores_are_not_taken_in_sample_order() -> None:
    def teacher(ids: np.ndarray) -> TeacherRows:
        one = np.ones((len(ids), 1), np.float32)
        return TeacherRows(ids, one.astype(np.int32), one, one[:, 0])

    found = (
        make_policy(active("teacher_confidence"), replace(context(), teacher=teacher)).select(0).sample_ids
    )
    assert found.max() > 150 * 5


def test_student_uncertainty_takes_the_least_sure() -> None:
    ctx = context(100)
    for measure in ("entropy", "margin", "least_confidence", "loss"):
        config = active("student_uncertainty", count=10, options={"measure": measure})
        assert make_policy(config, ctx).select(0).sample_ids.tolist() == ctx.sample_ids[-10:].tolist()


def test_loss_is_taken_from_the_steps_and_kept_in_memory() -> None:
    ctx = context(100)
    config = active("student_uncertainty", count=5, refresh_every=1, options={"measure": "loss"})
    policy = make_policy(config, ctx)
    blind = policy.select(0).sample_ids
    assert len(blind) == 5 and blind.tolist() != ctx.sample_ids[-5:].tolist()
    everyone = np.arange(1, 600)  # samples that are not to choose from are passed over
    policy.update(
        0,
        everyone,
        np.where(np.isin(everyone, [10, 50, 55, 100, 200]), 9.0, everyone / 1e3).astype(np.float32),
    )
    assert policy.select(1).sample_ids.tolist() == [10, 50, 55, 100, 200]
    resumed = make_policy(config, ctx)
    resumed.memory[:] = policy.memory
    assert resumed.select(1).sample_ids.tolist() == [10, 50, 55, 100, 200]


def test_diversity_takes_equally_from_every_cluster_as_far_as_it_reaches() -> None:
    ids = np.concatenate([np.arange(10) * 10, np.arange(100) * 10 + 1, np.arange(300) * 10 + 2])
    ids.sort()
    ctx = replace(context(), sample_ids=ids, targets=np.ones(len(ids), int))
    found = make_policy(active("diversity", count=90, options={"clusters": 3}), ctx).select(0).sample_ids
    sizes = [int((found % 10 == d).sum()) for d in (0, 1, 2)]
    assert sizes == [10, 40, 40]


def test_uncertainty_measures_by_hand() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]))
    column = torch.tensor([2, 0])
    entropy = [
        -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)),
        -(0.9 * np.log(0.9) + 0.1 * np.log(0.05)),
    ]
    expected = {
        "entropy": entropy,
        "margin": [-0.2, -0.85],
        "least_confidence": [0.5, 0.1],
        "loss": [-np.log(0.2), -np.log(0.9)],
    }
    for measure, values in expected.items():
        assert uncertainty(scores, column, measure).tolist() == pytest.approx(values, abs=1e-6)


def test_student_scorer_is_batched_and_restores_the_mode() -> None:
    data = make_data(n_items=30, users=10, length=8)
    student = build_student(make_settings("student", "sasrec", width=8, dropout=0.5), 30, 5).train()
    ids = data.splits["train"]
    small, large = (StudentScorer(student, data, torch.device("cpu"), b) for b in (3, 1000))
    assert small.vectors(ids).shape == (len(ids), 8)
    np.testing.assert_allclose(small.vectors(ids), large.vectors(ids), atol=1e-6)
    np.testing.assert_allclose(
        small.uncertainty(ids, "entropy"), large.uncertainty(ids, "entropy"), atol=1e-5
    )
    assert student.training


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "all"])
def test_more_than_there_are_is_refused_with_both_numbers(policy: str) -> None:
    with pytest.raises(UserError, match="active.count=201; expected <= 200 samples"):
        make_policy(active(policy, count=201), context(200))


@pytest.mark.parametrize("policy", ["teacher_confidence", "student_uncertainty", "diversity"])
def test_a_policy_without_what_it_looks_at_is_refused(policy: str) -> None:
    bare = replace(context(), teacher=None, scorer=None)
    with pytest.raises(UserError, match=f"active.policy={policy} has no"):
        make_policy(active(policy), bare).select(0)


def test_artifact_round_trip_and_refusals(tmp_path: Path) -> None:
    train = np.arange(100)
    selection = Selection(np.array([3, 5, 8]), np.array([0.5, 1.0, 1.5], np.float32))
    fields = {"dataset_fingerprint": "abc", "policy": "random"}
    write_selection(tmp_path / "good", selection, fields)
    read = read_selection(tmp_path / "good", "abc", train)
    assert np.array_equal(read.sample_ids, [3, 5, 8]) and np.array_equal(read.weights, selection.weights)
    with pytest.raises(UserError, match="dataset_fingerprint is 'abc'; expected 'xyz'"):
        read_selection(tmp_path / "good", "xyz", train)
    with pytest.raises(UserError, match="sample 8 is no training sample"):
        read_selection(tmp_path / "good", "abc", np.arange(8))
    write_selection(tmp_path / "twice", Selection(np.array([3, 3]), np.ones(2, np.float32)), fields)
    with pytest.raises(UserError, match="not rising"):
        read_selection(tmp_path / "twice", "abc", train)
    write_selection(
        tmp_path / "negative", Selection(np.array([3, 4]), np.array([2.0, 0.0], np.float32)), fields
    )
    with pytest.raises(UserError, match="finite weights > 0"):
        read_selection(tmp_path / "negative", "abc", train)
    (tmp_path / "good" / "sample_ids.npy").write_bytes(b"changed")
    with pytest.raises(UserError, match="does not have the hash"):
        read_selection(tmp_path / "good", "abc", train)


def test_offline_selection_is_made_once_and_then_read(tmp_path: Path) -> None:
    data = make_data(n_items=30, users=10, length=8)
    config = active("diversity", count=12, options={"clusters": 4})
    scorer = KnownScorer()
    made = offline_selection(config, data, 3, tmp_path / "s", {"student": "abc"}, scorer=scorer)
    assert len(made.sample_ids) == 12 and np.isin(made.sample_ids, data.splits["train"]).all()
    again = offline_selection(config, data, 3, tmp_path / "s")  # read: no scorer is asked
    assert np.array_equal(again.sample_ids, made.sample_ids)
    manifest = read_json(tmp_path / "s" / "manifest.json")
    assert manifest["active"]["policy"] == "diversity" and manifest["sources"] == {"student": "abc"}
    refreshed = active("random", refresh_every=2)
    with pytest.raises(UserError, match="active.refresh_every=2 before the training"):
        offline_selection(refreshed, data, 3, tmp_path / "t")


def test_fingerprint_follows_settings_seed_and_sources() -> None:
    base = selection_fingerprint(active("random"), "abc", 1)
    assert base == selection_fingerprint(active("random"), "abc", 1)
    others = {
        selection_fingerprint(active("random", count=41), "abc", 1),
        selection_fingerprint(active("random"), "abd", 1),
        selection_fingerprint(active("random"), "abc", 2),
        selection_fingerprint(active("random"), "abc", 1, {"student": "f"}),
    }
    assert len(others | {base}) == 5


def test_a_new_policy_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/specification/03 shows it."""
    monkeypatch.setattr("src.distill.selection_policy.POLICIES", dict(POLICIES))
    from src.distill import selection_policy
    from src.distill.selection_policy import active_problems

    class Recent(SelectionPolicy):
        """The newest samples."""

        @config_group
        class Options:
            skip: int = setting("newest samples to leave out", ge=0)

        def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
            n = len(self.context.sample_ids) - self.options.skip
            return np.arange(n - self.count, n), np.arange(1.0, len(self.context.sample_ids) + 1)

    register("recent")(Recent)
    config = ActiveConfig("recent", None, 7, False, None, {"skip": 2})
    assert active_problems(config) == []
    wrong = active_problems(replace(config, options={"skip": -1, "skp": 3}, refresh_every=2))
    assert len(wrong) == 3 and "options.skp: unknown key" in " ".join(wrong)
    found = selection_policy.POLICIES["recent"](config, context(50)).select(0)
    assert found.sample_ids.tolist() == [5 * i for i in range(42, 49)]
