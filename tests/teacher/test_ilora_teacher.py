"""A small iLoRA teacher end to end: what trains, what stays, what the ranking depends on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from src.core.artifacts import MANIFEST, sha256_file
from src.core.errors import ConfigError, UserError
from src.student.checkpoint import save_student
from src.student.models import build_student
from src.teacher.checkpoint import load_teacher, load_trained_state, trained_state
from src.teacher.classical import SasrecTeacher
from src.teacher.ilora_model import IloraModel, ItemHead
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.interfaces import Teacher
from src.teacher.losses import answer_losses, item_loss
from src.teacher.prompts import collate
from src.teacher.ranking import catalogue_scores, item_vectors
from src.teacher.title_states import TextEmbedder
from tests.student.conftest import make_student_config
from tests.teacher.conftest import compose_teacher, untrained


def test_rows_keep_the_contract_of_the_store(trained, demo_data):
    teacher, report = trained
    assert isinstance(teacher, Teacher)
    assert report["train_seconds"] > 0 and not report["reused"]
    ids = demo_data.splits["test"][::-1][:40]
    rows = teacher.rank("test", ids, 10)
    rows.check(demo_data.n_items, teacher.score_kind, "test")
    np.testing.assert_array_equal(rows.sample_ids, ids)
    # A log-softmax over the catalogue: all items together have probability one.
    everything = teacher.rank("test", ids[:4], demo_data.n_items)
    np.testing.assert_allclose(np.exp(everything.scores).sum(1), 1.0, rtol=1e-5)
    at = everything.rankings == demo_data.targets(ids[:4])[:, None]
    np.testing.assert_allclose(everything.scores[at], everything.target_scores, rtol=1e-6)
    table = teacher.item_embeddings()
    assert table.shape == (demo_data.n_items + 1, 32) and table.dtype == np.float32  # states of the titles
    assert not table[0].any() and np.isfinite(table).all() and table[1:].any(axis=1).all()


def test_scores_of_a_sample_do_not_depend_on_its_batch(trained, demo_data):
    teacher, _ = trained
    ids = demo_data.splits["test"][:30]
    items = item_vectors(teacher._context(4))

    def scores(size: int, order: np.ndarray) -> np.ndarray:
        out = np.empty((len(ids), demo_data.n_items), np.float32)
        asked = ids[order]
        for rows, log_p in catalogue_scores(teacher._context(size), asked, items):
            out[order[rows]] = log_p.numpy()
        return out

    straight = np.arange(len(ids))
    reference = scores(30, straight)
    for size, order in ((1, straight), (7, straight), (30, straight[::-1]), (11, np.roll(straight, 13))):
        assert np.abs(scores(size, order) - reference).max() <= 1e-5


def test_scores_are_the_prior_and_what_the_llm_adds(trained, demo_data):
    teacher, _ = trained
    ids = demo_data.splits["test"][:9]
    items = item_vectors(teacher._context(4))
    sasrec = teacher.encoder.log_probabilities(demo_data.histories(ids))

    def scores(items: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(ids), demo_data.n_items)
        for rows, log_p in catalogue_scores(teacher._context(4), ids, items):
            out[rows] = log_p
        return out

    # without item vectors the LLM adds the items' biases alone; with them something of each sample's own
    added = scores(items) - sasrec
    bias = scores(torch.zeros_like(items)) - sasrec
    expected = torch.log_softmax(teacher.model.head.bias.detach() + sasrec, dim=-1) - sasrec
    torch.testing.assert_close(bias, expected, atol=1e-5, rtol=1e-5)
    assert (added - bias).std(dim=0).max() > 1e-4


def test_a_new_head_starts_at_the_prior():
    states = torch.randn(5, 16)
    head = ItemHead(16, 8, 5, 1.0, torch.arange(5), residual=True)
    assert not head.scores(head.users(torch.randn(3, 16)), head.items(states)).any()
    prior = torch.log_softmax(torch.randn(3, 5), dim=-1)
    loss = item_loss(head, torch.randn(3, 16), states, torch.tensor([1, 5, 2]), prior=prior)
    torch.testing.assert_close(loss, -prior[torch.arange(3), torch.tensor([0, 4, 1])].sum())
    columns = torch.tensor([0, 1, 4])
    sampled = item_loss(head, torch.randn(3, 16), states, torch.tensor([1, 5, 2]), columns, prior)
    expected = -torch.log_softmax(prior[:, columns], dim=-1)[torch.arange(3), torch.tensor([0, 2, 1])].sum()
    torch.testing.assert_close(sampled, expected)


def test_padding_and_what_follows_the_prefix_do_not_reach_the_readout(trained, demo_data):
    teacher, _ = trained
    model, builder = teacher.model, teacher.builder
    sample = demo_data.splits["test"][:1]
    history, target = demo_data.histories(sample)[0], int(demo_data.targets(sample)[0])
    gate = model.gate(teacher.encoder.h_seq(history[None]))
    longer = builder.build(np.tile(history[-1:], 10))
    with torch.no_grad():
        alone = collate([builder.build(history)])
        with model.gates.use(gate):
            expected = model.readout(model.states(alone), alone)
        for others in ([builder.build(history, answer=target)], [builder.build(history), longer]):
            batch = collate(others)
            with model.gates.use(gate.expand(len(others), -1)):
                found = model.readout(model.states(batch), batch)[:1]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gates_differ_between_users_and_change_the_logits(trained, demo_data):
    teacher, _ = trained
    model, ids = teacher.model, demo_data.splits["test"][:20]
    h_seq = teacher.encoder.h_seq(demo_data.histories(ids))
    gates = model.gate(h_seq).detach()
    assert (gates.std(dim=0) > 1e-3).all()
    batch = collate([teacher.builder.build(h, answer=1) for h in demo_data.histories(ids)])

    def outputs(gate):
        with torch.no_grad(), model.gates.use(gate):
            states = model.states(batch)
            return model.readout(states, batch), answer_losses(model.llm, states, batch.labels)

    own, swapped = outputs(gates), outputs(gates.roll(1, 0))
    uniform = outputs(torch.full_like(gates, 0.25))
    for other in (swapped, uniform):
        assert (own[0] - other[0]).abs().max() > 1e-4
        assert (own[1] - other[1]).abs().max() > 1e-5


def test_only_the_named_parts_train_and_the_base_stays_bit_equal(make_config, demo_data, teacher_roots):
    teacher = untrained(
        make_config(
            "teacher.objective.lm=0.5", "teacher.train.samples=96", "teacher.train.evals_per_epoch=1"
        ),
        demo_data,
    )
    model = teacher.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    table = teacher.encoder.item_table().clone()
    report = teacher.prepare(None)
    after = teacher.model.state_dict()
    assert report["train_samples"] == 96 and report["steps"] == 3
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    own = {k for k in before if "lora_" in k or not k.startswith("llm.")}
    assert changed <= own
    for part in ("lora_A", "lora_B", "router", "projector", "head.user", "head.item", "head.bias"):
        assert any(part in k for k in changed), part
    assert torch.equal(table, teacher.encoder.item_table())
    assert not any(p.requires_grad for p in teacher.encoder.student.parameters())


@pytest.mark.parametrize(
    ("overrides", "still"),
    [
        (["teacher.train.train_projector=false"], "projector"),
        (
            [
                "teacher.objective.item=0.0",
                "teacher.objective.lm=1.0",
                "teacher.export.ranking=trie",
                "teacher.export.embedding.source=text",
            ],
            "head",
        ),
        (["teacher.gate.kind=uniform"], "router"),
    ],
)
def test_switched_off_parts_do_not_train(make_config, demo_data, teacher_roots, overrides, still):
    teacher = untrained(make_config("teacher.train.samples=64", *overrides), demo_data)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    teacher.prepare(None)
    after = teacher.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and not any(still in k for k in changed)


def test_hybrid_prompts_carry_the_items_and_text_prompts_do_not(trained):
    teacher, _ = trained
    model = teacher.model
    one, other = (collate([teacher.builder.build(np.array([3, i]))]) for i in (5, 5))
    other.items[0, other.items[0] == 3] = 7  # same words, another item behind the first placeholder
    slot = (one.items[0] == 3).nonzero().item()
    with torch.no_grad():
        a, b = model.embed(one), model.embed(other)
        expected = model.projector(model.item_table[3])
        torch.testing.assert_close(a[0, slot], expected)
        assert not torch.allclose(a[0, slot], b[0, slot])
        same = torch.ones(a.shape[1], dtype=torch.bool)
        same[slot] = False
        assert torch.equal(a[0, same], b[0, same])
        assert torch.equal(model.embed(one, hybrid=False), model.embed(other, hybrid=False))


def test_a_trained_teacher_is_reused_and_reloads_bit_for_bit(trained, make_config, demo_data):
    teacher, _ = trained
    again = IloraTeacher(teacher.config, demo_data)
    report = again.prepare(None)
    assert report["reused"]
    ids = demo_data.splits["valid"][:25]
    a, b = teacher.rank("valid", ids, 20), again.rank("valid", ids, 20)
    np.testing.assert_array_equal(a.rankings, b.rankings)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert (again.folder / "adapter" / "adapter_config.json").is_file()


def test_training_time_counts_parts_that_an_earlier_run_made(trained, make_config, demo_data):
    first, report = trained
    assert report["train_seconds"] > report["encoder_seconds"] + report["llm_seconds"]
    other = IloraTeacher(make_config("teacher.train.samples=32", "teacher.train.lr=0.0015"), demo_data)
    again = other.prepare(None)  # the encoder and the tiny LLM are there already
    assert not again["reused"]
    assert again["encoder_seconds"] == pytest.approx(first.encoder.seconds, abs=1e-3)
    assert again["llm_seconds"] == report["llm_seconds"]
    assert min(again["encoder_seconds"], again["llm_seconds"]) > 0


def test_stock_peft_loads_the_adapter_as_the_uniform_gate(trained, demo_data):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    teacher, _ = trained
    adapter = teacher.folder / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    batch = collate([teacher.builder.build(np.array([3, 5, 8]))])
    model = teacher.model
    with torch.no_grad(), model.gates.uniform():
        expected = model.states(batch)
        x = model.embed(batch)
        found = stock.base_model.model.model(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_foreign_or_changed_checkpoints_are_refused(trained, make_config, demo_data, tmp_path):
    teacher, _ = trained
    with pytest.raises(UserError, match="fingerprint is .* expected 'other'"):
        load_teacher(teacher.folder, teacher.model, fingerprint="other")
    state = trained_state(teacher.model)
    del state["router"]["logits.bias"]
    with pytest.raises(UserError, match="router lacks logits.bias"):
        load_trained_state(teacher.model, state, "here")
    narrow = untrained(make_config("teacher.lora.rank=4"), demo_data)
    with pytest.raises(UserError, match=r"\(8, 32\).*\(4, 32\)"):
        load_teacher(teacher.folder, narrow.model)
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(teacher.folder, damaged)
    tensors = load_file(damaged / "router.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, damaged / "router.safetensors")
    assert sha256_file(damaged / "router.safetensors") not in (damaged / MANIFEST).read_text()
    with pytest.raises(UserError, match="hash of its manifest"):
        load_teacher(damaged, teacher.model)


def test_a_part_that_is_not_saved_is_noticed(make_config, demo_data, teacher_roots, monkeypatch):
    """The reloaded model starts from nothing: what the folder lacks shows in the states."""
    monkeypatch.setattr("src.teacher.ilora_teacher.load_teacher", lambda *a, **k: {"training": {}})
    config = make_config("teacher.train.samples=32", "teacher.train.lr=0.002")
    with pytest.raises(RuntimeError, match="the reloaded teacher gives other states"):
        IloraTeacher(config, demo_data).prepare(None)


def test_a_checkpoint_of_another_llm_or_dataset_is_refused(trained):
    teacher, _ = trained
    other = {**teacher.llm_identity, "revision": "f00"}
    with pytest.raises(UserError, match="llm is .*'revision': None.* expected .*'revision': 'f00'"):
        load_teacher(teacher.folder, teacher.model, llm=other)
    with pytest.raises(UserError, match="dataset_fingerprint is .* expected 'other'"):
        load_teacher(teacher.folder, teacher.model, dataset_fingerprint="other")


@pytest.mark.parametrize("path", ["stories260k-hf"])
def test_a_real_llama_in_a_local_folder(make_config, demo_data, teacher_roots, shared_data, path):
    config = make_config(
        "teacher/llm=local",
        f"teacher.llm.path={shared_data / path}",
        "teacher.train.samples=32",
        "teacher.train.eval_samples=8",
    )
    teacher = IloraTeacher(config, demo_data)
    teacher.prepare(None)
    assert len(teacher.model.adapted) == 5 * 7
    rows = teacher.rank("test", demo_data.splits["test"][:8], 5)
    rows.check(demo_data.n_items, teacher.score_kind, "test")


def test_what_the_encoder_saw_is_in_sample(make_config, demo_data):
    """The SASRec's scores are a part of the teacher's, also for rows that the LLM never saw."""
    teacher = IloraTeacher(make_config("teacher.train.samples=96"), demo_data)
    np.testing.assert_array_equal(teacher.train_sample_ids(), demo_data.splits["train"])
    own = teacher.llm_sample_ids()
    assert len(own) == 96 and np.isin(own, demo_data.splits["train"]).all()


def test_the_catalogue_is_read_again_only_after_a_step(make_config, demo_data, teacher_roots, monkeypatch):
    """A refresh, the validation and the export at one step share one reading of the item texts."""
    teacher = untrained(make_config(), demo_data)
    read, real = [], teacher.model.item_states
    alone = [collate([teacher.builder.item_text(i)]) for i in range(1, demo_data.n_items + 1)]
    monkeypatch.setattr(teacher.model, "item_states", lambda *a: read.append(1) or real(*a))
    first = teacher.source.item_states(teacher.model, True)
    assert teacher.source.item_states(teacher.model, True) is first and len(read) == 1
    for part, again in (("lora", 2), ("projector", 3), ("head", 3)):
        with torch.no_grad():
            teacher.model.parts()[part][0].data.view(-1)[0] += 0.5  # leaves no mark on the tensor
        found = teacher.source.item_states(teacher.model, True)
        assert len(read) == again
        with torch.no_grad():
            torch.testing.assert_close(
                found, torch.cat([real([t], True) for t in alone]), atol=1e-5, rtol=1e-5
            )
    assert not torch.equal(teacher.source.item_states(teacher.model, False), found) and len(read) == 4


def test_the_prior_is_the_encoders_own_scores(trained, demo_data):
    encoder, histories = trained[0].encoder, demo_data.histories(demo_data.splits["test"][:40])
    prior = encoder.prior(encoder.h_seq(histories), histories)
    expected = encoder.student(torch.from_numpy(histories).long()).detach().log_softmax(-1)
    torch.testing.assert_close(prior, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.log_probabilities(histories), expected, rtol=0, atol=1e-5)


def test_states_of_titles_without_the_adapter_are_kept(trained, demo_data, monkeypatch):
    """They are the LLM's, whatever was trained: computed once, read from disk by another teacher of the LLM."""
    teacher, _ = trained
    table = teacher.item_embeddings()
    assert table.shape == (demo_data.n_items + 1, teacher.model.neutral.shape[0]) and not table[0].any()
    embedder = TextEmbedder(teacher.model, teacher.builder, teacher.config.export.embedding, 64)
    np.testing.assert_allclose(table, embedder.titles(), atol=1e-5)
    monkeypatch.setattr(TextEmbedder, "titles", None)  # nothing is computed again
    np.testing.assert_array_equal(teacher.item_embeddings(), table)


