"""Signals: the first asks a run to stop at its next step, the second stops it at once.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed SSH session) are treated alike, except that a process started
with `nohup` keeps ignoring SIGHUP. Only the standard library is imported here: an entry point installs the
handlers before anything that takes time to import.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from src.core.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_seen: list[int] = []  # the signals that came within `stop_on_signals`


def end_quietly_on_signals() -> None:
    """Before a run begins: a signal ends the process with one line and 128 + its number, without a traceback."""

    def end(signum: int, _frame: Any) -> None:
        _tell(f"interrupted: {signal.Signals(signum).name}; the same command starts again")
        raise SystemExit(128 + signum)

    for signum in _handled():
        signal.signal(signum, end)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block a signal only sets a mark; loops check it between steps."""
    _seen.clear()

    def mark(signum: int, _frame: Any) -> None:
        _seen.append(signum)
        if len(_seen) > 1:  # the second time the user means it
            raise Interrupted(signum)
        _tell(f"{signal.Signals(signum).name}: stopping at the next step (once more: at once)")

    before = {s: signal.signal(s, mark) for s in _handled()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _seen.clear()


def stop_requested() -> bool:
    return bool(_seen)


def check_stop() -> None:
    """Raise Interrupted if a signal came; loops call this after each step (checkpoint written first)."""
    if _seen:
        raise Interrupted(_seen[0])


def _tell(line: str) -> None:
    """To stderr; not by logging or `sys.stderr`, which the signal may have interrupted in the middle of a write."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{line}\n".encode())


def _handled() -> list[signal.Signals]:
    return [s for s in _SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
