"""Distilled training from end to end on a world whose true next-item distribution is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.artifacts import read_json
from src.core.data_utils import InteractionData
from src.core.errors import Interrupted, UserError
from src.core.metrics import EvalConfig
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows, TeacherStore
from src.distill import ranking_gate, trainer_distill
from src.distill.data_bridge import join_rows, ranking_signals
from src.distill.meta_weights import LearnedWeights
from src.distill.objective import DistillObjective
from src.distill.trainer_distill import hold_out, train_distilled
from src.student import trainer_baseline
from src.student.architectures import Student
from src.student.checkpoint import load_checkpoint, load_student_model, save_student
from src.student.datamodule import Samples
from src.student.models import build_student
from src.student.trainer_baseline import train_student
from tests.distill.conftest import make_data, make_rows, make_settings, make_store

N_ITEMS = 60
EVAL = EvalConfig(ks=(10,), select_metric="NDCG@10", exclude_history=False, batch_size=256, candidates=None)


@dataclass(frozen=True)
class World:
    """Items with latent vectors; the next item depends on the last one by `transition` [N, N]."""

    data: InteractionData
    transition: np.ndarray
    store: TeacherStore

    def expected_ndcg(self, student: Student) -> float:
        """Expectation of NDCG@10 over the true next item: no noise from drawn targets."""
        data = self.data
        history = data.histories(np.concatenate([data.splits["valid"], data.splits["test"]]))
        with torch.no_grad():
            order = student(torch.from_numpy(history).long()).argsort(dim=1, descending=True).numpy()[:, :10]
        p = np.take_along_axis(self.transition[history[:, -1] - 1], order, axis=1)
        return float((p / np.log2(np.arange(2, 12))).sum(axis=1).mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """660 training samples, and a perfect teacher: the true distribution, and the items' latent vectors."""
    rng = np.random.default_rng(11)
    latent = rng.standard_normal((N_ITEMS, 6))
    logits = latent @ rng.standard_normal((6, 6)) / 1.5 @ latent.T
    np.fill_diagonal(logits, -9)
    transition = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def sequence(rng: np.random.Generator) -> np.ndarray:
        items = [int(rng.integers(N_ITEMS))]
        while len(items) < 14:
            items.append(int(rng.choice(N_ITEMS, p=transition[items[-1]])))
        return np.array(items) + 1

    data = make_data(N_ITEMS, users=60, length=14, sequence=sequence)
    train = data.splits["train"]
    log_p = np.log(transition[data.histories(train)[:, -1] - 1])
    rankings = np.argsort(-log_p, axis=1)[:, :20]
    rows = TeacherRows(
        train,
        (rankings + 1).astype(np.int32),
        np.take_along_axis(log_p, rankings, axis=1).astype(np.float32),
        log_p[np.arange(len(train)), data.targets(train) - 1].astype(np.float32),
    )
    vectors = np.concatenate([np.zeros((1, 6)), latent]).astype(np.float32)
    folder = tmp_path_factory.mktemp("world") / "store"
    return World(data, transition, make_store(folder, data, rows, vectors, "log_likelihood"))


def student_settings(name: str = "sasrec", **changes: object):
    small = {
        "width": 16,
        "blocks": 1,
        "heads": 1,
        "dropout": 0.1,
        "loss": "ce",
        "label_smoothing": 0.0,
        "optimizer": "adamw",
        "lr": 5e-3,
        "weight_decay": 1e-2,
        "ema": 0.0,
        "batch_size": 64,
    }
    return make_settings("student", name, **{**small, "max_epochs": 15, "patience": 15, **changes})


def distil(
    world: World,
    folder: Path,
    student: object = None,
    active: object = None,
    selection: Selection | None = None,
    store: TeacherStore | None = None,
    seed: int = 1,
    **changes: object,
):
    return train_distilled(
        student or student_settings(),
        make_settings("distill", "dllm2rec", **{"gate_rankings": False, **changes}),
        active or make_settings("active", "all"),
        world.data,
        store or world.store,
        EVAL,
        seed=seed,
        folder=folder,
        fingerprint="f",
        selection=selection,
    )[:2]


