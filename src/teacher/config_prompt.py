"""Settings of the prompts (`conf/teacher/prompt/*.yaml`)."""

from __future__ import annotations

from src.core.config import config_group, setting


@config_group
class Template:
    """One wording: `prefix` holds {history}; `choice` holds {candidates} and is used when there are any."""

    prefix: str = setting("instruction, {history}, and the cue that asks for the next item")
    choice: str = setting("text between prefix and answer that lists {candidates}")

    def problems(self) -> list[str]:
        return [
            f"{name}: found {text.count(slot)} times {slot}, expected once"
            for name, text, slot in (
                ("prefix", self.prefix, "{history}"),
                ("choice", self.choice, "{candidates}"),
            )
            if text.count(slot) != 1
        ]


@config_group
class PromptConfig:
    """`conf/teacher/prompt/*.yaml`. The prompt is prefix, then optionally a candidate list, then the answer."""

    mode: str = setting(
        "placeholders carry projected SASRec vectors (hybrid) or a neutral one (text)",
        choices=("hybrid", "text"),
    )
    chat: str = setting(
        "the tokenizer's chat template around the prompt: where it has one (auto), always or never",
        choices=("auto", "always", "never"),
    )
    candidates: int = setting("candidates listed before the answer, the target included; 0: no list", ge=0)
    entry: str = setting("how an item of a list is written: {title} and, last, {item} for the placeholder")
    separator: str = setting("text between two entries")
    item: str = setting("text whose last hidden state represents an item: {title} and, last, {item}")
    end: str = setting("what ends the answer, besides the tokenizer's end token")
    title_tokens: int | None = setting(
        "longer titles are cut to so many tokens, everywhere; null: as they are", ge=1
    )
    train: tuple[Template, ...] = setting("wordings for training, one drawn per sample")
    evaluation: Template = setting("the wording of validation, test and export")

    def problems(self) -> list[str]:
        out = [
            f"prompt.{name}: found {text!r}, expected {{title}} once and {{item}} at its end"
            for name, text in (("entry", self.entry), ("item", self.item))
            if text.count("{title}") != 1 or text.count("{item}") != 1 or not text.endswith("{item}")
        ]
        if self.candidates == 1:
            out.append("prompt.candidates: found 1, expected 0 or at least 2")
        if not self.train:
            out.append("prompt.train: found no wording, expected at least one")
        return out
