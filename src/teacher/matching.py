"""Which candidate a generated text names."""

from __future__ import annotations

from collections.abc import Sequence

from src.core.candidates import normal_title


def answer_line(text: str) -> str:
    """The first line of a generated text, by `normal_title`."""
    return normal_title(text.split("\n", 1)[0])


def match_title(text: str, titles: Sequence[str]) -> int | None:
    """Index of the one title that `text` names; None where it names none, or more than one.

    A text that equals a title names it. Otherwise every title that occurs in it counts, unless it overlaps a longer
    one that occurs. (The official code counts all of them, so that "Alien" makes the right answer "Aliens" invalid.)

    Args:
        titles: all different by `normal_title`; an empty one never counts.
    """
    line = answer_line(text)
    names = [normal_title(t) for t in titles]
    if line and line in names:
        return names.index(line)
    claimed: list[tuple[int, int]] = []  # spans of longer titles
    named: set[int] = set()
    for length in sorted({len(n) for n in names if n}, reverse=True):
        spans = []
        for index, name in enumerate(names):
            if len(name) != length:
                continue
            for start in _places(line, name):
                if all(start + length <= a or b <= start for a, b in claimed):
                    spans.append((start, start + length))
                    named.add(index)
        claimed += spans
    return named.pop() if len(named) == 1 else None


def _places(line: str, name: str) -> list[int]:
    """Where `name` begins in `line`."""
    out, at = [], line.find(name)
    while at >= 0:
        out.append(at)
        at = line.find(name, at + 1)
    return out