@pytest.fixture(scope="module")
def baseline(world: World, tmp_path_factory: pytest.TempPathFactory) -> float:
    folder = tmp_path_factory.mktemp("baseline")
    student, _ = train_student(student_settings(), world.data, EVAL, seed=1, folder=folder, fingerprint="b")
    return world.expected_ndcg(student)


# The best possible is .807, the baseline about .755; over seeds 1-3 the gains were .024-.030 (ranking, ce),
# .009-.016 (ranking, bce), .025-.036 (fuse), .019-.038 (align), .029-.040 (both parts); no control gained.
@pytest.mark.parametrize(
    ("parts", "control", "least"),
    [
        ({"embedding": "none"}, "shuffle_rankings", 0.015),
        ({"embedding": "none", "rd_loss": "bce"}, "shuffle_rankings", 0.004),
        ({"embedding": "none", "confidence": "target"}, "shuffle_rankings", 0.015),
        ({"lam": 0.0, "ed_weight": 0.5}, "permute_embeddings", 0.015),
        ({"lam": 0.0, "ed_weight": 0.5, "offset": False}, "permute_embeddings", 0.015),
        ({"lam": 0.0, "embedding": "align"}, "permute_embeddings", 0.01),
        ({}, "both", 0.015),
    ],
    ids=["ranking", "ranking-bce", "confidence-target", "fuse", "fuse-without-offset", "align", "both-parts"],
)
def test_a_perfect_teacher_helps_and_its_control_does_not(
    world: World, baseline: float, tmp_path: Path, parts: dict, control: str, least: float
) -> None:
    student, _ = distil(world, tmp_path / "d", **parts)
    controlled, _ = distil(world, tmp_path / "c", control=control, **parts)
    gain, of_control = world.expected_ndcg(student) - baseline, world.expected_ndcg(controlled) - baseline
    assert gain > least
    assert of_control < gain / 3


@pytest.mark.parametrize("name", ["sasrec_dllm2rec", "gru4rec", "caser", "caser_dllm2rec"])
def test_other_students_learn_from_the_ranking(world: World, tmp_path: Path, name: str) -> None:
    config = student_settings(name, loss="bce", max_epochs=16)  # the moving average needs its steps
    alone, _ = train_student(config, world.data, EVAL, seed=1, folder=tmp_path / "b", fingerprint="b")
    student, _ = distil(world, tmp_path / "d", config, embedding="fuse", lam=0.8)
    assert world.expected_ndcg(student) > world.expected_ndcg(alone) + 0.02


def test_official_profile_trains(world: World, tmp_path: Path) -> None:
    config = student_settings("sasrec_dllm2rec", loss="dros", dros_alpha=1.0, max_epochs=2)
    _, result, report = train_distilled(
        config,
        make_settings("distill", "dllm2rec_official"),
        make_settings("active", "all"),
        world.data,
        world.store,
        EVAL,
        seed=1,
        folder=tmp_path,
        fingerprint="f",
    )
    assert result.history[1]["loss"] < result.history[0]["loss"]
    assert {"recommendation", "ranking"} <= set(result.history[0])
    assert "every sample" in report["note"]


