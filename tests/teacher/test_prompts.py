"""Prompts as ids: placeholders, candidates, truncation, padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import ConfigError, UserError
from src.teacher.prompts import IGNORE, PLACEHOLDER, Example, PromptBuilder, collate
from src.teacher.tiny_llm import train_tokenizer

TITLES = [
    "",
    "The Red Comet",
    "Red Comet II",
    "Quiet Harbor",
    "Pale Lantern (1995)",
    "Ünïcode — 星",
    "Storm",
    "Storm",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" " + t for t in TITLES[1:]], 400, 256)


@pytest.fixture(scope="module")
def prompt(make_config):
    return make_config("teacher.prompt.candidates=4").prompt


@pytest.fixture(scope="module")
def builder(prompt, tokenizer):
    return PromptBuilder(prompt, tokenizer, TITLES, 256, seed=3)


def text(builder: PromptBuilder, ids: np.ndarray) -> str:
    shown = [i for i in ids.tolist() if i != PLACEHOLDER]
    return builder.tokens.tokenizer.decode(shown)


def test_a_prompt_reads_as_its_template_says(builder):
    history = np.array([0, 0, 3, 1])
    e = builder.build(history, candidates=np.array([2, 4, 5, 6]), answer=4)
    assert text(builder, e.ids[: e.prefix]) == (
        "<s>A customer chose, oldest first: Quiet Harbor, The Red Comet. Next comes:"
    )
    assert text(builder, e.ids[e.prefix : e.answer]) == (
        "\nPick exactly one of these: Red Comet II, Pale Lantern (1995), Ünïcode — 星, Storm.\nPicked:"
    )
    assert text(builder, e.ids[e.answer :]) == " Pale Lantern (1995)\n</s>"
    assert e.items.tolist() == [3, 1, 2, 4, 5, 6]  # one placeholder behind each title, padding has none
    assert (e.ids == PLACEHOLDER).sum() == 6


def test_the_prefix_does_not_depend_on_what_follows(builder):
    history = np.array([3, 1])
    alone, whole = builder.build(history), builder.build(history, candidates=np.array([2, 4]), answer=4)
    assert alone.prefix == len(alone.ids) == alone.answer == whole.prefix
    np.testing.assert_array_equal(alone.ids, whole.ids[: whole.prefix])


def test_wordings_are_drawn_by_seed_and_evaluation_is_fixed(builder):
    drawn = {text(builder, builder.build(np.array([1]), builder.wording(s, 0)).ids) for s in range(40)}
    assert len(drawn) == 3
    assert all(builder.wording(s, 1) is builder.wording(s, 1) for s in range(9))
    assert any(builder.wording(s, 0) is not builder.wording(s, 1) for s in range(9))


@given(sample=st.integers(0, 10_000), target=st.integers(1, 7), draw=st.integers(0, 3))
def test_candidates_hold_the_target_once_and_nothing_of_the_history(builder, sample, target, draw):
    history = np.array([0, 0, 3]) if target != 3 else np.array([0, 0, 1])
    shown = builder.candidates(sample, history, target, 4, draw)
    assert len(set(shown.tolist())) == 4
    assert target in shown
    assert not set(shown.tolist()) & set(history.tolist())
    assert len({TITLES[i] for i in shown}) == 4  # items 6 and 7 share a title
    np.testing.assert_array_equal(shown, builder.candidates(sample, history, target, 4, draw))


def test_candidates_are_drawn_uniformly(builder):
    counts = np.zeros(8)
    for sample in range(3000):
        counts[builder.candidates(sample, np.array([1]), 2, 3)] += 1
    assert counts[2] == 3000
    # Two of the items 3, 4, 5 and "Storm" (6 or 7): 1/5 + 2/5 * 1/4 + 2/5 * 1/3 for item 3, 2/5 + 3/5 * 1/2 for Storm.
    assert np.abs(counts[[3, 4, 5]] / 3000 - 13 / 30).max() < 0.04
    assert abs((counts[6] + counts[7]) / 3000 - 7 / 10) < 0.04
    assert abs(counts[6] - counts[7]) / 3000 < 0.06


def test_the_oldest_items_go_when_the_context_is_short(prompt, tokenizer, builder):
    history = np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    shown = np.array([2, 4, 5, 6])
    whole = builder.build(history, candidates=shown, answer=5)
    short = PromptBuilder(prompt, tokenizer, TITLES, len(whole.ids) - 4, seed=3)
    cut = short.build(history, candidates=shown, answer=5)
    assert len(cut.ids) <= short.context
    kept = len(cut.items) - 4
    assert 1 <= kept < 10
    assert cut.items[:kept].tolist() == history[-kept:].tolist()
    np.testing.assert_array_equal(cut.ids[cut.prefix :], whole.ids[whole.prefix :])


def test_padding_keeps_every_example(builder):
    examples = [builder.build(np.array(h), answer=2) for h in ([1], [1, 3, 4], [0, 5])]
    batch = collate(examples)
    assert batch.mask.sum(1).tolist() == [len(e.ids) for e in examples]
    for row, e in enumerate(examples):
        real = batch.mask[row]
        assert bool(real[0])
        expected = np.where(e.ids == PLACEHOLDER, 0, e.ids)
        np.testing.assert_array_equal(batch.ids[row][real].numpy(), expected)
        assert batch.items[row][batch.items[row] > 0].tolist() == e.items.tolist()
        assert batch.ids[row, batch.readout[row]] == e.ids[e.prefix - 1]
        labels = batch.labels[row]
        assert labels[labels != IGNORE].tolist() == builder.answers[2].tolist()
        torch.testing.assert_close(labels[labels != IGNORE], batch.ids[row][labels != IGNORE])


def test_placeholders_must_match_items():
    ids = np.array([5, PLACEHOLDER, 6, PLACEHOLDER])
    with pytest.raises(UserError, match="2 placeholders and 1 items"):
        collate([Example(ids, np.array([3]), 4, 4)])
    with pytest.raises(UserError, match="not padding"):
        collate([Example(ids, np.array([3, 0]), 4, 4)])


def test_unusable_titles_and_candidates_are_refused(prompt, tokenizer):
    with pytest.raises(UserError, match="title of item 2 is empty"):
        PromptBuilder(prompt, tokenizer, ["", "A", " ", "B", "C", "D"], 256, 0)
    with pytest.raises(UserError, match=r"longest title: item 2.*at most 200"):
        PromptBuilder(prompt, tokenizer, ["", "A", "x y " * 300, "B", "C"], 200, 0)
    with pytest.raises(UserError, match="4 candidates from 3 titles"):
        PromptBuilder(prompt, tokenizer, ["", "A", "B", "C", "C"], 256, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.lora.rank=9", "rank=9 and experts=4, expected rank divisible by experts"),
        ("teacher.prompt.candidates=1", "found 1, expected 0 or at least 2"),
        ('teacher.prompt.entry="{item}"', "expected {title} once"),
        ("teacher.prompt.evaluation.prefix=hello", "found 0 times {history}, expected once"),
        ("teacher.objective={item:0,lm:0}", "item, lm: found 0 and 0, expected a positive weight"),
        ("teacher.llm.kind=local", "expected a folder"),
        ("+teacher.loar=3", "unknown key"),
    ],
)
def test_contradictions_are_problems_of_the_configuration(make_config, override, message):
    with pytest.raises(ConfigError) as e:
        make_config(override)
    assert message in str(e.value)


def test_text_pieces_join_as_the_tokenizer_would_write_them(builder, prompt, tokenizer):
    """A title inside a prompt has the ids that it has in running text."""
    joined = tokenizer("is: Quiet Harbor", add_special_tokens=False)["input_ids"]
    assert joined[-len(builder.tokens.of(" Quiet Harbor")) :] == builder.tokens.of(" Quiet Harbor")
    plain = PromptBuilder(replace(prompt, end=""), tokenizer, TITLES, 256, 3)
    assert text(plain, plain.answers[3]) == " Quiet Harbor</s>"
