"""Chat models: the frame that a tokenizer's chat template puts around a user's message (`teacher.prompt.chat`).

The whole prompt is one user message, the answer is the beginning of the assistant's. Special tokens are the template's
business, the begin token among them: none is added to its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGE = "PLACE-OF-THE-MESSAGE"  # survives templates that trim a message


@dataclass(frozen=True)
class ChatFrame:
    """Text before and after the message; what follows `after` is the answer."""

    before: str
    after: str


def chat_frame(tokenizer: PreTrainedTokenizerBase, mode: str) -> ChatFrame | None:
    """The frame of this tokenizer's template; None where prompts are plain text.

    Args:
        mode: `auto` (a frame where there is a template), `always` or `never`.

    Raises:
        UserError: `always` without a template, or a template that cannot frame one message.
    """
    if mode == "never" or (mode == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise UserError(
            "teacher.prompt.chat=always with a tokenizer without chat template",
            "auto or never",
            "teacher.prompt.chat",
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}],
            tokenize=False,
            add_generation_prompt=True,
            date_string="01 Jan 2025",  # Llama 3 writes today's date otherwise, and prompts would change by the day
        )
    except Exception as e:  # jinja's errors, and what a template raises itself
        raise UserError(
            f"the tokenizer's chat template fails on one user message: {type(e).__name__}: {str(e)[:200]}",
            "one that takes it, or plain prompts: never",
            "teacher.prompt.chat",
        ) from e
    if text.count(_MESSAGE) != 1:
        raise UserError(
            f"the tokenizer's chat template shows a message {text.count(_MESSAGE)} times",
            "once, or plain prompts: never",
            "teacher.prompt.chat",
        )
    return ChatFrame(*text.split(_MESSAGE))
