"""Chat models: the frame that a tokenizer's chat template puts around a user's message (`teacher.prompt.chat`).

The whole prompt is one user message, the answer begins the assistant's. Special tokens, the begin token among them,
are the template's business: none is added to its text.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from src.core.errors import UserError
from src.core.logging import get_logger

_MESSAGE, _ANSWER = "PLACE-OF-THE-MESSAGE", "PLACE-OF-THE-ANSWER"  # survive templates that trim a message
_DATE = "01 Jan 2025"  # Llama 3 writes today's date otherwise, and prompts would change by the day
_SECONDS = 5.0  # a template takes milliseconds; one that loops for ever is stopped
_KEY = "teacher.prompt.chat"
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
        UserError: `always` without a template, or a template that fails, does not end, or does not show a message once.
    """
    if mode == "never" or (mode == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise UserError(f"{_KEY}=always with a tokenizer without chat template", "auto or never", _KEY)
    name, place = "the tokenizer's chat template", tokenizer.name_or_path or "memory"
    user = {"role": "user", "content": _MESSAGE}
    try:
        text = _render(tokenizer, [user], add_generation_prompt=True)
    except Exception as e:  # jinja's errors, and what a template raises itself
        found = f"{name} fails on one user message: {type(e).__name__}: {str(e)[:200]} (in {place})"
        raise UserError(found, "one that takes it, or plain prompts: never", _KEY) from e
    if (count := text.count(_MESSAGE)) != 1:
        found = f"{name} shows a message {count} times (in {place})"
        raise UserError(found, "once, or plain prompts: never", _KEY)
    try:
        turns = _render(tokenizer, [user, {"role": "assistant", "content": _ANSWER}])
        # Such as `<end_of_turn>` (Gemma) or `<|im_end|>` (Qwen).
        end = turns.rpartition(_ANSWER)[2].strip()
    except Exception as e:  # as above; a template without assistants only loses its end
        log.info("the chat template takes no assistant's message (%s): teacher.prompt.end ends answers", e)
        end = ""
    before, after = text.split(_MESSAGE)
    return ChatFrame(before, after, end)


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: bool) -> str:
    with _time_limit(_SECONDS):
        return tokenizer.apply_chat_template(turns, tokenize=False, date_string=_DATE, **options)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block of pure Python that takes longer (in the main thread, which gets signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
