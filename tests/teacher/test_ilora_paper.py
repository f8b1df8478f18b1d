"""`teacher=ilora_paper`: the papers' profile (reference/ilora.md), and a small run of it from training to store."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src.core.paths import ROOT
from src.teacher import trainer as trainer_module
from src.teacher.export import fill_store
from src.teacher.factory import build_teacher
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.losses import answer_losses
from src.teacher.trainer import TeacherTrainer
from src.teacher.training_step import learning_rate
from tests.teacher.conftest import TINY, compose_teacher

SMALL = [
    *TINY,
    "teacher=ilora_paper",
    "teacher.encoder.max_epochs=3",
    "teacher.train.samples=160",
    "teacher.train.micro_batch_size=64",
    "teacher.train.eval_samples=40",
    "teacher.export.train_share=0.1",
]


def test_the_profile_is_the_papers():
    config = compose_teacher("teacher=ilora_paper")
    lora, train, objective = config.lora, config.train, config.objective
    assert (lora.rank, lora.experts, lora.alpha, lora.dropout, lora.targets) == (8, 4, 32.0, 0.1, None)
    assert config.gate.kind == "resnet1d" and config.gate.temperature == 1.0
    assert (objective.item, objective.lm, objective.prior) == (0.0, 1.0, "none")
    assert (train.epochs, train.samples, train.batch_size, train.optimizer) == (5, None, 128, "adam")
    assert train.micro_batch_size * 16 == train.batch_size
    assert (train.lr, train.gate_lr_ratio, train.weight_decay, train.grad_clip) == (8e-4, 0.3, 1e-5, None)
    assert (train.lr_floor, train.warmup_share, train.curriculum) == (0.01, 0.05, "linear")
    assert train.train_projector and train.patience >= train.epochs * train.evals_per_epoch
    assert (config.prompt.mode, config.prompt.candidates) == ("hybrid", 20)
    assert (config.export.ranking, config.export.pool) == ("rerank", 20)
    encoder = config.encoder
    assert encoder.architecture == "sasrec_dllm2rec" and encoder.name == "encoder"
    assert (encoder.width, encoder.blocks, encoder.heads, encoder.dropout) == (64, 1, 1, 0.1)
    # their base, by one override
    base = compose_teacher("teacher=ilora_paper", "teacher/llm=llama2_7b").llm
    assert (base.path, base.dtype, base.quantization) == ("meta-llama/Llama-2-7b-hf", "bfloat16", "none")


def test_the_learning_rate_is_the_official_schedule():
    """LastFM: 1,870 steps, 93 of warm-up, 7e-4; the router at 0.3 of it."""
    train = compose_teacher("teacher=ilora_paper", "teacher.train.lr=7e-4").train
    oracle = load_file(ROOT / "tests" / "oracles" / "ilora_parts.safetensors")
    steps, rates = oracle["scheduler_lastfm/steps"].tolist(), oracle["scheduler_lastfm/lrs"].numpy()
    mine = np.array([learning_rate(t, 1870, train.lr, train.lr_floor, train.warmup_share) for t in steps])
    ratios = np.array([1.0, train.gate_lr_ratio, 1.0])  # projector, router, LoRA
    np.testing.assert_allclose(mine[:, None] * ratios, rates, rtol=1e-12)


@pytest.fixture(scope="module")
def run(demo_data, teacher_roots):
    """A trained teacher with what happened in each step, and the untrained one's loss."""
    config = compose_teacher(*SMALL)
    teacher = IloraTeacher(config, demo_data)
    teacher.open()
    before = answer_loss(teacher)
    steps: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        real = TeacherTrainer._gradients

        def watched(self, step, ids, hybrid, size):
            sums = real(self, step, ids, hybrid, size)
            steps.append(
                {
                    "hybrid": hybrid,
                    "samples": sums.samples,
                    "projector": self.parts["projector"][0].grad is not None,
                    "optimizer": self.optimizer,
                    "parts": self.parts,
                }
            )
            return sums

        patch.setattr(trainer_module.TeacherTrainer, "_gradients", watched)
        report = teacher.prepare(None)
    return teacher, report, steps, before


def answer_loss(teacher: IloraTeacher) -> float:
    """Mean cross-entropy of validation answers under hybrid prompts with 20 candidates."""
    model, losses = teacher.model.eval(), []
    ids = teacher.data.splits["valid"][:64]
    with torch.no_grad():
        for m in teacher.source.micro_batches(ids, 32, answers=True, candidates=20):
            with model.gates.use(model.gate(m.h_seq)):
                losses.append(answer_losses(model.llm, model.states(m.prompts), m.prompts.labels))
    return float(torch.cat(losses).mean())


def test_training_goes_from_text_to_hybrid_in_effective_batches(run):
    _, report, steps, _ = run
    assert report["steps"] == len(steps) == 10  # 5 epochs of 160 / 128
    assert [s["samples"] for s in steps] == [128, 32] * 5
    hybrid = [s["hybrid"] for s in steps]
    assert not hybrid[0] and any(hybrid), "p = step / steps: the first step is text only"
    # a text-only step gives the projector no gradient, a hybrid one does
    assert [s["projector"] for s in steps] == hybrid


def test_optimizer_groups(run):
    _, _, steps, _ = run
    optimizer, parts = steps[0]["optimizer"], steps[0]["parts"]
    assert type(optimizer) is torch.optim.Adam
    assert not parts["head"], "the item objective is off"
    groups = {id(g["params"][0]): g for g in optimizer.param_groups}
    found = {name: groups[id(parts[name][0])] for name in ("lora", "gate", "projector")}
    assert {n: (g["peak"], g["weight_decay"]) for n, g in found.items()} == {
        "lora": (8e-4, 0.0),
        "gate": (pytest.approx(2.4e-4), 1e-5),
        "projector": (8e-4, 1e-5),
    }
    assert len(optimizer.param_groups) == 3


def test_it_learns_and_reads_back_with_its_batch_norm(run, demo_data):
    teacher, _, _, before = run
    after = answer_loss(teacher)
    assert after < before
    router = load_file(teacher.folder / "router.safetensors")
    norms = {k: v for k, v in router.items() if k.endswith("norm.running_mean")}
    assert norms and all(v.any() for v in norms.values()), "the official code loses these"
    parameters = sum(p.numel() for p in teacher.model.router.parameters())
    assert parameters == 90_772
    again = IloraTeacher(teacher.config, demo_data)
    assert again.prepare(None)["reused"]
    assert answer_loss(again) == after
    adapter = json.loads((teacher.folder / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (8, 32.0, 0.1)
    assert {t.rsplit(".", 1)[-1] for t in adapter["target_modules"]} == {
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    }


def test_its_store(run, demo_data, tmp_path):
    teacher, _, _, _ = run
    assert build_teacher(teacher.config, demo_data).name == "ilora_paper"
    store, reused = fill_store(teacher.config, demo_data, tmp_path / "store", None)
    assert not reused and store.score_kind == "log_likelihood" and store.manifest["ranking"] == "rerank"
    assert store.manifest["history_excluded"]
    rows = store.rows("test")
    np.testing.assert_array_equal(rows.sample_ids, np.sort(demo_data.splits["test"]))
    assert rows.rankings.shape == (len(rows.sample_ids), 20)
    for history, ranking in zip(demo_data.histories(rows.sample_ids), rows.rankings, strict=True):
        assert not np.isin(ranking, history).any() and len(set(ranking.tolist())) == 20
    assert (np.diff(rows.scores, axis=1) <= 0).all() and (rows.scores < 0).all()
    assert store.item_embeddings().shape == (demo_data.n_items + 1, 32)
