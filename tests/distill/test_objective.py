"""The whole objective: both profiles against oracles, masks, fused and aligned item vectors, folding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.paths import CONF
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows
from src.distill.config import DistillConfig
from src.distill.data_bridge import RankingSignals, ranking_signals
from src.distill.objective import DistillObjective
from src.exp.settings import Settings
from src.student.architectures import ItemTables, Student
from src.student.config import StudentConfig
from src.student.datamodule import SampleBatch, Samples
from src.student.models import build_student, fold_item_tables
from src.student.objective import RecommendationLoss
from tests.distill.conftest import make_data, make_rows, make_settings

CPU = torch.device("cpu")


class FixedScores(Student):
    """A student whose score matrix is one parameter: what a loss does with scores, and to them."""

    def __init__(self, scores: Tensor):
        super().__init__(scores.shape[1], 5, 4, 4, False, 0.1)
        self.matrix = torch.nn.Parameter(scores)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        return torch.zeros(len(history), 4)

    def score(
        self, hidden: Tensor, tables: ItemTables | None = None, history: Tensor | None = None
    ) -> Tensor:
        return self.matrix

    def score_items(
        self, hidden: Tensor, items: Tensor, tables: ItemTables | None = None, history: Tensor | None = None
    ) -> Tensor:
        return self.matrix.gather(1, items - 1)


def batch_of(history: Tensor, target: Tensor, rows: Tensor) -> SampleBatch:
    return SampleBatch(rows, rows, history, target, torch.ones(len(rows)))


def oracle_objective(
    oracle: dict,
    tag: str,
    dtype: torch.dtype,
    student_config: StudentConfig | None = None,
    config: DistillConfig | None = None,
) -> tuple[DistillObjective, SampleBatch]:
    """The official profile with the oracle's parameters, or with the settings that are given."""
    alpha, lam, beta, *gammas, k, _ = oracle[f"loss/{tag}/hp"].tolist()
    student_config = student_config or make_settings(
        "student", "sasrec_dllm2rec", loss="dros" if alpha else "bce", dros_alpha=alpha, dros_beta=beta
    )
    config = config or make_settings(
        "distill",
        "dllm2rec_official",
        alpha=alpha,
        beta=beta,
        lam=lam,
        top_k=int(k),
        gamma_position=gammas[0],
        gamma_confidence=gammas[1],
        gamma_consistency=gammas[2],
        embedding="none",
    )
    distances = oracle["loss/in/conf_raw" if tag.endswith("raw") else "loss/in/conf_unit"][:, : int(k)]
    ids = np.arange(len(distances))
    rankings = (oracle["loss/in/all_candidate"][:, : int(k)] + 1).astype(np.int32)
    rows = TeacherRows(ids, rankings, distances, distances[:, 0])
    signals = ranking_signals(rows, ids, "distance", config, 0, CPU)
    data = make_data(n_items=50, users=10, length=6)
    student = FixedScores(torch.tensor(oracle["loss/in/model_output"], dtype=dtype))
    objective = DistillObjective(student, student_config, config, data, 0, signals, None).to(dtype)
    objective.recommendation.propensity = torch.tensor(oracle["loss/in/ps"], dtype=dtype)
    objective.recommendation.negatives = lambda batch: torch.tensor(oracle["loss/in/target_neg"]) + 1
    target = torch.tensor(oracle["loss/in/target"]) + 1
    return objective, batch_of(torch.ones(8, 5).long(), target, torch.tensor(oracle["loss/in/sample"]))


