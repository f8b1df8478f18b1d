"""Folders and files of tiny language models, as users have them, for tests that load or damage them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from src.teacher.tiny_llm import train_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
TEXTS = [
    "The Red Comet",
    "Quiet Harbor",
    "Pale Lantern (1995)",
    "A customer chose, oldest first: Next comes:",
]


def write_llama(folder: Path, **sizes: object) -> Path:
    """A tiny random Llama with an untied head and its tokenizer (vocabulary 320)."""
    tokenizer = train_tokenizer([f" {text}" for text in TEXTS], 320, 256)
    torch.manual_seed(3)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.LlamaConfig(vocab_size=320, **{**SIZES, **sizes}, **ids)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    """Rewrite model.safetensors with what `change` makes of its tensors."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})


def write_gguf(folder: Path, file: Path) -> Path:
    """The Llama in `folder` as llama.cpp's converter writes it (float32)."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q"])
    writer.add_head_count_kv(heads["k"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {t["content"] for t in tokenizer["added_tokens"]}
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if w in special else gguf.TokenType.NORMAL for w in words])
    writer.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_unk_token_id(config["pad_token_id"])
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        **{f"self_attn.{a}_proj": f"attn_{'output' if a == 'o' else a}" for a in "qkvo"},
        **{f"mlp.{a}_proj": f"ffn_{a}" for a in ("gate", "up", "down")},
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names |= {
        f"model.layers.{i}.{a}": f"blk.{i}.{b}"
        for i in range(config["num_hidden_layers"])
        for a, b in parts.items()
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        part = name.removesuffix(".weight")
        for letter, count in heads.items():
            if part.endswith(f"{letter}_proj"):  # llama.cpp pairs neighbouring rows in its rotary embedding
                rows = array.reshape(count, 2, -1, array.shape[1])
                array = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(array.shape))
        writer.add_tensor(f"{names[part]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
