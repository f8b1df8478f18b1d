"""What the embedded LLM reads in pre-training."""

from __future__ import annotations

import shutil
from dataclasses import replace

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