def test_bf16_steps_stay_close_to_float32(world: World, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        config = student_settings(max_epochs=1, dropout=0.0, precision=precision)
        _, result = distil(world, tmp_path / precision, config, projection_dtype="bf16")
        losses[precision] = result.history[0]["loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_the_saved_folder_is_a_plain_student_with_the_same_scores(world: World, tmp_path: Path) -> None:
    config = student_settings(max_epochs=2)
    student, _ = distil(world, tmp_path / "work", config, ed_weight=0.8)
    save_student(tmp_path / "served", student, config, world.data, {})
    loaded, _ = load_student_model(tmp_path / "served")
    history = torch.from_numpy(world.data.histories(world.data.splits["test"])).long()
    with torch.no_grad():
        assert torch.equal(loaded(history), student(history))
    assert {p.name for p in (tmp_path / "served").iterdir()} == {
        "model.safetensors",
        "student.json",
        "catalogue.json",
        "manifest.json",
    }


def test_the_baselines_initial_weights_and_batches(world: World, tmp_path: Path, monkeypatch) -> None:
    """What differs between baseline and distilled is loss and item tables: same start, same order of samples."""
    seen: dict[str, list] = {}

    def spy(objective, data, config, eval_config, **keys):
        seen.setdefault("weights", []).append(
            {k: v.clone() for k, v in objective.student.state_dict().items()}
        )
        seen.setdefault("keys", []).append((keys["seed"], keys.get("selection")))
        raise Interrupted(2)

    for module in (trainer_distill, trainer_baseline):
        monkeypatch.setattr(module, "fit", spy)
    with pytest.raises(Interrupted):
        distil(world, tmp_path)
    with pytest.raises(Interrupted):
        train_student(student_settings(), world.data, EVAL, seed=1, folder=tmp_path, fingerprint="f")
    a, b = seen["weights"]
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if k != "items.weight")
    assert b["items.weight"].any() and not a["items.weight"].any()  # of its own an item starts with nothing
    assert seen["keys"][0] == seen["keys"][1] == (1, None)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("loss", {}),
        ("forgetting", {}),
        ("entropy", {}),
        ("random", {}),
    ],
)
def test_a_stopped_training_goes_on_to_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, options: dict
) -> None:
    active = make_settings("active", policy, share=0.3, refresh_every=2, options=options)
    config = student_settings(max_epochs=5)
    whole, _ = distil(world, tmp_path / "whole", config, active, embedding="both", align_items=20)
    steps = iter(range(10**6))

    def stop_in_the_fourth_epoch() -> None:
        if next(steps) == 3 * 12 + 5:  # eleven steps and one question at the end make an epoch
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_baseline, "check_stop", stop_in_the_fourth_epoch)
        with pytest.raises(Interrupted):
            distil(world, tmp_path / "cut", config, active, embedding="both", align_items=20)
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.pt", "f")["progress"]["epoch"] == 3
    resumed, _ = distil(world, tmp_path / "cut", config, active, embedding="both", align_items=20)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_refreshed_selections_change_and_keep_their_count(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[np.ndarray] = []
    apply = trainer_distill.apply_selection
    monkeypatch.setattr(
        trainer_distill,
        "apply_selection",
        lambda objective, selection, ids: (
            taken.append(selection.sample_ids),
            apply(objective, selection, ids),
        ),
    )
    active = make_settings("active", "diversity", share=None, count=50, refresh_every=2)
    distil(world, tmp_path, student_settings(max_epochs=5), active)
    assert [len(ids) for ids in taken] == [50, 50, 50]  # before the epochs 1, 3, 5
    assert not np.array_equal(taken[0], taken[1]) and not np.array_equal(taken[1], taken[2])


def test_an_offline_selection_weighs_its_samples_and_no_others(world: World, tmp_path: Path) -> None:
    ids = world.data.splits["train"][5::7]
    chosen = Selection(ids, np.linspace(0.5, 1.5, len(ids)).astype(np.float32))
    distil(world, tmp_path, student_settings(max_epochs=1), selection=chosen)
    weights = load_checkpoint(tmp_path / "checkpoint.pt", "f")["objective"]["sample_weights"].numpy()
    assert np.array_equal(world.data.splits["train"][weights > 0], ids)
    assert np.array_equal(weights[weights > 0], chosen.weights)


def part_store(world: World, folder: Path) -> TeacherStore:
    rows = world.store.rows("train")
    every_third = TeacherRows(**{name: np.array(values[::3]) for name, values in vars(rows).items()})
    return make_store(folder, world.data, every_third, kind="log_likelihood")


def test_a_partial_store_distils_what_it_has(world: World, tmp_path: Path) -> None:
    distil(world, tmp_path / "w", student_settings(max_epochs=1), store=part_store(world, tmp_path / "s"))
    weights = load_checkpoint(tmp_path / "w" / "checkpoint.pt", "f")["objective"]["sample_weights"]
    assert weights.sum() == 220 and len(weights) == 660


def test_what_cannot_be_served_is_refused_before_the_first_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_distill, "fit", lambda *a, **k: pytest.fail("training began"))
    part = part_store(world, tmp_path / "s")
    with pytest.raises(UserError, match="active.count=300; expected <= 220 samples"):
        distil(world, tmp_path, active=make_settings("active", "random", share=None, count=300), store=part)
    selection = Selection(world.data.splits["train"][:2], np.ones(2, np.float32))
    with pytest.raises(UserError, match="has no teacher row"):
        distil(world, tmp_path, selection=selection, store=part)
    with pytest.raises(UserError, match="active.policy=random with distill.lam=0"):
        distil(world, tmp_path, active=make_settings("active", "random"), lam=0.0)
    with pytest.raises(UserError, match="distill.top_k=21; expected <= 20"):
        distil(world, tmp_path, top_k=21)