def test_bare_titles_are_read_once_and_half_whitened(make_config, demo_data, teacher_roots, monkeypatch):
    """titles=base: X with X X^T = U S U^T of the centred states, whatever the adapter learns."""
    teacher = untrained(make_config("teacher.objective.titles=base"), demo_data)
    states = TextEmbedder(teacher.model, teacher.builder, teacher.config.export.embedding, 64).titles()[1:]
    left, values, _ = np.linalg.svd((states - states.mean(0)).astype(np.float64), full_matrices=False)
    found = teacher.source.item_states(teacher.model, True)
    assert found.shape == states.shape
    np.testing.assert_allclose((found @ found.T).numpy(), (left * values) @ left.T, atol=1e-4)
    monkeypatch.setattr(IloraModel, "item_states", None)  # the item texts are never read
    with torch.no_grad():
        for parameter in teacher.model.parts()["lora"]:
            parameter.add_(1.0)
    assert teacher.source.item_states(teacher.model, True) is found


def test_the_sasrec_of_a_finished_run_as_encoder(make_config, demo_data, teacher_roots, tmp_path):
    """Its weights are used and name the teacher; another dataset and another architecture are refused."""

    def finished(name: str, architecture: str, data=demo_data) -> str:
        torch.manual_seed(len(name))
        config = make_student_config(architecture, "width=16")
        student = build_student(config, demo_data.n_items, demo_data.max_history)
        folder = tmp_path / name
        fields = {"seed": 1, "fingerprint": f"of {name}"}
        save_student(folder / "models" / "student", student, config, data, fields)
        return f"teacher.encoder_run={folder}"

    config = make_config(one := finished("one", "sasrec"))
    encoder = untrained(config, demo_data).encoder
    assert encoder.reused and torch.equal(
        encoder.item_table(),
        load_file(tmp_path / "one" / "models" / "student" / "model.safetensors")["items.weight"],
    )
    same = make_config(one, "teacher.encoder.dropout=0.1").identity()
    others = make_config(finished("another", "sasrec")).identity(), make_config().identity()
    assert config.identity() == same and same not in others
    sasrec = compose_teacher("teacher=sasrec", one)
    ids = demo_data.splits["valid"][:5]
    rows = SasrecTeacher(sasrec, demo_data)
    rows.prepare(None)
    expected = encoder.log_probabilities(demo_data.histories(ids)).numpy()
    np.testing.assert_allclose(rows.score_all(ids), expected, atol=1e-6)
    with pytest.raises(UserError, match="architecture gru4rec"):
        untrained(make_config(finished("gru", "gru4rec")), demo_data)
    with pytest.raises(UserError, match="dataset_fingerprint"):
        untrained(make_config(finished("far", "sasrec", replace(demo_data, fingerprint="0" * 12))), demo_data)
    with pytest.raises(ConfigError, match="encoder saw all users"):
        make_config(one, "teacher.folds=2")
