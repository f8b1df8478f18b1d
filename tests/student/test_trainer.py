"""The training loop: it learns, stops, goes on exactly where it was, and refuses what it cannot use."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch

from src.core.errors import Interrupted, UserError
from src.core.seed import seed_everything
from src.core.selection import Selection
from src.core.signals import stop_on_signals
from src.student.checkpoint import load_student_model, save_student
from src.student.config import ARCHITECTURES
from src.student.evaluator import rank_samples
from src.student.models import build_student
from src.student.objective import BaselineObjective
from src.student.trainer_baseline import fit, train_student
from tests.student.conftest import make_student_config

OF_THE_MACHINE = ("samples_per_s", "peak_memory_gib")
FAST = ("width=16", "batch_size=32", "max_epochs=4")


def objective_of(config, data, init=3, cls=BaselineObjective):
    """With fresh weights that only `init` determines; the seed of the streams is 3."""
    seed_everything(init, "student")
    return cls(build_student(config, data.n_items, data.max_history), config, data, seed=3)


def run_fit(objective, data, config, eval_config, folder, fingerprint="f", **kwargs):
    return fit(objective, data, config, eval_config, seed=3, folder=folder, fingerprint=fingerprint, **kwargs)


def weights_of(objective):
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class StopsIn(BaselineObjective):
    """Sends SIGTERM to the process in one step of one epoch."""

    at: tuple[int, int] = (-1, -1)

    def start_epoch(self, epoch, samples):
        super().start_epoch(epoch, samples)
        self.here, self.step = epoch, 0

    def forward(self, batch):
        if (self.here, self.step) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.step += 1
        return super().forward(batch)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sasrec", ("loss=dros", "dropout=0.3", "ema=0.9")),
        ("gru4rec", ("loss=gbce", "negatives=5")),
        ("sasrec", ("dropout=0.3", "batching=sequences", "batch_size=8")),
        ("caser", ()),
    ],
)
def test_resume_is_bit_identical(small_data, eval_config, tmp_path, name, overrides):
    config = make_student_config(name, *FAST, *overrides)
    whole = objective_of(config, small_data)
    expected = run_fit(whole, small_data, config, eval_config, tmp_path / "whole")

    for stop in ((0, 2), (1, 0), (2, 3)):
        broken = objective_of(config, small_data, cls=StopsIn)
        broken.at = stop
        with stop_on_signals(), pytest.raises(Interrupted):
            run_fit(broken, small_data, config, eval_config, tmp_path / "broken")
    again = objective_of(config, small_data, init=99)  # its fresh weights must not matter
    result = run_fit(again, small_data, config, eval_config, tmp_path / "broken")
    assert_equal_weights(weights_of(whole), weights_of(again))

    def without_times(history):
        return [{k: v for k, v in entry.items() if k not in OF_THE_MACHINE} for entry in history]

    assert without_times(result.history) == without_times(expected.history)
    assert (result.best_epoch, result.best_value) == (expected.best_epoch, expected.best_value)
    once_more = run_fit(
        objective_of(config, small_data), small_data, config, eval_config, tmp_path / "broken"
    )
    assert once_more.history == result.history  # finished: nothing is trained


def test_resume_keeps_the_selection_and_its_losses(small_data, eval_config, tmp_path):
    config = make_student_config("sasrec_dllm2rec", *FAST)
    ids = small_data.splits["train"]
    seen = []

    def refresh(epoch, objective, losses):
        if epoch == 0:
            return None
        assert losses.shape == (30,) and np.isfinite(losses).all() and (losses > 0).all()
        seen.append((epoch, losses))
        hardest = current[0][np.argsort(-losses, kind="stable")[:20]]
        others = np.setdiff1d(ids, hardest)[epoch : epoch + 10]
        current[0] = np.concatenate([hardest, others])
        return Selection(current[0], np.linspace(0.5, 1.5, 30, dtype=np.float32))

    start = Selection(ids[:30])
    current = [ids[:30]]
    whole = objective_of(config, small_data)
    run_fit(whole, small_data, config, eval_config, tmp_path / "a", selection=start, refresh=refresh)
    expected, seen = seen, []
    current = [ids[:30]]
    broken = objective_of(config, small_data, cls=StopsIn)
    broken.at = (2, 0)
    with stop_on_signals(), pytest.raises(Interrupted):
        run_fit(broken, small_data, config, eval_config, tmp_path / "b", selection=start, refresh=refresh)
    # A policy's own state is its owner's; here it is what epoch 1 trained on.
    first = [ids[:30]]
    hardest = first[0][np.argsort(-expected[0][1], kind="stable")[:20]]
    current = [np.concatenate([hardest, np.setdiff1d(ids, hardest)[1:11]])]
    again = objective_of(config, small_data, init=99)
    run_fit(again, small_data, config, eval_config, tmp_path / "b", selection=start, refresh=refresh)
    assert_equal_weights(weights_of(whole), weights_of(again))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_students_overfit_a_small_set(small_data, eval_config, tmp_path, name):
    overrides = [
        "width=32",
        "dropout=0",
        "lr=2e-2",
        "max_epochs=30",
        "patience=30",
        "loss=ce",
        "batch_size=16",
    ]
    config = make_student_config(name, *overrides, "weight_decay=0")
    ids = small_data.splits["train"][::5]
    histories = small_data.histories(ids)
    _, first = np.unique(histories, axis=0, return_index=True)
    ids = np.sort(ids[first])  # a history has one target only
    trained = dataclasses.replace(small_data, splits={**small_data.splits, "valid": ids})
    student, result = train_student(
        config, trained, eval_config, seed=1, folder=tmp_path, fingerprint="f", selection=Selection(ids)
    )
    ranks = rank_samples(student, trained, ids, 64, torch.device("cpu")).ranked
    assert np.mean(ranks == 1) > 0.95
    assert result.history[-1]["loss"] < 0.1 * result.history[0]["loss"]


@pytest.mark.parametrize("loss", ["ce", "bce", "gbce", "dros"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_falls(small_data, eval_config, tmp_path, loss, precision):
    overrides = [f"loss={loss}", f"precision={precision}", "lr=5e-3", "negatives=8", "dropout=0"]
    overrides.append(f"learn_repeats={str(loss in ('ce', 'dros')).lower()}")
    config = make_student_config("sasrec", *FAST, *overrides)
    objective = objective_of(config, small_data)
    history = run_fit(objective, small_data, config, eval_config, tmp_path).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_best_epoch_is_kept_and_patience_ends_training(small_data, eval_config, tmp_path):
    config = make_student_config("sasrec", "width=16", "lr=1e-2", "max_epochs=60", "patience=3")
    objective = objective_of(config, small_data)
    result = run_fit(objective, small_data, config, eval_config, tmp_path)
    values = [entry["valid/NDCG@10"] for entry in result.history]
    assert result.best_epoch == int(np.argmax(values)) + 1 and result.best_value == max(values)
    assert result.epochs == result.best_epoch + 3 < 60
    ranks = rank_samples(objective.student, small_data, small_data.splits["valid"], 16, torch.device("cpu"))
    assert ranks.metrics(eval_config.ks)["NDCG@10"] == result.best_value


def test_sample_weights_reach_the_gradient(small_data, eval_config, tmp_path):
    """A sample of weight 0 trains nothing: the same as leaving it out of a single full batch."""
    # Without attention: its key biases have no gradient but rounding, which Adam would blow up.
    config = make_student_config(
        "gru4rec", "width=16", "dropout=0", "loss=ce", "max_epochs=1", "batch_size=1000"
    )
    ids = small_data.splits["train"][:40]
    weights = np.zeros(40, np.float32)
    weights[10:30] = 2.0  # the mean over 40 of 20 doubled losses is the mean over those 20
    outcome = []
    for selection in (Selection(ids, weights), Selection(ids[10:30])):
        objective = objective_of(config, small_data)
        run_fit(objective, small_data, config, eval_config, tmp_path / str(len(outcome)), selection=selection)
        outcome.append(weights_of(objective))
    for name in outcome[0]:
        torch.testing.assert_close(outcome[0][name], outcome[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("comes_again", [True, False])
def test_a_student_learns_whether_items_come_again(small_data, eval_config, tmp_path, comes_again):
    """Users who alternate between two items, and users who never see an item twice."""
    rng, per_user = np.random.default_rng(0), 8
    orders = [
        np.tile(rng.permutation(30)[:2], 4) if comes_again else rng.permutation(30)[:8] for _ in range(60)
    ]
    rows = np.setdiff1d(np.arange(60 * per_user), np.arange(0, 60 * per_user, per_user))
    data = dataclasses.replace(
        small_data,
        items=(np.concatenate(orders) + 1).astype(np.int32),
        times=np.arange(60 * per_user),
        offsets=np.arange(0, 61 * per_user, per_user),
        splits={"train": rows, "valid": rows, "test": rows},
    )
    config = make_student_config(
        "sasrec", "width=8", "lr=1e-2", "batch_size=32", "max_epochs=8", "patience=8"
    )
    student, _ = train_student(config, data, eval_config, seed=1, folder=tmp_path, fingerprint="f")
    # Alternating users come back to the item before the newest.
    assert student.repeat[-2] > 0.3 if comes_again else (student.repeat[-4:] < -0.3).all()


def test_a_loss_that_is_not_finite_names_its_step(small_data, eval_config, tmp_path):
    class Breaks(BaselineObjective):
        steps = 0

        def forward(self, batch):
            self.steps += 1
            loss, parts = super().forward(batch)
            return (loss * float("nan") if self.steps == 3 else loss), parts

    config = make_student_config("sasrec", *FAST)
    with pytest.raises(UserError, match="not finite at step 3 of epoch 1"):
        run_fit(objective_of(config, small_data, cls=Breaks), small_data, config, eval_config, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_foreign_and_damaged_checkpoints_are_refused(small_data, eval_config, tmp_path):
    config = make_student_config("sasrec", *FAST)
    run_fit(objective_of(config, small_data), small_data, config, eval_config, tmp_path, fingerprint="one")
    with pytest.raises(UserError, match="fingerprint one.*expected two"):
        run_fit(
            objective_of(config, small_data), small_data, config, eval_config, tmp_path, fingerprint="two"
        )
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", whole[:middle], b"not a checkpoint", flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            run_fit(objective_of(config, small_data), small_data, config, eval_config, tmp_path)


def test_parts_of_the_loss_and_metrics_reach_the_run(small_data, eval_config, tmp_path):
    class Parts(BaselineObjective):
        def forward(self, batch):
            loss, _ = super().forward(batch)
            return loss * 2, {"half": loss.detach().mean()}

    class Recorder:
        scalars: list = []

        def scalar(self, tag, value, step):
            self.scalars.append((tag, value, step))

    config = make_student_config("sasrec", *FAST, "max_epochs=1")
    result = run_fit(
        objective_of(config, small_data, cls=Parts), small_data, config, eval_config, tmp_path, run=Recorder()
    )
    scalars = {tag: (value, step) for tag, value, step in Recorder.scalars}
    assert scalars["train/loss"][0] == pytest.approx(2 * scalars["train/half"][0], rel=1e-5)
    assert scalars["valid/NDCG@10"] == (result.best_value, 1)


def test_saved_student_loads_strictly(small_data, tmp_path):
    config = make_student_config("gru4rec", "width=16")
    student = objective_of(config, small_data).student.eval()
    folder = tmp_path / "student"
    save_student(folder, student, config, small_data, {"fingerprint": "abc"})
    loaded, loaded_config = load_student_model(folder, dataset_fingerprint="small0", fingerprint="abc")
    assert loaded_config == config and not loaded.training
    assert_equal_weights(student.state_dict(), loaded.state_dict())
    with pytest.raises(UserError, match="fingerprint is 'abc'.*'abd'"):
        load_student_model(folder, fingerprint="abd")
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UserError, match="hash"):
        load_student_model(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no manifest"):
        load_student_model(folder)
