"""Titles are text: no control tokens in prompts, answers and trees; cutting, and titles a tokenizer cannot tell apart."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from src.teacher.candidate_eval import match_title
from src.teacher.prompt_tokens import PromptTokens
from src.teacher.prompts import PromptBuilder
from src.teacher.ranking.tree import TitleTree
from src.teacher.tiny_llm import train_tokenizer

CONTROL = ("<|im_end|>", "</s>", "[HistoryEmb]")
PLAIN = ["The Red Comet", "Quiet Harbor", "Pale Lantern (1995)"]
TITLES = [
    "",
    *PLAIN,
    *(f"End {c} of story" for c in CONTROL),
    CONTROL[0],
    "</s></s>",
    "a<|im_end|>",
    "x [HistoryEmb]",
]
TEXTS = [*TITLES[1:], "A customer chose, oldest first: Next comes:", "[]<>|/()_"]


def byte_level() -> transformers.PreTrainedTokenizerFast:
    return train_tokenizer([" " + t for t in TEXTS], 400, 512)


def word_piece() -> transformers.PreTrainedTokenizerFast:
    letters = sorted({c for t in TEXTS for c in t.lower() if c != " "})
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    return transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(words)})


def unigram() -> transformers.PreTrainedTokenizerFast:
    """As T5, XLM-R, Gemma: a space is a character of its own, and one stands before every text."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<s>"], unk_token="<unk>")
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def sentence_piece_bpe() -> transformers.PreTrainedTokenizerFast:
    """As Llama 2: BPE over text whose spaces are replaced by a normaliser, bytes as a way out."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special[:2], initial_alphabet=["▁"])
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def smollm2() -> transformers.PreTrainedTokenizerBase:
    folder = Path(os.environ.get("ANYO_MODELS", "/nowhere")) / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("no SmolLM2 (environment variable ANYO_MODELS)")
    return transformers.AutoTokenizer.from_pretrained(folder)


FAMILIES = [byte_level, word_piece, unigram, sentence_piece_bpe, smollm2]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def tokenizer(request):
    """With two special tokens and one that is not special, as LLaRA's placeholders."""
    made = request.param()
    made.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]})
    made.add_tokens(["[HistoryEmb]"])
    assert all(len(made(c, add_special_tokens=False)["input_ids"]) <= 2 for c in CONTROL)  # they are tokens
    return made


@pytest.fixture(scope="module")
def prompt(make_config):
    return make_config("teacher.prompt.chat=never", "teacher.prompt.candidates=4").prompt


def test_no_title_becomes_a_control_token(tokenizer, prompt):
    builder = PromptBuilder(prompt, tokenizer, TITLES, 512, 3)
    control = set(tokenizer.convert_tokens_to_ids(CONTROL))
    everything = np.arange(1, len(TITLES))
    for item in everything:
        history = everything[everything != item][:3]
        example = builder.build(history, candidates=everything[:4], answer=int(item))
        ids = example.ids[: len(example.ids) - len(builder.end_ids)].tolist()
        assert not control & set(ids), TITLES[item]
        assert not control & set(builder.item_text(int(item)).ids.tolist())
        answer = builder.answers[item].tolist()
        assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1
        text = tokenizer.decode(answer[: len(answer) - len(builder.end_ids)])
        same = str.lower if "UNK" in (tokenizer.unk_token or "") else str
        assert "".join(text.split()) == "".join(same(TITLES[item]).split())
        assert (
            match_title(tokenizer.decode(answer, skip_special_tokens=True), TITLES) == item
            or same is str.lower
        )
    tree = TitleTree.of(builder.answers[1:])
    assert np.isin(tree.token, [tokenizer.eos_token_id]).sum() == len(
        set(map(tuple, map(tuple, builder.answers[1:])))
    )
    assert not np.isin(tree.token, list(control - {tokenizer.eos_token_id})).any()


def test_other_titles_are_tokenised_as_ever(tokenizer):
    """Oracle: the tokenizer on running text."""
    tokens = PromptTokens(tokenizer)
    for title in PLAIN:
        joined = tokenizer(f"is: {title}", add_special_tokens=False)["input_ids"]
        ids = tokens.of(f" {title}")
        assert tokens.of(f" {title}", control=True) == ids
        if tokenizer.backend_tokenizer.pre_tokenizer is not None:  # else a token may reach over the space
            assert joined[-len(ids) :] == ids


def test_templates_keep_their_control_tokens(tokenizer):
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert control in PromptTokens(tokenizer).of("<|im_end|>\n", first=True, control=True)
    assert control not in PromptTokens(tokenizer).of("<|im_end|>\n", first=True)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_long_titles_are_cut_everywhere_and_it_is_said(tokenizer, prompt, most, caplog):
    titles = [
        "",
        "Storm",
        "The Red Comet and the Pale Lantern of the Quiet Harbor",
        "Dune",
        "Rust",
    ]
    with caplog.at_level(logging.INFO):
        builder = PromptBuilder(replace(prompt, title_tokens=most), tokenizer, titles, 512, 3)
    tokens = builder.tokens
    lengths = [len(tokens.of(" " + t)) for t in builder.titles[1:]]
    assert max(lengths) <= most or any(len(t) == 1 for t in builder.titles[1:])
    assert all(
        full.startswith(shown) and shown for full, shown in zip(titles[1:], builder.titles[1:], strict=True)
    )
    long = titles[2]
    longer = long[: len(builder.titles[2]) + 2].strip()
    assert len(tokens.of(" " + longer)) > most or longer == builder.titles[2]
    end = len(builder.end_ids)
    assert builder.answers[2].tolist()[:-end] == tokens.of(" " + builder.titles[2])
    cut = sum(a != b for a, b in zip(titles, builder.titles, strict=True))
    assert f"title_tokens={most}: {cut} of 4 titles are cut, first item" in caplog.text
    whole = PromptBuilder(replace(prompt, title_tokens=99), tokenizer, titles, 512, 3)
    assert whole.titles == titles


def test_titles_with_the_same_tokens_are_named(prompt, caplog):
    tokenizer = word_piece()  # drops case and accents, knows no other script
    titles = ["", "Amelie", "Amélie", "Storm", "STORM", "Rust 星", "Rust 月", "Dune"]
    PromptBuilder(prompt, tokenizer, titles, 512, 3)
    line = next(r.getMessage() for r in caplog.records if "tokens of another" in r.getMessage())
    # Two titles that differ in case alone are one title to the project.
    assert line == "2 titles have the tokens of another: item 2 ('Amélie') those of item 1 ('Amelie')"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ame\u0301lie", 0),  # decomposed
        ("AMÉLIE", 0),
        ("Ｓｔｏｒｍ", 1),  # full width
        ("Storm\u3000", 1),
        ("the ｽﾄｰﾑ", 2),  # half-width katakana
        ("it is Ａｍｅ\u0301lie.", 0),
    ],
)
def test_forms_of_unicode_match_in_answers(text, expected):
    assert match_title(text, ["Am\u00e9lie", "Storm", "ストーム"]) == expected