def test_an_offline_policy_without_its_student_is_refused(world: World, tmp_path: Path) -> None:
    active = make_settings("active", "entropy")
    with pytest.raises(UserError, match="active.policy=entropy without scorer; expected a trained student"):
        distil(world, tmp_path, active=active)


def test_manifest_of_the_world(world: World) -> None:
    """The store of these tests is one that the format's owner accepts, with every training sample."""
    manifest = read_json(world.store.folder / "manifest.json")
    assert manifest["n_samples"] == {"train": 660} and manifest["n_train_split"] == 660


def gated_store(world: World, folder: Path, knows: bool) -> TeacherStore:
    """The world's store with validation rows: the true item first, or chance."""
    ids = world.data.splits["valid"]
    chance = make_rows(world.data, ids, N_ITEMS, kind="log_likelihood")
    rankings = chance.rankings.copy()
    if knows:
        for row, target in enumerate(world.data.targets(ids)):
            rankings[row] = [target, *rankings[row][rankings[row] != target]]
    valid = TeacherRows(ids, rankings[:, :20], chance.scores[:, :20], chance.target_scores)
    vectors = world.store.item_embeddings()
    return make_store(folder, world.data, world.store.rows("train"), vectors, "log_likelihood", valid)


def gated(world: World, folder: Path, store: TeacherStore, **changes: object):
    config = make_settings("distill", "dllm2rec", **changes)
    keys = {"seed": 1, "folder": folder, "fingerprint": "f"}
    active, student = make_settings("active", "all"), student_settings(max_epochs=3)
    return train_distilled(student, config, active, world.data, store, EVAL, **keys)


