"""batching=sequences: each target once, with what its window shows; equal to samples where positions play no role."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.config import build_or_raise
from src.core.data_utils import InteractionData
from src.core.errors import ConfigError
from src.core.seed import seed_everything
from src.core.selection import Selection
from src.distill.config import DistillConfig
from src.distill.data_bridge import RankingSignals
from src.distill.objective import DistillObjective
from src.student.datamodule import Samples, SequenceSamples
from src.student.models import build_student
from src.student.objective import BaselineObjective
from tests.compose import composed
from tests.student.conftest import make_student_config

CPU = torch.device("cpu")


def logs(lengths: list[int], length: int) -> InteractionData:
    """Users of so many interactions; every one but a user's first is a training sample."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.random.default_rng(len(lengths)).integers(1, 31, offsets[-1]).astype(np.int32)
    ids = np.setdiff1d(np.arange(offsets[-1]), offsets)
    names = [str(i) for i in range(31)]
    splits = {"train": ids, "valid": ids, "test": ids}
    return InteractionData(
        "logs", "logs", items, np.arange(len(items)), offsets, splits, names, names, length, {}
    )


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(2, 9), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_target_once_with_the_longest_history_of_its_windows(lengths, length, batch_size, data):
    log = logs(lengths, length)
    train = log.splits["train"]
    chosen = np.array(data.draw(st.lists(st.sampled_from(train.tolist()), min_size=1, unique=True)))
    samples = SequenceSamples(log, Selection(chosen), CPU)
    batches = list(samples.shuffled(batch_size, seed=1, epoch=0))
    assert len(batches) == samples.steps(batch_size)
    seen = torch.cat([b.sample_ids for b in batches]).numpy()
    np.testing.assert_array_equal(np.sort(seen), np.sort(chosen))
    for batch in batches:
        ids = batch.sample_ids.numpy()
        np.testing.assert_array_equal(chosen[batch.rows], ids)
        np.testing.assert_array_equal(batch.target, log.targets(ids))
        whole, shown = log.histories(ids), batch.history.numpy()
        columns = shown.shape[1]
        for true, own in zip(whole, shown, strict=True):
            kept = int((own > 0).sum())
            np.testing.assert_array_equal(own[columns - kept :], true[length - kept :])
            assert kept >= min(int((true > 0).sum()), -(-length // 2))


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("loss", ["ce", "bce", "gbce", "dros"])
def test_loss_and_gradients_are_those_of_the_samples(name, loss):
    """Where each log fits into a window; SASRec's positions are set to 0, as they differ by construction."""
    log = logs([5, 12, 3, 9, 12], 12)
    repeats = "true" if loss == "ce" else "false"
    chosen = ("width=16", "dropout=0", f"loss={loss}", "negatives=7", f"learn_repeats={repeats}")
    config = make_student_config(name, *chosen, "batching=sequences")
    results = []
    for arranged in (Samples, SequenceSamples):
        seed_everything(3)
        objective = BaselineObjective(build_student(config, log.n_items, 12), config, log, seed=1)
        if name == "sasrec":
            objective.student.positions.data.zero_()
        samples = arranged(log, Selection(log.splits["train"][::-1]), CPU)
        batch = samples.batch(torch.arange(len(samples)))
        drawn = torch.from_numpy(np.random.default_rng(0).integers(1, 31, (len(samples), 7)))
        negatives = None if config.base_loss == "ce" else drawn[:, : 1 if config.base_loss == "bce" else 7]
        hidden = objective.student.encode_at(batch.inputs, batch.places)
        each = objective.recommendation(objective.student, hidden, batch, negatives)
        each.mean().backward()
        gradients = {n: p.grad for n, p in objective.named_parameters() if n != "student.positions"}
        results.append((each.detach(), gradients))
    (a, by_sample), (b, by_sequence) = results
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32, added in another order
    for key, gradient in by_sample.items():
        torch.testing.assert_close(gradient, by_sequence[key], rtol=1e-4, atol=1e-6, msg=key)


def test_a_distilled_sample_keeps_its_own_teacher_row():
    """Rows of the teacher stand beside sample ids in any order; half of the samples have none."""
    log = logs([5, 12, 3, 9, 12], 12)
    config = make_student_config("gru4rec", "width=16", "dropout=0", "batching=sequences")
    ids = np.random.default_rng(2).permutation(log.splits["train"])
    rng = np.random.default_rng(1)
    signals = RankingSignals(
        torch.from_numpy(np.argsort(rng.random((len(ids), 30)), axis=1)[:, :5].astype(np.int32)),
        torch.from_numpy(rng.random((len(ids), 5), np.float32)),
        torch.from_numpy((np.arange(len(ids)) % 2).astype(np.float32)),
    )
    settings = composed("distill", "distill=dllm2rec", "distill.top_k=5", "distill.embedding=none")
    kd = build_or_raise(DistillConfig, settings, "distill")
    results = []
    for arranged in (Samples, SequenceSamples):
        seed_everything(3)
        student = build_student(config, log.n_items, 12)
        objective = DistillObjective(student, config, kd, log, 0, signals, None).eval()
        samples = arranged(log, Selection(ids), CPU)
        objective.start_epoch(0, samples)
        losses = torch.zeros(len(ids))
        for batch in samples.shuffled(2, seed=0, epoch=0):
            losses[batch.rows] = objective(batch)[0].detach()
        results.append(losses)
        without = torch.from_numpy(np.arange(len(ids)) % 2 == 0)
        assert (losses[without] == objective.sample_losses[without]).all()
        assert (losses[~without] != objective.sample_losses[~without]).all()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_negatives_stand_nowhere_in_the_window():
    log = logs([12, 6, 9], 12)
    config = make_student_config(
        "sasrec", "loss=gbce", "negatives=20", "learn_repeats=false", "batching=sequences"
    )
    objective = BaselineObjective(build_student(config, log.n_items, 12), config, log, seed=1)
    samples = SequenceSamples(log, Selection(log.splits["train"]), CPU)
    objective.start_epoch(0, samples)
    batch = samples.batch(torch.arange(len(samples)))
    drawn = objective.recommendation.negatives(batch)
    assert drawn.shape == (len(samples), 20)
    for row, user in enumerate(log.users_of(log.splits["train"])):
        assert not set(drawn[row].tolist()) & set(
            log.items[log.offsets[user] : log.offsets[user + 1]].tolist()
        )
    assert len(drawn.unique()) > 20


@pytest.mark.parametrize("name", ["caser", "sasrec_dllm2rec"])
def test_a_student_that_is_not_causal_is_refused(name):
    with pytest.raises(ConfigError, match="batching: found sequences with architecture=.*expected samples"):
        make_student_config(name, "batching=sequences")
