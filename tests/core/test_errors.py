"""Messages of any content are one line of plain characters."""

from __future__ import annotations

import logging

import pytest

from src.core.errors import UserError, printable
from src.core.logging import get_logger, setup_logging

NASTY = "\x1b[2J\x07a\u202eb\x9bc\ud800\u200bd"
PLAIN = r"\x1b[2J\x07a\u202eb\x9bc\ud800\u200bd"


@pytest.mark.parametrize("text", ["Café 東京 – “x” 👍", "two\nlines\tand a tab", "no\u00a0break\u3000space"])
def test_text_of_any_language_stays(text: str) -> None:
    assert printable(text) == text


def test_control_characters_reach_neither_terminal_nor_log(tmp_path, capsys) -> None:
    assert str(UserError(NASTY, NASTY, "a\x1b\nb")) == f"{PLAIN}; expected {PLAIN}; change a\\x1b b"
    setup_logging(tmp_path / "run.log")
    get_logger("x").info("title %s", NASTY)
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("x").exception("failed")
    err = capsys.readouterr().err
    setup_logging(None)
    assert f"title {PLAIN}" in err
    for text in (err, (tmp_path / "run.log").read_text()):
        assert not any(c in text for c in "\x1b\x07\x9b\u202e")
