"""What the embedded LLM reads in pre-training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from src.teacher.prompts import PromptBuilder
from src.teacher.tiny_llm import _texts, train_tokenizer


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
