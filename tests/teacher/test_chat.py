"""Prompts inside a tokenizer's chat template: one frame, one begin token, nothing of it ever truncated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.core.errors import ConfigError, UserError
from src.teacher.config import model_fingerprint
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.llm_loading import load_llm
from src.teacher.prompts import PLACEHOLDER, PromptBuilder, collate
from src.teacher.tiny_llm import train_tokenizer

TITLES = ["", "The Red Comet", "Red Comet II", "Quiet Harbor", "Pale Lantern (1995)", "Storm", "Dune"]
TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
TEMPLATES = {
    "own begin token": "{{ bos_token }}" + TURNS + ASSISTANT,
    "none": TURNS + ASSISTANT,
    "turns": "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}",
    "inline": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
}


def with_template(template: str | None):
    tokenizer = train_tokenizer([" " + t for t in TITLES[1:]], 400, 512)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def prompt(make_config):
    return make_config("teacher.prompt.candidates=4").prompt


def shown(builder: PromptBuilder, ids: np.ndarray) -> str:
    return builder.tokens.tokenizer.decode([i for i in ids.tolist() if i != PLACEHOLDER])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_the_users_message(prompt, name):
    """Oracle: the tokenizer's own rendering of the same text as a message, and the title behind it."""
    tokenizer = with_template(TEMPLATES[name])
    framed = PromptBuilder(prompt, tokenizer, TITLES, 512, 3)
    plain = PromptBuilder(replace(prompt, chat="never"), tokenizer, TITLES, 512, 3)
    for candidates in (None, np.array([2, 4, 5, 6])):
        example = framed.build(np.array([0, 3, 1]), candidates=candidates, answer=4)
        text = shown(plain, plain.build(np.array([0, 3, 1]), candidates=candidates).ids).removeprefix("<s>")
        message = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert shown(framed, example.ids[: example.answer]) == rendered
        space = " " if name == "inline" else ""  # behind a new line the title stands at its start
        # Oracle: the template's own rendering of the assistant's turn
        said = [*message, {"role": "assistant", "content": "Pale Lantern (1995)"}]
        end = tokenizer.apply_chat_template(said, tokenize=False).rpartition("(1995)")[2].strip()
        assert end == ("<end>" if name == "turns" else "</s>")
        assert shown(framed, example.ids[example.answer :]) == f"{space}Pale Lantern (1995){end}"
        assert framed.end_ids == framed.tokens.of(end, control=True)
        assert (example.ids == tokenizer.bos_token_id).sum() == (name != "none")
        assert (example.ids == PLACEHOLDER).sum() == len(example.items)
        # without placeholders the frame's ids are those of the whole rendered text
        head = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert example.ids[:6].tolist() == head[:6]


def test_the_read_out_is_the_cue_with_and_without_a_list(prompt):
    builder = PromptBuilder(prompt, with_template(TEMPLATES["own begin token"]), TITLES, 512, 3)
    alone = builder.build(np.array([3, 1]))
    listed = builder.build(np.array([3, 1]), candidates=np.array([2, 4, 5, 6]), answer=4)
    assert alone.prefix == listed.prefix < alone.answer == len(alone.ids)
    np.testing.assert_array_equal(alone.ids[: alone.prefix], listed.ids[: listed.prefix])
    assert collate([alone]).readout.item() == alone.prefix - 1
    assert shown(builder, alone.ids[alone.prefix :]) == "</s>\n<|assistant|>\n"


def test_the_oldest_items_go_and_the_frame_stays(prompt):
    tokenizer, history, four = (
        with_template(TEMPLATES["own begin token"]),
        np.array([1, 2, 3, 4] * 3),
        [2, 4, 5, 6],
    )
    whole = PromptBuilder(prompt, tokenizer, TITLES, 512, 3).build(history, None, np.array(four), 5)
    short = PromptBuilder(prompt, tokenizer, TITLES, len(whole.ids) - 4, 3)
    cut = short.build(history, None, np.array(four), 5)
    assert len(cut.ids) <= short.context and len(cut.items) < len(whole.items)
    assert cut.items[:-4].tolist() == history[-(len(cut.items) - 4) :].tolist()
    np.testing.assert_array_equal(cut.ids[cut.prefix :], whole.ids[whole.prefix :])
    np.testing.assert_array_equal(cut.ids[:6], whole.ids[:6])
    with pytest.raises(UserError, match="a prompt with one history item needs up to"):
        PromptBuilder(prompt, tokenizer, TITLES, 60, 3)


def test_without_a_template_nothing_changes(prompt):
    tokenizer = with_template(None)
    auto, never = (
        PromptBuilder(replace(prompt, chat=c), tokenizer, TITLES, 512, 3) for c in ("auto", "never")
    )
    for how in ({}, {"candidates": np.array([2, 4, 5, 6])}, {"answer": 4}):
        np.testing.assert_array_equal(
            auto.build(np.array([3, 1]), **how).ids, never.build(np.array([3, 1]), **how).ids
        )
    with pytest.raises(
        UserError, match="chat=always with a tokenizer without chat template.*teacher.prompt.chat"
    ):
        PromptBuilder(replace(prompt, chat="always"), tokenizer, TITLES, 512, 3)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only system') }}", "chat template fails on one user message: .*only system"),
        ("{{ messages[0].role }}", "shows a message 0 times"),
        ("{{ messages[0].content }} or {{ messages[0].content }}", "shows a message 2 times"),
    ],
)
def test_templates_that_do_not_fit_are_refused(prompt, template, message):
    with pytest.raises(UserError, match=message) as e:
        PromptBuilder(prompt, with_template(template), TITLES, 512, 3)
    assert "\n" not in str(e.value)


def test_a_template_without_assistants_ends_answers_as_the_prompt_says(prompt):
    only_user = (
        "{{ messages[0].content }}{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    )
    builder = PromptBuilder(prompt, with_template(only_user), TITLES, 512, 3)
    assert builder.chat.end == "" and shown(builder, builder.answers[5]) == " Storm\n</s>"


def test_the_key(make_config):
    assert make_config().prompt.chat == "auto"
    found = {
        model_fingerprint(make_config(f"teacher.prompt.chat={c}"), "d") for c in ("auto", "always", "never")
    }
    assert len(found) == 3
    with pytest.raises(ConfigError, match="teacher.prompt.chat: found 'maybe'"):
        make_config("teacher.prompt.chat=maybe")


def test_a_chat_model_trains_and_ranks(make_config, demo_data, teacher_roots, tmp_path):
    from tests.teacher.test_families import FAMILIES, write_family

    folder = write_family(FAMILIES["qwen2"], tmp_path / "chat", demo_data)
    config = make_config("teacher/llm=local", f"teacher.llm.path={folder}")
    tokenizer = load_llm(config.llm).tokenizer
    tokenizer.chat_template = TEMPLATES["none"]
    tokenizer.save_pretrained(folder)
    overrides = (
        *("teacher.train.samples=32", "teacher.train.eval_samples=8", "teacher.objective.lm=0.5"),
        *("teacher.export.ranking=trie", "teacher.export.top_k=5", "teacher.export.beams=5"),
    )
    config = make_config("teacher/llm=local", f"teacher.llm.path={folder}", *overrides)
    teacher = IloraTeacher(config, demo_data)
    teacher.prepare(None)
    assert teacher.llm_identity["chat"] == ["<|user|>\n", "</s>\n<|assistant|>\n", "</s>"]
    ids = demo_data.splits["test"][:4]
    teacher.rank("test", ids, 5).check(demo_data.n_items, teacher.score_kind, "test")
