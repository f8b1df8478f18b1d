"""Errors that a person can act on, and the two ways a run ends early."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_DISK = {
    getattr(errno, f"E{n}")
    for n in ["NOSPC", "DQUOT", "ROFS", "ACCES", "PERM", "IO", "FBIG", "NOTDIR", "EXIST"]
}
_VERBS = ("delete", "export", "nothing", "run", "train", "unset")


_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    """`text` with control characters as escapes: what a raw id, a title or a file name holds moves no terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Input that cannot be used; printed as one line, without a traceback.

    Args:
        found: what was found, with the value ("r=8 and experts=3").
        expected: what would have been right ("r divisible by experts").
        fix: the key or file to change ("teacher.lora.experts"), or what to do ("delete <folder>").
    """

    def __init__(self, found: str, expected: str | None = None, fix: str | None = None):
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix if fix.split()[0] in _VERBS else f"change {fix}")
        # One line whatever the parts carry: messages of libraries often have line breaks.
        super().__init__(printable(" ".join("; ".join(parts).split())))


class ConfigError(UserError):
    """One or more settings are wrong; all of them are listed at once."""

    def __init__(self, problems: list[str]):
        super().__init__("configuration: " + " | ".join(problems))
        self.problems = problems


class DoneAlready(Exception):
    """A completed run has the result already: there is nothing to do.

    Args:
        folder: that run's.
    """

    def __init__(self, folder: Path):
        super().__init__(f"done already: {folder}")
        self.folder = folder


def disk_error(error: BaseException) -> UserError | None:
    """The error of a disk that is full, read-only or failing, in words; None for every other error.

    Native writers (safetensors, torch) wrap the system's error, and its number stands in their text only.
    """
    if isinstance(error, OSError):
        number = error.errno
    else:
        found = re.search(r"os error (\d+)|\[errno (\d+)\]", str(error), re.IGNORECASE)
        number = int(found[1] or found[2]) if found else None
    if number not in _DISK:
        return None
    name = getattr(error, "filename", None) or "a file of the run"
    return UserError(
        f"{os.strerror(number or 0)}: {name}",
        "a disk that takes writes",
        "its space or permissions (ANYO_DATA_ROOT, ANYO_RESULT_ROOT name other places); the same command goes on",
    )


class Interrupted(Exception):
    """A signal was seen; the loop wrote its checkpoint and stopped.

    Args:
        signum: the signal's number; the process exits with 128 + signum.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
