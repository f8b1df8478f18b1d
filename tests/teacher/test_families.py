"""Every LLM family by one override: tiny random weights in a Hugging Face folder, trained, saved, read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from src.core.artifacts import load_manifest
from src.core.errors import UserError
from src.core.paths import model_dir
from src.teacher.diagnostics import check_reading
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.llm import add_lora, find_targets, token_logits
from src.teacher.llm_loading import load_llm
from src.teacher.prompts import collate
from src.teacher.ranking.base import Context
from src.teacher.ranking.prefix import SharedPrefix
from src.teacher.ranking.rerank import RerankRanker
from src.teacher.ranking.tree import TitleTree, naive_scores, tree_scores
from src.teacher.tiny_llm import train_tokenizer
from tests.teacher.conftest import compose_teacher

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,  # grouped queries
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
SEVEN = {
    *(f"self_attn.{n}_proj" for n in "qkvo"),
    *(f"mlp.{n}_proj" for n in ("gate", "up", "down")),
}


@dataclass(frozen=True)
class Family:
    """A family's tiny configuration and what is known about it from its paper or its code.

    Attributes:
        config, model: class names in transformers.
        sizes: of the configuration.
        linears: names of a block's linears.
        special: the special tokens that the family's tokenizer has (of bos, eos, pad, cls).
    """

    config: str
    model: str
    sizes: dict
    linears: set[str]
    special: dict[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>"})


FAMILIES = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM", LLAMA, SEVEN),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", LLAMA, SEVEN, {"eos_token": "</s>"}),
    "qwen3": Family(
        "Qwen3Config", "Qwen3ForCausalLM", LLAMA | {"head_dim": 16}, SEVEN, {"eos_token": "</s>"}
    ),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", LLAMA | {"head_dim": 16}, SEVEN),
    # Windows shorter than any prompt: in all layers, and in every other one.
    "mistral": Family("MistralConfig", "MistralForCausalLM", LLAMA | {"sliding_window": 8}, SEVEN),
    "gemma3_text": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        LLAMA | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        SEVEN,
    ),
    "granite": Family(  # scales embeddings and logits
        "GraniteConfig",
        "GraniteForCausalLM",
        LLAMA | {"embedding_multiplier": 3.0, "logits_scaling": 4.0},
        SEVEN,
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "dropout": 0.1,
            "init_std": 0.2,
        },
        {*(f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")), "fc1", "fc2"},
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"hidden_dropout": 0.1},
        {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
        {"bos_token": "</s>", "eos_token": "</s>"},
    ),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.2},
        {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
        {"bos_token": "</s>", "eos_token": "</s>"},
    ),
    "bert": Family(
        "BertConfig",
        "BertForMaskedLM",
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
        {
            *(f"attention.self.{n}" for n in ("query", "key", "value")),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        },
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
    ),
}
CAUSAL = [f for f in FAMILIES if f != "bert"]
# Trained like the others, and refused where titles share a prompt.
WITHOUT_TREES = {
    "bloom": Family(  # positions from the mask, which has one row per text
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
        set(),
    ),
    "gpt_neo": Family(  # a window over the cache's columns, by a mask of its own
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "initializer_range": 0.2,
        },
        set(),
    ),
}


def write_family(family: Family, folder: Path, data) -> Path:
    """A tiny random model of the family, and a tokenizer with its special tokens, as the hub would give them."""
    texts = [*(" " + t for t in data.titles[1:]), "A customer chose, oldest first: Next comes:"]
    core = train_tokenizer(texts, 400, 256).backend_tokenizer
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=256, **family.special)
    ids = {f"{n}_token_id": getattr(own, f"{n}_token_id", None) for n in ("bos", "eos", "pad")}
    torch.manual_seed(3)
    config = getattr(transformers, family.config)(vocab_size=len(own), **family.sizes, **ids)
    getattr(transformers, family.model)(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def teacher_of(folder: Path, make_config, data, *overrides: str) -> IloraTeacher:
    """Two steps of training on 32 samples."""
    # An encoder learns from the item objective alone; without a prior, that reaches it in the first step.
    lm, prior = (0.0, "none") if folder.name == "bert" else (0.5, "sasrec")
    config = make_config(
        "teacher/llm=local",
        f"teacher.llm.path={folder}",
        f"teacher.objective.lm={lm}",
        f"teacher.objective.prior={prior}",
        "teacher.train.samples=32",
        "teacher.train.evals_per_epoch=1",
        "teacher.train.batch_size=16",
        "teacher.train.eval_samples=8",
        "teacher.train.lr=0.01",
        "teacher.train.lr_floor=0.5",
        *overrides,
    )
    return IloraTeacher(config, data)


@pytest.fixture(scope="module")
def trained_of(folder_of, make_config, demo_data, teacher_roots):
    """name -> (untrained logits, trained teacher, what `prepare` said), each made once."""
    made = {}

    def make(name: str):
        if name not in made:
            teacher = teacher_of(folder_of(name), make_config, demo_data)
            teacher.open()
            before = logits(teacher, demo_data.splits["test"][:6])
            made[name] = before, teacher, teacher.prepare(None)
        return made[name]

    return make


def logits(teacher: IloraTeacher, ids: np.ndarray) -> torch.Tensor:
    """What the LLM says behind the prompts, or their states where it says nothing."""
    histories = teacher.data.histories(ids)
    batch = collate([teacher.builder.build(h) for h in histories])
    model = teacher.model.eval()
    with torch.no_grad(), model.gates.use(model.gate(teacher.encoder.h_seq(histories))):
        read = model.readout(model.states(batch), batch)
    return read if model.bidirectional else token_logits(model.llm, read)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_saves_and_reads_back(name, trained_of, folder_of, make_config, demo_data):
    family, ids = FAMILIES[name], demo_data.splits["test"][:6]
    before, teacher, report = trained_of(name)
    assert len(teacher.model.adapted) == 2 * len(family.linears)
    assert report["steps"] == 2 and not report["reused"]
    after = logits(teacher, ids)
    assert (after - before).abs().max() > 1e-4
    again = teacher_of(folder_of(name), make_config, demo_data)
    assert again.prepare(None)["reused"]
    assert torch.equal(logits(again, ids), after)
    a, b = teacher.rank("test", ids, 10), again.rank("test", ids, 10)
    a.check(demo_data.n_items, teacher.score_kind, "test")
    np.testing.assert_array_equal(a.rankings, b.rankings)
    np.testing.assert_array_equal(a.scores, b.scores)
    manifest = load_manifest(model_dir(demo_data.name, "teacher", teacher.fingerprint), {}, "")
    assert manifest["llm"]["model_type"] == name


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_are_the_linears_of_the_blocks(name, folder_of):
    llm = load_llm(compose_teacher("teacher/llm=local", f"teacher.llm.path={folder_of(name)}").llm)
    assert set(find_targets(llm.model)) == FAMILIES[name].linears
    assert llm.bidirectional == (name == "bert") and llm.context == 256
    assert any(isinstance(m, Conv1D) for m in llm.model.modules()) == (name == "gpt2")
    assert not any(p.requires_grad for p in llm.model.parameters())
    # the base has no dropout of its own, whatever its configuration says
    llm.model.train()
    x = torch.arange(12).view(1, -1)
    with torch.no_grad():
        assert torch.equal(llm.model(input_ids=x)[0], llm.model(input_ids=x)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gate_weighs_each_user_of_a_batch(name, trained_of, demo_data):
    """A user's states in a batch are its own alone, and those of a LoRA made of its expert alone."""
    _, teacher, _ = trained_of(name)
    model, builder = teacher.model.eval(), teacher.builder
    histories = demo_data.histories(demo_data.splits["test"][:4])
    gate = torch.eye(4)
    with torch.no_grad():
        together = collate([builder.build(h) for h in histories])
        with model.gates.use(gate):
            states = model.readout(model.states(together), together)
        for row, history in enumerate(histories):
            alone = collate([builder.build(history)])
            with model.gates.use(gate[row : row + 1]):
                expected = model.readout(model.states(alone), alone)[0]
            torch.testing.assert_close(states[row], expected, atol=1e-5, rtol=1e-5)
            # The oracle: expert `row` only, four times as strong, as plain LoRA under the uniform gate.
            saved = {n: p.clone() for n, p in model.llm.named_parameters() if "lora_B" in n}
            for n, p in model.llm.named_parameters():
                if "lora_B" in n:
                    p.zero_()
                    p[:, 2 * row : 2 * row + 2] = 4 * saved[n][:, 2 * row : 2 * row + 2]
            with model.gates.uniform():
                plain = model.readout(model.states(alone), alone)[0]
            for n, p in model.llm.named_parameters():
                if "lora_B" in n:
                    p.copy_(saved[n])
            torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_titles_behind_a_shared_prefix(name, trained_of, demo_data):
    """Rotary, learned and OPT's shifted positions: the tree's scores are those of whole texts."""
    _, teacher, _ = trained_of(name)
    model, builder = teacher.model.eval(), teacher.builder
    histories = demo_data.histories(demo_data.splits["test"][:3])
    histories[0, :-1] = 0  # prompts of different lengths
    prompts = [builder.build(h) for h in histories]
    titles = builder.answers
    answers = [[titles[i] for i in range(1, 9)] for _ in prompts]
    gate = model.gate(teacher.encoder.h_seq(histories)).detach()
    with torch.no_grad():
        with model.gates.use(gate):
            prefix = SharedPrefix(model, collate(prompts), True)
            found = tree_scores(prefix, [TitleTree.of(a) for a in answers])
        expected = naive_scores(model, prompts, answers, gate, True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(
    name, folder_of, make_config, demo_data, teacher_roots
):
    found = []
    for checkpointing in ("false", "true"):
        teacher = teacher_of(
            folder_of(name), make_config, demo_data, f"teacher.llm.gradient_checkpointing={checkpointing}"
        )
        teacher.open()
        model = teacher.model.train()
        torch.manual_seed(0)
        for n, p in model.llm.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.1)
        histories = demo_data.histories(demo_data.splits["train"][:4])
        batch = collate([teacher.builder.build(h) for h in histories])
        with model.gates.use(model.gate(teacher.encoder.h_seq(histories))):
            model.readout(model.states(batch), batch).pow(2).mean().backward()
        parts = ("lora", "gate", "projector")
        found.append([p.grad for part in parts for p in model.parts()[part]])
    assert all(g is not None and g.any() for g in found[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_a_bidirectional_llm_neither_writes_nor_reranks(trained_of, folder_of, make_config, demo_data):
    teacher = teacher_of(folder_of("bert"), make_config, demo_data, "teacher.objective.lm=0.5")
    with pytest.raises(UserError, match=r"objective.lm=0.5 with a bidirectional LLM; expected 0"):
        teacher.prepare(None)
    _, teacher, _ = trained_of("bert")
    context = Context(teacher.model, teacher.source, teacher.config.export, True, 1)
    with pytest.raises(UserError, match="ranking=rerank with a bidirectional LLM; expected hidden"):
        RerankRanker(context)


@pytest.mark.parametrize("name", WITHOUT_TREES)
def test_an_llm_that_reads_no_trees_says_so_and_ranks_without_them(
    name, folder_of, make_config, demo_data, teacher_roots
):
    with pytest.raises(UserError, match="has no teacher.llm.attention=sdpa; expected eager"):
        teacher_of(folder_of(name), make_config, demo_data).prepare(None)
    teacher = teacher_of(
        folder_of(name), make_config, demo_data, "teacher.llm.attention=eager", "teacher.objective.lm=0"
    )
    teacher.prepare(None)
    context = Context(teacher.model, teacher.source, teacher.config.export, True, 1)
    with pytest.raises(UserError, match=rf"rerank: the LLM \({name}\) .* tree of titles .*; expected hidden"):
        RerankRanker(context)
    ids = demo_data.splits["test"][:4]
    teacher.rank("test", ids, 10).check(demo_data.n_items, teacher.score_kind, "test")


def test_a_head_that_is_not_read_as_the_llm_reads_it_is_refused(trained_of, monkeypatch):
    _, teacher, _ = trained_of("llama")
    check_reading(teacher.model)
    monkeypatch.setattr(teacher.model.llm.get_base_model().config, "logit_scale", 2.0, raising=False)
    with pytest.raises(UserError, match="own logits and those of its parts differ by"):
        check_reading(teacher.model)


def test_targets_by_name_and_an_unknown_one(folder_of):
    def adapted(*targets: str) -> set[str]:
        config = compose_teacher(
            "teacher/llm=local",
            f"teacher.llm.path={folder_of('gpt_neox')}",
            f"teacher.lora.targets=[{','.join(targets)}]",
        )
        model = add_lora(load_llm(config.llm).model, config.lora)
        return {n.split(".lora_A")[0].rsplit(".", 1)[1] for n, _ in model.named_parameters() if "lora_A" in n}

    assert adapted("query_key_value") == {"query_key_value"}
    assert adapted("query_key_value", "mlp.dense_h_to_4h") == {"query_key_value", "dense_h_to_4h"}
    with pytest.raises(
        UserError, match=r"no linear 'q_proj'; expected some of attention.dense, .*lora.targets"
    ):
        adapted("q_proj")
