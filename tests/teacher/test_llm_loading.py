"""The LLM that was named is the LLM that is used: GGUF, shards, half precision, adapters, other tokenizers."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from src.core.errors import UserError
from src.teacher.config import model_fingerprint
from src.teacher.llm_files import files_hash
from src.teacher.llm_loading import check_llm, load_llm
from src.teacher.prompt_tokens import PromptTokens
from tests.teacher.conftest import compose_teacher
from tests.teacher.llm_folders import TEXTS, edit_json, edit_tensors, write_gguf, write_llama

IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def local():
    return compose_teacher("teacher/llm=local", "teacher.llm.path=/x").llm


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits[0]


def test_a_gguf_file_is_the_model_it_was_made_from(folder, local, tmp_path):
    """Oracle: the Hugging Face folder that the file was written from."""
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    config = compose_teacher("teacher/llm=gguf", f"teacher.llm.path={file}").llm
    check_llm(config, "auto")
    loaded, original = load_llm(config), load_llm(replace(local, path=str(folder)))
    torch.testing.assert_close(logits(loaded.model), logits(original.model), atol=1e-5, rtol=1e-5)
    assert loaded.model.float() is loaded.model and not getattr(loaded.model, "is_quantized", False)
    text = " Quiet Harbor, The Red Comet"
    a, b = (m.tokenizer(text, add_special_tokens=False)["input_ids"] for m in (loaded, original))
    assert a == b and loaded.tokenizer.eos_token_id == original.tokenizer.eos_token_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shards_and_half_precision(folder, local, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = replace(local, path=str(tmp_path), dtype=dtype)
    check_llm(config, "auto")
    loaded = load_llm(config).model
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}
    for (name, a), (_, b) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_an_adapter_is_merged_where_a_key_says_so(folder, local, tmp_path):
    """Oracle: peft's own model of base and adapter."""
    copy = write_llama(tmp_path / "adapted")
    base = AutoModelForCausalLM.from_pretrained(copy)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=8))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(copy)
    config = replace(local, path=str(copy), merge_adapter=True)
    check_llm(config, "auto")
    merged = load_llm(config).model
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), logits(adapted.eval()), atol=1e-5, rtol=1e-4)
    plain = logits(load_llm(replace(local, path=str(folder))).model)
    assert (logits(merged) - plain).abs().max() > 0.01


def test_a_sentencepiece_model_alone_is_a_tokenizer(local, tmp_path):
    folder = write_llama(tmp_path / "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (tmp_path / "text").write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=90,
        model_type="bpe",
        minloglevel=2,
    )
    config = replace(local, path=str(folder))
    check_llm(config, "auto")
    tokenizer = load_llm(config).tokenizer
    text = "Quiet Harbor </s> The Red Comet"
    ids = PromptTokens(tokenizer).of(" " + text)
    assert not set(ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert tokenizer.decode(ids).strip().startswith("Quiet Harbor")


def test_a_typo_is_found_in_seconds_and_before_anything_is_trained(
    folder, make_config, demo_data, roots, monkeypatch
):
    from src.teacher.ilora_teacher import IloraTeacher

    broken = write_llama(roots / "broken")
    edit_tensors(broken, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    config = make_config("teacher/llm=local", f"teacher.llm.path={broken}")
    with pytest.raises(UserError, match="lm_head.weight"):
        IloraTeacher(config, demo_data).prepare(None)
    assert not list((roots / "data").rglob("*"))  # no encoder, no lock, nothing
    started = time.monotonic()
    with pytest.raises(
        UserError, match="/models/no-such-llm holds no config.json: there is no such folder.*teacher.llm.path"
    ):
        check_llm(replace(config.llm, path="/models/no-such-llm"), "auto")
    assert time.monotonic() - started < 1.0


def test_other_weights_at_the_same_path_are_another_model(local, make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("src.teacher.llm_files._REMEMBERED", 1)  # as large files
    folder = write_llama(tmp_path / "llm")
    config = make_config("teacher/llm=local", f"teacher.llm.path={folder}")
    before = model_fingerprint(config, "d")
    assert files_hash(folder, remember=True) == files_hash(folder)  # from memory
    stat = (folder / "model.safetensors").stat()
    edit_tensors(folder, lambda t: t | {"model.norm.weight": t["model.norm.weight"] * 2})
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # Written anew with the old time and size: the inode differs, or else the time of the change would have to.
    if (folder / "model.safetensors").stat().st_ino != stat.st_ino:
        assert model_fingerprint(config, "d") != before
    os.utime(folder / "model.safetensors")
    changed = model_fingerprint(config, "d")
    assert changed != before
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert model_fingerprint(config, "d") not in (before, changed)
    moved = folder.rename(tmp_path / "moved")
    again = make_config("teacher/llm=local", f"teacher.llm.path={moved}")
    assert model_fingerprint(again, "d") == model_fingerprint(config, "d") if folder.exists() else True


def test_reports_of_transformers_go_to_the_log(folder, local, tmp_path, caplog, capfd):
    broken = write_llama(tmp_path / "broken")
    edit_tensors(broken, lambda t: t | {"extra.weight": torch.zeros(2)})
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="first extra.weight"):
        load_llm(replace(local, path=str(broken)))
    assert any("extra.weight" in r.getMessage() and r.name.startswith("transformers") for r in caplog.records)
    assert "extra.weight" not in capfd.readouterr().err
