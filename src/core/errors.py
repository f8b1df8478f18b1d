"""Errors that a person can act on, and the two ways a run ends early."""

from __future__ import annotations

_VERBS = ("delete", "export", "nothing", "run", "train")


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
        super().__init__(" ".join("; ".join(parts).split()))


class ConfigError(UserError):
    """One or more settings are wrong; all of them are listed at once."""

    def __init__(self, problems: list[str]):
        super().__init__("configuration: " + " | ".join(problems))
        self.problems = problems


class Interrupted(Exception):
    """SIGINT or SIGTERM was seen; the loop wrote its checkpoint and stopped.

    Args:
        signum: the signal's number; the process exits with 128 + signum.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
