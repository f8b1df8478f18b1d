"""What the embedded LLM reads in pre-training."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.teacher.config import llm_fingerprint
from src.teacher.prompts import PromptBuilder
from src.teacher.tiny_llm import _texts, tiny_llm_folder, train_tokenizer


@pytest.mark.parametrize("count", [0, 5])
def test_lists_are_read_and_not_learned(make_config, demo_data, count):
    tokenizer = train_tokenizer([" " + t for t in demo_data.titles[1:]], 400, 512)
    config = replace(make_config().prompt, candidates=count)
    builder = PromptBuilder(config, tokenizer, demo_data.titles, 512, 3)
    ids = demo_data.splits["train"][:6]
    histories, targets = demo_data.histories(ids), demo_data.targets(ids).tolist()
    texts = _texts(builder, demo_data, ids, 1)
    for sample, history, target, (text, learned) in zip(ids.tolist(), histories, targets, texts, strict=True):
        assert text.min() >= 0, "no placeholders"
        read = tokenizer.decode(text[~learned])
        written = tokenizer.decode(text[learned])
        assert written.endswith(f" {demo_data.titles[target]}\n</s>")
        if not count:
            assert learned.all()
            continue
        shown = builder.candidates(sample, history, target, count, 1)
        assert read.startswith("\n")
        assert ", ".join(demo_data.titles[i] for i in shown) in read
        assert read.rstrip().endswith(":")


def test_the_folder_of_other_settings_is_refused(make_config, demo_data, teacher_roots):
    """A folder that was copied or renamed to the place of other settings: its manifest names its own fingerprint."""
    config = make_config()
    how = (config.prompt, demo_data, config.seed, torch.device("cpu"))
    mine = tiny_llm_folder(config.llm.tiny, *how)
    other = replace(config.llm.tiny, lr=0.0021)
    fingerprint = llm_fingerprint(other, config.prompt, config.seed, demo_data.fingerprint)
    shutil.copytree(mine, mine.with_name(fingerprint))
    with pytest.raises(UserError, match=f"fingerprint is '{mine.name}'; expected '{fingerprint}'; delete "):
        tiny_llm_folder(other, *how)


def test_validation_and_test_rows_are_not_read(make_config, demo_data, tmp_path, monkeypatch):
    """Other targets there, the same model bit for bit: sentences and tokenizer know titles, not who chose them."""
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path / "a"))
    config = make_config()
    how = (config.prompt, demo_data, config.seed, torch.device("cpu"))
    made = tiny_llm_folder(config.llm.tiny, *how)
    held_out = np.concatenate([demo_data.rows(demo_data.splits[s]) for s in ("valid", "test")])
    items = np.array(demo_data.items)
    items[held_out] = items[held_out][::-1]
    other = replace(demo_data, items=items)
    assert (other.targets(demo_data.splits["test"]) != demo_data.targets(demo_data.splits["test"])).any()
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path / "b"))
    again = tiny_llm_folder(config.llm.tiny, config.prompt, other, *how[2:])
    for name in ("model.safetensors", "tokenizer.json"):
        assert (made / name).read_bytes() == (again / name).read_bytes()