@pytest.mark.parametrize("tag", ["a0_l1", "a1_l1", "a0_l1_raw", "a1_l1_raw"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_official_profile_in_the_training_step(
    oracle: dict, tag: str, dtype: torch.dtype, tolerance: float
) -> None:
    objective, batch = oracle_objective(oracle, tag, dtype)
    loss, parts = objective(batch)
    loss.mean().backward()
    expected = float(oracle[f"loss/{tag}/loss_all"])
    assert loss.mean().item() == pytest.approx(expected, rel=tolerance)
    assert parts["ranking"].item() == pytest.approx(float(oracle[f"loss/{tag}/loss_all_rd"]), rel=tolerance)
    gradient = oracle[f"loss/{tag}/grad_model_output"]
    np.testing.assert_allclose(
        objective.student.matrix.grad.numpy(), gradient, rtol=0, atol=tolerance * np.abs(gradient).max()
    )


def test_the_command_at_the_official_profiles_head_is_the_whole_objective(oracle: dict) -> None:
    """The command in conf/distill/dllm2rec_official.yaml gives L_bce + alpha L_dro + lam L_rd, term by term."""
    text = (CONF / "distill" / "dllm2rec_official.yaml").read_text()
    command = next(line for line in text.splitlines() if "src.exp.run_distill" in line).split("run_distill ")[
        1
    ]
    settings = Settings.compose(command.split())
    config = replace(settings.distill, embedding="none")  # it has no loss of its own
    objective, batch = oracle_objective(oracle, "a1_l1", torch.float64, settings.student, config)
    loss, parts = objective(batch)
    terms = {name: float(oracle[f"loss/a1_l1/{name}"]) for name in ("bce", "loss_dro_mean", "loss_all_rd")}
    c = settings.distill
    assert (c.alpha, c.lam, c.embedding, c.ed_weight, settings.student.architecture) == (
        *(1.0, 0.8, "fuse", 0.2),
        "sasrec_dllm2rec",
    )
    recommendation = terms["bce"] + 1.0 * terms["loss_dro_mean"]
    assert parts["recommendation"].item() == pytest.approx(recommendation, rel=1e-6)
    assert parts["ranking"].item() == pytest.approx(0.8 * terms["loss_all_rd"], rel=1e-6)
    assert loss.mean().item() == pytest.approx(recommendation + 0.8 * terms["loss_all_rd"], rel=1e-6)


def numpy_corrected(scores: np.ndarray, target: np.ndarray, ranking: np.ndarray, d: np.ndarray, c) -> float:
    """The corrected profile with soft targets, written down a second time from the equations."""
    total = 0.0
    for s, y, items, distance in zip(scores, target, ranking, d, strict=True):
        log_p = s - (s.max() + np.log(np.exp(s - s.max()).sum()))
        k = len(items)
        p = np.exp(-np.arange(1, k + 1) / c.beta_pos)
        p = p / p.sum()
        scaled = (distance - distance.min()) / (distance.max() - distance.min()) / c.confidence_temperature
        q = (np.exp(-scaled) + 1e-8) / (np.exp(-scaled) + 1e-8).sum()
        top = np.argsort(-s)[:k] + 1
        o = np.isin(items, top) + 1e-8
        u = c.gamma_position * p + c.gamma_confidence * q + c.gamma_consistency * o
        total += -log_p[y - 1] - c.lam * (u / u.sum() * log_p[items - 1]).sum()
    return total / len(scores)


def test_corrected_profile_against_an_independent_formulation() -> None:
    data = make_data(n_items=50, users=10, length=6)
    config = make_settings("distill", "dllm2rec", embedding="none", confidence_temperature=0.4, beta_pos=2.0)
    assert (config.rd_loss, config.alpha, config.confidence_scaling) == ("ce", 0.0, "minmax")
    train = data.splits["train"]
    rows = make_rows(data, train, 10)
    scores = torch.randn(8, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signals = ranking_signals(rows, train, "distance", config, 0, CPU)
    student_config = make_settings("student", "sasrec", loss="ce")
    objective = DistillObjective(FixedScores(scores), student_config, config, data, 0, signals, None).double()
    at = torch.arange(3, 11)
    target = torch.from_numpy(data.targets(train[at])).long()
    loss, _ = objective(batch_of(torch.ones(8, 5).long(), target, at))
    pick = at.numpy()
    expected = numpy_corrected(scores.numpy(), target.numpy(), rows.rankings[pick], rows.scores[pick], config)
    assert loss.mean().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "ce"},
        {"loss": "ce", "learn_repeats": True},
        {"loss": "ce", "label_smoothing": 0.2},
        {"loss": "bce"},
        {"loss": "gbce", "negatives": 7},
        {"loss": "dros", "dros_base": "bce"},
        {"loss": "dros", "dros_base": "ce", "dros_beta": 0.6},
        {"loss": "dros", "dros_base": "gbce", "negatives": 7},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
@pytest.mark.parametrize("rd_loss", ["ce", "bce"])
def test_the_recommendation_loss_is_the_baselines(changes: dict, rd_loss: str) -> None:
    """Same negatives, same value, same gradient as the baseline's loss, whatever shares its pass."""
    data = make_data(n_items=40, users=10, length=8)
    student_config = make_settings("student", "sasrec", **{"dropout": 0.0, "learn_repeats": False, **changes})
    config = make_settings("distill", "dllm2rec", rd_loss=rd_loss, alpha=0.5, embedding="none")
    train = data.splits["train"]
    signals = ranking_signals(make_rows(data, train, 10), train, "distance", config, 0, CPU)
    torch.manual_seed(0)
    student = build_student(student_config, data.n_items, data.max_history)
    silent = RankingSignals(signals.candidates, signals.confidence, torch.zeros(len(train)))
    objective = DistillObjective(student, student_config, config, data, 4, silent, None).double()
    baseline = RecommendationLoss(student_config, data, 4).double()
    samples = Samples(data, Selection(train), CPU)
    batch = samples.batch(torch.arange(16))
    objective.start_epoch(0, samples)
    baseline.start_epoch(0)
    loss, _ = objective(batch)
    expected = baseline(student, student.encode(batch.history), batch, baseline.negatives(batch))
    assert torch.allclose(loss, expected, rtol=1e-10)
    gradients = [torch.autograd.grad(x.mean(), student.items.weight)[0] for x in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)


def distilled(
    data: InteractionData, student: str = "sasrec", weights: Tensor | None = None, **changes: object
) -> tuple[DistillObjective, Samples]:
    student_config = make_settings("student", student, dropout=0.0, width=8)
    config = make_settings("distill", "dllm2rec", **changes)
    train = data.splits["train"]
    signals = ranking_signals(make_rows(data, train, 10), train, "distance", config, 0, CPU)
    if weights is not None:
        signals = RankingSignals(signals.candidates, signals.confidence, weights)
    torch.manual_seed(0)
    built = build_student(student_config, data.n_items, data.max_history)
    vectors = torch.randn(data.n_items + 1, 12)
    vectors[0] = 0
    objective = DistillObjective(
        built,
        student_config,
        config,
        data,
        0,
        signals if config.ranks else None,
        vectors if config.embedding != "none" else None,
    )
    samples = Samples(data, Selection(train), CPU)
    objective.start_epoch(0, samples)
    return objective, samples


@pytest.mark.parametrize("profile", [{}, {"rd_loss": "bce", "alpha": 1.0, "dro_weighting": "batch_mean"}])
def test_masks_and_weights(small_data: InteractionData, profile: dict) -> None:
    n = len(small_data.splits["train"])
    full, samples = distilled(small_data, embedding="none", **profile)
    batch = samples.batch(torch.arange(20))
    everything = full(batch)[0]
    ones, _ = distilled(small_data, embedding="none", weights=torch.ones(n), **profile)
    assert torch.equal(ones(batch)[0], everything)
    mask = (torch.arange(n) % 3 == 0).float()
    masked, _ = distilled(small_data, embedding="none", weights=mask, **profile)
    silent, _ = distilled(small_data, embedding="none", weights=torch.zeros(n), **profile)
    part, alone = masked(batch)[0], silent(batch)[0]
    out = mask[:20] == 0
    assert torch.allclose(part[out], alone[out])
    if not profile:  # per-sample terms: the rest is untouched, and doubles with the weight
        assert torch.allclose(part[~out], everything[~out])
        double, _ = distilled(small_data, embedding="none", weights=2 * mask, **profile)
        assert torch.allclose(double(batch)[0] - alone, 2 * (part - alone), atol=1e-5)


@pytest.mark.parametrize("student", ["sasrec", "sasrec_dllm2rec", "gru4rec", "caser"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"offset": False},
        {"projector": "mlp", "projector_width": 6},
        {"own_start": "random", "own_shrinkage": 0.0, "fuse_output": False, "untrained_negatives": True},
    ],
)
def test_fused_tables_in_training_evaluation_and_folded(
    small_data: InteractionData, student: str, changes: dict
) -> None:
    """The rows that a step fuses, the whole table, and the folded plain student give the same scores."""
    objective, samples = distilled(small_data, student, embedding="fuse", ed_weight=0.7, **changes)
    objective.eval()
    batch = samples.batch(torch.arange(12))
    with torch.no_grad():
        tables = objective.item_tables()
        whole = objective.student(batch.history, tables)
        hidden, scoring = objective._encode(batch)
        step = objective.student.score(hidden, scoring, batch.history)
        assert torch.allclose(step, whole, atol=1e-6)
        own = objective.student(batch.history)
        assert (own - whole).abs().max() > 1e-3
        fold_item_tables(objective.student, tables)
        assert torch.allclose(objective.student(batch.history), whole, atol=1e-6)


def test_fuse_by_hand(small_data: InteractionData) -> None:
    """e = n / (n + c) own + ed_weight * (W x), b = n / (n + c) own + c / (n + c) unseen."""
    objective, _ = distilled(small_data, ed_weight=0.25, own_shrinkage=2.0, lam=0.0)
    student, fusion, count = objective.student, objective.fusion, int(small_data.train_counts()[7])
    with torch.no_grad():
        for parameter in objective.parameters():  # what starts at zero
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        tables, x, share = objective.item_tables(), fusion.inputs.table[7], count / (count + 2.0)
    own = student.items.weight[7]
    assert torch.allclose(tables.inputs[7], share * own + 0.25 * (fusion.inputs.map.weight @ x), atol=1e-6)
    assert torch.equal(tables.outputs, tables.inputs[1:])  # tied
    bias = share * student.output_bias[6] + (1 - share) * fusion.bias_of_unseen
    assert torch.allclose(tables.bias[6], bias, atol=1e-6)
    assert "fusion.inputs.map.weight" in objective.state_dict()
    assert "fusion.inputs.table" not in objective.state_dict()  # rebuilt from the store


def test_caser_starts_by_scoring_what_is_like_the_history(small_data: InteractionData) -> None:
    """Its output map starts as the identity on the normed sum of the item vectors: score_i = x_i . LN(sum_h x_h)."""
    objective, samples = distilled(small_data, "caser", lam=0.0)
    objective.eval()
    history = samples.batch(torch.arange(12)).history
    with torch.no_grad():
        tables = objective.item_tables()
        found = objective.student(history, tables)
        vectors = tables.inputs[1:]
        total = torch.nn.functional.embedding(history, tables.inputs, padding_idx=0).sum(1)
    normed = (total - total.mean(1, keepdim=True)) / total.std(1, keepdim=True, correction=0)
    assert torch.allclose(
        found, normed @ vectors.T + tables.bias, rtol=1e-2, atol=1e-2
    )  # LayerNorm's epsilon


def test_the_official_fusion_by_hand(small_data: InteractionData) -> None:
    official = {
        "own_start": "random",
        "own_shrinkage": 0.0,
        "fuse_output": False,
        "untrained_negatives": True,
    }
    objective, _ = distilled(small_data, ed_weight=0.25, **official)
    tables, projection = objective.item_tables(), objective.projection
    projected = projection.map.weight @ projection.table[7] + projection.map.bias
    assert torch.allclose(tables.inputs[7], objective.student.items.weight[7] + 0.25 * projected, atol=1e-6)
    assert torch.equal(tables.bias, objective.student.output_bias)


def test_items_without_training_targets_are_their_text_and_no_negatives() -> None:
    """Their own part counts nothing, and training neither pushes their scores nor draws through them."""
    data = make_data(n_items=30, users=3, length=6)
    unseen = torch.from_numpy(np.flatnonzero(data.train_counts()[1:] == 0))
    assert len(unseen) > 5
    for student in ("sasrec", "caser"):
        objective, samples = distilled(data, student, lam=0.0)
        batch = samples.batch(torch.arange(len(samples)))
        hidden, tables = objective._encode(batch)
        scores = objective.student.score(hidden, tables, batch.history)
        assert (scores.softmax(1)[:, unseen] == 0).all()
        with torch.no_grad():
            assert (objective.student.score(hidden, objective.item_tables(), batch.history).abs() < 100).all()
        objective(batch)[0].sum().backward()
        own = objective.student.tables()
        assert not own.inputs.grad[0].any()
        for gradient in (objective.student.items.weight.grad[unseen + 1], own.bias.grad):
            assert gradient is None or not gradient[..., unseen if gradient.dim() == 1 else slice(None)].any()
    smoothed = make_settings("student", "sasrec", width=8, label_smoothing=0.1)
    config, vectors = make_settings("distill", "dllm2rec"), torch.randn(31, 12)
    whole = DistillObjective(build_student(smoothed, 30, 5), smoothed, config, data, 0, None, vectors)
    assert whole.fusion.excluded is None  # it would be a share of the smoothed mass
    listed, _ = distilled(data, lam=1.0)  # a teacher's candidate is asked for
    asked = listed.candidates.unique().long()
    assert (
        not listed.fusion.excluded[asked].any()
        and not objective.fusion.excluded[data.train_counts()[1:] > 0].any()
    )


def test_gradients_reach_projector_and_items(small_data: InteractionData) -> None:
    for student in ("sasrec", "sasrec_dllm2rec"):
        objective, samples = distilled(small_data, student)
        loss, _ = objective(samples.batch(torch.arange(12)))
        loss.mean().backward()
        assert objective.projection.map.weight.grad.abs().sum() > 0
        assert objective.student.items.weight.grad[1:].abs().sum() > 0
        assert not objective.student.items.weight.grad[0].any()


def test_align_draws_item_vectors_to_the_projected_teacher(small_data: InteractionData) -> None:
    for changes in ({"align_loss": "mse"}, {}, {"align_items": 10}):
        objective, samples = distilled(small_data, embedding="align", lam=0.0, align_weight=5.0, **changes)
        batch = samples.batch(torch.arange(12))
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
        first = objective(batch)[1]["align"].item()
        for _ in range(80):
            optimizer.zero_grad()
            objective(batch)[0].mean().backward()
            optimizer.step()
        assert objective(batch)[1]["align"].item() < 0.3 * first
        assert objective.item_tables() is None  # nothing to fold


def test_bf16_projection_is_close(small_data: InteractionData) -> None:
    exact, samples = distilled(small_data, embedding="fuse")
    rounded, _ = distilled(small_data, embedding="fuse", projection_dtype="bf16")
    assert rounded.projection.table.dtype == torch.bfloat16
    a, b = exact.item_tables().inputs, rounded.item_tables().inputs
    assert b.dtype == torch.float32
    assert not torch.equal(a, b) and (a - b).abs().max() < 0.02


def test_a_sample_order_that_differs_is_refused(small_data: InteractionData) -> None:
    objective, _ = distilled(small_data)
    fewer = Samples(small_data, Selection(small_data.splits["train"][:5]), CPU)
    with pytest.raises(ValueError, match="5 samples"):
        objective.start_epoch(0, fewer)
