"""Each strategy on a case whose right choice is known, and the measures of a student by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.distill.scoring import MEASURES, StudentScorer, measure
from src.distill.selection_policy import SelectionContext
from src.distill.strategies import make_policy
from src.distill.strategies.geometry import cluster_turns
from src.distill.strategies.sampling import _greedy_cover
from src.student.models import build_student
from tests.distill.conftest import make_data, make_settings
from tests.distill.selecting import KnownScorer, active, context


def chosen(policy: str, ctx: SelectionContext, **changes: object) -> np.ndarray:
    return make_policy(active(policy, **changes), ctx).select(0).sample_ids


class Told(KnownScorer):
    """A student whose answers are given."""

    def __init__(self, vectors: list | None = None, **measures: list):
        self.given, self.told = vectors, {k: np.array(v, np.float32) for k, v in measures.items()}

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        return np.array(self.given, np.float32)[sample_ids // 5 - 1]

    gradients = vectors

    def measure(self, sample_ids: np.ndarray, name: str) -> np.ndarray:
        return self.told[name][sample_ids // 5 - 1]


def test_random_is_uniform() -> None:
    hits, config = np.zeros(50), active("random", count=10)
    for seed in range(400):
        found = make_policy(config, context(50, seed)).select(0)
        hits[found.sample_ids // 5 - 1] += 1
    # Binomial(400, 0.2): mean 80, sd 8; the largest of 50 deviations stays below 4 sd.
    assert np.abs(hits - 80).max() < 32


def test_popularity_inverse_prefers_rare_targets_and_weighs_by_them() -> None:
    ctx, picks = context(400), {}
    for power in (0.0, 1.0, 3.0):
        found = chosen("popularity_inverse", ctx, options={"power": power})
        picks[power] = np.isin(found, ctx.sample_ids[ctx.targets == 1]).mean()
    assert 0.3 < picks[0.0] < 0.7 and picks[1.0] < 0.2 and picks[3.0] == 0.0
    everything = active("popularity_inverse", count=400, weighted=True, options={"power": 1.0})
    weights = make_policy(everything, ctx).select(0).weights
    ratio = weights[ctx.targets == 2][0] / weights[ctx.targets == 1][0]
    assert ratio == pytest.approx(ctx.item_counts[1] / ctx.item_counts[2], rel=1e-4)


def test_coverage_takes_the_largest_gain_first_and_starts_again() -> None:
    rows = np.array([[1, 2, 3], [1, 2, 0], [4, 5, 4], [0, 3, 4], [6, 0, 0]])
    assert _greedy_cover(rows, 3).tolist() == [0, 2, 4]  # 3 new, then 2 new, then 1 new
    assert sorted(_greedy_cover(rows, 5).tolist()) == [0, 1, 2, 3, 4]
    rows = np.random.default_rng(0).integers(0, 40, (60, 5))
    sets = [set(row[row > 0].tolist()) for row in rows]
    order, covered = _greedy_cover(rows, 8), set()
    for i in order:  # against the plain greedy rule
        gains = [len(s - covered) for s in sets]
        assert gains[i] == max(gains)
        covered |= sets[i]


@pytest.mark.parametrize(
    "policy", ["entropy", "margin", "least_confidence", "loss", "gradient_norm", "error_rank"]
)
def test_measured_strategies_take_the_largest(policy: str) -> None:
    ctx = context(100)  # every measure rises with the sample id
    assert chosen(policy, ctx, count=10).tolist() == ctx.sample_ids[-10:].tolist()


def test_loss_is_taken_from_the_steps_and_kept_in_memory() -> None:
    ctx = context(100)
    config = active("loss", count=5, refresh_every=1)
    policy = make_policy(config, ctx)
    blind = policy.select(0).sample_ids
    assert len(blind) == 5 and blind.tolist() != ctx.sample_ids[-5:].tolist()
    everyone = np.arange(1, 600)  # samples that are not to choose from are passed over
    losses = np.where(np.isin(everyone, [10, 50, 55, 100, 200]), 9.0, everyone / 1e3).astype(np.float32)
    policy.update(0, everyone, losses)
    assert policy.select(1).sample_ids.tolist() == [10, 50, 55, 100, 200]
    resumed = make_policy(config, ctx)
    resumed.memory[:] = policy.memory
    assert resumed.select(1).sample_ids.tolist() == [10, 50, 55, 100, 200]


def test_forgetting_counts_what_was_known_and_is_no_more() -> None:
    ctx = context(4)
    policy = make_policy(active("forgetting", count=1, refresh_every=1), ctx)
    # Known: below the epoch's median. Sample 5: known, forgotten, known, forgotten; sample 20: forgotten once.
    for epoch, losses in enumerate([[1, 2, 8, 1], [9, 2, 1, 8], [1, 2, 7, 8], [9, 1, 2, 8]]):
        policy.update(epoch, ctx.sample_ids, np.array(losses, np.float32))
    assert np.floor(policy.memory).tolist() == [2.0, 0.0, 1.0, 1.0]
    assert policy.select(4).sample_ids.tolist() == [5]


def test_proximal_rank_takes_the_band_then_the_nearest() -> None:
    ctx = replace(context(6), scorer=Told(rank=[1, 9, 50, 99, 105, 5000]))
    for count, expected in ((2, [15, 20]), (3, [15, 20, 25]), (4, [10, 15, 20, 25])):
        assert chosen("proximal_rank", ctx, count=count).tolist() == expected


def test_confident_error_is_wrong_and_sure() -> None:
    told = Told(best_item=[1, 3, 3, 3], least_confidence=[0.0, 0.1, 0.5, 0.9])
    ctx = replace(context(4), targets=np.array([1, 2, 2, 3]), scorer=told)
    assert chosen("confident_error", ctx, count=1).tolist() == [10]
    assert chosen("confident_error", ctx, count=2).tolist() == [10, 15]


def test_target_logit_takes_what_is_below_then_the_lowest() -> None:
    ctx = replace(context(4), scorer=Told(target_logit=[-3.0, 0.5, 2.0, -1.0]))
    assert chosen("target_logit", ctx, count=2, options={"below": 0.0}).tolist() == [5, 20]
    assert chosen("target_logit", ctx, count=3, options={"below": 0.0}).tolist() == [5, 10, 20]


def test_semantic_loss_is_the_distance_of_titles() -> None:
    titles = np.array([[0, 0], [1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    ctx = replace(
        context(3),
        targets=np.array([2, 3, 4]),
        title_vectors=lambda: titles,
        scorer=Told(best_item=[1, 1, 1]),
    )
    assert chosen("semantic_loss", ctx, count=1).tolist() == [15]
    assert chosen("semantic_loss", ctx, count=2).tolist() == [10, 15]


def test_diversity_takes_equally_from_every_cluster_as_far_as_it_reaches() -> None:
    ids = np.concatenate([np.arange(10) * 10, np.arange(100) * 10 + 1, np.arange(300) * 10 + 2])
    ids.sort()
    ctx = replace(context(), sample_ids=ids, targets=np.ones(len(ids), int))
    found = chosen("diversity", ctx, count=90, options={"clusters": 3})
    assert [int((found % 10 == d).sum()) for d in (0, 1, 2)] == [10, 40, 40]


def test_centres_are_fitted_to_a_part_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three groups of 400, centres from 60 of all samples: still equally from every group, and no larger request."""
    monkeypatch.setattr("src.distill.strategies.geometry._FITTED", 60)
    asked: list[int] = []

    def space(positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return (positions[:, None] % 3 * 100 + positions[:, None] / 1e4).astype(np.float32)

    turn, sizes = cluster_turns(space, 1200, 3, 7, np.random.default_rng(0))
    assert asked == [60, 1200] and (sizes == 400).all()
    for kind in range(3):
        assert sorted(turn[np.arange(1200) % 3 == kind]) == list(range(400))


def test_semantic_clusters_take_equally_from_kinds_of_targets() -> None:
    titles = np.zeros((21, 2), np.float32)
    titles[1], titles[2:] = (10, 0), (0, 10)
    ctx = replace(context(100), title_vectors=lambda: titles)
    found = chosen("semantic_clusters", ctx, count=20, options={"clusters": 2})
    assert (ctx.targets[np.isin(ctx.sample_ids, found)] == 1).sum() == 10


def test_entropy_diversity_spreads_within_the_unsure() -> None:
    """The 8 least sure are four of each group, though the others lie elsewhere."""
    vectors = [[50.0, 50.0]] * 8 + [[0.0, 0.0], [10.0, 0.0]] * 4
    told = Told(vectors, entropy=list(range(16)))
    ctx = replace(context(16), scorer=told)
    found = chosen("entropy_diversity", ctx, count=4, options={"narrow": 2.0, "clusters": 2})
    assert found.min() > 8 * 5 and ((found // 5 - 1) % 2 == 0).sum() == 2


def test_coreset_starts_in_the_middle_and_goes_where_it_is_farthest() -> None:
    ctx = replace(context(5), scorer=Told([[0.0], [1.0], [2.0], [9.0], [-6.0]]))
    for count, expected in ((1, [10]), (2, [10, 20]), (3, [10, 20, 25]), (5, [5, 10, 15, 20, 25])):
        assert chosen("coreset", ctx, count=count, options={"pool": 100}).tolist() == expected


def test_badge_takes_the_largest_gradient_then_by_squared_distance() -> None:
    ctx = replace(context(4), scorer=Told([[0.0], [0.0], [3.0], [-1.0]]))
    seconds = []
    for seed in range(300):
        found = chosen("badge", replace(ctx, seed=seed), count=2, options={"pool": 100})
        assert 15 in found
        seconds.append(int(found[found != 15][0]))
    share = np.mean(np.array(seconds) == 20)  # squared distances 9, 9, 16
    assert abs(share - 16 / 34) < 4 * np.sqrt(0.25 / 300)
    everything = chosen("badge", ctx, count=4, options={"pool": 4})
    assert everything.tolist() == [5, 10, 15, 20]


def test_a_pool_is_drawn_where_the_samples_are_many() -> None:
    ctx = context(200)
    for policy in ("badge", "coreset", "coverage"):
        found = chosen(policy, ctx, count=3, options={"pool": 10})
        assert len(found) == 3 and not np.array_equal(
            found, chosen(policy, replace(ctx, seed=9), count=3, options={"pool": 10})
        )


def test_teacher_confidence_takes_the_best_or_the_worst_in_either_kind_of_score() -> None:
    ctx = context(100)  # target scores are minus the sample id
    assert chosen("teacher_confidence", ctx, count=10).tolist() == ctx.sample_ids[:10].tolist()
    unsure = {"count": 10, "options": {"prefer": "unsure"}}
    assert chosen("teacher_confidence", ctx, **unsure).tolist() == ctx.sample_ids[-10:].tolist()
    distance = replace(ctx, score_kind="distance")
    assert chosen("teacher_confidence", distance, count=10).tolist() == ctx.sample_ids[-10:].tolist()


def test_equal_scores_are_not_taken_in_sample_order() -> None:
    flat = Told(entropy=[1.0] * 200)
    assert chosen("entropy", replace(context(), scorer=flat)).max() > 150 * 5


def test_teacher_disagreement_grows_where_a_flat_student_meets_a_sure_teacher() -> None:
    """The teacher's candidates lie id/1000 apart, the student finds all three equal: KL grows with the id, and
    KL(uniform || p) is known."""
    ctx = context(100)
    assert chosen("teacher_disagreement", ctx, count=10, options={"at_least": 9.0}).tolist() == (
        ctx.sample_ids[-10:].tolist()
    )
    policy = make_policy(active("teacher_disagreement", options={"at_least": 9.0}), ctx)
    gap = 0.5  # of the last sample
    p = np.exp(-gap * np.arange(3)) / np.exp(-gap * np.arange(3)).sum()
    assert policy.scores()[-1] == pytest.approx(np.log(1 / 3) - np.log(p).mean(), abs=1e-6)


def test_union_and_stack() -> None:
    ctx = context(100)
    options = {"mode": "union", "first": "teacher_confidence", "first_options": {"prefer": "confident"}}
    options |= {"second": "loss", "second_options": {}, "share": 0.25, "narrow": 2.0}
    found = chosen("combined", ctx, count=8, options=options)
    assert found.tolist() == [*ctx.sample_ids[:2], *ctx.sample_ids[-6:]]
    stacked = chosen("combined", ctx, count=8, options={**options, "mode": "stack"})
    assert stacked.tolist() == ctx.sample_ids[8:16].tolist()  # of the 16 surest, the 8 of largest loss


def test_measures_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
    column, hidden = torch.tensor([2, 0]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    expected = {
        "entropy": [
            -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)),
            -(0.9 * np.log(0.9) + 0.1 * np.log(0.05)),
        ],
        "margin": [-0.2, -0.85],
        "least_confidence": [0.5, 0.1],
        "loss": [-np.log(0.2), -np.log(0.9)],
        "rank": [3, 1],
        "best_item": [1, 1],
        "target_logit": [np.log(0.2), np.log(0.9)],
        "gradient_norm": [5 * np.sqrt(0.25 + 0.09 + 0.64), 2 * np.sqrt(0.01 + 0.0025 + 0.0025)],
    }
    assert set(expected) == set(MEASURES)
    for name, values in expected.items():
        assert measure(name, p.log(), column, hidden).tolist() == pytest.approx(values, abs=1e-6), name
    assert measure("rank", torch.zeros(1, 4), torch.tensor([0]), hidden[:1]).tolist() == [
        4
    ]  # ties count against


@pytest.fixture(scope="module")
def scorers() -> tuple[StudentScorer, StudentScorer, np.ndarray]:
    data = make_data(n_items=30, users=10, length=8)
    student = build_student(
        make_settings("student", "sasrec", width=8, dropout=0.5, learn_repeats=False), 30, 5
    ).train()
    small, large = (StudentScorer(student, data, torch.device("cpu"), b) for b in (3, 1000))
    return small, large, data.splits["train"]


def test_student_scorer_is_batched_and_restores_the_mode(scorers) -> None:
    small, large, ids = scorers
    items = np.tile(np.arange(1, 6), (len(ids), 1))
    for ask in (
        lambda s: s.vectors(ids),
        lambda s: s.gradients(ids),
        lambda s: s.measure(ids, "entropy"),
        lambda s: s.log_probabilities(ids, items),
    ):
        np.testing.assert_allclose(ask(small), ask(large), atol=1e-5)
    assert small.vectors(ids).shape == small.gradients(ids).shape == (len(ids), 8)
    assert small.student.training


def test_gradients_and_norms_are_autograds(scorers) -> None:
    """Gradient at the sequence vector of the best item's loss; norm of the true item's loss at the output table."""
    scorer, _, ids = scorers
    student, rows = scorer.student.eval(), ids[:3]
    batch = next(scorer._batches(rows))
    hidden = student.encode(batch.history).detach().requires_grad_(True)
    scores = student.score(hidden, None, batch.history)
    best = torch.nn.functional.cross_entropy(scores, scores.argmax(dim=1), reduction="sum")
    (gradient,) = torch.autograd.grad(best, hidden, retain_graph=True)
    np.testing.assert_allclose(scorer.gradients(rows), gradient.numpy(), atol=1e-5)
    vectors = student.tables().outputs.detach().requires_grad_(True)
    for i in range(len(rows)):
        logits = hidden[i].detach() @ vectors.T + student.output_bias.detach()
        loss = torch.nn.functional.cross_entropy(logits[None], batch.target[i : i + 1] - 1)
        (grad,) = torch.autograd.grad(loss, vectors)
        assert scorer.measure(rows, "gradient_norm")[i] == pytest.approx(float(grad.norm()), rel=1e-4)