def test_rankings_of_a_teacher_that_knows_no_more_change_nothing(world: World, tmp_path: Path) -> None:
    store = gated_store(world, tmp_path / "s", knows=False)
    student, result, report = gated(world, tmp_path / "g", store)
    alone, of_alone, said = gated(world, tmp_path / "a", store, lam=0.0)
    _, _, unknown = gated(world, tmp_path / "u", world.store)
    assert "rankings not used: the teacher is" in report["note"] and report["train_share"] == 0
    assert said == {"used": False, "note": "rankings not used: distill.lam=0"}
    assert unknown == {
        "used": False,
        "note": "rankings not used: the teacher's store has no rankings of valid",
    }
    assert result.best_value == of_alone.best_value
    for (name, a), (_, b) in zip(student.state_dict().items(), alone.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_rankings_of_a_teacher_that_knows_more_are_followed_and_judged(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking_gate, "_LEAST_ROWS", 10)  # 60 validation rows in all
    store = gated_store(world, tmp_path / "s", knows=True)
    _, result, report = gated(world, tmp_path / "g", store)
    assert report["train_share"] > 0 and "rankings followed for targets seen" in report["note"]
    with_rankings, without = report["valid_with"], report["valid_without_rankings"]
    assert result.best_value == max(with_rankings, without)
    assert ("left out" in report["note"]) == (with_rankings <= without) == (not report["used"])
    weights = load_checkpoint(tmp_path / "g" / "checkpoint.pt", "f")["objective"]["sample_weights"]
    assert (weights == 1).all()  # the gate is beside the selection, not in it


@pytest.mark.parametrize("meta", ["reweight", "weight_net"])
def test_learned_weights_go_on_to_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: str
) -> None:
    """Weights are learned on held-out validation rows, spread, and are a part of the checkpoint."""
    name = {"reweight": "learn_to_reweight", "weight_net": "meta_weight_net"}[meta]
    active, config = make_settings("active", name, meta_lr=0.5), student_settings(max_epochs=3)
    seen: list[dict] = []
    train_epoch = trainer_baseline._train_epoch

    def watched(*args: object) -> tuple:
        losses, parts = train_epoch(*args)
        seen.append(parts)
        return losses, parts

    monkeypatch.setattr(trainer_baseline, "_train_epoch", watched)
    whole, _ = distil(world, tmp_path / "whole", config, active, gate_rankings=False)
    assert seen[-1]["weight_deviation"] > 0.01 and seen[0]["weight_drift"] > 0.01
    if meta == "reweight":
        assert 0.05 < seen[-1]["weight_zero"] < 0.95
    steps = iter(range(10**6))

    def stop_in_the_third_epoch() -> None:
        if next(steps) == 2 * 12 + 5:
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_baseline, "check_stop", stop_in_the_third_epoch)
        with pytest.raises(Interrupted):
            distil(world, tmp_path / "cut", config, active, gate_rankings=False)
    resumed, _ = distil(world, tmp_path / "cut", config, active, gate_rankings=False)
    for (key, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


def test_learned_weights_of_the_product_are_the_look_aheads(world: World, tmp_path: Path) -> None:
    """The influences of a real objective against autograd, one sample at a time: <grad l_i, grad M>."""
    rows = join_rows(world.store, world.data, 5)
    config = make_settings("distill", "dllm2rec", top_k=5, embedding="none", gate_rankings=False)
    student_config = student_settings()
    signals = ranking_signals(
        rows, world.data.splits["train"], world.store.score_kind, config, 1, torch.device("cpu")
    )
    student = build_student(student_config, world.data.n_items, world.data.max_history)
    objective = DistillObjective(student, student_config, config, world.data, 1, signals, None)
    _, held_out = hold_out(world.data, 0.5, 1)
    active = make_settings("active", "learn_to_reweight", meta_batch=len(held_out))
    objective.learn_weights(LearnedWeights(active, world.data, held_out, 1, torch.device("cpu")))
    samples = Samples(world.data, Selection(world.data.splits["train"]), torch.device("cpu"))
    objective.start_epoch(0, samples)
    objective.train()
    batch = samples.batch(torch.arange(12))
    objective._learn_weights(batch)
    found = objective.sample_weights[:12].clone()

    objective.eval()
    parameters = list(objective.parameters())
    everyone = objective.learned.held_out.batch(torch.arange(len(held_out)))
    hidden, tables = objective._encode(everyone)
    loss = objective.recommendation(student, hidden, everyone, None, tables).mean()
    meta = torch.autograd.grad(loss, parameters, allow_unused=True)
    objective.sample_weights.fill_(1.0)
    exact = []
    for i in range(len(batch)):
        _, ranking, _ = objective._rank(batch, *objective._encode(batch), None)
        own = torch.autograd.grad(ranking[i], parameters, allow_unused=True)
        exact.append(sum(float((a * b).sum()) for a, b in zip(own, meta, strict=True) if a is not None))
    expected = np.maximum(exact, 0) / np.maximum(exact, 0).mean()
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02 * expected.max())


def test_a_selection_for_the_teacher_leaves_the_distillation_alone(world: World, tmp_path: Path) -> None:
    elsewhere = make_settings("active", "random", share=0.1, use=("teacher_train", "export"))
    chosen, _ = distil(world, tmp_path / "a", active=elsewhere, gate_rankings=False)
    everyone, _ = distil(world, tmp_path / "b", gate_rankings=False)
    for (key, a), (_, b) in zip(chosen.state_dict().items(), everyone.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    distil(world, tmp_path / "c", active=elsewhere, lam=0.0)  # and needs no rankings


@pytest.mark.parametrize("active", [("loss", {"refresh_every": 1}), ("learn_to_reweight", {})])
def test_what_selects_is_refused_where_nothing_is_ranked(
    world: World, tmp_path: Path, active: tuple[str, dict]
) -> None:
    settings = make_settings("active", active[0], **active[1])
    with pytest.raises(
        UserError, match=r"active\.(policy=loss|meta=reweight) with distill.lam=0; expected rankings"
    ):
        distil(world, tmp_path, active=settings, lam=0.0)
