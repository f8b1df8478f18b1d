"""The training loop: resume, micro-batches, what ends a run, what TensorBoard shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from src.core.errors import ConfigError, Interrupted, UserError
from src.core.run import Run
from src.teacher import trainer as trainer_module
from src.teacher.checkpoint import trained_state
from src.teacher.config import model_fingerprint, teacher_fingerprint
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.trainer import TeacherTrainer
from tests.teacher.conftest import untrained
from tests.teacher.test_families import FAMILIES, write_family


def trainer_of(teacher: IloraTeacher, folder: Path, samples: int = 32, **other) -> TeacherTrainer:
    """Of a teacher that was loaded; `other` replaces arguments."""
    arguments = {
        "train_ids": teacher.llm_sample_ids()[:samples],
        "valid_ids": teacher.data.splits["valid"][:8],
        "folder": folder,
        "fingerprint": "x",
        "accelerator": teacher.accelerator,
        "same": teacher.starting_weights(),
    }
    return TeacherTrainer(teacher.config, teacher.model, teacher.source, **(arguments | other))


def test_a_killed_training_goes_on_to_the_same_weights(make_config, demo_data, teacher_roots, monkeypatch):
    config = make_config("teacher.train.samples=160", "teacher.lora.dropout=0.1", "teacher.seed=5")
    whole = IloraTeacher(config, demo_data)
    whole.prepare(None)
    shutil.rmtree(whole.folder)  # the same settings once more: nothing is reused
    parted = IloraTeacher(config, demo_data)
    seen = []
    monkeypatch.setattr(trainer_module, "stop_requested", lambda: len(seen) == 3)

    def stop_at_third() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise Interrupted(15)

    # check_stop is called after the checkpoint was written: the third step's is on disk.
    monkeypatch.setattr(trainer_module, "check_stop", stop_at_third)
    with pytest.raises(Interrupted):
        parted.prepare(None)
    monkeypatch.undo()
    resumed = IloraTeacher(config, demo_data)
    assert not resumed.prepare(None)["reused"]
    a, b = trained_state(whole.model), trained_state(resumed.model)
    for part, tensors in a.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b[part][name]), (part, name)


def test_a_loss_that_is_not_finite_ends_the_run(make_config, demo_data, teacher_roots):
    teacher = IloraTeacher(make_config("teacher.train.lr=1e30", "teacher.train.grad_clip=null"), demo_data)
    with pytest.raises(UserError, match=r"loss (nan|inf).* at step .*teacher.train.lr"):
        teacher.prepare(None)


def test_a_part_without_gradient_ends_the_run(make_config, demo_data, teacher_roots, monkeypatch):
    from src.teacher.ilora_model import IloraModel

    gate = IloraModel.gate
    monkeypatch.setattr(IloraModel, "gate", lambda self, h: gate(self, h).detach())
    teacher = IloraTeacher(make_config("teacher.seed=11"), demo_data)
    with pytest.raises(UserError, match="gradient of gate is zero"):
        teacher.prepare(None)


def test_an_adapter_without_effect_ends_the_run(make_config, demo_data, teacher_roots):
    teacher = IloraTeacher(make_config("teacher.train.lr=1e-30", "teacher.train.samples=96"), demo_data)
    with pytest.raises(UserError, match="the adapter has no effect: the LLM's states are equal"):
        teacher.prepare(None)
    assert not teacher.folder.exists()


def test_the_micro_batch_counts_where_the_gate_has_batch_norm(make_config):
    def prints(*overrides: str) -> list[tuple[str, str]]:
        configs = (make_config(*overrides, f"teacher.train.micro_batch_size={n}") for n in (8, 16))
        return [(model_fingerprint(c, "d"), teacher_fingerprint(c, "d")) for c in configs]

    for gate in ("linear", "mlp", "uniform"):
        a, b = prints(f"teacher.gate.kind={gate}")
        assert a == b, gate
    a, b = prints("teacher.gate.kind=resnet1d")
    assert a[0] != b[0] and a[1] != b[1]
    a, b = prints("teacher.gate.kind=resnet1d", "teacher.lora.experts=1")  # no router at all
    assert a == b


def test_what_tensorboard_shows(make_config, demo_data, teacher_roots, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.start(tmp_path / "run", "teacher", "x")
    config = make_config("teacher.train.samples=96", "teacher.seed=12", "teacher.objective.lm=0.5")
    IloraTeacher(config, demo_data).prepare(run)
    run.close()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    shown = {t.partition("/")[2]: events.Scalars(t)[-1].value for t in events.Tags()["scalars"]}
    last = {t.removeprefix("teacher/"): value for t, value in shown.items()}
    assert {"encoder/train/loss", "encoder/valid/NDCG@10"} <= shown.keys()
    assert {f"1_curves/teacher/{t}" for t in ("loss/item", "loss/lm", "valid")} <= set(
        events.Tags()["scalars"]
    )
    heat_maps = events.Images("2_gate/teacher/users_x_experts")
    weights = events.Histograms("2_gate/teacher/gate/expert_0")
    assert [e.step for e in heat_maps] == [e.step for e in weights] and len(weights) >= 1
    assert weights[0].histogram_value.num == 32 and weights[0].histogram_value.min >= 0
    parts = {f"gradient/{p}" for p in ("lora", "gate", "projector", "head")}
    loads = {f"gate/load_{k}" for k in range(4)}
    assert last.keys() >= parts | loads | {
        "loss/item",
        "loss/lm",
        "lr",
        "gate/entropy",
        "tokens_per_s",
        "valid",
    }
    assert all(last[p] > 0 for p in parts) and last["tokens_per_s"] > 0
    assert sum(last[k] for k in loads) == pytest.approx(1.0, rel=1e-5)
    assert 0 < last["gate/entropy"] <= 1 + 1e-6
    assert 0.05 < last["peak_memory_gib"] < 100  # of this process


def test_micro_batches_do_not_change_thestep(make_config, demo_data, teacher_roots):
    """One effective batch, cut in two ways: the same losses and weights."""
    states = []
    for size in (32, 7):
        teacher = untrained(
            make_config(
                "teacher.objective.lm=1.0",
                "teacher.lora.dropout=0.0",
                "teacher.train.samples=64",
                "teacher.train.optimizer=adam",
                f"teacher.train.micro_batch_size={size}",
            ),
            demo_data,
        )
        t = trainer_of(teacher, teacher_roots / f"micro{size}", samples=64)
        t.model.train()
        sums = [t.step(step) for step in range(2)]
        states.append(([s.item for s in sums] + [s.lm for s in sums], t.norms))
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-5)
    for name, value in states[0][1].items():
        assert value == pytest.approx(states[1][1][name], rel=1e-3), name


def test_a_resume_with_another_llm_is_refused(make_config, demo_data, teacher_roots, tmp_path):
    """The folder's content, which no fingerprint holds."""
    folder = write_family(FAMILIES["llama"], tmp_path / "llm", demo_data)
    config = make_config("teacher/llm=local", f"teacher.llm.path={folder}", "teacher.objective.lm=0.5")
    before = untrained(config, demo_data)
    trainer = trainer_of(before, tmp_path)
    trainer.model.train()
    trainer.step(0)
    trainer._save()
    trainer_of(untrained(config, demo_data), tmp_path)._resume()  # the same LLM: nothing to say
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 1e-3 for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    after = untrained(config, demo_data)
    with pytest.raises(UserError) as e:
        trainer_of(after, tmp_path)._resume()
    line = str(e.value)
    was, now = before.llm_identity["weights"], after.llm_identity["weights"]
    assert was != now and f"llm weights {was!r}" in line and f"expected {now!r}" in line and "\n" not in line


