"""Chat models: the frame that a tokenizer's chat template puts around a user's message (`teacher.prompt.chat`).

The whole prompt is one user message, the answer is the beginning of the assistant's. Special tokens are the template's
business, the begin token among them: none is added to its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.core.errors import UserError
from src.core.logging import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGE, _ANSWER = "PLACE-OF-THE-MESSAGE", "PLACE-OF-THE-ANSWER"  # survive templates that trim a message
_DATE = "01 Jan 2025"  # Llama 3 writes today's date otherwise, and prompts would change by the day
log = get_logger(__name__)


@dataclass(frozen=True)
class ChatFrame:
    """Text around the message and behind the answer.

    Attributes:
        before, after: around the message; what follows `after` is the answer.
        end: what ends the assistant's turn; empty where the template says nothing of it.
    """

    before: str
    after: str
    end: str


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
            date_string=_DATE,
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
    return ChatFrame(*text.split(_MESSAGE), _turn_end(tokenizer))


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template puts behind an assistant's message, e.g. `<end_of_turn>` (Gemma) or `<|im_end|>` (Qwen)."""
    turns = [{"role": "user", "content": _MESSAGE}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=_DATE)
    except Exception as e:  # as above; a template without assistants only loses its end
        log.info(
            "the chat template takes no assistant's message (%s): answers end as teacher.prompt.end says", e
        )
        return ""
    return text.rpartition(_ANSWER)[2].strip()
