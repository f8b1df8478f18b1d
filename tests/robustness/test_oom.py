"""Out of GPU memory: the pass is halved, the effective batch and the result stay; three times at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.teacher.find_batch_size import BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.ilora_teacher import IloraTeacher
from tests.teacher.conftest import SMALL, TINY, compose_teacher


@pytest.fixture(scope="module")
def teacher_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("oom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(root))
        yield root


PASSES = [
    "teacher.train.batch_size=32",
    "teacher.train.micro_batch_size=32",
    "teacher.export.batch_size=32",
]


class Memory:
    """A GPU that holds passes of at most `room` samples."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int):
        self.room, self.sizes = room, []
        real = IloraModel.states

        def states(model, batch, hybrid):
            self.sizes.append(len(batch))
            if len(batch) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
            return real(model, batch, hybrid)

        patch.setattr(IloraModel, "states", states)


def teacher(data: InteractionData, *overrides: str) -> IloraTeacher:
    return IloraTeacher(compose_teacher(*SMALL, *TINY, "teacher.objective.lm=0.2", *overrides), data)


def test_training_and_export_go_on_with_smaller_passes(
    teacher_root: Path, demo_data: InteractionData, monkeypatch, caplog
) -> None:
    ample = teacher(demo_data, *PASSES)
    ample.prepare(None)
    ids = demo_data.splits["test"]
    expected = ample.rank("test", ids, 10)
    with monkeypatch.context() as patch:
        memory = Memory(patch, room=8)
        # The same settings (passes are in no fingerprint) in a fresh place.
        patch.setenv("ANYO_DATA_ROOT", str(teacher_root / "short"))
        short = teacher(demo_data, *PASSES)
        done = short.prepare(None)
        rows = short.rank("test", ids, 10)
    assert short.fingerprint == ample.fingerprint and not done["reused"]
    assert {32, 16, 8} <= set(memory.sizes)
    told = [r.getMessage() for r in caplog.records if "out of GPU memory" in r.getMessage()]
    assert sum("train.micro_batch_size" in t for t in told) == 2, "32 -> 16 -> 8"
    # Same effective batches, so the same teacher up to the order of sums.
    np.testing.assert_allclose(rows.scores, expected.scores, atol=2e-2)
    same = np.mean(rows.rankings[:, 0] == expected.rankings[:, 0])
    assert same > 0.9


def test_gradients_do_not_depend_on_the_size_of_a_pass(
    teacher_root: Path, demo_data: InteractionData, monkeypatch
) -> None:
    """One effective batch, whole, in quarters after two failures, and as `auto` finds it after four: equal gradients."""
    from src.teacher import trainer

    sizes: list[int] = []
    gradients: list[dict[str, list[torch.Tensor]]] = []
    real = trainer.TeacherTrainer._gradients

    def watched(self, step, ids, hybrid, size):
        sums = real(self, step, ids, hybrid, size)
        if step == 0:
            sizes.append(size)
            gradients.append(
                {n: [p.grad.clone() for p in g if p.grad is not None] for n, g in self.parts.items()}
            )
        return sums

    monkeypatch.setattr(trainer.TeacherTrainer, "_gradients", watched)
    for room, size in ((1000, "32"), (8, "32"), (3, "auto")):
        with monkeypatch.context() as patch:
            patch.setenv("ANYO_DATA_ROOT", str(teacher_root / f"room{room}"))
            Memory(patch, room)
            made = teacher(
                demo_data, *PASSES, f"teacher.train.micro_batch_size={size}", "teacher.export.batch_size=2"
            )
            made.config = replace(made.config, train=replace(made.config.train, samples=64))
            made.prepare(None)
    assert sizes == [32, 8, 2], "auto: four halvings, where a number has three"
    whole, *others = gradients
    for name, tensors in whole.items():
        for parts in others:
            for a, b in zip(tensors, parts[name], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_after_three_halvings_it_is_one_line(
    teacher_root: Path, demo_data: InteractionData, monkeypatch
) -> None:
    patch_root = teacher_root / "none"
    monkeypatch.setenv("ANYO_DATA_ROOT", str(patch_root))
    memory = Memory(monkeypatch, room=0)
    made = teacher(demo_data, "teacher.train.batch_size=32", "teacher.train.micro_batch_size=32")
    with pytest.raises(UserError, match=r"out of GPU memory with 4 samples.*teacher.train.micro_batch_size"):
        monkeypatch.setattr(made, "_ranker", None)
        _without_item_states(monkeypatch)
        made.prepare(None)
    assert [s for s in memory.sizes if s <= 32][-4:] == [32, 16, 8, 4]
    assert not list(patch_root.rglob("models/demo/teacher/*/manifest.json"))


def _without_item_states(patch: pytest.MonkeyPatch) -> None:
    """The items' texts are read in passes of their own; here only the training passes are meant."""
    real = IloraModel.item_states

    def item_states(model, batches, hybrid):
        count = sum(len(b) for b in batches)
        return torch.zeros(count, model.llm.config.hidden_size)

    assert real is not None
    patch.setattr(IloraModel, "item_states", item_states)


def test_halving_counts() -> None:
    tried: list[int] = []

    def full(size: int) -> int:
        tried.append(size)
        raise torch.OutOfMemoryError("full")

    for size, expected in ((100, [100, 50, 25, 13]), (3, [3, 2, 1]), (1, [1])):
        tried.clear()
        with pytest.raises(UserError, match="out of GPU memory"):
            BatchSizeFinder(size, "key").run(full)
        assert tried == expected
    tried.clear()
    with pytest.raises(UserError):
        BatchSizeFinder(64, "key", most=0).run(full)
    assert tried == [64]


def test_other_errors_pass() -> None:
    def broken(size: int) -> int:
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        BatchSizeFinder(8, "key").run(broken)


def test_the_smaller_size_stays() -> None:
    halving, tried = BatchSizeFinder(8, "key"), []

    def once(size: int) -> int:
        tried.append(size)
        if size > 4:
            raise torch.OutOfMemoryError("full")
        return size

    assert halving.run(once) == 4 and halving.run(once) == 4 and tried == [8, 4, 4]