def test_a_resume_with_an_encoder_trained_anew_is_refused(make_config, demo_data, teacher_roots, tmp_path):
    teacher = untrained(make_config(), demo_data)
    trainer = trainer_of(teacher, tmp_path)
    trainer.model.train()
    trainer.step(0)
    trainer._save()
    was, teacher.encoder.weights = teacher.encoder.weights, "0" * 64
    with pytest.raises(UserError, match=f"encoder weights '{was}'; expected '{'0' * 64}'"):
        trainer_of(teacher, tmp_path)._resume()


@pytest.mark.parametrize("gate", ["resnet1d", "linear"])
def test_a_resume_with_other_processes_is_refused_where_they_count(
    make_config, demo_data, teacher_roots, tmp_path, gate
):
    teacher = untrained(make_config(f"teacher.gate.kind={gate}"), demo_data)
    trainer = trainer_of(teacher, tmp_path)
    trainer.model.train()
    trainer.step(0)
    trainer._save()
    two = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    resumed = trainer_of(teacher, tmp_path, accelerator=two)
    if gate == "linear":
        resumed._resume()
    else:
        with pytest.raises(UserError, match="made with number of processes 1; expected 2, as in this run"):
            resumed._resume()


def test_tensorboard_shows_what_the_teacher_writes(make_config, demo_data, teacher_roots, tmp_path):
    """At each validation, the first rows' prompts, answers and true titles; the weights are those of a run without."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = (
        *("teacher.train.samples=64", "teacher.objective.lm=0.5", "teacher.prompt.candidates=5"),
        "teacher.train.evals_per_epoch=2",
    )
    states = []
    for count in (0, 3):
        run = Run.start(tmp_path / f"run{count}", "teacher", "x")
        config = make_config(*overrides, f"teacher.train.show_answers={count}")
        teacher = IloraTeacher(config, demo_data)
        teacher.prepare(run)
        run.close()
        shutil.rmtree(teacher.folder)  # the same fingerprint: nothing is reused
        states.append(trained_state(teacher.model))
        events = EventAccumulator(str(tmp_path / f"run{count}" / "tensorboard"))
        events.Reload()
        tags = [t for t in events.Tags()["tensors"] if t.startswith("teacher/answers")]
        if count == 0:
            assert not tags
            continue
        shown = events.Tensors(tags[0])
        assert [e.step for e in shown] == [1, 2]
        rows = shown[-1].tensor_proto.string_val[0].decode().splitlines()
        valid = demo_data.splits["valid"]
        assert len(valid) > 40  # `eval_samples`: the rows are a draw of these
        assert len(rows) == 2 + count
        for row in rows[2:]:
            sample, prompt, _, title = (c.strip() for c in row.strip("| ").split(" | "))
            assert title == demo_data.titles[int(demo_data.targets(np.array([int(sample)]))[0])]
            assert "Pick exactly one of these:" in prompt and title in prompt
    for part, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][part][name]), (part, name)


def test_answers_need_an_attention_that_generates(make_config):
    flash = ("teacher/llm=hub", "teacher.llm.path=a/b", "teacher.llm.attention=flash_attention_2")
    with pytest.raises(ConfigError, match="train.show_answers: found 4 with llm.attention=flash_attention_2"):
        make_config(*flash)
    assert make_config(*flash, "teacher.train.show_answers=0").train.show_answers == 0


def test_no_samples_leave_the_llm_as_it_is(make_config, demo_data, teacher_roots):
    """`teacher.train.samples=0`: the ranking is the prior's, the item vectors are the LLM's states of the titles."""
    teacher = IloraTeacher(make_config("teacher.train.samples=0"), demo_data)
    report = teacher.prepare(None)
    assert (report["train_samples"], report["steps"], report["validation"]) == (0, 0, None)
    assert IloraTeacher(make_config("teacher.train.samples=0"), demo_data).prepare(None)["reused"]
    ids = demo_data.splits["test"][:20]
    prior = teacher.encoder.log_probabilities(demo_data.histories(ids)).numpy()
    np.testing.assert_allclose(teacher.score_all(ids), prior, atol=1e-5)
    vectors = teacher.item_embeddings()
    assert len(np.unique(vectors, axis=0)) == len(set(demo_data.titles))
    with teacher.model.llm.disable_adapter():
        np.testing.assert_array_equal(teacher.item_embeddings(), vectors)
